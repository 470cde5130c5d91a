"""Iterative magnitude pruning: train, prune, rewind, and again.

Pure: `step` is a function of a state, and a state is all that needs saving.
`checkpoint.levels` wraps it so that a killed run resumes.

References:
    Frankle and Carbin, The Lottery Ticket Hypothesis, https://arxiv.org/abs/1803.03635,
    ICLR 2019 (rewind to init). Frankle et al., Linear Mode Connectivity and the Lottery
    Ticket Hypothesis, https://arxiv.org/abs/1912.05671, ICML 2020 (rewind to an early
    iteration).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxprune import masks, scores, tree
from jaxprune.types import Fraction, Mask, Params, Prunable, RandomKey

REWINDS = ("init", "early", "weights_kept")


class State(NamedTuple):
    """Everything a level needs; saving it is enough to resume.

    level: levels finished so far; rewind: weights the next level starts from; mask:
    weights still alive; key: randomness of the next level.
    """

    level: Int[Array, ""]
    rewind: Params
    mask: Mask
    key: Key[Array, ""]


class Trained(NamedTuple):
    """What training returns.

    params: the trained weights; metrics: anything worth keeping, a tree of arrays and
    numbers; early: the weights after iteration k of the first level, needed
    to rewind to them.
    """

    params: Params
    metrics: Any = None
    early: Params | None = None


class Info(NamedTuple):
    """What a level observed.

    trained: the weights at its end; metrics: what training returned; density: kept /
    prunable after pruning.
    """

    trained: Params
    metrics: Any
    density: Any


# train_fn(params, mask, key, level) -> Trained. With rewind="early", level 0 trains
# from iteration 0 and later levels from k on: optimiser fresh, schedule and data order
# continued.
TrainFn: TypeAlias = Callable[[Any, Any, Any, Any], Trained]


def init(params: Params, key: RandomKey) -> State:
    """Start with all weights alive.

    Args:
        params: the initial weights.
        key: randomness of all levels.

    Returns:
        The state before the first level.

    Example:
        >>> init({"w": jnp.ones((2, 2))}, jax.random.key(0)).level.item()
        0
    """
    return State(jnp.int32(0), params, masks.ones_like(params), key)


def step(
    state: State,
    train_fn: TrainFn,
    density: Fraction,
    *,
    rewind: str = "early",
    regrow: bool = False,
    ties: str = "exact",
    prunable: Prunable | None = None,
) -> tuple[State, Info]:
    """Train one level to completion, keep `density` of the prunable weights, rewind.

    Args:
        state: where the last level ended.
        train_fn: `train_fn(params, mask, key, level) -> Trained`.
        density: kept / prunable after this level, in (0, 1]; all levels count against
            all prunable weights.
        rewind: what the next level starts from: "init", the first weights; "early", the
            weights after iteration k of the first level; "weights_kept", the trained
            ones.
        regrow: score pruned weights by their stale value and let them come back, as the
            published study did; by default masks nest.
        ties: "exact" or "reference", as in `masks.select`.
        prunable: the leaves to prune; by default those with ndim >= 2.

    Returns:
        The next state, and what the level observed.

    Raises:
        ValueError: if `rewind` is not known, or is "early" and `train_fn` returned no
            early weights at level 0.

    Example:
        >>> train_fn = lambda params, mask, key, level: Trained(params)
        >>> state = init({"w": jnp.arange(4.0).reshape(2, 2)}, jax.random.key(0))
        >>> state, info = step(state, train_fn, 0.5, rewind="init")
        >>> state.mask["w"].tolist()
        [[False, False], [True, True]]
    """
    if rewind not in REWINDS:
        raise ValueError(
            f"rewind '{rewind}' is not known. Pass one of {', '.join(REWINDS)}."
        )
    train_key, next_key = jax.random.split(state.key)
    # Weights kept with regrowth keep their pruned values too: they compete again.
    start = state.rewind if regrow else masks.apply(state.rewind, state.mask)
    trained = train_fn(start, state.mask, train_key, state.level)
    alive = None if regrow else state.mask
    mask = masks.select(
        scores.magnitude(trained.params, mask=alive),
        density,
        mask=alive,
        prunable=tree.prunable(state.rewind, prunable),
        ties=ties,
    )
    kept = masks.density(mask, prunable)
    next_state = State(
        state.level + 1, _rewound(state, trained, rewind), mask, next_key
    )
    return next_state, Info(trained.params, trained.metrics, kept)


def _rewound(state: State, trained: Trained, rewind: str) -> Params:
    if rewind == "weights_kept":
        return trained.params
    if rewind == "init" or state.level > 0:
        return state.rewind
    if trained.early is None:
        raise ValueError(
            'rewind="early" needs the weights after iteration k, but train_fn returned '
            'Trained(early=None) at level 0. Return them there, or pass rewind="init".'
        )
    return trained.early
