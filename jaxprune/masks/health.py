"""Health of a mask: empty layers, and the weights on a live path."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Shaped

from jaxprune import tree
from jaxprune.masks.apply import count, density
from jaxprune.types import ApplyFn, Mask, Prunable


class Collapse(NamedTuple):
    """A warning that no path of kept weights connects input and output.

    Attributes:
        layers: names of the empty leaves sorted by name; empty if every path is cut
            although no layer is empty.
    """

    layers: tuple[str, ...]

    @property
    def message(self) -> str:
        """Describe what happened and what to do about it."""
        where = f"layers without a weight: {', '.join(self.layers)}"
        cause = where if self.layers else "no path of kept weights"
        return (
            f"the network collapsed to a constant ({cause}). Prune less, in more rounds, "
            'or with scope="layer".'
        )


class Health(NamedTuple):
    """The weights that a mask leaves in each layer.

    Attributes:
        densities: kept / size of each prunable leaf, sorted by name.
        effective: the same, counting only weights on a live path.
        density: kept / size of all prunable leaves together.
        effective_density: the same, counting only weights on a live path.
        empty: names of the leaves without a kept weight.
        collapse: a warning if the output does not depend on the input, else None.
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
    inputs: Shaped[Array, "..."],
    *,
    prunable: Prunable | None = None,
) -> Health:
    """Measure each layer's density, and the density of weights on a live path.

    A weight is effective if it lies on a path of kept weights from input to output.
    These are the weights with a nonzero gradient in the network whose kept weights are 1
    and whose biases (leaves named bias, b, beta, offset or shift) are 0. Gradients are
    computed in float64, since the number of paths overflows float32. A path counts as
    dead if its value is never the maximum of a max-pool window for any of the `inputs`, so
    pass a few dozen examples.

    Args:
        mask: the mask.
        apply_fn: `apply_fn(params, inputs) -> outputs`, with normalization layers as the
            identity (`models.flow` does that). A `jax.tree_util.Partial` compiles once
            per function and shapes; any other function compiles for each function object.
        inputs: positive floats, such as uniform draws, or integers, such as tokens.
        prunable: which leaves count; by default those of `tree.prunable`.

    Returns:
        The densities; a mask that cuts the network is not an error.

    Example:
        >>> apply_fn = lambda params, x: x @ params["in"] @ params["out"]
        >>> mask = {"in": jnp.array([[True, True]]), "out": jnp.array([[True], [False]])}
        >>> health(mask, apply_fn, jnp.ones((1, 1))).effective
        {'in': 0.5, 'out': 0.5}

    References:
        Vysogorets and Kempe, Connectivity Matters: Neural Network Pruning Through the
        Lens of Effective Sparsity, https://arxiv.org/abs/2107.02306, JMLR 2023.
    """
    tree.check_bool(mask)
    chosen = tree.check_prunable(mask, prunable)
    if not isinstance(apply_fn, Partial):
        apply_fn = Partial(apply_fn)
    with jax.enable_x64(True):
        live = _live(mask, inputs, apply_fn, tuple(jax.tree.leaves(chosen)))
    densities, effective = {}, {}
    is_prunable, live_leaves = tree.by_name(chosen), tree.by_name(live)
    for name, leaf in tree.by_name(mask).items():
        if is_prunable[name]:
            densities[name] = count([leaf], [True]) / leaf.size
            effective[name] = count([live_leaves[name]], [True]) / leaf.size
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


@functools.partial(jax.jit, static_argnames="chosen")
def _live(
    mask: Mask,
    inputs: Shaped[Array, "..."],
    apply_fn: ApplyFn,
    chosen: tuple[bool, ...],
) -> Mask:
    def weights_of(name: str, kept: Array, is_prunable: bool) -> Array:
        if not is_prunable:
            is_bias = name.rsplit("/")[-1] in ("bias", "b", "beta", "offset", "shift")
            return jnp.full(kept.shape, 0.0 if is_bias else 1.0, jnp.float64)
        ones = kept.astype(jnp.float64)
        return ones / jnp.maximum(ones.sum() / ones.shape[-1], 1)

    whole = jax.tree.unflatten(jax.tree.structure(mask), chosen)
    weights = tree.map_named(weights_of, mask, whole)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        inputs = inputs.astype(jnp.float64)
    paths = jax.grad(lambda w: jnp.sum(apply_fn(w, inputs)))(weights)
    return jax.tree.map(lambda kept, flow: kept & (flow > 0), mask, paths)
