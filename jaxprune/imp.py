"""Iterative magnitude pruning: train, prune, rewind, repeat.

`step` is a pure function of a state, and saving the state is enough to resume.
`checkpoint.levels` wraps it so that a killed run resumes.

References:
    Frankle and Carbin, The Lottery Ticket Hypothesis, https://arxiv.org/abs/1803.03635,
    ICLR 2019 (rewind to init). Frankle et al., Linear Mode Connectivity and the Lottery
    Ticket Hypothesis, https://arxiv.org/abs/1912.05671, ICML 2020 (rewind to an early
    iteration).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int, Key

from jaxprune import masks, scores, tree
from jaxprune.types import Fraction, Mask, Params, Prunable, RewindTo, Scope, Ties

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


class TrainResult(NamedTuple):
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
        metrics: `TrainResult.metrics`.
        trained_density: kept / prunable while the level trained; accuracies in `metrics`
            belong to this density.
        pruned_density: kept / prunable after the level pruned.
    """

    params: Params
    metrics: Any
    trained_density: Any
    pruned_density: Any


# train_fn(params, mask, key, level) -> TrainResult.
TrainFn: TypeAlias = Callable[[Any, Any, Any, Any], TrainResult]


def init(params: Params, key: Any) -> State:
    """Start with all weights kept.

    Args:
        params: the initial tree: parameters, or a `models.Model` or `{"params": ...,
            "batch_stats": ...}` with the BatchNorm statistics, which then rewind too.
        key: randomness of all levels.

    Returns:
        The state before the first level.

    Raises:
        TypeError: if a leaf is not an array, or `key` is not a key.

    Example:
        >>> init({"w": jnp.ones((2, 2))}, jax.random.key(0)).level.item()
        0
    """
    tree.check_key(key)
    mask = masks.ones_like(params)
    # A copy, because training an NNX module changes its variables in place.
    return State(jnp.int32(0), tree.copy(params), mask, key)


def _check_request(
    state: State, density: Any, prunable: Any, scope: Any, ties: str, regrow: bool
) -> None:
    """Refuse what the level could not reach before it is trained."""
    tree.check_option("ties", ties, masks.TIES)
    if isinstance(scope, str):
        tree.check_option("scope", scope, masks.SCOPES)
    chosen = tree.check_prunable(state.params, prunable)
    if isinstance(density, Tracer):
        return
    keep = masks.num_kept(density, tree.size(state.params, chosen))
    if regrow or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state.mask)):
        return
    if keep > (kept := masks.count(state.mask, chosen)):
        raise ValueError(
            f"density {density} keeps {keep} weights, but only {kept} are left. Pass a lower "
            "density, or regrow=True."
        )
    if scope != "global":  # what select refuses, it refuses for any scores
        options = {"prunable": chosen, "scope": scope, "ties": ties}
        scored = scores.magnitude(state.params)
        masks.select(scored, density, mask=state.mask, **options)


def step(
    state: State,
    train_fn: TrainFn,
    density: Fraction,
    *,
    rewind: RewindTo | str = "early",
    regrow: bool = False,
    scope: Scope | int | str | Mapping[str, Any] = "global",
    ties: Ties | str = "exact",
    prunable: Prunable | None = None,
) -> tuple[State, Info]:
    """Train one level to completion, keep `density` of the prunable weights, rewind.

    Everything in the tree rewinds, BatchNorm statistics included; only prunable leaves
    are pruned. `train_fn` must keep pruned weights at zero, for example with
    `sparse_training.hold_pruned(optimizer, mask)`. After the last level, train once more
    from the final state to get the network at the last density.

    With rewind="early", level 0 trains from iteration 0, and later levels start from the
    weights of iteration k with a fresh optimizer. The paper also continues the
    learning-rate schedule at k; do that in `train_fn`. Each level gets another key; to use
    the same order of the data in all levels, ignore it and bind a key of your own.

    Args:
        state: the state after the previous level.
        train_fn: `train_fn(params, mask, key, level) -> TrainResult`.
        density: kept / prunable after this level, in (0, 1]; each level is relative to
            all prunable weights.
        rewind: what the next level starts from: "init", the initial tree; "early", the
            tree after iteration k of the first level, called late rewinding (in
            open_lth, level 0 restarts at iteration k with a fresh optimizer; here it does
            not restart); "weights_kept", the trained tree.
        regrow: score pruned weights by the value they had when they were pruned, so that
            they can return; by default a pruned weight stays pruned.
        scope: which weights are compared, as in `masks.select`: "global", all; "layer", those
            of each leaf, so that all leaves have the same density.
        ties: "exact" or "reference", as in `masks.select`.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        The next state, and what the level observed.

    Raises:
        ValueError: if `rewind`, `scope` or `ties` is unknown, or the density is out of
            range; if `train_fn` returned a tree that differs from the state's, weights that
            are not finite, nonzero pruned weights, or, with rewind="early", no rewind point
            at level 0; or if `density` is higher than what is left.
        TypeError: if `train_fn` did not return a `TrainResult`.

    Example:
        >>> train_fn = lambda params, mask, key, level: TrainResult(params)
        >>> state = init({"w": jnp.arange(4.0).reshape(2, 2)}, jax.random.key(0))
        >>> state, info = step(state, train_fn, 0.5, rewind="init")
        >>> state.mask["w"].tolist(), info.trained_density, info.pruned_density
        ([[False, False], [True, True]], 1.0, 0.5)

        Training changes the variables of a Flax NNX module, so its `train_fn` loads the
        weights that it is given, and copies the rewind point:

        >>> import optax
        >>> from flax import nnx
        >>> from jaxprune.sparse_training import hold_pruned
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> def train_fn(params, mask, key, level):
        ...     nnx.update(model, params)
        ...     held = hold_pruned(optax.sgd(0.1), mask)
        ...     optimizer = nnx.Optimizer(model, held, wrt=nnx.Param)
        ...     for i in range(3):
        ...         grads = nnx.grad(lambda m: (m(jnp.ones((1, 2))) ** 2).sum())(model)
        ...         optimizer.update(model, grads)
        ...         if i == 0:
        ...             rewind_point = tree.copy(nnx.state(model, nnx.Param))
        ...     return TrainResult(nnx.state(model, nnx.Param), rewind_point=rewind_point)
        >>> state = init(nnx.state(model, nnx.Param), jax.random.key(0))
        >>> state, info = step(state, train_fn, 0.5)
        >>> masks.count(state.mask)
        2
    """
    _check_request(state, density, prunable, scope, ties, regrow)
    tree.check_option("rewind", rewind, REWINDS)
    train_key, next_key = jax.random.split(state.key)
    # With regrowth, pruned weights keep their values, since they compete again.
    start = tree.copy(state.params)
    if not regrow:
        start = masks.apply(start, state.mask)
    trained = train_fn(start, state.mask, train_key, state.level)
    if not isinstance(trained, TrainResult):
        raise TypeError(
            f"train_fn returned a {type(trained).__name__}. Return "
            "imp.TrainResult(params, metrics, rewind_point)."
        )
    params = _match_structure(trained.params, state.params, "params")
    if not regrow:
        _check_pruned(params, state.mask)
    tree.check_finite(
        params, "training diverged; lower the learning rate.", what="params"
    )
    chosen = tree.check_prunable(state.params, prunable)
    kept = None if regrow else state.mask
    mask = masks.select(
        scores.magnitude(params, mask=kept),
        density,
        mask=kept,
        prunable=chosen,
        scope=scope,
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


def _next_params(state: State, trained: TrainResult, rewind: str) -> Params:
    if rewind == "weights_kept":
        return trained.params
    if rewind == "init" or state.level > 0:
        return state.params
    if trained.rewind_point is None:
        raise ValueError(
            'rewind="early" needs the tree after iteration k, but train_fn returned '
            "TrainResult(rewind_point=None) at level 0. Return it there, or pass "
            'rewind="init".'
        )
    rewind_point = _match_structure(trained.rewind_point, state.params, "rewind_point")
    leaves = zip(
        jax.tree.leaves(trained.rewind_point),
        jax.tree.leaves(trained.params),
        strict=False,
    )
    if all(rewound is trained for rewound, trained in leaves):
        raise ValueError(
            "TrainResult.rewind_point holds the arrays of TrainResult.params, so nothing "
            "would be rewound: the variables of an NNX module change as it trains. "
            "Copy them at iteration k: tree.copy(nnx.state(model, nnx.Param))."
        )
    return rewind_point


def _match_structure(returned: Params, params: Params, field: str) -> Params:
    """Return a trained tree with the structure that training was given."""
    remedy = (
        "Return the same tree, trained; with train.fit, that is "
        "imp.TrainResult(result.model, rewind_point=result.rewind_point)."
    )
    returned = tree.align(returned, params, f"TrainResult.{field}", remedy)
    tree.check_arrays(returned, f"TrainResult.{field}")
    for name, new, old in zip(
        tree.names(params),
        jax.tree.leaves(returned),
        jax.tree.leaves(params),
        strict=True,
    ):
        if (jnp.shape(new), new.dtype) != (jnp.shape(old), old.dtype):
            raise ValueError(
                f"TrainResult.{field} has {new.dtype}{list(jnp.shape(new))} at '{name}', "
                f"where params has {old.dtype}{list(jnp.shape(old))}. {remedy}"
            )
    return returned


def _check_pruned(params: Params, mask: Mask) -> None:
    """Check that training kept pruned weights at zero. Traced ones can't be checked."""
    kept = tree.by_name(mask)
    leaves = {
        name: leaf
        for name, leaf in tree.by_name(params).items()
        if tree.is_floating(leaf) and not isinstance(leaf, Tracer)
    }
    counts = _count_grown(leaves, {name: kept[name] for name in leaves})
    for name in leaves:
        if counts[name]:
            raise ValueError(
                f"train_fn returned {counts[name]} nonzero weights at '{name}' that the mask "
                "prunes. Hold them at zero: train with sparse_training.hold_pruned("
                "optimizer, mask), with the mask that train_fn was given."
            )


@jax.jit
def _count_grown(
    leaves: dict[str, Array], kept: dict[str, Array]
) -> dict[str, Int[Array, ""]]:
    return {name: ((w != 0) & ~kept[name]).sum() for name, w in leaves.items()}
