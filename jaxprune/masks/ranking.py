"""Scores by leaf, of which the highest are found by NumPy or by a compiled program."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, UInt

from jaxprune import tree
from jaxprune.masks import bisection, partition
from jaxprune.types import Mask, Prunable, Scores


class Ranked(NamedTuple):
    """Scores by leaf: the names of leaves, which are ranked, and which weights may stay."""

    scores: list[Any]
    alive: list[Any]
    names: list[str]
    chosen: list[int]
    structure: Any


def rank(scores: Scores, mask: Mask | None, prunable: Prunable | None) -> Ranked:
    """Check scores and a mask, and split them into leaves."""
    tree.check_arrays(scores, "scores")
    _check_floating(scores)
    leaves, structure = jax.tree.flatten(scores)
    # A leaf that is not floating, such as a buffer of indices, has no scores.
    is_chosen = [
        is_prunable and tree.is_floating(leaf)
        for is_prunable, leaf in zip(
            jax.tree.leaves(tree.check_prunable(scores, prunable)), leaves, strict=True
        )
    ]
    chosen = [i for i, is_ranked in enumerate(is_chosen) if is_ranked]
    alive = [None] * len(leaves)
    if mask is not None:
        alive = jax.tree.leaves(tree.check_mirrors(mask, scores, of="scores"))
    if not chosen:
        raise ValueError(
            "no leaf of scores is prunable. By default, a prunable leaf has two or more "
            "dimensions and is not named like a bias, norm or embedding. Choose leaves by "
            'name: prunable=tree.prunable(params, include="*").'
        )
    return Ranked(leaves, alive, tree.names(scores), chosen, structure)


def _check_floating(scores: Scores) -> None:
    """Refuse a mask, or integers, in place of scores."""
    leaves = dict(zip(tree.names(scores), jax.tree.leaves(scores), strict=True))
    has_scores = any(tree.is_floating(leaf) for leaf in leaves.values())
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"scores has a ShapeDtypeStruct at '{name}', where an array is expected. "
                "Pass the result of a scoring function."
            )
        is_plain = isinstance(leaf.dtype, np.dtype)  # a random key has another dtype
        if is_plain and (leaf.dtype.kind in "cOSU" or leaf.dtype.itemsize > 8):
            raise TypeError(
                f"scores are {leaf.dtype} at '{name}', where floats of at most 64 bits are "
                "expected. Convert them, for example by np.abs or astype."
            )
        is_integer = jnp.issubdtype(leaf.dtype, jnp.integer)
        if leaf.ndim >= 2 and (
            is_integer or (leaf.dtype == np.bool_ and not has_scores)
        ):
            raise TypeError(
                f"scores are {leaf.dtype} at '{name}', where floats are expected. Pass the "
                "result of a scoring function, not a mask; a parameter that is not floating "
                "has no scores."
            )


def highest(
    ranked: Ranked,
    group: Sequence[int],
    keep: Any,
    *,
    exact: bool,
    axes: tuple[int, ...] | None = None,
) -> tuple[list[Bool[Array, "..."]], Any]:
    """Select among leaves together, or in each row of one leaf.

    The second result is whether enough weights are not pruned.
    """
    scores = [ranked.scores[i] for i in group]
    alive = [ranked.alive[i] for i in group]
    if not any(score.size for score in scores):
        return [jnp.ones(score.shape, bool) for score in scores], True
    arrays = [*scores, *(leaf for leaf in alive if leaf is not None)]
    if not isinstance(keep, Tracer) and all(map(tree.is_on_one_cpu, arrays)):
        try:
            if axes is None:
                return partition.highest(scores, alive, int(keep), exact=exact)
            return partition.highest_in_rows(
                scores[0], alive[0], int(keep), exact=exact, axes=axes
            )
        except FloatingPointError:
            _check_finite(ranked, group)
    keys, keep = _keys(ranked, group), jnp.asarray(keep, jnp.uint32)
    if axes is None:
        return bisection.highest(keys, keep, exact=exact)
    return bisection.highest_in_rows(keys, keep, exact=exact, axes=axes)


def _keys(ranked: Ranked, group: Sequence[int]) -> list[UInt[Array, "..."]]:
    """Return the scores of leaves as ordered integers; refuse scores that are not finite."""
    for i in group:
        dtype, widest = ranked.scores[i].dtype, jax.dtypes.canonicalize_dtype("float64")
        if dtype.itemsize > widest.itemsize:
            raise ValueError(
                f"scores are {dtype} at '{ranked.names[i]}', which JAX rounds to float32. "
                'Call jax.config.update("jax_enable_x64", True), or pass float32.'
            )
    keys, is_finite = bisection.keys(
        [ranked.scores[i] for i in group], [ranked.alive[i] for i in group]
    )
    if not isinstance(is_finite, Tracer) and not is_finite:
        _check_finite(ranked, group)
    return keys


def _check_finite(ranked: Ranked, group: Sequence[int]) -> None:
    tree.check_finite(
        {ranked.names[i]: ranked.scores[i] for i in group},
        "check that params are finite. If synflow overflowed, pass rescale=True, which "
        "rescales the kernels or computes in float64.",
    )
