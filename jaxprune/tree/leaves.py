"""Leaves by dtype: floating-point ones are weights; keys and counters pass through."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxprune.types import Params, Scores


def is_floating(leaf: Any) -> bool:
    """Return whether a leaf is a floating array: keys, counters and bools are not.

    Args:
        leaf: an array.

    Example:
        >>> is_floating(jnp.ones(2)), is_floating(jax.random.key(0))
        (True, False)
    """
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is an array of `jax.random.key`.

    Args:
        leaf: anything.

    Example:
        >>> is_key(jax.random.key(0)), is_key(jnp.ones(2))
        (True, False)
    """
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def is_on_one_cpu(leaf: Any) -> bool:
    """Return whether NumPy can read an array where it is, without a copy.

    Args:
        leaf: an array of NumPy or JAX. A traced one has no values to read.

    Example:
        >>> is_on_one_cpu(np.ones(2)), jax.jit(is_on_one_cpu)(jnp.ones(2)).item()
        (True, False)
    """
    if isinstance(leaf, np.ndarray | np.generic):
        return True
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return False
    return [device.platform for device in leaf.devices()] == ["cpu"]


def copy(arrays: PyTree) -> PyTree:
    """Copy every array, so that a jitted function may donate the copy.

    Args:
        arrays: a tree of arrays; numbers stay as they are.

    Returns:
        The same tree with new arrays.

    Example:
        >>> params = {"w": jnp.ones(2)}
        >>> copy(params)["w"] is params["w"]
        False
    """
    return jax.tree.map(
        lambda leaf: leaf.copy() if hasattr(leaf, "copy") else leaf, arrays
    )


def map_floating(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map over the floating leaves of a tree; other leaves stay as they are.

    Args:
        fn: called with the leaf of each tree.
        tree: any pytree of arrays.
        rest: trees of the same structure.

    Returns:
        The tree with the results of `fn` in place of its floating leaves.

    Example:
        >>> map_floating(jnp.negative, {"count": jnp.arange(2), "w": jnp.ones(1)})
        {'count': Array([0, 1], dtype=int32), 'w': Array([-1.], dtype=float32)}
    """
    return jax.tree.map(
        lambda leaf, *others: fn(leaf, *others) if is_floating(leaf) else leaf,
        tree,
        *rest,
    )


def split_floating(
    params: Params,
) -> tuple[list[Array], Callable[[Sequence[Any]], Params]]:
    """Split off the floating leaves, which are what can be differentiated.

    Args:
        params: parameters; they may hold keys and counters.

    Returns:
        The floating leaves, and a function that puts new ones in their place.

    Example:
        >>> weights, merge = split_floating({"count": jnp.int32(3), "w": jnp.ones(2)})
        >>> merge([2 * weights[0]])["w"]
        Array([2., 2.], dtype=float32)
    """
    leaves, structure = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def merge(weights: Sequence[Any]) -> Params:
        merged = list(leaves)
        for place, weight in zip(places, weights, strict=True):
            merged[place] = weight
        return jax.tree.unflatten(structure, merged)

    return [leaves[place] for place in places], merge


def non_floating_to_false(scores: Scores) -> Scores:
    """Replace each leaf that is not floating-point by an array of False.

    Args:
        scores: a tree of scores, keys and counters.

    Returns:
        The tree with arrays of False in place of keys and counters.

    Example:
        >>> non_floating_to_false({"count": jnp.int32(3)})
        {'count': Array(False, dtype=bool)}
    """
    return jax.tree.map(
        lambda leaf: leaf if is_floating(leaf) else jnp.zeros(leaf.shape, bool), scores
    )


def shapes(tree: PyTree) -> PyTree:
    """Return the shapes and dtypes of a tree.

    Args:
        tree: arrays or shapes, in any containers.

    Returns:
        The tree with a `jax.ShapeDtypeStruct` in place of every leaf.

    Example:
        >>> shapes({"w": jnp.ones(2)})
        {'w': ShapeDtypeStruct(shape=(2,), dtype=float32)}
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )
