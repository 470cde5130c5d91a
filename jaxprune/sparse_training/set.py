"""SET: drop the smallest weights, and grow random ones."""

import functools
from typing import Any

import jax
import optax
from jaxtyping import Array

from jaxprune import scores, tree
from jaxprune.sparse_training.changing import Steps, changing, random_mask
from jaxprune.sparse_training.rigl import drop_and_grow
from jaxprune.types import Budget, Fraction, Params, Prunable, RandomKey, Scores


def set(  # the method's own name
    key: RandomKey | Any,
    inner: Any,
    density: Fraction | Budget,
    steps: Steps | Any,
    *,
    fraction: float | Any = 0.3,
    prunable: Prunable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network whose mask changes at random.

    It is `rigl` with random weights in place of those of the largest gradients, so that
    it needs no gradients of pruned weights.

    Args:
        key: draws the first mask, and the weights that grow. Under `jax.vmap` over networks,
            all have the same ones.
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
        >>> import jax.numpy as jnp
        >>> optimizer = set(jax.random.key(0), optax.sgd(0.1), 0.25, Steps(stop=750))
        >>> state = optimizer.init({"w": jnp.ones((4, 5))})
        >>> state.mask["w"].sum().item()
        5

    References:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science, https://arxiv.org/abs/1707.04780, 2018,
        algorithm 2. As in the code of RigL, the share falls as half a cosine, the weights
        that grow start from zero, and the smallest of all weights are dropped, not of each
        sign.
    """
    tree.check_key(key)

    def random(step: Array, params: Params, gradients: Params) -> Scores:
        del gradients
        # Steps count from 1 here, so that no change repeats the draw of the first mask.
        return scores.random(jax.random.fold_in(key, step), params)

    change = drop_and_grow(random, steps, fraction, prunable)
    first = functools.partial(
        random_mask, jax.random.fold_in(key, 0), density=density, prunable=prunable
    )
    return changing(inner, first, steps, change)
