"""Multiply by the kept weights alone, in the layers where a measurement finds that faster.

A mask that leaves every channel something to do leaves nothing to compact. With few weights
and few pictures a call it still pays to gather what each weight sees.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune import models, profiling

# Denser layers are not tried: one picture, VGG-16's convolutions, 2 CPU cores, dense 10.7 ms,
# by the kept weights 7.7 at a density of .05, 4.2 at .02 and 2.7 at .01.
DENSEST = 0.1
CLEARLY = 0.95  # less than a twentieth is lost in noise


class Fastest(NamedTuple):
    """The network, and the names of its layers that multiply by their kept weights alone."""

    model: models.Model
    layers: tuple[str, ...]


def sparse(model: models.Model, layers: Iterable[str]) -> models.Model:
    """Let layers multiply by their nonzero weights alone.

    What each weight sees of the picture is gathered, weighted and summed, so that the work
    grows with the weights that are left. Pays on a CPU for few weights and few pictures a
    call; see `fastest`.

    Args:
        model: of `compact`, or any whose module says how it is wired, zeros in its
            kernels where it is pruned.
        layers: names, as of `models.wiring`.

    Returns:
        A network of the same logits, up to the order of summation. The "kernel" of these
        layers is the vector of their nonzero weights.

    Raises:
        ValueError: if the wiring is not known, or there is no such layer.

    Example:
        >>> import dataclasses
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("lenet-300-100", key=jax.random.key(0), **shape)
        >>> params = jax.tree.map(lambda leaf: leaf, network.params)
        >>> params["fc1"]["kernel"] = jnp.zeros((4, 300)).at[1, :7].set(1.0)
        >>> few = sparse(dataclasses.replace(network, params=params), ["fc1"])
        >>> few.params["fc1"]["kernel"].shape
        (7,)

    References:
        Elsen et al., Fast Sparse ConvNets, https://arxiv.org/abs/1911.09723, CVPR 2020,
        run pruned 1x1 convolutions as sparse products on a CPU; here any size of window.
    """
    known = [layer.name for layer in models.wiring(model)]
    multiply, kernels = {}, {}
    for name in [layers] if isinstance(layers, str) else layers:
        if name not in known:
            raise ValueError(
                f"layer '{name}' is not there. Pass some of {', '.join(known)}."
            )
        kernel = np.asarray(models.get_path(model.params, name)["kernel"])
        if kernel.ndim < 2:
            raise ValueError(
                f"layer '{name}' multiplies by its kept weights already. Pass the network "
                "that compact.compact returned."
            )
        multiply[name], kernels[name] = _by_weight(kernel)
    return models.replace_modules(model, multiply, kernels)


def fastest(
    model: models.Model,
    x: Float[Array, "batch height width channels"],
    *,
    calls: int = 10,
) -> Fastest:
    """Run each layer densely or by its nonzero weights, whichever is faster here.

    Layers of few weights are timed both ways, and then the whole network. The choice
    holds for this machine and this number of pictures; save what `compact` returned, and
    choose again where it runs.

    Args:
        model: as in `sparse`.
        x: pictures, as many as in a call to come; only their shape matters.
        calls: of each form of a layer, and more of those that take less than 10 ms.

    Returns:
        `Fastest(model, layers)`: the network as it was if nothing is gained.

    Raises:
        ValueError: if the wiring is not known, `x` has pictures of another shape than the
            network takes, or `calls` is not positive.

    Example:
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("mlp", key=jax.random.key(0), **shape)
        >>> fastest(network, jnp.ones((1, 2, 2, 1))).layers  # nothing is pruned
        ()
    """
    if x.shape[1:] != models.input_shape(model):
        raise ValueError(
            f"x has pictures of {x.shape[1:]}, and the network takes "
            f"{models.input_shape(model)}. Pass such pictures, as many as in a call to come."
        )
    dense = models.products(model)
    kernels = {
        name: np.asarray(models.get_path(model.params, name)["kernel"])
        for name in dense
    }
    few = [
        name
        for name, kernel in kernels.items()
        if np.count_nonzero(kernel) < DENSEST * kernel.size
    ]
    gathered = models.products(trial := sparse(model, few))

    def gains(name: str) -> bool:
        seen = dense[name].inputs
        inputs = jnp.ones((len(x), *seen.shape[1:]), seen.dtype)
        return _faster(
            (
                gathered[name].multiply,
                inputs,
                models.get_path(trial.params, name)["kernel"],
            ),
            (
                dense[name].multiply,
                inputs,
                models.get_path(model.params, name)["kernel"],
            ),
            calls,
        )

    paying = tuple(name for name in few if gains(name))
    mixed = sparse(model, paying)
    gained = paying and _faster(
        (mixed.apply, mixed.params, mixed.state, x),
        (model.apply, model.params, model.state, x),
        calls,
    )
    return Fastest(mixed, paying) if gained else Fastest(model, ())


def _faster(one: Sequence[Any], other: Sequence[Any], calls: int) -> bool:
    """Tell whether the first (function, argument, ...) takes clearly less time."""
    runs = []
    for call, *args in (one, other):
        compiled = jax.jit(call).lower(*args).compile()
        runs.append(lambda compiled=compiled, args=args: compiled(*args))
    # Short calls scatter more: 10 ms of them at least.
    (once,) = profiling.seconds(runs[1], calls=1, warmup=1)
    calls *= max(1, min(100, math.ceil(0.01 / (once * calls)))) if calls > 0 else 1
    first, second = profiling.interleaved(*runs, calls=calls)
    return first.p50 < CLEARLY * second.p50


def _by_weight(kernel: np.ndarray) -> tuple[Callable[..., Array], Array]:
    """Return the product of a layer from its nonzero weights, and these."""
    *window, inputs, outputs = kernel.shape
    flat = kernel.reshape(math.prod(window) * inputs, outputs)
    writes, reads = np.nonzero(flat.T)  # output by output
    weights = jnp.asarray(flat[reads, writes])

    def gather(seen: Array, weights: Array) -> Array:
        """Sum what each output sees of (inputs, pixels)."""
        parts = weights[:, None] * seen[reads]
        return jax.ops.segment_sum(parts, writes, outputs, indices_are_sorted=True).T

    def dot(x: Array, weights: Array, *args: Any, **options: Any) -> Array:
        del args, options
        made = gather(x.reshape(math.prod(x.shape[:-1]), inputs).T, weights)
        return made.reshape(*x.shape[:-1], outputs)

    def convolve(
        x: Array, weights: Array, strides: Any, padding: Any, **options: Any
    ) -> Array:
        seen = _patches(x, window, strides, padding, options)
        made = gather(seen.reshape(len(flat), math.prod(seen.shape[1:])), weights)
        return made.reshape(*seen.shape[1:], outputs)

    return (convolve if window else dot), weights


def _patches(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Any,
    options: Mapping[str, Any],
) -> Float[Array, "seen batch new_height new_width"]:
    """Lay out what a window sees of the map at each place, its pixels row by row."""
    apart = options.get("rhs_dilation") or (1, 1)
    inside = options.get("lhs_dilation") or (1, 1)
    reach = [(width - 1) * step + 1 for width, step in zip(window, apart, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    edges = [(*pad, step - 1) for pad, step in zip(padding, inside, strict=True)]
    whole = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    maps = whole.transpose(3, 0, 1, 2)
    ends = [
        extent - width + 1 for extent, width in zip(maps.shape[2:], reach, strict=True)
    ]
    views = [
        maps[:, :, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(0, reach[0], apart[0])
        for j in range(0, reach[1], apart[1])
    ]
    return jnp.concatenate(views)
