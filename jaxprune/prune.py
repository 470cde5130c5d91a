"""Prune in rounds: score, select, score what is left; one round is one-shot pruning."""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune import masks, tree
from jaxprune.types import (
    Budget,
    Fraction,
    Mask,
    Params,
    Prunable,
    Schedule,
    Scope,
    ScoreFn,
    Ties,
)


class Info(NamedTuple):
    """The densities of each round.

    Attributes:
        requested: the density that the schedule asked for; of a budget, that of all its
            leaves together.
        densities: the density that was reached: that of `masks.num_kept` weights, and fewer
            where scores are equal with ties="reference".
    """

    requested: tuple[float, ...]
    densities: tuple[float, ...]


def _check_bound(score_fn: Any, params: Params) -> None:
    """Refuse a scoring function that needs more arguments than it will get."""
    try:
        signature = inspect.signature(score_fn)
    except ValueError:  # such as a function written in C
        return
    try:
        signature.bind(params, mask=None)
    except TypeError as error:
        raise TypeError(
            f"score_fn is called as score_fn(params, mask=mask), which does not fit it "
            f"({error}). Bind the rest: functools.partial(scores.snip, loss_fn, "
            "batches=[batch])."
        ) from None


def prune(
    score_fn: ScoreFn | Any,
    params: Params,
    density: Fraction | Budget,
    *,
    rounds: int = 1,
    schedule: Schedule | str | Sequence[Fraction] = "exponential",
    scope: Scope | int | str | Mapping[str, Any] = "global",
    ties: Ties | str = "exact",
    regrow: bool = False,
    prunable: Prunable | None = None,
) -> tuple[Mask, Info]:
    """Prune to a density in rounds of scoring and selecting; not under `jit`.

    Bind everything but the parameters and the mask, and jit what is slow:
    `functools.partial(scores.snip, loss_fn, batches=[batch])`,
    `functools.partial(scores.synflow, forward, inputs=ones)`,
    `functools.partial(scores.random, key)`.

    Args:
        score_fn: called once per round as `score_fn(params, mask=mask)`, with `mask` as a
            keyword; returns scores.
        params: parameters; they are not changed.
        density: kept / prunable, in (0, 1], or a budget such as that of `masks.erk`.
        rounds: number of scoring rounds; 1 is one-shot pruning.
        schedule: "exponential", "linear" or "cubic", the densities of the rounds, as in
            `masks.densities`, or a list of them.
        scope: "global", "layer", "row" or axes, as in `masks.select`.
        ties: "exact" or "reference", as in `masks.select`.
        regrow: let pruned weights compete again in the next round, as the SynFlow
            authors' code does; by default they stay pruned.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        The mask, and the densities of each round.

    Raises:
        ValueError: if an option is out of range, the densities rise without `regrow`, a
            score is not finite, or `score_fn` returns another tree or other shapes.
        TypeError: if `score_fn` is not callable, or needs other arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxprune import scores
        >>> params = {"w": jnp.arange(8.0).reshape(2, 4)}
        >>> mask, info = prune(scores.magnitude, params, 0.25, rounds=2)
        >>> info.densities
        (0.5, 0.25)

    References:
        Tanaka et al., Pruning neural networks without any data by iteratively
        conserving synaptic flow, https://arxiv.org/abs/2006.05467, NeurIPS 2020,
        algorithm 1.
    """
    if not callable(score_fn):
        raise TypeError(
            f"score_fn is a {type(score_fn).__name__}. Pass a function, such as "
            "scores.magnitude."
        )
    _check_bound(score_fn, params)
    targets = masks.densities(density, rounds, schedule)
    chosen = tree.check_prunable(params, prunable)
    sizes = {name: leaf.size for name, leaf in tree.by_name(params).items()}
    requested = tuple(_overall(target, sizes) for target in targets)
    if not regrow:
        _check_falls(requested)
    mask = masks.ones_like(params)
    reached = []
    for target in targets:
        scored = tree.align(
            score_fn(params, mask=mask),
            params,
            "the result of score_fn",
            "Return scores for every leaf of params.",
        )
        tree.check_shapes(
            scored, params, "the result of score_fn", "Return a score for every weight."
        )
        mask = masks.select(
            scored,
            target,
            mask=None if regrow else mask,
            prunable=chosen,
            scope=scope,
            ties=ties,
        )
        reached.append(masks.density(mask, chosen))
    return mask, Info(requested, tuple(reached))


def _check_falls(requested: Sequence[float]) -> None:
    """Refuse a schedule that asks for weights which are pruned already."""
    for i, (before, after) in enumerate(itertools.pairwise(requested), start=1):
        if after > before:
            raise ValueError(
                f"schedule rises from {before:.6g} in round {i} to {after:.6g}, but pruned "
                "weights stay pruned. Pass densities that fall, or regrow=True."
            )


def _overall(target: float | Budget, sizes: Mapping[str, int]) -> float:
    if not isinstance(target, Mapping):
        return target
    kept = sum(density * sizes[name] for name, density in target.items())
    return kept / sum(sizes[name] for name in target)
