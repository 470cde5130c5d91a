"""Structured pruning: masks that remove whole neurons, channels, heads and features."""

import itertools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, SupportsIndex, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import graph, tree
from jaxprune.graph import Groups
from jaxprune.masks.schedule import check_density
from jaxprune.types import Fraction, Mask, Scores

Reduce = Literal["sum", "abs", "norm", "mean"]
ChannelScope = Literal["global", "kind"]
Cost = Literal["weights", "parameters", "macs"]
_STATISTICS = ("mean", "var")


def select_channels(
    groups: Groups | Any,
    scores: Scores,
    density: Fraction,
    *,
    reduce: Reduce | str | None = None,
    kinds: Collection[str] | str | None = None,
    scope: ChannelScope | str = "global",
    cost: Cost | str = "weights",
    multiple_of: SupportsIndex = 1,
    keep_at_least: SupportsIndex = 1,
) -> Mask:
    """Remove the lowest-scoring channel groups until a share of the cost is left.

    The score of a group is that of its weights: the entries of kernels in its slices, each
    counted once. Groups go one by one, lowest score first, until the cost is at the density
    or below it; the last one may be a large share, such as a whole group of a GroupNorm.
    `compact.compact` of the mask leaves what the mask keeps; statistics, which stay True, are
    cut with their channels.

    Args:
        groups: of `graph.channels`.
        scores: scores of single weights, a tree like the parameters.
        density: the cost that is left / the cost of the whole function, in (0, 1].
        reduce: how scores of weights become the score of their group. "sum", the default if
            no score is negative; "abs", the absolute value of the sum, for `scores.taylor`;
            "norm", the square root of the sum of squares; "mean", the sum per weight.
        kinds: names of kinds (`Kind.what`) to prune, such as `["heads", "neurons"]`; all
            kinds of a name are pruned. By default all are.
        scope: "global" ranks all groups together; "kind" removes the same share of each
            kind. Scores of layers of different sizes hardly compare, so "global" may leave
            one channel of a layer.
        cost: "weights" counts entries of kernels, "parameters" those of all leaves, and
            "macs" multiply-accumulates of all products, those of two activations included.
        multiple_of: sizes that are left are multiples of it, such as 8 for tensor cores. It
            does not apply to heads, nor to a kind that is not pruned.
        keep_at_least: groups that stay of each kind, 1 or more.

    Returns:
        A mask like the parameters. Biases and norms lose their slices too; leaves that are
        not floating or are statistics (`mean` and `var`) are all True.

    Raises:
        TypeError: if `groups` or the scores are something else.
        ValueError: if scores do not mirror the parameters, some are negative and `reduce` is
            not given, an option is unknown or out of range, this is called under `jit`, or no
            removal of groups gets down to the density (the message says how far it gets).

    Example:
        >>> fn = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]
        >>> params = {"w": jnp.ones((4, 8)), "v": jnp.arange(16.0).reshape(8, 2)}
        >>> groups = graph.channels(fn, params, jnp.ones((1, 4)))
        >>> mask = select_channels(groups, params, 0.5, cost="macs")
        >>> mask["w"][0].astype(int)
        Array([0, 0, 0, 0, 1, 1, 1, 1], dtype=int32)

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning,
        https://arxiv.org/abs/1906.10771, CVPR 2019, ranks channels of all layers together.
    """
    if not isinstance(groups, Groups):
        raise TypeError(
            f"groups is a {type(groups).__name__}. Pass the result of graph.channels first: "
            "select_channels(groups, scores, density)."
        )
    if any(isinstance(leaf, Tracer) for leaf in (density, *jax.tree.leaves(scores))):
        raise ValueError(
            "select_channels decides what shapes are left, which jit can't trace. Call it "
            "outside; jit the scoring function."
        )
    rounding = (
        _whole(multiple_of, "multiple_of"),
        _whole(keep_at_least, "keep_at_least"),
    )
    _check(groups, scope, cost)
    density = check_density(density)
    leaves = _check_scores(groups, scores, reduce)
    is_pruned = _chosen(groups, kinds)
    values = _group_scores(groups, leaves, reduce or "sum")
    order = _order(groups, values, is_pruned, scope)
    keep = _keep_some(groups, order, is_pruned, *rounding)
    whole = _cost(groups, cost, np.ones(len(values), bool))

    def share(removed: int) -> float:
        return _cost(groups, cost, keep(removed)) / whole

    if share(len(order)) > density:
        raise ValueError(
            f"density {density} of the {cost} can't be reached: removing groups of the kinds "
            f"{_names(groups, is_pruned)} gets down to {share(len(order)):.4g}. Raise the "
            "density, prune more kinds, or lower keep_at_least or multiple_of."
        )
    low, high = 0, len(order)  # share(high) <= density
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) <= density else (middle + 1, high)
    return _mask(groups, scores, keep(high))


def _whole(number: Any, name: str) -> int:
    value = operator.index(number) if hasattr(number, "__index__") else 0
    if value < 1:
        raise ValueError(
            f"{name} is a number of channels, 1 or more; got {number!r}. Pass an integer."
        )
    return value


def _check(groups: Groups, scope: str, cost: str) -> None:
    tree.check_option("scope", scope, get_args(ChannelScope))
    tree.check_option("cost", cost, get_args(Cost))
    if not groups.kinds:
        why = ", ".join(f"{name} ({reason})" for name, reason in groups.fixed.items())
        raise ValueError(
            f"the function has no channels to remove: {why or 'no product reads a leaf'}. "
            "Prune single weights, with masks.select."
        )


def _check_scores(groups: Groups, scores: Scores, reduce: str | None) -> list[Any]:
    """Return the scores of each kernel, None for other leaves."""
    if reduce is not None:
        tree.check_option("reduce", reduce, get_args(Reduce))
    tree.check_arrays(scores, "scores")
    like = jax.tree.unflatten(groups.structure, list(groups.names))
    scores = tree.align(scores, like, "scores", "Pass scores of the same parameters.")
    leaves: list[Any] = []
    for name, leaf, axes, is_kernel in zip(
        groups.names,
        jax.tree.leaves(scores),
        groups.leaves,
        groups.kernels,
        strict=True,
    ):
        shape = tuple(len(axis) for axis in axes)
        if tuple(leaf.shape) != shape:
            raise ValueError(
                f"scores have shape {tuple(leaf.shape)} at '{name}', where the parameter has "
                f"{shape}. Pass scores of the parameters that the groups were found for."
            )
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"scores are a shape at '{name}'. Pass arrays.")
        if is_kernel and not tree.is_floating(leaf):
            raise TypeError(
                f"scores are {leaf.dtype} at '{name}', where floats are expected. Pass the "
                "result of a scoring function, not a mask."
            )
        leaves.append(np.asarray(leaf, np.float64) if is_kernel else None)
    is_kernel = jax.tree.unflatten(groups.structure, list(groups.kernels))
    tree.check_finite(scores, "check how they were computed.", is_kernel)
    for name, leaf in zip(groups.names, leaves, strict=True):
        if reduce is None and leaf is not None and leaf.min(initial=0) < 0:
            raise ValueError(
                f"some scores are negative at '{name}'. For scores.taylor, pass "
                'reduce="abs", which ranks by the size of the sum; for others, pass '
                'reduce="sum".'
            )
    return leaves


def _chosen(groups: Groups, kinds: Collection[str] | str | None) -> np.ndarray:
    """Return of each group whether its kind may be pruned."""
    present = list(dict.fromkeys(kind.what for kind in groups.kinds))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    wanted = present if kinds is None else list(kinds)
    if not wanted:
        raise ValueError(
            f"kinds is {kinds!r}, which leaves nothing to remove. Pass some of "
            f"{', '.join(present)}."
        )
    for kind in wanted:
        tree.check_option("kind", kind, present)
    return np.repeat(
        [kind.what in wanted for kind in groups.kinds],
        [kind.size for kind in groups.kinds],
    )


def _names(groups: Groups, is_pruned: np.ndarray) -> str:
    kinds = (kind.what for kind in groups.kinds if is_pruned[kind.first])
    return ", ".join(dict.fromkeys(kinds))


def _group_scores(groups: Groups, leaves: Sequence[Any], reduce: str) -> np.ndarray:
    """Reduce the scores of the weights in each group."""
    total = np.zeros(sum(kind.size for kind in groups.kinds))
    for leaf, axes in zip(leaves, groups.leaves, strict=True):
        if leaf is not None:
            leaf = leaf**2 if reduce == "norm" else leaf
            for kind in _kinds_of(groups, axes):
                span = slice(kind.first, kind.first + kind.size)
                total[span] += _sums(leaf, axes, kind)
    if reduce == "mean":
        ones = [None if leaf is None else np.ones_like(leaf) for leaf in leaves]
        return total / np.maximum(_group_scores(groups, ones, "sum"), 1)
    return {"abs": np.abs, "norm": np.sqrt}.get(reduce, np.asarray)(total)


def _kinds_of(groups: Groups, axes: Sequence[Any]) -> list[graph.Kind]:
    """Return the kinds whose groups take slices of a leaf: a few, of any number."""
    numbers = np.unique(np.concatenate([axis.reshape(-1) for axis in axes]))
    firsts = [kind.first for kind in groups.kinds]
    total = firsts[-1] + groups.kinds[-1].size  # the number that fills up rows
    places = np.searchsorted(firsts, numbers[numbers < total], side="right") - 1
    return [groups.kinds[place] for place in np.unique(places)]


def _sums(leaf: np.ndarray, axes: Sequence[Any], kind: graph.Kind) -> np.ndarray:
    """Sum over the slices of each group of a kind, counting each entry once."""
    taken = {}
    for axis, groups in enumerate(axes):
        position, place = np.nonzero(
            (groups >= kind.first) & (groups < kind.first + kind.size)
        )
        if len(position):
            order = np.argsort(groups[position, place], kind="stable")
            taken[axis] = position[order].reshape(kind.size, -1)
    total = np.zeros(kind.size)
    for number in range(1, len(taken) + 1):
        for crossed in itertools.combinations(taken, number):
            others = tuple(a for a in range(leaf.ndim) if a not in crossed)
            summed = leaf.sum(others)
            index = []
            for k, axis in enumerate(crossed):
                shape = [kind.size] + [1] * number
                shape[1 + k] = -1
                index.append(taken[axis].reshape(shape))
            block = summed[tuple(index)].reshape(kind.size, -1).sum(1)
            total += block if number % 2 else -block
    return total


def _order(
    groups: Groups, values: np.ndarray, is_pruned: np.ndarray, scope: str
) -> np.ndarray:
    """Return the groups that may go, in the order in which they go."""
    if scope == "kind":
        values = values.copy()
        for kind in groups.kinds:
            span = slice(kind.first, kind.first + kind.size)
            ranks = np.argsort(np.argsort(values[span], kind="stable"), kind="stable")
            values[span] = (ranks + 1) / kind.size
    order = np.argsort(values, kind="stable")
    return order[is_pruned[order]]


def _keep_some(
    groups: Groups,
    order: np.ndarray,
    is_pruned: np.ndarray,
    multiple_of: int,
    keep_at_least: int,
) -> Callable[[int], np.ndarray]:
    """Return a function of how many groups go first, to what stays of all groups."""
    rank = np.full(len(is_pruned), len(order))
    rank[order] = np.arange(len(order))

    def keep(removed: int) -> np.ndarray:
        kept = rank >= removed
        for kind in groups.kinds:
            span = slice(kind.first, kind.first + kind.size)
            number = max(int(kept[span].sum()), min(keep_at_least, kind.size))
            if kind.what != "heads":
                number = min(-(-number // multiple_of) * multiple_of, kind.size)
            last = np.argsort(-rank[span], kind="stable")[:number]
            if is_pruned[kind.first]:
                kept[span] = False
                kept[kind.first + last] = True
        return kept

    return keep


def _cost(groups: Groups, cost: str, kept: np.ndarray) -> float:
    parts = groups.products if cost == "macs" else groups.leaves
    counted = groups.kernels if cost == "weights" else [True] * len(parts)
    total = 0.0
    for axes, is_counted in zip(parts, counted, strict=True):
        if is_counted:
            entries = graph.kept_entries(axes, kept)
            total += float(np.prod([axis.sum() for axis in entries], dtype=float))
    return total


def _mask(groups: Groups, scores: Scores, kept: np.ndarray) -> Mask:
    leaves = []
    rows = zip(groups.names, jax.tree.leaves(scores), groups.leaves, strict=True)
    for name, leaf, axes in rows:
        # A masked variance would be 0.
        is_whole = name.split("/")[-1] in _STATISTICS or not tree.is_floating(leaf)
        leaves.append(jnp.asarray(graph.kept_mask(axes, kept) | is_whole))
    return jax.tree.unflatten(groups.structure, leaves)
