"""Health of a mask: empty layers, and the weights that lie on a live path."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune import tree
from jaxprune.masks.apply import count, density
from jaxprune.types import ApplyFn, Mask, Prunable


class Collapse(NamedTuple):
    """A warning: nothing flows from input to output, so the network is a constant.

    layers: names of the empty leaves in network order; none if no layer is empty but
    every path is cut all the same.
    """

    layers: tuple[str, ...]

    @property
    def message(self) -> str:
        """Say what happened and what to do about it."""
        where = f"layers without a weight: {', '.join(self.layers)}"
        cause = where if self.layers else "no path of kept weights"
        return (
            f"the network collapsed to a constant ({cause}). Prune less, in more rounds, "
            'or with scope="layer".'
        )


class Health(NamedTuple):
    """What a mask leaves of each layer.

    densities: kept / size of each prunable leaf, in network order; effective: the same,
    counting only weights on a live path; density and effective_density: the same of all
    prunable weights together; empty: names of the leaves with nothing left; collapse: a
    warning, or None while something flows.
    """

    densities: Mapping[str, float]
    effective: Mapping[str, float]
    density: float
    effective_density: float
    empty: tuple[str, ...]
    collapse: Collapse | None


def health(
    mask: Mask,
    apply_fn: ApplyFn,
    inputs: Float[Array, "..."],
    *,
    prunable: Prunable | None = None,
) -> Health:
    """Measure each layer's density, and the density of weights on a live path.

    A weight is effective if it lies on a path of kept weights from input to output.
    Those are the weights with a gradient in the network whose kept weights are all 1
    and whose biases (leaves called bias, b, beta, offset or shift) are 0, taken in
    float64, since the number of paths overflows float32. A path that loses every
    max-pool on `inputs` counts as dead, so pass some dozens of examples.

    Args:
        mask: the mask.
        apply_fn: `apply_fn(params, inputs) -> outputs`, normalisation made the
            identity; pass the same function object each time, or it compiles again.
        inputs: positive examples, such as uniform draws.
        prunable: which leaves count; by default those with ndim >= 2.

    Returns:
        What the mask leaves; never an error for a mask that cuts the network.

    Example:
        >>> apply_fn = lambda params, x: x @ params["a"] @ params["b"]
        >>> mask = {"a": jnp.array([[True, True]]), "b": jnp.array([[True], [False]])}
        >>> health(mask, apply_fn, jnp.ones((1, 1))).effective
        {'a': 0.5, 'b': 0.5}

    References:
        Vysogorets and Kempe, Connectivity Matters: Neural Network Pruning Through the
        Lens of Effective Sparsity, https://arxiv.org/abs/2107.02306, JMLR 2023.
    """
    tree.check_bool(mask)
    chosen = tree.prunable(mask, prunable)
    with jax.enable_x64(True):
        live = _live(mask, inputs, apply_fn, tuple(jax.tree.leaves(chosen)))
    densities, effective = {}, {}
    may, alive = tree.by_name(chosen), tree.by_name(live)
    for name, leaf in tree.by_name(mask).items():
        if may[name]:
            densities[name] = count([leaf], [True]) / leaf.size
            effective[name] = count([alive[name]], [True]) / leaf.size
    empty = tuple(name for name, share in densities.items() if share == 0)
    effective_density = density(live, chosen)
    return Health(
        densities,
        effective,
        density(mask, chosen),
        effective_density,
        empty,
        Collapse(empty) if effective_density == 0 else None,
    )


@functools.partial(jax.jit, static_argnames=("apply_fn", "chosen"))
def _live(
    mask: Mask,
    inputs: Float[Array, "..."],
    apply_fn: ApplyFn,
    chosen: tuple[bool, ...],
) -> Mask:
    def weights_of(name: str, kept: Array, may: bool) -> Array:
        if not may:
            bias = name.rsplit("/")[-1] in ("bias", "b", "beta", "offset", "shift")
            return jnp.full(kept.shape, 0.0 if bias else 1.0, jnp.float64)
        ones = kept.astype(jnp.float64)
        return ones / jnp.maximum(ones.sum() / ones.shape[-1], 1)

    whole = jax.tree.unflatten(jax.tree.structure(mask), chosen)
    weights = tree.map_named(weights_of, mask, whole)
    paths = jax.grad(lambda w: jnp.sum(apply_fn(w, inputs.astype(jnp.float64))))(
        weights
    )
    return jax.tree.map(lambda kept, flow: kept & (flow > 0), mask, paths)
