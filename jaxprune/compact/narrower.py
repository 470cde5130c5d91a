"""Leave out the channels that a mask made useless, and carry the constants they emit.

A channel goes if nothing that it feeds reaches the logits, or if nothing of the picture
reaches it. In the second case it still emits a constant, its bias through what follows:
that times the kernels which read it becomes a bias of those layers. A convolution that
pads with zeros sees less of the constant at the border of the map, so there the bias is
a map of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, PyTree

from jaxprune import masks, models, tree
from jaxprune.types import Mask, Params


class Info(NamedTuple):
    """What became of the network.

    channels: of each stream of channels, how many are left of how many; live: the mask
    without the weights that no path from a picture to a logit goes through; bias_maps:
    layers whose bias is now a map; collapse: a warning, or None while the logits depend on
    the picture.
    """

    channels: Mapping[str, tuple[int, int]]
    live: Mask
    bias_maps: tuple[str, ...]
    collapse: masks.Collapse | None


class Compacted(NamedTuple):
    """The smaller network, its arrays, and what became of it."""

    model: models.Model
    params: Params
    state: PyTree
    info: Info


class _Alive(NamedTuple):
    """Of a layer: inputs that depend on the picture, outputs that a logit depends on."""

    inputs: Bool[np.ndarray, " inputs"]
    outputs: Bool[np.ndarray, " outputs"]


def compact(
    model: models.Model,
    params: Params,
    state: PyTree,
    mask: Mask,
    *,
    fold_batch_norm: bool = False,
) -> Compacted:
    """Build the smaller dense network that computes what the masked one computes.

    The same means in evaluation mode, up to the order of summation. Channels that a
    residual sum joins stay together: one goes if it is useless to all. A network that
    the mask has cut becomes its constant function. It takes pictures of the model's
    input_shape alone, since the constants were worked out for it.

    A bias that became a map holds a number for every pixel and channel: `info.bias_maps`
    names those layers, and where most channels stay, the maps may weigh more than the
    channels that went. A map has three dimensions, so whoever prunes the smaller network
    again tells `masks.select` what is prunable, or it counts as a kernel.

    Args:
        model: a network whose module says how it is wired, see `models.wiring`.
        params: its parameters; the mask is applied here.
        state: its statistics of batch normalization.
        mask: what to keep.
        fold_batch_norm: put the normalizations into the layers before them.

    Returns:
        `Compacted(model, params, state, info)`: `model.apply(params, state, x)` gives the
        logits.

    Raises:
        ValueError: if the mask does not mirror `params`, `params` or `state` are not those
            of `model`, the wiring is not known, or this is called under `jit`.

    Example:
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("lenet-300-100", key=jax.random.key(0), **shape)
        >>> mask = masks.ones_like(network.params)
        >>> mask["fc2"]["kernel"] = mask["fc2"]["kernel"].at[10:].set(False)
        >>> small = compact(network, network.params, network.state, mask)
        >>> small.params["fc1"]["kernel"].shape, small.info.channels["fc1"]
        ((4, 10), (10, 300))

    References:
        Unger Bragagnolo and Barbano, Simplify: A Python library for optimizing pruned
        neural networks, SoftwareX 2022, carries constants in the same way.
    """
    tree.check_mirrors(mask, params)
    _check_own(model, params, state)
    params = masks.apply(params, mask)
    model = dataclasses.replace(model, params=params, state=state)
    layers = models.wiring(model)
    alive, keep = _liveness(layers, mask)
    products = models.products(model)
    small, statistics, live = models.on_host((params, state, mask))
    maps = []
    for layer in layers:
        inputs, outputs = alive[layer.name]
        held = models.get_path(small, layer.name)
        rows, columns = _spread(keep[layer.reads], inputs.size), keep[layer.writes]
        made = _emitted(products[layer.name], held["kernel"], ~inputs & ~rows)
        if made.any():
            held["bias"] = made + held["bias"] if "bias" in held else made
            maps += [layer.name] if held["bias"].ndim > 1 else []
        held["kernel"] = held["kernel"][..., rows, :][..., columns]
        if "bias" in held:
            held["bias"] = held["bias"][..., columns]
        if layer.norm is not None:
            for part in (small, statistics):
                norm = models.get_path(part, layer.norm)
                norm |= {name: leaf[columns] for name, leaf in norm.items()}
        linked = models.get_path(live, layer.name)
        linked["kernel"] = linked["kernel"] & (inputs[:, None] & outputs)
    network = models.rebuild(model, small, statistics)
    if fold_batch_norm:
        network = models.fold_batch_norm(network)
    del keep["input"]
    channels = {name: (int(kept.sum()), kept.size) for name, kept in keep.items()}
    info = Info(channels, live, tuple(maps), _collapse(layers, mask, live))
    return Compacted(network, network.params, network.state, info)


def _check_own(model: models.Model, params: Params, state: PyTree) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, state))):
        raise ValueError(
            "compact decides by the mask what shapes are left, which jit can't trace. Call "
            "it outside, and jit the network that it returns."
        )
    for what, got, own in (
        ("params", params, model.params),
        ("state", state, model.state),
    ):
        if jax.tree.structure(got) != jax.tree.structure(own):
            raise ValueError(
                f"{what} is no tree like that of the model ({len(tree.names(got))} leaves "
                f"for {len(tree.names(own))}). Pass the {what} of this model."
            )


def _liveness(
    layers: Sequence[models.Layer], mask: Mask
) -> tuple[dict[str, _Alive], dict[str, np.ndarray]]:
    """Follow kept weights from the picture to the logits and back.

    Returns what is alive in each layer, and of each stream the channels that anywhere both
    depend on the picture and matter to a logit.
    """
    links = {}
    for layer in layers:
        kept = np.asarray(models.get_path(mask, layer.name)["kernel"])
        links[layer.name] = kept.any(tuple(range(kept.ndim - 2)))
    varies = {"input": np.ones(1, bool)}
    before, after = {}, {}
    for name, _, reads, writes in layers:
        before[name] = _spread(varies[reads], len(links[name]))
        made = (before[name][:, None] & links[name]).any(0)
        after[name] = varies[writes] = varies.get(writes, False) | made
    sizes = {stream: held.size for stream, held in varies.items()}
    matters = {stream: np.zeros(size, bool) for stream, size in sizes.items()}
    matters["logits"] = np.ones(sizes["logits"], bool)
    keep = {stream: np.zeros(size, bool) for stream, size in sizes.items()}
    keep |= {"input": varies["input"], "logits": matters["logits"]}
    alive = {}
    for name, _, reads, writes in reversed(layers):
        alive[name] = _Alive(before[name], matters[writes].copy())
        keep[writes] |= after[name] & matters[writes]
        wanted = (links[name] & matters[writes]).any(1)
        matters[reads] |= wanted.reshape(-1, sizes[reads]).any(0)
    return alive, keep


def _spread(channels: np.ndarray, inputs: int) -> np.ndarray:
    """Repeat channels for each pixel of a map that a dense layer reads."""
    return np.tile(channels, inputs // channels.size)


def _emitted(
    product: models.Product, kernel: np.ndarray, constant: np.ndarray
) -> np.ndarray:
    """Return what constant inputs that go away add to each output: a vector, or a map."""
    inputs = np.where(constant, product.inputs, 0)
    made = np.asarray(product.multiply(jnp.asarray(inputs), jnp.asarray(kernel)))[0]
    corner = made.reshape(-1, made.shape[-1])[0]
    return corner if (made == corner).all() else made


def _collapse(
    layers: Sequence[models.Layer], mask: Mask, live: Mask
) -> masks.Collapse | None:
    def some(tree: Mask, layer: models.Layer) -> bool:
        return bool(models.get_path(tree, layer.name)["kernel"].any())

    if any(some(live, layer) for layer in layers if layer.writes == "logits"):
        return None
    empty = [layer for layer in layers if not some(mask, layer)]
    return masks.Collapse(tuple(f"{layer.name}/kernel" for layer in empty))
