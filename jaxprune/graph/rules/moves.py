"""Operations that move entries: reshapes, slices, concatenations and so on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.graph.relations import Relations, factors, nodes, pin, tie
from jaxprune.graph.rules.base import (
    ALL,
    Bools,
    Rule,
    Site,
    Small,
    State,
    as_is,
    bind,
    positions,
    take,
    unfit,
)

Move = Callable[
    [Mapping[str, Any], Sequence[tuple[Any, ...]], Sequence[Bools]], Sequence[Bools]
]


def _reshape(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    return [arrays[0].reshape(outs[0])]


def _transpose(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    return [arrays[0].transpose(params["permutation"])]


def _broadcast(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    shape = [1] * len(outs[0])
    for extent, axis in zip(
        arrays[0].shape, params["broadcast_dimensions"], strict=True
    ):
        shape[axis] = extent
    return [np.broadcast_to(arrays[0].reshape(shape), outs[0])]


def _slice(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    steps = params["strides"] or [1] * arrays[0].ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [arrays[0][tuple(slice(*bound) for bound in bounds)]]


def _rev(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    return [np.flip(arrays[0], params["dimensions"])]


def _split(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    ends = np.cumsum(params["sizes"])[:-1]
    return np.split(arrays[0], ends, params["axis"])


def _concatenate(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    return [np.concatenate(arrays, params["dimension"])]


def _pad(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    x, filling = arrays
    result = np.full(outs[0], filling)
    inside, cut = _pad_slices(params, x.shape, outs[0])
    result[inside] = x[cut]
    return [result]


def _pad_slices(
    params: Mapping[str, Any], shape: Sequence[int], out: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where the operand lies in the padded array, and what of it is left there."""
    inside, cut = [], []
    for (low, _, step), extent, size in zip(
        params["padding_config"], shape, out, strict=True
    ):
        places = low + (step + 1) * np.arange(extent)
        left = np.flatnonzero((places >= 0) & (places < size))
        if left.size:
            cut.append(slice(left[0], left[-1] + 1))
            inside.append(slice(places[left[0]], places[left[-1]] + 1, step + 1))
        else:
            cut.append(slice(0, 0))
            inside.append(slice(0, 0))
    return tuple(inside), tuple(cut)


def _move_forward(move: Move) -> Callable[[Site, Sequence[State]], Sequence[State]]:
    def forward(site: Site, states: Sequence[State]) -> Sequence[State]:
        varies = move(site.eqn.params, site.outs, [state.varies for state in states])
        nonzero = move(site.eqn.params, site.outs, [state.nonzero for state in states])
        return [State(v, n) for v, n in zip(varies, nonzero, strict=True)]

    return forward


def _move_backward(move: Move) -> Callable[..., Sequence[Bools]]:
    """Mark the source of every needed entry; the moved array is a view of its source."""

    def backward(
        site: Site, states: Sequence[State], needs: Sequence[Bools]
    ) -> Sequence[Bools]:
        del states
        sources = [np.zeros(shape, bool) for shape in site.ins]
        for view, need in zip(
            move(site.eqn.params, site.outs, sources), needs, strict=True
        ):
            view[...] = need
        return sources

    return backward


def _broadcast_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    dimensions = site.eqn.params["broadcast_dimensions"]
    extra = tuple(a for a in range(needs[0].ndim) if a not in dimensions)
    return [unfit(needs[0].any(extra), site.ins[0])]


def _concatenate_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    axis = site.eqn.params["dimension"]
    ends = np.cumsum([shape[axis] for shape in site.ins])[:-1]
    return np.split(needs[0], ends, axis)


def _pad_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    need = np.zeros(site.ins[0], bool)
    inside, cut = _pad_slices(site.eqn.params, site.ins[0], site.outs[0])
    need[cut] = needs[0][inside]
    filling = needs[0].copy()
    filling[inside] = False
    return [need, np.asarray(filling.any())]


def _relate_reshape(site: Site, relations: Relations, i: int) -> None:
    """Split both shapes into common factors; where there are none, keep all."""
    (value,), (out,) = site.eqn.ins[:1], site.eqn.outs
    if not site.ins[0] or not site.outs[0]:
        for each, shape in ((value, site.ins[0]), (out, site.outs[0])):
            for axis in range(len(shape) or 1):
                pin(relations, i, nodes(relations, each, axis))
        return
    for in_axes, out_axes in _reshape_groups(site.ins[0], site.outs[0]):
        ins = [site.ins[0][axis] for axis in in_axes]
        outs = [site.outs[0][axis] for axis in out_axes]
        common = _common_factors(ins, outs)
        if common is None:
            for each, axes in ((value, in_axes), (out, out_axes)):
                for axis in axes:
                    pin(relations, i, nodes(relations, each, axis))
            continue
        parts = factors(relations, common)
        for each, axes, sizes in ((value, in_axes, ins), (out, out_axes, outs)):
            rest = list(zip(common, parts, strict=True))
            for axis, extent in zip(axes, sizes, strict=True):
                taken, product = [], 1
                while product < extent:
                    factor, part = rest.pop(0)
                    product *= factor
                    taken.append(part)
                if len(taken) == 1:
                    tie(relations, nodes(relations, each, axis), taken[0])
                else:
                    relations.products.append((nodes(relations, each, axis), taken))
    for each, shape in ((value, site.ins[0]), (out, site.outs[0])):
        for axis, extent in enumerate(shape):
            if extent == 1:
                pin(relations, i, nodes(relations, each, axis))


def _reshape_groups(
    ins: Sequence[int], outs: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Match runs of axes of equal size; axes of size 1 belong to none."""
    left = [a for a, n in enumerate(ins) if n != 1]
    right = [a for a, n in enumerate(outs) if n != 1]
    groups = []
    while left and right:
        taken = ([left.pop(0)], [right.pop(0)])
        sizes = [ins[taken[0][0]], outs[taken[1][0]]]
        while sizes[0] != sizes[1]:
            side = 0 if sizes[0] < sizes[1] else 1
            axis = (left, right)[side].pop(0)
            taken[side].append(axis)
            sizes[side] *= (ins, outs)[side][axis]
        groups.append(taken)
    return groups


def _common_factors(ins: Sequence[int], outs: Sequence[int]) -> list[int] | None:
    """Return factors of which every size of both lists is a product of neighbors."""
    cuts = sorted({*np.cumprod(ins).tolist(), *np.cumprod(outs).tolist()})
    result, before = [], 1
    for cut in cuts:
        if cut % before:
            return None
        result.append(cut // before)
        before = cut
    return result


def relate_moves(
    axes: Callable[[Site], Sequence[tuple[int, int, Any, int, int, Any]]],
) -> Callable[[Site, Relations, int], None]:
    """Tie axes, given as (input, its axis, positions, output, its axis, positions)."""

    def relate(site: Site, relations: Relations, i: int) -> None:
        for k, axis, taken, out, out_axis, places in axes(site):
            tie(
                relations,
                nodes(relations, site.eqn.ins[k], axis)[taken],
                nodes(relations, site.eqn.outs[out], out_axis)[places],
            )
        moved = {(k, axis) for k, axis, *_ in axes(site)}
        for k, shape in enumerate(site.ins):
            if not shape:
                pin(relations, i, nodes(relations, site.eqn.ins[k], 0))
            for axis in range(len(shape)):
                if (k, axis) not in moved:
                    pin(relations, i, nodes(relations, site.eqn.ins[k], axis))

    return relate


def _transpose_axes(site: Site) -> list[tuple]:
    order = site.eqn.params["permutation"]
    return [(0, axis, ALL, 0, out, ALL) for out, axis in enumerate(order)]


def _squeeze_axes(site: Site) -> list[tuple]:
    gone = [d % len(site.ins[0]) for d in site.eqn.params["dimensions"]]
    left = [a for a in range(len(site.ins[0])) if a not in gone]
    return [(0, axis, ALL, 0, out, ALL) for out, axis in enumerate(left)]


def _broadcast_axes(site: Site) -> list[tuple]:
    return [
        (0, axis, ALL, 0, out, ALL)
        for axis, out in enumerate(site.eqn.params["broadcast_dimensions"])
        if site.ins[0][axis] == site.outs[0][out]
    ]


def _slice_axes(site: Site) -> list[tuple]:
    params = site.eqn.params
    steps = params["strides"] or [1] * len(site.ins[0])
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [(0, a, slice(*bound), 0, a, ALL) for a, bound in enumerate(bounds)]


def _rev_axes(site: Site) -> list[tuple]:
    flipped = site.eqn.params["dimensions"]
    return [
        (0, a, slice(None, None, -1) if a in flipped else ALL, 0, a, ALL)
        for a in range(len(site.ins[0]))
    ]


def _split_axes(site: Site) -> list[tuple]:
    axis, result, begin = site.eqn.params["axis"], [], 0
    for out, extent in enumerate(site.eqn.params["sizes"]):
        for a in range(len(site.ins[0])):
            taken = slice(begin, begin + extent) if a == axis else ALL
            result.append((0, a, taken, out, a, ALL))
        begin += extent
    return result


def _concatenate_axes(site: Site) -> list[tuple]:
    axis, result, begin = site.eqn.params["dimension"], [], 0
    for k, shape in enumerate(site.ins):
        for a in range(len(shape)):
            place = slice(begin, begin + shape[a]) if a == axis else ALL
            result.append((k, a, ALL, 0, a, place))
        begin += shape[axis]
    return result


def _stack(
    params: Mapping[str, Any], outs: Any, arrays: Sequence[Bools]
) -> Sequence[Bools]:
    return [np.stack(arrays, params["axis"])]


def _stack_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    return list(np.moveaxis(needs[0], site.eqn.params["axis"], 0))


def _relate_stack(site: Site, relations: Relations, i: int) -> None:
    place, (out,) = site.eqn.params["axis"], site.eqn.outs
    pin(relations, i, nodes(relations, out, place))
    for value, shape in zip(site.eqn.ins, site.ins, strict=True):
        if not shape:
            pin(relations, i, nodes(relations, value, 0))
        for axis in range(len(shape)):
            out_axis = axis + (axis >= place)
            tie(
                relations,
                nodes(relations, value, axis),
                nodes(relations, out, out_axis),
            )


def _pad_axes(site: Site) -> list[tuple]:
    inside, cut = _pad_slices(site.eqn.params, site.ins[0], site.outs[0])
    return [(0, a, cut[a], 0, a, inside[a]) for a in range(len(site.ins[0]))]


def _rewrite_to_shape(
    site: Site, operands: Sequence[Any], small: Small
) -> Sequence[Any]:
    return [jnp.reshape(operands[0], small.shapes[0])]


def _rewrite_broadcast(
    site: Site, operands: Sequence[Any], small: Small
) -> Sequence[Any]:
    dimensions = site.eqn.params["broadcast_dimensions"]
    return [jax.lax.broadcast_in_dim(operands[0], small.shapes[0], dimensions)]


def _rewrite_slice(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    """Slice whole axes as before; take what is left of the others."""
    params, (x,) = site.eqn.params, operands
    starts, steps = params["start_indices"], params["strides"] or [1] * x.ndim
    whole = [
        a for a in range(x.ndim) if small.ins[0][a] is None and small.outs[0][a] is None
    ]
    x = jax.lax.slice(
        x,
        [starts[a] if a in whole else 0 for a in range(x.ndim)],
        [
            params["limit_indices"][a] if a in whole else x.shape[a]
            for a in range(x.ndim)
        ],
        [steps[a] if a in whole else 1 for a in range(x.ndim)],
    )
    for a in range(x.ndim):
        if a not in whole:
            kept = positions(small.outs[0][a], site.outs[0][a])
            x = take(x, a, small.ins[0][a], starts[a] + steps[a] * kept)
    return [x]


def _rewrite_split(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    axis, (x,) = site.eqn.params["axis"], operands
    if small.ins[0][axis] is None and all(out[axis] is None for out in small.outs):
        return bind(site.eqn, operands)
    parts, begin = [], 0
    for keep, extent in zip(small.outs, site.eqn.params["sizes"], strict=True):
        wanted = begin + positions(keep[axis], extent)
        parts.append(take(x, axis, small.ins[0][axis], wanted))
        begin += extent
    return parts


def _rewrite_pad(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    x, filling = operands
    config = []
    for a, (low, high, step) in enumerate(site.eqn.params["padding_config"]):
        if small.ins[0][a] is None and small.outs[0][a] is None:
            config.append((low, high, step))
            continue
        extent, size = site.ins[0][a], site.outs[0][a]
        if step:
            raise NotImplementedError("interior padding of an axis that is cut")
        kept = positions(small.outs[0][a], size)
        inside = kept[(kept >= low) & (kept < low + extent)] - low
        x = take(x, a, small.ins[0][a], inside)
        config.append((int((kept < low).sum()), int((kept >= low + extent).sum()), 0))
    return [jax.lax.pad(x, filling, config)]


def _pad_relate(site: Site, relations: Relations, i: int) -> None:
    relate_moves(_pad_axes)(site, relations, i)
    for a, (_, _, step) in enumerate(site.eqn.params["padding_config"]):
        if step:
            pin(relations, i, nodes(relations, site.eqn.ins[0], a))
            pin(relations, i, nodes(relations, site.eqn.outs[0], a))


def _moves(move: Move, relate: Any, rewrite: Any = as_is, backward: Any = None) -> Rule:
    return Rule(_move_forward(move), backward or _move_backward(move), relate, rewrite)


MOVES: Mapping[str, Rule] = {
    "reshape": _moves(_reshape, _relate_reshape, _rewrite_to_shape),
    "transpose": _moves(_transpose, relate_moves(_transpose_axes)),
    "squeeze": _moves(_reshape, relate_moves(_squeeze_axes)),
    "broadcast_in_dim": _moves(
        _broadcast,
        relate_moves(_broadcast_axes),
        _rewrite_broadcast,
        _broadcast_backward,
    ),
    "slice": _moves(_slice, relate_moves(_slice_axes), _rewrite_slice),
    "rev": _moves(_rev, relate_moves(_rev_axes)),
    "split": _moves(_split, relate_moves(_split_axes), _rewrite_split),
    "concatenate": _moves(
        _concatenate, relate_moves(_concatenate_axes), as_is, _concatenate_backward
    ),
    "stack": _moves(_stack, _relate_stack, as_is, _stack_backward),
    "pad": _moves(_pad, _pad_relate, _rewrite_pad, _pad_backward),
}
