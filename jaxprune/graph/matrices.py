"""The kernel of a layer as matrices, and what these are multiplied with."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune.graph.layers import Layer
from jaxprune.graph.rules import bind


def of_kernel(layer: Layer, kernel: Any) -> Any:
    """Return a kernel as matrices of outputs and inputs.

    Args:
        layer: of `layers.find`.
        kernel: of the shape of its kernel.

    Returns:
        `(groups, outputs, inputs)`: groups are those of a convolution, or the batch axes of
        a matrix product; the inputs of a convolution are its channels and taps.
    """
    order, groups, outputs, inputs = _split(layer)
    return kernel.transpose(order).reshape(groups, outputs, inputs)


def to_kernel(layer: Layer, matrices: Any) -> Any:
    """Undo `of_kernel`.

    Args:
        layer: of `layers.find`.
        matrices: `(groups, outputs, inputs)`.
    """
    order = _split(layer)[0]
    permuted = matrices.reshape([layer.shape[axis] for axis in order])
    return permuted.transpose(np.argsort(order))


def shape(layer: Layer) -> tuple[int, int, int]:
    """Return the shape of `of_kernel`: groups, outputs, inputs."""
    return _split(layer)[1:]


def _split(layer: Layer) -> tuple[tuple[int, ...], int, int, int]:
    """Return the order of axes, and the numbers of groups, outputs and inputs."""
    params, sizes = layer.eqn.params, layer.shape
    if layer.eqn.primitive.name == "dot_general":
        parts = _axes(layer, layer.side, len(sizes))
        groups, outputs, inputs = (
            math.prod(sizes[axis] for axis in part) for part in parts
        )
        return tuple(itertools.chain(*parts)), groups, outputs, inputs
    order = tuple(params["dimension_numbers"].rhs_spec)
    groups, outputs = params["feature_group_count"], sizes[order[0]]
    inputs = math.prod(sizes[axis] for axis in order[1:])
    return order, groups, outputs // groups, inputs


def _axes(layer: Layer, side: int, ndim: int) -> tuple[list[int], list[int], list[int]]:
    """Return the batch, free and contracted axes of an operand of a matrix product."""
    contracted, batch = layer.eqn.params["dimension_numbers"]
    used = (*contracted[side], *batch[side])
    free = [axis for axis in range(ndim) if axis not in used]
    return list(batch[side]), free, list(contracted[side])


def squares(layer: Layer, data: Array) -> Float[Array, "groups inputs"]:
    """Sum the squares of each input of a layer, over everything that it is multiplied at.

    Args:
        layer: of `layers.find`.
        data: the other operand of the product.

    Returns:
        Sums in float32, or float64 for float64 data; of a convolution over the positions
        where the tap is inside the image.
    """
    dtype = jnp.float64 if data.dtype == jnp.float64 else jnp.float32
    squared = jnp.square(jnp.abs(data).astype(dtype))
    if layer.eqn.primitive.name == "dot_general":
        batch, free, contracted = _axes(layer, 1 - layer.side, data.ndim)
        summed = squared.transpose((*batch, *contracted, *free))
        groups = math.prod(data.shape[axis] for axis in batch)
        inputs = math.prod(data.shape[axis] for axis in contracted)
        return summed.reshape(groups, inputs, -1).sum(-1)
    # The gradient of the sum of all outputs of a kernel with one output in each group.
    groups = layer.eqn.params["feature_group_count"]
    sizes = list(layer.shape)
    sizes[layer.eqn.params["dimension_numbers"].rhs_spec[0]] = groups
    narrow = layer._replace(shape=tuple(sizes))
    convolve: Callable[..., Any] = lambda kernel: bind(
        layer.eqn, [squared, kernel], preferred_element_type=dtype
    )[0]
    kernel = jax.ShapeDtypeStruct(narrow.shape, dtype)
    ones = jnp.ones(jax.eval_shape(convolve, kernel).shape, dtype)
    (summed,) = jax.linear_transpose(convolve, kernel)(ones)
    return of_kernel(narrow, summed)[:, 0]


def inputs(layer: Layer, data: Array) -> Float[Array, "groups places inputs"]:
    """Return what each kernel of a layer is multiplied with, row by row.

    Args:
        layer: of `layers.find`.
        data: the other operand of the product.

    Returns:
        A row for each place that the matrix of a group is applied at, such as a token, or
        a position of an image.
    """
    if layer.eqn.primitive.name == "dot_general":
        batch, free, contracted = _axes(layer, 1 - layer.side, data.ndim)
        rows = data.transpose((*batch, *free, *contracted))
        groups, outer, inner = (
            math.prod(data.shape[axis] for axis in axes)
            for axes in (batch, free, contracted)
        )
        return rows.reshape(groups, outer, inner)
    params = layer.eqn.params
    spec, groups = params["dimension_numbers"], params["feature_group_count"]
    patches = jax.lax.conv_general_dilated_patches(
        data,
        [layer.shape[axis] for axis in spec.rhs_spec[2:]],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        spec,
    )
    rows = jnp.moveaxis(patches, spec.out_spec[1], -1)
    rows = rows.reshape(-1, groups, rows.shape[-1] // groups)
    return rows.swapaxes(0, 1)
