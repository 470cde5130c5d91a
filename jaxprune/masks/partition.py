"""Find the k highest scores in a CPU's memory by NumPy, whose partition does not sort.

It selects what `bisection` selects, which serves accelerators, several devices and traced
scores. It compiles nothing, and among all leaves it takes a third of the time.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

_SAMPLE = 2**16
# Scores that stay in a core's cache while NumPy reads them several times.
_PART = 2**17


class _Leaf(NamedTuple):
    scores: Float[np.ndarray, " size"]
    alive: Bool[np.ndarray, " size"] | None

    @property
    def num_alive(self) -> int:
        if self.alive is None:
            return self.scores.size
        return int(np.count_nonzero(self.alive))

    def part(self, part: slice) -> "_Leaf":
        alive = None if self.alive is None else self.alive[part]
        return _Leaf(self.scores[part], alive)

    def alive_where(self, condition: Bool[np.ndarray, " size"]) -> np.ndarray:
        return condition if self.alive is None else condition & self.alive


def highest(
    scores: Sequence[Float[Any, "..."]],
    alive: Sequence[Bool[Any, "..."] | None],
    keep: int,
    *,
    exact: bool,
) -> tuple[list[Bool[Array, "..."]], bool]:
    """Select as `bisection.highest` does: `keep` weights; fewer without `exact`.

    Raises:
        FloatingPointError: if a score is not finite.
    """
    # 16 bits are compared in 32, which keeps their order.
    dtype = np.result_type(np.float32, *(leaf.dtype for leaf in scores))
    leaves = [
        _Leaf(
            np.asarray(leaf).reshape(-1).astype(dtype, copy=False),
            None if member is None else np.asarray(member).reshape(-1),
        )
        for leaf, member in zip(scores, alive, strict=True)
    ]
    # Without `exact`, what is strictly greater than the highest pruned score is kept.
    rank = keep if exact else keep + 1
    num_alive = sum(leaf.num_alive for leaf in leaves)
    threshold, above, tied = _kth_highest(leaves, rank, num_alive)
    wanted = keep - above if exact else 0
    keeps_tied = wanted >= tied
    selected = []
    for leaf, score in zip(leaves, scores, strict=True):
        is_kept = leaf.alive_where(
            leaf.scores >= threshold if keeps_tied else leaf.scores > threshold
        )
        if wanted and not keeps_tied:
            first = np.flatnonzero(leaf.alive_where(leaf.scores == threshold))[:wanted]
            is_kept[first] = True
            wanted -= first.size
        selected.append(_beside(score, is_kept.reshape(score.shape)))
    return selected, rank <= num_alive


def highest_in_rows(
    score: Float[Any, "..."],
    alive: Bool[Any, "..."] | None,
    keep: int,
    *,
    exact: bool,
    axes: tuple[int, ...],
) -> tuple[list[Bool[Array, "..."]], bool]:
    """Select as `bisection.highest_in_rows` does, in each row of one leaf.

    Raises:
        FloatingPointError: if a score is not finite.
    """
    first = tuple(range(len(axes)))

    def outputs_first(array: Any) -> np.ndarray:
        return np.moveaxis(np.asarray(array), axes, first)

    moved = outputs_first(score)
    by_row = math.prod(moved.shape[: len(axes)]), -1
    dtype = np.result_type(np.float32, score.dtype)
    rows = moved.reshape(by_row).astype(dtype, copy=False)
    if not np.isfinite(rows).all():
        raise FloatingPointError
    is_alive = np.ones(rows.shape, bool)
    if alive is not None:
        is_alive = outputs_first(alive).reshape(by_row)
    rows = np.where(is_alive, rows, -np.inf)
    rank = keep if exact else keep + 1
    if 1 <= rank <= rows.shape[1]:
        place = rows.shape[1] - rank
        kth = np.partition(rows, place, axis=1)[:, place, None]
    else:
        kth = np.inf if rank < 1 else -np.inf
    is_kept = rows > kth
    if exact:
        is_tied = is_alive & (rows == kth)
        wanted = keep - np.count_nonzero(is_kept, axis=1, keepdims=True)
        if (np.count_nonzero(is_tied, axis=1, keepdims=True) > wanted).any():
            is_tied &= np.cumsum(is_tied, axis=1) <= wanted
        is_kept |= is_tied
    is_enough = bool((np.count_nonzero(is_alive, axis=1) >= keep).all())
    mask = np.moveaxis(is_kept.reshape(moved.shape), first, axes)
    return [_beside(score, np.ascontiguousarray(mask))], is_enough


def _kth_highest(
    leaves: Sequence[_Leaf], rank: int, num_alive: int
) -> tuple[Any, int, int]:
    """Return the score of a rank, from 1, and how many are above it and equal to it."""
    share = min(rank / max(num_alive, 1), 1.0)
    for low, high in (_bracket(leaves, share), (-np.inf, np.inf)):
        above, candidates = _between(leaves, low, high)
        if above < rank <= above + candidates.size:
            place = candidates.size - (rank - above)
            candidates.partition(place)
            kth = candidates[place]
            higher = int(np.count_nonzero(candidates > kth))
            return kth, above + higher, int(np.count_nonzero(candidates == kth))
    # A rank of 0 keeps no weight, and one that is too high keeps all.
    return (np.inf, 0, 0) if rank < 1 else (-np.inf, num_alive, 0)


def _bracket(leaves: Sequence[_Leaf], share: float) -> tuple[Any, Any]:
    """Return two scores that nearly always enclose the one that `share` are above."""
    step = 1 + sum(leaf.scores.size for leaf in leaves) // _SAMPLE
    parts = [leaf.part(slice(None, None, step)) for leaf in leaves]
    sample = np.concatenate(
        [p.scores if p.alive is None else p.scores[p.alive] for p in parts]
    )
    sample.sort()
    middle = (1 - share) * sample.size
    margin = 2 + 4 * (sample.size * share * (1 - share)) ** 0.5
    low, high = int(middle - margin), int(middle + margin)
    return (
        sample[low] if low >= 0 else -np.inf,
        sample[high] if high < sample.size else np.inf,
    )


def _between(
    leaves: Sequence[_Leaf], low: Any, high: Any
) -> tuple[int, Float[np.ndarray, " candidates"]]:
    """Return how many scores are above `high`, and those from `low` to `high`."""
    above, candidates = 0, []
    for leaf in leaves:
        for start in range(0, leaf.scores.size, _PART):
            part = leaf.part(slice(start, start + _PART))
            if not np.isfinite(part.scores).all():
                raise FloatingPointError
            is_above = part.alive_where(part.scores > high)
            is_candidate = part.alive_where(part.scores >= low) & ~is_above
            above += int(np.count_nonzero(is_above))
            candidates.append(part.scores[is_candidate])
    return above, np.concatenate(candidates)


def _beside(score: Any, mask: Bool[np.ndarray, "..."]) -> Bool[Array, "..."]:
    """Put a mask on the device of its score, as a compiled program would."""
    is_committed = isinstance(score, jax.Array) and score.committed
    # `jnp.asarray` would compile a copy for each shape.
    return jax.device_put(mask, score.sharding if is_committed else None)
