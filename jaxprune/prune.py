"""Pruning in rounds: score, select, score what is left; one round is one-shot pruning."""

from typing import NamedTuple

import jax

from jaxprune import masks, tree
from jaxprune.types import Fraction, Mask, Params, Prunable, RandomKey, ScoreFn


class Info(NamedTuple):
    """What was observed, round by round.

    asked: the density each round asked for; densities: the density it reached. They
    differ by less than one weight, or by the ties with ties="reference".
    """

    asked: tuple[float, ...]
    densities: tuple[float, ...]


def prune(
    score_fn: ScoreFn,
    params: Params,
    density: Fraction,
    *,
    rounds: int = 1,
    schedule: str = "exponential",
    scope: str = "global",
    ties: str = "exact",
    regrow: bool = False,
    prunable: Prunable | None = None,
    key: RandomKey | None = None,
) -> tuple[Mask, Info]:
    """Prune to a density in rounds of scoring and selecting.

    Args:
        score_fn: `score_fn(params, mask, key) -> scores`, called once a round; jit it.
        params: parameters; never changed.
        density: kept / prunable, in (0, 1].
        rounds: how often to score; 1 is one-shot pruning.
        schedule: "exponential" or "linear": the densities on the way.
        scope: "global" or "layer", as in `masks.select`.
        ties: "exact" or "reference", as in `masks.select`.
        regrow: let pruned weights compete again in the next round, as the reference
            code does; by default they stay pruned.
        prunable: the leaves to prune; by default those with ndim >= 2.
        key: split into one key a round; None where the method draws nothing.

    Returns:
        The mask, and what each round asked for and reached.

    Raises:
        ValueError: if an option is out of range or a score is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxprune import scores
        >>> score_fn = lambda params, mask, key: scores.magnitude(params, mask=mask)
        >>> mask, info = prune(score_fn, {"w": jnp.arange(8.0).reshape(2, 4)}, 0.25, rounds=2)
        >>> info.densities
        (0.5, 0.25)

    References:
        Tanaka et al., Pruning neural networks without any data by iteratively
        conserving synaptic flow, https://arxiv.org/abs/2006.05467, NeurIPS 2020,
        algorithm 1.
    """
    asked = masks.densities(density, rounds, schedule)
    chosen = tree.prunable(params, prunable)
    keys = [None] * rounds if key is None else list(jax.random.split(key, rounds))
    mask = masks.ones_like(params)
    reached = []
    for goal, round_key in zip(asked, keys, strict=True):
        mask = masks.select(
            score_fn(params, mask, round_key),
            goal,
            mask=None if regrow else mask,
            prunable=chosen,
            scope=scope,
            ties=ties,
        )
        reached.append(masks.density(mask, chosen))
    return mask, Info(tuple(asked), tuple(reached))
