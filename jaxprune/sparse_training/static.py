"""Static sparse training: a random mask that never changes."""

from typing import Any

import optax

from jaxprune import tree
from jaxprune.sparse_training.changing import random_mask
from jaxprune.sparse_training.hold import HoldPrunedState, hold_pruned
from jaxprune.types import Budget, Fraction, Prunable, RandomKey


def static(
    key: RandomKey | Any,
    inner: Any,
    density: Fraction | Budget,
    *,
    prunable: Prunable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train under a random mask that `init` draws: the baseline of sparse training.

    For a mask of your own, use `hold_pruned`. Start from pruned weights of zero:
    `params = masks.apply(params, state.mask)`. Otherwise the first gradient is that of the
    dense network; the first update sets them to zero.

    Args:
        key: draws the mask.
        inner: the optimizer, such as `optax.adamw(1e-3)`.
        density: kept / prunable, in (0, 1], shared out among the leaves by `masks.erk`; or
            a budget.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        An optax transformation with the state of `hold_pruned`.

    Raises:
        TypeError: if `key` is not a key, or `inner` is not an optax transformation.
        ValueError: from `init`, if the density is out of range or the budget does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> optimizer = static(jax.random.key(0), optax.sgd(0.1), 0.25)
        >>> state = optimizer.init({"w": jnp.ones((4, 5))})
        >>> state.mask["w"].sum().item()
        5

    References:
        The baseline of Evci et al., Rigging the Lottery,
        https://arxiv.org/abs/1911.11134, ICML 2020, section 4.
    """
    tree.check_key(key)
    hold = hold_pruned(inner)

    def init(params: optax.Params) -> HoldPrunedState:
        return HoldPrunedState(
            inner.init(params), random_mask(key, params, density, prunable)
        )

    return optax.GradientTransformationExtraArgs(init, hold.update)
