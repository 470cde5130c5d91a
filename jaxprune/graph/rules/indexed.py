"""Operations that read or write at indices: lookups, dynamic slices and scatters.

Axes that are taken whole are followed; all others are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.graph.relations import Relations, nodes, pin, tie
from jaxprune.graph.rules.base import Bools, Rule, Site, Small, State, as_is, bind


def _along(part: Bools, axes: Iterable[int], shape: Sequence[int]) -> Bools:
    """Repeat an array to a shape, its own axes being some axes of it, in order."""
    wide = [1] * len(shape)
    for extent, axis in zip(part.shape, axes, strict=True):
        wide[axis] = extent
    return np.broadcast_to(part.reshape(wide), shape)


def _all_but(count: int, axes: Iterable[int]) -> tuple[int, ...]:
    return tuple(a for a in range(count) if a not in set(axes))


def _full_slices(site: Site) -> list[tuple[int, int]]:
    """Return the axes of a lookup's operand that it takes whole, with those of the output."""
    numbers, sizes = (
        site.eqn.params["dimension_numbers"],
        site.eqn.params["slice_sizes"],
    )
    batching = getattr(numbers, "operand_batching_dims", ())
    left = [
        a for a in range(len(site.ins[0]))
        if a not in numbers.collapsed_slice_dims and a not in batching
    ]  # fmt: skip
    return [
        (a, out)
        for a, out in zip(left, numbers.offset_dims, strict=True)
        if sizes[a] == site.ins[0][a]
    ]


def _gather_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    operand, indices = states[0], states[1]
    full = dict(_full_slices(site))
    other = _all_but(len(site.ins[0]), full)
    varies, nonzero = (
        _along(part.any(other), full.values(), site.outs[0]) for part in operand
    )
    return [State(nonzero if _moved([indices]) else varies, nonzero)]


def _gather_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    full = dict(_full_slices(site))
    need = needs[0].any(_all_but(needs[0].ndim, full.values()))
    operand = _along(need, full, site.ins[0]) & states[0].nonzero
    batch = needs[0].any(tuple(site.eqn.params["dimension_numbers"].offset_dims))
    return [operand, np.broadcast_to(batch[..., None], site.ins[1])]


def _relate_gather(site: Site, relations: Relations, i: int) -> None:
    full = dict(_full_slices(site))
    operand, indices = site.eqn.ins[:2]
    (out,) = site.eqn.outs
    for axis in range(len(site.ins[0])):
        mine = nodes(relations, operand, axis)
        if axis in full:
            tie(relations, mine, nodes(relations, out, full[axis]))
        else:
            pin(relations, i, mine)
    numbers = site.eqn.params["dimension_numbers"]
    batch = [a for a in range(len(site.outs[0])) if a not in numbers.offset_dims]
    for axis, out_axis in enumerate(batch):
        tie(relations, nodes(relations, indices, axis), nodes(relations, out, out_axis))
    pin(relations, i, nodes(relations, indices, len(batch)))
    for out_axis in numbers.offset_dims:
        if out_axis not in full.values():
            pin(relations, i, nodes(relations, out, out_axis))


def _rewrite_gather(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    full = dict(_full_slices(site))
    sizes = [
        operands[0].shape[a] if a in full else size
        for a, size in enumerate(site.eqn.params["slice_sizes"])
    ]
    return bind(site.eqn, operands, slice_sizes=tuple(sizes))


_GATHER = Rule(_gather_forward, _gather_backward, _relate_gather, _rewrite_gather)


def _moved(states: Sequence[State]) -> bool:
    """Return whether an index depends on the arguments."""
    return any(state.varies.any() for state in states)


def _sliced(site: Site) -> list[int]:
    """Return the axes that a dynamic slice takes whole."""
    sizes = site.eqn.params["slice_sizes"]
    return [a for a, size in enumerate(sizes) if size == site.ins[0][a]]


def _slice_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    other, (x, *indices) = _all_but(len(site.ins[0]), _sliced(site)), states
    varies, nonzero = (
        np.broadcast_to(part.any(other, keepdims=True), site.outs[0]) for part in x
    )
    return [State(nonzero if _moved(indices) else varies, nonzero)]


def _slice_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    need = needs[0].any(_all_but(needs[0].ndim, _sliced(site)), keepdims=True)
    index = np.asarray(need.any())
    operand = np.broadcast_to(need, site.ins[0]) & states[0].nonzero
    return [operand, *[index] * (len(states) - 1)]


def _relate_slice(site: Site, relations: Relations, i: int) -> None:
    whole, (x, *indices), (out,) = _sliced(site), site.eqn.ins, site.eqn.outs
    for axis in range(len(site.ins[0])):
        if axis in whole:
            tie(relations, nodes(relations, x, axis), nodes(relations, out, axis))
        else:
            pin(relations, i, nodes(relations, x, axis))
            pin(relations, i, nodes(relations, out, axis))
    for index in indices:
        pin(relations, i, nodes(relations, index, 0))


def _rewrite_slice(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    return bind(site.eqn, operands, slice_sizes=tuple(small.shapes[0]))


def _updated(site: Site) -> tuple[dict[int, int], int]:
    """Return the axes that an update fills whole, with its own axes, and its operand."""
    name, params = site.eqn.primitive.name, site.eqn.params
    if name == "dynamic_update_slice":
        pairs, update = [(a, a) for a in range(len(site.ins[0]))], 1
    else:
        numbers, update = params["dimension_numbers"], 2
        gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        left = _all_but(len(site.ins[0]), gone)
        pairs = list(zip(left, numbers.update_window_dims, strict=True))
    shape = site.ins[update]
    return {a: b for a, b in pairs if site.ins[0][a] == shape[b]}, update


def _spread_update(site: Site, part: Bools) -> Bools:
    """Mark everywhere that an update may write."""
    whole, _ = _updated(site)
    other = _all_but(part.ndim, whole.values())
    return _along(part.any(other), whole, site.ins[0])


def _update_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    _, update = _updated(site)
    x, y = states[0], states[update]
    indices = [state for k, state in enumerate(states) if k not in (0, update)]
    nonzero = x.nonzero | _spread_update(site, y.nonzero)
    varies = x.varies | _spread_update(site, y.varies)
    return [State(nonzero if _moved(indices) else varies, nonzero)]


def _update_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    whole, update = _updated(site)
    need = needs[0].any(_all_but(needs[0].ndim, whole))
    result = [np.full(shape, needs[0].any()) for shape in site.ins]
    result[0] = needs[0]
    result[update] = _along(need, whole.values(), site.ins[update])
    return result


def _relate_update(site: Site, relations: Relations, i: int) -> None:
    whole, update = _updated(site)
    (x, *_), (out,) = site.eqn.ins, site.eqn.outs
    for axis in range(len(site.ins[0])):
        tie(relations, nodes(relations, x, axis), nodes(relations, out, axis))
        if axis in whole:
            own = nodes(relations, site.eqn.ins[update], whole[axis])
            tie(relations, own, nodes(relations, out, axis))
        else:
            pin(relations, i, nodes(relations, x, axis))
    for k, value in enumerate(site.eqn.ins[1:], start=1):
        for axis in range(len(site.ins[k]) or 1):
            if k != update or axis not in whole.values():
                pin(relations, i, nodes(relations, value, axis))


_SLICE = Rule(_slice_forward, _slice_backward, _relate_slice, _rewrite_slice)
_UPDATE = Rule(_update_forward, _update_backward, _relate_update, as_is)


INDEXED: Mapping[str, Rule] = {
    "gather": _GATHER,
    "dynamic_slice": _SLICE,
    **dict.fromkeys(("dynamic_update_slice", "scatter", "scatter-add"), _UPDATE),
}
