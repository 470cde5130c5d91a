"""Turn scores into a mask with exactly the requested number of weights, without sorting.

The k-th highest score is found by bisection on the bit pattern of the floats, which has
the same order as the floats. Only counts are needed, so sharded scores stay in place.
Ties at that score are broken by position, by the same bisection on positions.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, UInt, UInt32

from jaxprune import tree
from jaxprune.masks.apply import count
from jaxprune.masks.schedule import num_kept
from jaxprune.types import Budget, Fraction, Mask, Prunable, Scope, Scores, Ties

SCOPES = get_args(Scope)
TIES = get_args(Ties)


def _check_floating(scores: Scores) -> None:
    """Refuse a mask, or integers, in place of scores."""
    leaves = dict(zip(tree.names(scores), jax.tree.leaves(scores), strict=True))
    has_scores = any(tree.is_floating(leaf) for leaf in leaves.values())
    for name, leaf in leaves.items():
        is_integer = jnp.issubdtype(leaf.dtype, jnp.integer)
        if leaf.ndim >= 2 and (
            is_integer or (leaf.dtype == np.bool_ and not has_scores)
        ):
            raise TypeError(
                f"scores are {leaf.dtype} at '{name}', where floats are expected. Pass the "
                "result of a scoring function, not a mask; a parameter that is not floating "
                "has no scores."
            )


def select(
    scores: Scores,
    density: Fraction | Budget,
    *,
    mask: Mask | None = None,
    prunable: Prunable | None = None,
    scope: Scope | int | str = "global",
    ties: Ties | str = "exact",
) -> Mask:
    """Keep the highest-scoring `N - int((1 - density) * N)` of N prunable weights.

    The count is an argument of the compiled program: a new density or mask does not
    recompile. Equal scores are broken by position: the earlier leaf and entry is kept.

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
            number is the axis of the outputs of other layouts: 0 in Equinox.
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
    axis = -1 if scope == "row" else scope
    if isinstance(axis, bool) or not isinstance(axis, int):
        tree.check_option("scope", scope, SCOPES)
        axis = None
    tree.check_option("ties", ties, TIES)
    tree.check_arrays(scores, "scores")
    _check_floating(scores)
    # A leaf that is not floating, such as a buffer of indices, has no scores.
    chosen = jax.tree.map(
        lambda is_prunable, leaf: is_prunable and tree.is_floating(leaf),
        tree.check_prunable(scores, prunable),
        scores,
    )
    if mask is not None:
        mask = tree.check_mirrors(mask, scores, of="scores")
    tree.check_finite(
        scores,
        "check that params are finite. If synflow overflowed, pass rescale=True, which "
        "rescales the kernels or computes in float64.",
        chosen,
    )
    names = tree.names(scores)
    leaves, structure = jax.tree.flatten(scores)
    mask_leaves = [None] * len(leaves) if mask is None else jax.tree.leaves(mask)
    indices = [
        i for i, is_prunable in enumerate(jax.tree.leaves(chosen)) if is_prunable
    ]
    if not indices:
        raise ValueError(
            "no leaf of scores is prunable. By default, a prunable leaf has two or more "
            "dimensions and is not named like a bias, norm or embedding. Choose leaves by "
            'name: prunable=tree.prunable(params, include="*").'
        )
    is_budget = isinstance(density, Mapping)
    if is_budget:
        _check_budget(density, [names[i] for i in indices])
    together = scope == "global" and not is_budget
    selected: dict[int, Array] = {}
    for group in [indices] if together else [[i] for i in indices]:
        winners = _winners(
            [leaves[i] for i in group],
            [mask_leaves[i] for i in group],
            density[names[group[0]]] if is_budget else density,
            [names[i] for i in group],
            axis,
            ties,
        )
        selected |= zip(group, winners, strict=True)
    return jax.tree.unflatten(
        structure,
        [
            selected[i] if i in selected else jnp.ones(leaf.shape, bool)
            for i, leaf in enumerate(leaves)
        ],
    )


def _check_budget(budget: Budget, names: Sequence[str]) -> None:
    """Check that a budget names exactly the prunable leaves."""
    for wrong, problem in (
        (set(names) - set(budget), "has no density for"),
        (set(budget) - set(names), "has a density for, which is no prunable leaf,"),
    ):
        if wrong:
            raise ValueError(
                f"the budget {problem} '{min(wrong)}'. Make it for the same params and "
                "prunable, such as masks.erk(params, 0.1, prunable=prunable)."
            )


def _winners(
    scores: list[Any],
    alive: list[Any],
    density: Any,
    names: Sequence[str],
    axis: int | None,
    ties: str,
) -> list[Bool[Array, "..."]]:
    """Select among leaves together, or in each row of one leaf."""
    rows = 1 if axis is None else _count_rows(scores[0].shape, axis, names[0])
    size = sum(score.size for score in scores) // max(rows, 1)
    if size == 0:
        return [jnp.ones(score.shape, bool) for score in scores]
    if size >= 2**32:
        raise ValueError(
            f"{size} weights are ranked together, but positions are counted in 32 bits. Pass "
            'scope="layer".'
        )
    if isinstance(density, Tracer):
        keep = _traced_count(density, size)
    else:
        keep = num_kept(density, size)
        if ties == "exact":
            _check_enough(keep, size, alive, names, axis)
    keep, exact = jnp.asarray(keep, jnp.uint32), ties == "exact"
    if axis is None:
        return _select(scores, alive, keep, exact=exact)
    return _select_rows(scores, alive, keep, exact=exact, axis=axis)


def _count_rows(shape: tuple[int, ...], axis: int, name: str) -> int:
    """Return the number of outputs of a leaf."""
    if len(shape) < 2 or not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"'{name}' has shape {list(shape)}, and so no rows along axis {axis}. Leave it "
            'out of prunable, or pass scope="layer".'
        )
    return shape[axis]


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
    axis: int | None,
) -> None:
    if any(leaf is None or isinstance(leaf, Tracer) for leaf in alive):
        return
    if axis is None:
        left = count(list(alive), [True] * len(alive))
    else:
        (leaf,) = alive
        others = [i for i in range(leaf.ndim) if i != axis % leaf.ndim]
        left = int(leaf.sum(others).min())
    if left == 0 and axis is None:
        raise ValueError(
            "the mask keeps no weight, and pruned weights stay pruned. Pass no mask to let "
            "weights grow back."
        )
    if keep > left:
        where = f"'{names[0]}'" if len(names) == 1 else f"{len(names)} leaves together"
        where = where if axis is None else f"a row of {where}"
        raise ValueError(
            f"density asks for {keep} of {size} weights in {where}, but the mask has only "
            f"{left} left, and pruned weights stay pruned. Pass a density of at most "
            f"{left / size:.6g}, or no mask to let weights grow back."
        )


@functools.partial(jax.jit, static_argnames=("exact",))
def _select(
    scores: list[Float[Array, "..."]],
    alive: list[Bool[Array, "..."] | None],
    keep: UInt32[Array, ""],
    *,
    exact: bool,
) -> list[Bool[Array, "..."]]:
    """Select `keep` weights among all leaves together; fewer with reference ties."""
    dtype = jnp.float64 if any(s.dtype == jnp.float64 for s in scores) else jnp.float32
    keys = [
        _ordered_bits(score.astype(dtype), member)
        for score, member in zip(scores, alive, strict=True)
    ]
    bits = jnp.finfo(dtype).bits

    def at_least(thresholds: Sequence[Array]) -> list[Array]:
        return _count([[key >= t for t in thresholds] for key in keys])

    if not exact:  # keep what is strictly greater than the highest pruned score
        size = sum(score.size for score in scores)
        threshold = _highest(at_least, keep + jnp.uint32(1), bits, keys[0].dtype)
        above = [key > threshold for key in keys]
        keeps_all = jnp.uint32(size) == keep
        return [
            (key > 0) & (keeps_all | up) for key, up in zip(keys, above, strict=True)
        ]

    threshold = _highest(at_least, keep, bits, keys[0].dtype)
    above, tied = _count([[key > threshold, key == threshold] for key in keys])
    return _break_ties(keys, threshold, keep - above, tied)


@functools.partial(jax.jit, static_argnames=("exact", "axis"))
def _select_rows(
    scores: list[Float[Array, "..."]],
    alive: list[Bool[Array, "..."] | None],
    keep: UInt32[Array, ""],
    *,
    exact: bool,
    axis: int,
) -> list[Bool[Array, "..."]]:
    """Select `keep` weights in each row of a leaf."""
    rows = jax.vmap(
        functools.partial(_select, keep=keep, exact=exact), (axis, axis), axis
    )
    return rows(scores, alive)


def _break_ties(
    keys: list[UInt[Array, "..."]],
    threshold: UInt[Array, ""],
    wanted: UInt32[Array, ""],
    tied: UInt32[Array, ""],
) -> list[Bool[Array, "..."]]:
    """Keep what is above the threshold, and the first `wanted` entries that equal it."""
    size = sum(key.size for key in keys)
    starts = [sum(key.size for key in keys[:i]) for i in range(len(keys))]

    def ranks(start: int, shape: tuple[int, ...]) -> Array:
        position = jnp.zeros(shape, jnp.uint32)
        for axis in range(len(shape)):
            position = position * jnp.uint32(shape[axis]) + jax.lax.broadcasted_iota(
                jnp.uint32, shape, axis
            )
        return jnp.uint32(size - 1 - start) - position  # the first ranks highest

    def at_least(thresholds: Sequence[Array]) -> list[Array]:
        return _count(
            [
                [
                    (key == threshold) & (ranks(start, key.shape) >= t)
                    for t in thresholds
                ]
                for key, start in zip(keys, starts, strict=True)
            ]
        )

    bits = size.bit_length() + size.bit_length() % 2
    last = jax.lax.cond(
        wanted == tied,
        lambda: jnp.uint32(0),
        lambda: _highest(at_least, wanted, bits, np.dtype(np.uint32)),
    )
    return [
        # A key of 0 marks a weight that may not be kept.
        (key > 0)
        & (
            (key > threshold)
            | ((key == threshold) & (ranks(start, key.shape) >= last) & (wanted > 0))
        )
        for key, start in zip(keys, starts, strict=True)
    ]


def _ordered_bits(
    score: Float[Array, "..."], alive: Bool[Array, "..."] | None
) -> UInt[Array, "..."]:
    """Map floats to unsigned integers of the same order; pruned weights to 0."""
    unsigned = jnp.uint64 if score.dtype == jnp.float64 else jnp.uint32
    sign = jnp.array(1, unsigned) << jnp.array(
        jnp.finfo(score.dtype).bits - 1, unsigned
    )
    score = jnp.where(score == 0, jnp.zeros_like(score), score)  # -0.0 ties with 0.0
    bits = jax.lax.bitcast_convert_type(score, unsigned)
    key = jnp.where(bits >= sign, ~bits, bits | sign)
    return key if alive is None else jnp.where(alive, key, jnp.zeros_like(key))


def _highest(
    at_least: Callable[[Sequence[Array]], Sequence[Array]],
    keep: UInt32[Array, ""],
    bits: int,
    dtype: np.dtype,
) -> UInt[Array, ""]:
    """Find the highest t with at_least(t) >= keep; 0 if there is none.

    Each pass determines two bits from three counts, so that the keys are read half as
    often as with one bit per pass.
    """

    def refine(i: Array, prefix: Array) -> Array:
        shift = (jnp.int32(bits - 2) - 2 * i).astype(dtype)
        steps = jnp.arange(1, 4, dtype=dtype) << shift
        counts = at_least([prefix | step for step in steps])
        enough = sum((count >= keep).astype(dtype) for count in counts)
        return prefix | (enough << shift)

    return jax.lax.fori_loop(0, bits // 2, refine, jnp.zeros((), dtype))


def _count(
    conditions: Sequence[Sequence[Bool[Array, "..."]]],
) -> list[UInt32[Array, ""]]:
    """Sum several conditions over all leaves, in one pass over each leaf."""
    totals = []
    for leaf in conditions:
        ones = tuple(condition.astype(jnp.uint32) for condition in leaf)
        zeros = tuple(jnp.uint32(0) for _ in leaf)
        totals.append(
            jax.lax.reduce(
                ones,
                zeros,
                lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
                tuple(range(leaf[0].ndim)),
            )
        )
    return [functools.reduce(jnp.add, column) for column in zip(*totals, strict=True)]
