"""Iterative magnitude pruning: train, prune, rewind, repeat.

`step` is a pure function of a state, and saving the state is enough to resume.
`checkpoint.levels` wraps it so that a killed run resumes.

References:
    Frankle and Carbin, The Lottery Ticket Hypothesis, https://arxiv.org/abs/1803.03635,
    ICLR 2019 (rewind to init). Frankle et al., Linear Mode Connectivity and the Lottery
    Ticket Hypothesis, https://arxiv.org/abs/1912.05671, ICML 2020 (rewind to an early
    iteration).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxprune import masks, scores, tree
from jaxprune.types import Fraction, Mask, Params, Prunable, RandomKey, RewindTo, Ties

REWINDS = get_args(RewindTo)


class State(NamedTuple):
    """Everything that the next level needs.

    Attributes:
        level: number of finished levels.
        params: the tree that the next level starts from.
        mask: weights that are still kept.
        key: randomness of the next level.
    """

    level: Int[Array, ""]
    params: Params
    mask: Mask
    key: Key[Array, ""]


class Trained(NamedTuple):
    """The result of training one level.

    Attributes:
        params: the trained tree, BatchNorm statistics included if `State.params` has them.
        metrics: anything to record, a tree of arrays and numbers.
        rewind_point: the tree after iteration k of the first level. Only rewind="early" needs
            it, at level 0.
    """

    params: Params
    metrics: Any = None
    rewind_point: Params | None = None


class Info(NamedTuple):
    """What a level observed.

    Attributes:
        params: the trained tree, at density `trained_density`.
        metrics: `Trained.metrics`.
        trained_density: kept / prunable while the level trained; accuracies in `metrics`
            belong to this density.
        pruned_density: kept / prunable after the level pruned.
    """

    params: Params
    metrics: Any
    trained_density: Any
    pruned_density: Any


# train_fn(params, mask, key, level) -> Trained. With rewind="early", level 0 trains from
# iteration 0 and later levels from k on: with a fresh optimizer, and the learning-rate
# schedule continued. The key changes per level; bind one key of your own to continue the
# order of the data too.
TrainFn: TypeAlias = Callable[[Any, Any, Any, Any], Trained]


def init(params: Params, key: RandomKey) -> State:
    """Start with all weights kept.

    Args:
        params: the initial tree: parameters, or a `models.Model` or `{"params": ...,
            "batch_stats": ...}` with the BatchNorm statistics, which then rewind too.
        key: randomness of all levels.

    Returns:
        The state before the first level.

    Raises:
        TypeError: if a leaf is not an array.

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
    rewind: RewindTo | str = "early",
    regrow: bool = False,
    ties: Ties | str = "exact",
    prunable: Prunable | None = None,
) -> tuple[State, Info]:
    """Train one level to completion, keep `density` of the prunable weights, rewind.

    Everything in the tree rewinds, BatchNorm statistics included; only prunable leaves
    are pruned. After the last level, train once more from the final state to get the
    network at the last density.

    Args:
        state: the state after the previous level.
        train_fn: `train_fn(params, mask, key, level) -> Trained`.
        density: kept / prunable after this level, in (0, 1]; each level is relative to
            all prunable weights.
        rewind: what the next level starts from: "init", the initial tree; "early", the
            tree after iteration k of the first level (open_lth instead restarts level 0
            at iteration k with a fresh optimizer; here it trains through); "weights_kept",
            the trained tree.
        regrow: score pruned weights by their stale value and let them come back, as the
            published study did; by default masks nest.
        ties: "exact" or "reference", as in `masks.select`.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        The next state, and what the level observed.

    Raises:
        ValueError: if `rewind` is unknown, `train_fn` returned a tree that differs from
            the state's, or `rewind` is "early" and it returned no rewind point at level 0.
        TypeError: if `train_fn` did not return a `Trained`.

    Example:
        >>> train_fn = lambda params, mask, key, level: Trained(params)
        >>> state = init({"w": jnp.arange(4.0).reshape(2, 2)}, jax.random.key(0))
        >>> state, info = step(state, train_fn, 0.5, rewind="init")
        >>> state.mask["w"].tolist(), info.trained_density, info.pruned_density
        ([[False, False], [True, True]], 1.0, 0.5)
    """
    if rewind not in REWINDS:
        raise ValueError(
            f"rewind '{rewind}' is unknown. Pass one of {', '.join(REWINDS)}."
        )
    train_key, next_key = jax.random.split(state.key)
    # With regrowth, pruned weights keep their values, since they compete again.
    start = state.params if regrow else masks.apply(state.params, state.mask)
    trained = train_fn(start, state.mask, train_key, state.level)
    if not isinstance(trained, Trained):
        raise TypeError(
            f"train_fn returned a {type(trained).__name__}. Return "
            "imp.Trained(params, metrics, rewind_point)."
        )
    params = _returned(trained.params, state.params, "params")
    chosen = tree.check_prunable(state.params, prunable)
    kept = None if regrow else state.mask
    mask = masks.select(
        scores.magnitude(params, mask=kept),
        density,
        mask=kept,
        prunable=chosen,
        ties=ties,
    )
    next_state = State(
        state.level + 1,
        _next_params(state, trained._replace(params=params), rewind),
        mask,
        next_key,
    )
    info = Info(
        params,
        trained.metrics,
        masks.density(state.mask, chosen),
        masks.density(mask, chosen),
    )
    return next_state, info


def _next_params(state: State, trained: Trained, rewind: str) -> Params:
    if rewind == "weights_kept":
        return trained.params
    if rewind == "init" or state.level > 0:
        return state.params
    if trained.rewind_point is None:
        raise ValueError(
            'rewind="early" needs the tree after iteration k, but train_fn returned '
            "Trained(rewind_point=None) at level 0. Return it there, or pass "
            'rewind="init".'
        )
    return _returned(trained.rewind_point, state.params, "rewind_point")


def _returned(returned: Params, params: Params, field: str) -> Params:
    """Return a trained tree in the containers that training was given."""
    remedy = (
        "Return the same tree, trained; with train.fit, that is "
        "imp.Trained(result.model, rewind_point=result.rewind_point)."
    )
    returned = tree.align(returned, params, f"Trained.{field}", remedy)
    for name, new, old in zip(
        tree.names(params),
        jax.tree.leaves(returned),
        jax.tree.leaves(params),
        strict=True,
    ):
        if jnp.shape(new) != jnp.shape(old):
            raise ValueError(
                f"Trained.{field} has shape {jnp.shape(new)} at '{name}', where params "
                f"has {jnp.shape(old)}. {remedy}"
            )
    return returned
