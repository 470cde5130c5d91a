"""Turn scores into a mask with exactly the requested number of weights, without sorting."""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, UInt32

from jaxprune import tree
from jaxprune.masks import ranking
from jaxprune.masks.apply import count
from jaxprune.masks.budgets import check_budget
from jaxprune.masks.schedule import num_kept
from jaxprune.types import Budget, Fraction, Mask, Prunable, Scope, Scores, Ties

SCOPES = get_args(Scope)
TIES = get_args(Ties)


def select(
    scores: Scores,
    density: Fraction | Budget,
    *,
    mask: Mask | None = None,
    prunable: Prunable | None = None,
    scope: Scope | int | str | Mapping[str, Any] | Any = "global",
    ties: Ties | str = "exact",
) -> Mask:
    """Keep the highest-scoring `N - int((1 - density) * N)` of N prunable weights.

    Equal scores are broken by position: the earlier leaf and entry is kept. Outside `jit`,
    NumPy selects scores in the memory of a CPU. Elsewhere a program selects the same weights;
    the count is its argument, so that a new density or mask does not recompile.

    With sharded scores under `jit`, the result is the same as on one device. Do not call
    it inside `jax.shard_map`: each shard would be ranked separately.

    Args:
        scores: floats; higher means keep.
        density: kept / prunable, in (0, 1], always relative to all prunable weights,
            whatever `mask` has pruned already. A traced density (under `jit` or
            `lax.scan`) is a float32, so that for a million weights or more its count may
            differ by one from that of a Python float. It can't be checked: one that is out
            of range keeps one weight, or all that `mask` has. A budget, such as that of
            `masks.erk`, has a density for each prunable leaf, which is ranked by itself.
        mask: weights that may be kept; a pruned weight stays pruned.
        prunable: the leaves to prune; by default those of `tree.prunable`. Other leaves
            are all True in the result.
        scope: "global" ranks all weights together, "layer" ranks each leaf by itself, and
            "row" the weights of each output of a leaf, which is its last axis in Flax; a
            number is the axis of the outputs of other layouts: 0 in Equinox. A mapping from
            leaf name to axes, such as `graph.outputs(fn, params, batch)`, fits any layout.
        ties: "exact" keeps exactly the requested number; "reference" keeps what is
            strictly greater than the k-th smallest score, k = int((1 - density) * N),
            as the SynFlow authors' code does: it keeps fewer where scores are equal.

    Returns:
        A mask that mirrors `scores`.

    Raises:
        ValueError: if the density, scope or ties is out of range, a budget does not name
            exactly the prunable leaves, `mask` does not mirror `scores` or leaves fewer
            weights than requested (a traced mask can't be checked), a score is not finite, no
            leaf is prunable, or one has no rows.
        TypeError: if scores are not floating, or a leaf of `mask` is not bool.

    Example:
        >>> select({"w": jnp.array([[3.0, 1.0], [2.0, 2.0]])}, 0.5)
        {'w': Array([[ True, False],
               [ True, False]], dtype=bool)}

    References:
        Threshold and count as in the code of Tanaka et al.,
        https://arxiv.org/abs/2006.05467, 2020, which does not break ties.
    """
    if isinstance(scores, int | float):
        raise TypeError(f"scores is {scores}. The scores come first, then the density.")
    if callable(scope):
        raise TypeError(
            "scope is a function. Pass its result, such as graph.outputs(fn, params, batch)."
        )
    if isinstance(scope, np.integer):
        scope = int(scope)
    if isinstance(scope, bool) or not isinstance(scope, int | Mapping):
        tree.check_option("scope", scope, SCOPES)
    tree.check_option("ties", ties, TIES)
    ranked = ranking.rank(scores, mask, prunable)
    names = [ranked.names[i] for i in ranked.chosen]
    is_budget = isinstance(density, Mapping)
    if is_budget:
        check_budget(density, names)
    rows = _rows(scope, names)
    together = scope == "global" and not is_budget
    selected: dict[int, Array] = {}
    for group in _groups(ranked, together):
        name = ranked.names[group[0]]
        winners = _winners(
            ranked,
            group,
            density[name] if is_budget else density,
            rows.get(name),
            ties,
        )
        selected |= zip(group, winners, strict=True)
    return _whole(ranked, selected)


def highest(
    scores: Scores,
    number: Any,
    *,
    mask: Mask | None = None,
    prunable: Prunable | None = None,
) -> Mask:
    """Keep a number of the highest-scoring weights, which may be traced.

    It is `select` for a number that is computed under `jit`, such as that of the weights
    that RigL regrows. Where `mask` has fewer weights than `number`, all of them are kept.

    Args:
        scores: floats; higher means keep.
        number: how many of all prunable weights together; or leaf name -> how many of that
            leaf. Integers or traced integers.
        mask: weights that may be kept.
        prunable: the leaves to prune; by default those of `tree.prunable`. Other leaves
            are all True in the result.

    Returns:
        A mask that mirrors `scores`.

    Raises:
        ValueError: if a number is not whole or is negative, a mapping does not name exactly
            the prunable leaves, `mask` does not mirror `scores`, or no leaf is prunable.
        TypeError: if scores are not floating, or a leaf of `mask` is not bool.

    Example:
        >>> highest({"w": jnp.array([[3.0, 1.0], [2.0, 2.0]])}, 3)
        {'w': Array([[ True, False],
               [ True,  True]], dtype=bool)}
    """
    ranked = ranking.rank(scores, mask, prunable)
    is_mapping = isinstance(number, Mapping)
    for each in number.values() if is_mapping else [number]:
        _check_number(each)
    if is_mapping:
        check_budget(number, [ranked.names[i] for i in ranked.chosen])
    selected: dict[int, Array] = {}
    for group in _groups(ranked, not is_mapping):
        wanted = number[ranked.names[group[0]]] if is_mapping else number
        if not isinstance(wanted, Tracer):
            wanted = min(int(wanted), sum(ranked.scores[i].size for i in group))
        winners, _ = ranking.highest(ranked, group, wanted, exact=True)
        selected |= zip(group, winners, strict=True)
    return _whole(ranked, selected)


def _check_number(number: Any) -> None:
    """Check that a number of weights is an integer, and not negative if it is known."""
    dtype = getattr(number, "dtype", np.dtype(type(number)))
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    is_known = is_integer and not isinstance(number, Tracer)
    if not is_integer or jnp.ndim(number) or (is_known and int(number) < 0):
        raise ValueError(
            f"number is how many weights to keep, a whole number; got {number}. For a "
            "density, use masks.select."
        )


def _groups(ranked: ranking.Ranked, together: bool) -> list[list[int]]:
    """Return the leaves that are ranked together."""
    return [ranked.chosen] if together else [[i] for i in ranked.chosen]


def _whole(ranked: ranking.Ranked, selected: Mapping[int, Array]) -> Mask:
    """Return a mask of all leaves; those that are not ranked are all True."""
    others = [i for i in range(len(ranked.scores)) if i not in selected]
    all_true = _all_true(tuple(ranked.scores[i].shape for i in others))
    kept = {**selected, **dict(zip(others, all_true, strict=True))}
    leaves = [kept[i] for i in range(len(ranked.scores))]
    return jax.tree.unflatten(ranked.structure, leaves)


@functools.partial(jax.jit, static_argnums=0)
def _all_true(shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    return [jnp.ones(shape, bool) for shape in shapes]


def _rows(scope: Any, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the axes of the outputs of each leaf that is ranked row by row."""
    if isinstance(scope, Mapping):
        missing = sorted(set(names) - set(scope))
        if missing:
            raise ValueError(
                f"scope has no axes for '{missing[0]}'. Pass those of "
                "graph.outputs(fn, params, batch), and prunable without leaves that no "
                "product reads, or that two read in different ways."
            )
        try:
            axes = {name: np.atleast_1d(scope[name]) for name in names}
            return {
                name: tuple(operator.index(axis) for axis in axes[name])
                for name in names
            }
        except TypeError:
            raise TypeError(
                f"scope maps to {[scope[name] for name in names]}, where axes are whole "
                "numbers. Pass, for example, {'w': (0,)}."
            ) from None
    if scope == "row" or isinstance(scope, int):
        return dict.fromkeys(names, (-1 if scope == "row" else scope,))
    return {}


def _winners(
    ranked: ranking.Ranked,
    group: Sequence[int],
    density: Any,
    axes: tuple[int, ...] | None,
    ties: str,
) -> list[Bool[Array, "..."]]:
    """Select among leaves together, or in each row of one leaf."""
    scores = [ranked.scores[i] for i in group]
    name, rows = ranked.names[group[0]], 1
    if axes is not None:
        shape = scores[0].shape
        axes = _check_axes(axes, shape, name)
        rows = math.prod(shape[axis] for axis in axes)
    size = sum(score.size for score in scores) // max(rows, 1)
    if size == 0:
        return [jnp.ones(score.shape, bool) for score in scores]
    if size >= 2**32:
        raise ValueError(
            f"{size} weights are ranked together, but positions are counted in 32 bits. Pass "
            'scope="layer".'
        )
    if isinstance(density, Tracer):
        kept, is_checked = _traced_count(density, size), False
    else:
        kept = num_kept(density, size)
        is_checked = ties == "exact" and ranked.alive[group[0]] is not None
    exact = ties == "exact"
    selected, is_enough = ranking.highest(ranked, group, kept, exact=exact, axes=axes)
    # What a mask has is counted for the message only.
    if is_checked and (isinstance(is_enough, Tracer) or not is_enough):
        alive = [ranked.alive[i] for i in group]
        _check_enough(int(kept), size, alive, [ranked.names[i] for i in group], axes)
    return selected


def _check_axes(
    axes: Sequence[int], shape: tuple[int, ...], name: str
) -> tuple[int, ...]:
    """Return the axes of the outputs of a leaf, from 0, in order."""
    if not all(-len(shape) <= axis < len(shape) for axis in axes) or len(shape) < 2:
        raise ValueError(
            f"'{name}' has shape {list(shape)}, and so no rows along axis "
            f"{', '.join(map(str, axes))}. Leave it out of prunable, or pass "
            'scope="layer".'
        )
    return tuple(sorted({axis % len(shape) for axis in axes}))


def _traced_count(density: Any, size: int) -> UInt32[Array, ""]:
    """Count on the device as `num_kept` does on the host."""
    with jax.enable_x64(True):
        wide = density.astype(jnp.float64)
        # Without the last term, 0.1 of 1000 would keep 101: float32(0.1) is above 0.1.
        pruned = jnp.floor((1.0 - wide) * size + size * 2.0**-25).astype(jnp.int64)
        keep = jnp.clip(jnp.int64(size) - pruned, 1, size)
        return keep.astype(jnp.uint32)


def _check_enough(
    keep: int,
    size: int,
    alive: Sequence[Any],
    names: Sequence[str],
    axes: tuple[int, ...] | None,
) -> None:
    if any(leaf is None or isinstance(leaf, Tracer) for leaf in alive):
        return
    if axes is None:
        left = count(list(alive), [True] * len(alive))
    else:
        (leaf,) = alive
        others = [axis for axis in range(leaf.ndim) if axis not in axes]
        left = int(leaf.sum(others).min())
    if left == 0 and axes is None:
        raise ValueError(
            "the mask keeps no weight, and pruned weights stay pruned. Pass no mask to let "
            "weights grow back."
        )
    if left == 0 and axes is not None:
        raise ValueError(
            f"the mask keeps no weight in a row of '{names[0]}', and pruned weights stay "
            "pruned. Pass no mask to let weights grow back."
        )
    if keep > left:
        where = f"'{names[0]}'" if len(names) == 1 else f"{len(names)} leaves together"
        where = where if axes is None else f"a row of {where}"
        raise ValueError(
            f"density asks for {keep} of {size} weights in {where}, but the mask has only "
            f"{left} left, and pruned weights stay pruned. Pass a density of at most "
            f"{left / size:.6g}, or no mask to let weights grow back."
        )
