"""Gradual magnitude pruning: prune a little at a time while the network trains."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxprune import masks, scores
from jaxprune.sparse_training.changing import (
    Steps,
    changing,
    check_steps,
    counts,
    dense,
    part_of,
)
from jaxprune.types import Budget, Fraction, Params, Prunable, Schedule, ScoreFn


def gradual(
    inner: Any,
    density: Fraction | Budget | Any,
    steps: Steps | Any,
    *,
    schedule: Schedule | str | Sequence[Fraction] = "cubic",
    score: ScoreFn | Any = scores.magnitude,
    prunable: Prunable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Prune gradually during training, from the dense network to a density.

    At each change, the weights of the lowest scores are pruned, as they are after the last
    update. Pruned weights stay pruned. The last change, at `steps.stop`, reaches exactly
    `masks.num_kept(density, size)` weights. Training from scratch, Zhu and Gupta let the
    changes end well before training does.

    Args:
        inner: the optimizer, such as `optax.adamw(1e-3)`; the whole chain.
        density: kept / prunable, in (0, 1], of all leaves together; or a budget, such as
            that of `masks.uniform`, for each leaf by itself.
        steps: when the mask changes.
        schedule: "cubic", "linear" or "exponential", the densities of the changes, as in
            `masks.densities`, or a list with one density for each change.
        score: called as `score(params, mask=mask)`, under `jit`; by default the magnitude.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        An optax transformation whose state, a `SparseState`, holds the mask.

    Raises:
        TypeError: if `inner` is not an optax transformation, `steps` not `Steps`, or
            `score` not a function.
        ValueError: if the density or the schedule is out of range, or the schedule rises;
            from `init`, if no leaf is prunable or the budget does not fit.

    Example:
        >>> optimizer = gradual(optax.sgd(0.1), 0.5, Steps(stop=4, every=2))
        >>> params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
        >>> state = optimizer.init(params)
        >>> for _ in range(5):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> (params["w"] > 0).tolist()
        [[False, False, False, False], [True, True, True, True]]

    References:
        Zhu and Gupta, To prune, or not to prune, https://arxiv.org/abs/1710.01878, 2017,
        eq. 1. There, a pruned weight keeps its value in memory and may come back.
    """
    if not callable(score):
        raise TypeError(
            f"score is a {type(score).__name__}. Pass a function of params and mask, such as "
            "scores.magnitude."
        )
    check_steps(steps)
    targets = masks.densities(density, steps.number, schedule)
    if any(_rises(a, b) for a, b in itertools.pairwise(targets)):
        raise ValueError(
            f"schedule lists the densities {targets}, which rise, but pruned weights stay "
            "pruned. Pass densities that fall."
        )

    def change(step: Array, mask: Any, params: Params, gradients: Params) -> Any:
        del gradients
        numbers = [counts(target, params, prunable) for target in targets]
        number = jax.tree.map(
            lambda *each: jnp.asarray(each, jnp.uint32)[steps.index(step) - 1], *numbers
        )
        scored = score(params, mask=mask)
        chosen = part_of(prunable, params)
        return masks.highest(scored, number, mask=mask, prunable=chosen)

    return changing(inner, dense(density, prunable), steps, change)


def _rises(first: Any, second: Any) -> bool:
    if not isinstance(first, Mapping):
        return first < second
    return any(first[name] < second[name] for name in first)
