"""RigL: drop the smallest weights, and grow those of the largest gradients."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxprune import masks, scores, tree
from jaxprune.sparse_training.changing import (
    Change,
    Steps,
    changing,
    check_steps,
    part_of,
    random_mask,
)
from jaxprune.types import Budget, Fraction, Params, Prunable, RandomKey, Scores


def rigl(
    key: RandomKey | Any,
    inner: Any,
    density: Fraction | Budget,
    steps: Steps | Any,
    *,
    fraction: float | Any = 0.3,
    prunable: Prunable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network whose mask follows the gradients.

    It starts from a random mask. At each change, every leaf drops a share of its kept
    weights, those of the smallest values, and grows as many, those of the largest gradients,
    which start from zero with fresh moments of the optimizer. So each leaf always has as
    many weights as at the start. The share falls as half a cosine from `fraction` to 0 at
    `steps.stop`. The authors stop after 75 % of training, and change the mask every 100
    steps.

    Before BatchNorm, the gradients of a channel whose weights are all pruned are large, as
    its variance is 0. RigL then grows that channel, which does not always help; at high
    sparsity, compare with `set`.

    The gradients of pruned weights are needed, so do not mask them. Start from pruned weights
    of zero: `params = masks.apply(params, state.mask)`.

    Args:
        key: draws the first mask. Under `jax.vmap` over networks, all have the same one.
        inner: the optimizer, such as `optax.sgd(0.1, momentum=0.9)`; the whole chain.
        density: kept / prunable, in (0, 1], shared out among the leaves by `masks.erk`; or
            a budget.
        steps: when the mask changes.
        fraction: share of the kept weights that the first change replaces, in [0, 1].
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        An optax transformation whose state, a `SparseState`, holds the mask.

    Raises:
        TypeError: if `key` is not a key, `inner` is not an optax transformation, or `steps`
            not `Steps`.
        ValueError: if `fraction` is out of range; from `init`, if the density is out of
            range or the budget does not fit.

    Example:
        >>> optimizer = rigl(jax.random.key(0), optax.sgd(0.1), 0.25, Steps(stop=750))
        >>> state = optimizer.init({"w": jnp.ones((4, 5))})
        >>> state.mask["w"].sum().item()
        5

    References:
        Evci et al., Rigging the Lottery: Making All Tickets Winners,
        https://arxiv.org/abs/1911.11134, ICML 2020, algorithm 1. There, a change of the mask
        replaces a step of the optimizer; here the step follows it.
    """

    def gradients_of(step: Array, params: Params, gradients: Params) -> Scores:
        del step, params
        return tree.non_floating_to_false(tree.map_floating(jnp.abs, gradients))

    change = drop_and_grow(gradients_of, steps, fraction, prunable)
    tree.check_key(key)
    first = functools.partial(random_mask, key, density=density, prunable=prunable)
    return changing(inner, first, steps, change)


def drop_and_grow(
    growth: Callable[[Array, Params, Params], Scores],
    steps: Any,
    fraction: Any,
    prunable: Prunable | None,
) -> Change:
    """Return a change that replaces the smallest weights of each leaf by others.

    Args:
        growth: `growth(step, params, gradients) -> scores` of the weights to grow.
        steps: when the mask changes.
        fraction: share that the first change replaces.
        prunable: the leaves to prune.
    """
    check_steps(steps)
    if not (isinstance(fraction, int | float) and 0.0 <= fraction <= 1.0):
        raise ValueError(
            f"fraction is the share of the kept weights that a change replaces, in [0, 1]; "
            f"got {fraction}. Pass, for example, 0.3."
        )

    def change(step: Array, mask: Any, params: Params, gradients: Params) -> Any:
        done = (step - steps.start).astype(jnp.float32) / (steps.stop - steps.start)
        share = fraction / 2 * (1 + jnp.cos(math.pi * done))
        chosen = jax.tree.leaves(tree.check_prunable(params, part_of(prunable, params)))
        counts = {
            name: leaf.sum(dtype=jnp.int32)
            for name, leaf, is_prunable in zip(
                tree.names(mask), jax.tree.leaves(mask), chosen, strict=True
            )
            if is_prunable
        }
        replaced = {
            name: jnp.floor(share * n.astype(jnp.float32)).astype(jnp.int32)
            for name, n in counts.items()
        }
        left = masks.highest(
            scores.magnitude(params),
            {name: n - replaced[name] for name, n in counts.items()},
            mask=mask,
            prunable=part_of(prunable, params),
        )
        grown = masks.highest(
            growth(step, params, gradients),
            replaced,
            mask=jax.tree.map(jnp.logical_not, left),
            prunable=part_of(prunable, params),
        )
        return jax.tree.map(jnp.logical_or, left, grown)

    return change
