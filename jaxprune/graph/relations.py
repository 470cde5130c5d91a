"""Which positions of which axes stay or go together.

A node is a position of an axis of a value. Positions that are tied stay or go together; an
axis that is a product of others (a reshape) keeps the products of what they keep; and an axis
is pinned if an equation needs all of it once anything of its output is kept.
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Nodes = np.ndarray  # int64 numbers of nodes
# Positions that are kept of each axis of a value; None where all are.
Keep = list[np.ndarray | None]


@dataclasses.dataclass
class Relations:
    """The relations of a program, as they are collected.

    Attributes:
        bases: of each value, the first node of each axis.
        shapes: of each value, its shape.
        size: number of nodes.
        ties: pairs of arrays of nodes that are tied entry by entry.
        products: an axis, and the factors that it is a product of, first factor outermost.
        pins: by equation, nodes that are kept if anything of its output is.
        hulls: axes that are kept from the first to the last position that is needed.
        mixed: axes along which entries meet or are numbered: summed, sorted, seen by a
            window, counted by an iota.
    """

    bases: list[tuple[int, ...]]
    shapes: Sequence[tuple[Any, ...]]
    size: int
    ties: list[tuple[Nodes, Nodes]] = dataclasses.field(default_factory=list)
    products: list[tuple[Nodes, list[Nodes]]] = dataclasses.field(default_factory=list)
    pins: dict[int, list[Nodes]] = dataclasses.field(default_factory=dict)
    hulls: list[Nodes] = dataclasses.field(default_factory=list)
    mixed: list[Nodes] = dataclasses.field(default_factory=list)


def small_shape(shape: Sequence[Any], keep: Keep) -> tuple[Any, ...]:
    """Return the shape that is left of an array.

    Example:
        >>> small_shape((2, 3), [None, np.array([0, 2])])
        (2, 2)
    """
    return tuple(
        extent if positions is None else len(positions)
        for extent, positions in zip(shape, keep, strict=True)
    )


def start(shapes: Sequence[tuple[Any, ...]]) -> Relations:
    """Number the nodes of the values of a program; a scalar has one node.

    Args:
        shapes: shape of each value.

    Returns:
        Relations without ties.

    Example:
        >>> start([(2, 3), ()]).size
        6
    """
    bases, size = [], 0
    for shape in shapes:
        of_axes = []
        for extent in shape or (1,):
            of_axes.append(size)
            size += extent
        bases.append(tuple(of_axes))
    return Relations(bases, shapes, size)


def nodes(relations: Relations, value: int, axis: SupportsIndex) -> Nodes:
    """Return the nodes of an axis."""
    axis = operator.index(axis)
    base, shape = relations.bases[value][axis], relations.shapes[value] or (1,)
    return np.arange(base, base + shape[axis])


def tie(relations: Relations, first: Nodes, second: Nodes) -> None:
    """Tie nodes, entry by entry."""
    relations.ties.append((first, second))


def factors(relations: Relations, sizes: Sequence[int]) -> list[Nodes]:
    """Return new nodes for the factors of an axis."""
    result = []
    for extent in sizes:
        result.append(np.arange(relations.size, relations.size + extent))
        relations.size += extent
    return result


def pin(relations: Relations, eqn: int, pinned: Nodes) -> None:
    """Keep nodes if anything of an equation's output is kept."""
    relations.pins.setdefault(eqn, []).append(pinned)
    if len(pinned) > 1:
        relations.mixed.append(pinned)


def reached(
    relations: Relations, values: Sequence[int]
) -> frozenset[tuple[int, int]] | None:
    """Return the axes along which the first axes of some values go on.

    Args:
        relations: of a program.
        values: numbers of values.

    Returns:
        A value and an axis each; None if entries along one of them meet, or are numbered.
    """
    labels = components(relations.ties, relations.size)
    is_reached = np.zeros(labels.max(initial=-1) + 1, bool)
    for value in values:
        is_reached[labels[nodes(relations, value, 0)]] = True
    # By the cells and sizes of a product: which of its factors are reached.
    known: set[tuple[bytes, tuple[int, ...], int]] = set()
    before = -1
    while is_reached.sum() + len(known) > before:
        before = is_reached.sum() + len(known)
        for axis, parts in relations.products:
            key = labels[axis].tobytes(), tuple(len(part) for part in parts)
            for k, part in enumerate(parts):
                if is_reached[labels[part]].any():
                    is_reached[labels[axis]] = True
                    known.add((*key, k))
                elif (*key, k) in known:
                    is_reached[labels[part]] = True
    if any(is_reached[labels[group]].any() for group in relations.mixed):
        return None
    return frozenset(
        (value, axis)
        for value, shape in enumerate(relations.shapes)
        for axis in range(len(shape))
        if is_reached[labels[nodes(relations, value, axis)]].any()
    )


def close(
    relations: Relations,
    outs: Sequence[Sequence[int]],
    kept: Sequence[Nodes],
) -> list[Keep]:
    """Return the smallest set of kept positions that satisfies every relation.

    Args:
        relations: of a program.
        outs: of each equation, the values that it computes.
        kept: nodes to keep at least.

    Returns:
        Of each value, the positions that are kept.
    """
    labels = components(relations.ties, relations.size)
    is_kept = np.zeros(labels.max(initial=-1) + 1, bool)
    for group in kept:
        is_kept[labels[group]] = True
    products = [
        (labels[axis], [labels[f] for f in fs]) for axis, fs in relations.products
    ]
    hulls = [labels[hull] for hull in relations.hulls]
    pins = {i: labels[np.concatenate(groups)] for i, groups in relations.pins.items()}
    axes = {i: _out_axes(relations, labels, outs[i]) for i in pins}
    changed = True
    while changed:
        changed = False
        for i in list(pins):
            if any(all(is_kept[axis].any() for axis in out) for out in axes[i]):
                pinned = pins.pop(i)
                changed = changed or not is_kept[pinned].all()
                is_kept[pinned] = True
        for axis, parts in products:
            changed = _close_product(is_kept, axis, parts) or changed
        for hull in hulls:
            positions = np.flatnonzero(is_kept[hull])
            if positions.size and len(positions) <= positions[-1] - positions[0]:
                is_kept[hull[positions[0] : positions[-1] + 1]] = True
                changed = True
    of_nodes = is_kept[labels]
    return [
        _keep_of(relations, value, of_nodes) for value in range(len(relations.shapes))
    ]


def components(ties: Sequence[tuple[Nodes, Nodes]], size: int) -> np.ndarray:
    """Return the component of each of `size` nodes."""
    if not ties:
        return np.arange(size)
    first = np.concatenate([a for a, _ in ties])
    second = np.concatenate([b for _, b in ties])
    ones = np.ones(len(first), np.int8)
    graph = coo_array((ones, (first, second)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _out_axes(
    relations: Relations, labels: np.ndarray, outs: Sequence[int]
) -> list[list[np.ndarray]]:
    return [
        [
            labels[nodes(relations, out, axis)]
            for axis in range(len(relations.shapes[out]) or 1)
        ]
        for out in outs
    ]


def _close_product(is_kept: np.ndarray, axis: Nodes, parts: Sequence[Nodes]) -> bool:
    """Keep the products of kept factors, and the factors of kept products."""
    grid = is_kept[axis].reshape([len(part) for part in parts])
    outer = np.ones((), bool)
    before = grid.sum() + sum(int(is_kept[part].sum()) for part in parts)
    for i, part in enumerate(parts):
        others = tuple(k for k in range(len(parts)) if k != i)
        is_kept[part] |= grid.any(others)
        outer = np.multiply.outer(outer, is_kept[part])
    is_kept[axis] |= outer.reshape(-1)
    after = is_kept[axis].sum() + sum(int(is_kept[part].sum()) for part in parts)
    return bool(after > before)


def _keep_of(relations: Relations, value: int, is_kept: np.ndarray) -> Keep:
    keep: Keep = []
    for axis in range(len(relations.shapes[value])):
        of_axis = is_kept[nodes(relations, value, axis)]
        keep.append(None if of_axis.all() else np.flatnonzero(of_axis))
    return keep
