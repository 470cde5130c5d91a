"""How each primitive passes on what varies, what is needed, and what stays together.

`RULES` has one rule per primitive. A primitive without a rule is opaque: everything that it
reads is kept, whole, and compaction reports it. To follow another primitive, add a rule:
`rules.RULES | {"my_primitive": rules.elementwise(zero=True)}`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.graph import products
from jaxprune.graph.relations import Keep, Relations, factors, nodes, pin, tie
from jaxprune.graph.trace import Eqn

# A bool array of NumPy; of rank 0 it may be a scalar.
Bools: TypeAlias = Any


class State(NamedTuple):
    """What is known of a value without running the function.

    Attributes:
        varies: entries that depend on the arguments.
        nonzero: entries that may be nonzero; others are zero through the mask.
    """

    varies: Bools
    nonzero: Bools


class Site(NamedTuple):
    """An equation and the shapes around it.

    Attributes:
        eqn: the equation.
        ins: shapes of what it reads.
        outs: shapes of what it computes.
        carries: whether constants that it sums may be carried behind it.
        known: returns the array of a value that depends on constants alone, or None.
    """

    eqn: Eqn
    ins: Sequence[tuple[Any, ...]]
    outs: Sequence[tuple[Any, ...]]
    carries: bool
    known: Callable[[int], Any]


class Small(NamedTuple):
    """The sizes that are left around an equation.

    Attributes:
        ins: positions that are kept of each axis of what it reads; None for all.
        outs: the same of what it computes.
        shapes: the shapes of what it computes, after keeping these positions.
    """

    ins: Sequence[Keep]
    outs: Sequence[Keep]
    shapes: Sequence[tuple[Any, ...]]


class Rule(NamedTuple):
    """The rule of a primitive.

    Attributes:
        forward: `forward(site, states) -> states` of the outputs.
        backward: `backward(site, states, needs) -> needs` of what the equation reads, from
            what is needed of its outputs.
        relate: `relate(site, relations, i)` records ties of equation number i.
        rewrite: `rewrite(site, operands, small) -> outputs` of smaller operands.
        sums: whether it adds up entries, so that constants among them can be carried.
        opaque: whether it keeps all that it reads.
    """

    forward: Callable[[Site, Sequence[State]], Sequence[State]]
    backward: Callable[[Site, Sequence[State], Sequence[Bools]], Sequence[Bools]]
    relate: Callable[[Site, Relations, int], None]
    rewrite: Callable[[Site, Sequence[Any], Small], Sequence[Any]]
    sums: bool = False
    opaque: bool = False


def bind(eqn: Eqn, operands: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """Run the primitive of an equation, with some parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    result = eqn.primitive.bind(*operands, **params)
    return result if eqn.primitive.multiple_results else [result]


def _as_is(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    del small
    return bind(site.eqn, operands)


# Elementwise operations


def _fit(array: Bools, shape: tuple[Any, ...]) -> Bools:
    return np.broadcast_to(array, shape)


def _unfit(need: Bools, shape: tuple[Any, ...]) -> Bools:
    """Undo broadcasting: an entry is needed if any of its copies is."""
    if need.shape == shape:
        return need
    if not shape:
        return np.asarray(need.any())
    axes = tuple(a for a, n in enumerate(shape) if n == 1 and need.shape[a] != 1)
    return need.any(axes, keepdims=True)


def _relate_elementwise(site: Site, relations: Relations, i: int) -> None:
    several = len(site.outs) > 1
    for k, (value, shape) in enumerate(zip(site.eqn.ins, site.ins, strict=True)):
        out = site.eqn.outs[k if several else 0]
        out_shape = site.outs[k if several else 0]
        if not shape:
            pin(relations, i, nodes(relations, value, 0))
        for axis, extent in enumerate(shape):
            if extent == out_shape[axis]:
                tie(
                    relations,
                    nodes(relations, value, axis),
                    nodes(relations, out, axis),
                )
            else:
                pin(relations, i, nodes(relations, value, axis))


def elementwise(zero: bool = False) -> Rule:
    """Make the rule of an operation that works entry by entry.

    Args:
        zero: whether the result is 0 where every operand is 0.

    Returns:
        The rule.

    Example:
        >>> elementwise(zero=True).opaque
        False
    """

    def forward(site: Site, states: Sequence[State]) -> Sequence[State]:
        shape = site.outs[0]
        if len(site.outs) > 1:
            return states
        varies, nonzero = np.zeros(shape, bool), np.zeros(shape, bool)
        for state in states:
            varies = varies | state.varies
            nonzero = nonzero | state.nonzero
        return [State(varies, nonzero if zero else np.ones(shape, bool))]

    def backward(
        site: Site, states: Sequence[State], needs: Sequence[Bools]
    ) -> Sequence[Bools]:
        del states
        several = len(site.outs) > 1
        return [_unfit(needs[k if several else 0], s) for k, s in enumerate(site.ins)]

    return Rule(forward, backward, _relate_elementwise, _as_is)


def _mul_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    x, y = states
    varies = (x.varies & y.nonzero) | (y.varies & x.nonzero)
    return [
        State(_fit(varies, site.outs[0]), _fit(x.nonzero & y.nonzero, site.outs[0]))
    ]


def _mul_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    x, y = states
    return [
        _unfit(needs[0] & y.nonzero, site.ins[0]),
        _unfit(needs[0] & x.nonzero, site.ins[1]),
    ]


def _div_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    x, y = states
    varies = (x.varies | y.varies) & x.nonzero
    return [State(_fit(varies, site.outs[0]), _fit(x.nonzero, site.outs[0]))]


def _div_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    x, _ = states
    return [_unfit(needs[0], site.ins[0]), _unfit(needs[0] & x.nonzero, site.ins[1])]


def _select_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    shape, (which, *cases) = site.outs[0], states
    known = site.known(site.eqn.ins[0])
    if known is not None:
        index = np.broadcast_to(np.asarray(known).astype(np.int8), shape)
        return [
            State(
                np.choose(index, [_fit(case.varies, shape) for case in cases]),
                np.choose(index, [_fit(case.nonzero, shape) for case in cases]),
            )
        ]
    varies, nonzero = _fit(which.varies, shape), np.zeros(shape, bool)
    for case in cases:
        varies, nonzero = varies | case.varies, nonzero | case.nonzero
    return [State(varies & nonzero, nonzero)]


def _select_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    known = site.known(site.eqn.ins[0])
    result = [_unfit(needs[0], site.ins[0])]
    for k, shape in enumerate(site.ins[1:]):
        need = needs[0]
        if known is not None:
            need = need & (
                np.broadcast_to(np.asarray(known).astype(np.int8), need.shape) == k
            )
        result.append(_unfit(need, shape))
    return result


def _power_rule(site: Site) -> Rule:
    return _ZERO if site.eqn.params["y"] > 0 else _NONZERO


_ZERO, _NONZERO = elementwise(zero=True), elementwise()
_MUL = Rule(_mul_forward, _mul_backward, _relate_elementwise, _as_is)
_DIV = Rule(_div_forward, _div_backward, _relate_elementwise, _as_is)
_SELECT = Rule(_select_forward, _select_backward, _relate_elementwise, _as_is)
_POWER = Rule(
    lambda site, states: _power_rule(site).forward(site, states),
    _ZERO.backward,
    _relate_elementwise,
    _as_is,
)


# Operations that move entries

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
    return [_unfit(needs[0].any(extra), site.ins[0])]


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


def _relate_moves(
    axes: Callable[[Site], Sequence[tuple[int, int, Any, int, int, Any]]],
) -> Callable[[Site, Relations, int], None]:
    """Tie axes, given as (input, its axis, positions, output, its axis, positions)."""

    def relate(site: Site, relations: Relations, i: int) -> None:
        for k, axis, positions, out, out_axis, out_positions in axes(site):
            tie(
                relations,
                nodes(relations, site.eqn.ins[k], axis)[positions],
                nodes(relations, site.eqn.outs[out], out_axis)[out_positions],
            )
        moved = {(k, axis) for k, axis, *_ in axes(site)}
        for k, shape in enumerate(site.ins):
            if not shape:
                pin(relations, i, nodes(relations, site.eqn.ins[k], 0))
            for axis in range(len(shape)):
                if (k, axis) not in moved:
                    pin(relations, i, nodes(relations, site.eqn.ins[k], axis))

    return relate


_ALL = slice(None)


def _transpose_axes(site: Site) -> list[tuple]:
    order = site.eqn.params["permutation"]
    return [(0, axis, _ALL, 0, out, _ALL) for out, axis in enumerate(order)]


def _squeeze_axes(site: Site) -> list[tuple]:
    gone = [d % len(site.ins[0]) for d in site.eqn.params["dimensions"]]
    left = [a for a in range(len(site.ins[0])) if a not in gone]
    return [(0, axis, _ALL, 0, out, _ALL) for out, axis in enumerate(left)]


def _broadcast_axes(site: Site) -> list[tuple]:
    return [
        (0, axis, _ALL, 0, out, _ALL)
        for axis, out in enumerate(site.eqn.params["broadcast_dimensions"])
        if site.ins[0][axis] == site.outs[0][out]
    ]


def _slice_axes(site: Site) -> list[tuple]:
    params = site.eqn.params
    steps = params["strides"] or [1] * len(site.ins[0])
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return [(0, a, slice(*bound), 0, a, _ALL) for a, bound in enumerate(bounds)]


def _rev_axes(site: Site) -> list[tuple]:
    flipped = site.eqn.params["dimensions"]
    return [
        (0, a, slice(None, None, -1) if a in flipped else _ALL, 0, a, _ALL)
        for a in range(len(site.ins[0]))
    ]


def _split_axes(site: Site) -> list[tuple]:
    axis, result, begin = site.eqn.params["axis"], [], 0
    for out, extent in enumerate(site.eqn.params["sizes"]):
        for a in range(len(site.ins[0])):
            taken = slice(begin, begin + extent) if a == axis else _ALL
            result.append((0, a, taken, out, a, _ALL))
        begin += extent
    return result


def _concatenate_axes(site: Site) -> list[tuple]:
    axis, result, begin = site.eqn.params["dimension"], [], 0
    for k, shape in enumerate(site.ins):
        for a in range(len(shape)):
            place = slice(begin, begin + shape[a]) if a == axis else _ALL
            result.append((k, a, _ALL, 0, a, place))
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


def take(array: Any, axis: Any, have: np.ndarray | None, wanted: np.ndarray) -> Any:
    """Take positions of the original axis from what is left of it."""
    index = wanted if have is None else np.searchsorted(have, wanted)
    if len(index) == array.shape[axis] and (index == np.arange(len(index))).all():
        return array
    steps = np.diff(index)
    if (
        len(index)
        and (steps == (steps[0] if len(steps) else 1)).all()
        and (not len(steps) or steps[0] > 0)
    ):
        step = int(steps[0]) if len(steps) else 1
        return jax.lax.slice_in_dim(
            array, int(index[0]), int(index[-1]) + 1, step, axis
        )
    return jnp.take(array, index, axis, indices_are_sorted=bool((steps >= 0).all()))


def _positions(keep: np.ndarray | None, extent: Any) -> np.ndarray:
    return np.arange(extent) if keep is None else keep


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
            kept = _positions(small.outs[0][a], site.outs[0][a])
            x = take(x, a, small.ins[0][a], starts[a] + steps[a] * kept)
    return [x]


def _rewrite_split(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    axis, (x,) = site.eqn.params["axis"], operands
    if small.ins[0][axis] is None and all(out[axis] is None for out in small.outs):
        return bind(site.eqn, operands)
    parts, begin = [], 0
    for keep, extent in zip(small.outs, site.eqn.params["sizes"], strict=True):
        wanted = begin + _positions(keep[axis], extent)
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
        kept = _positions(small.outs[0][a], size)
        inside = kept[(kept >= low) & (kept < low + extent)] - low
        x = take(x, a, small.ins[0][a], inside)
        config.append((int((kept < low).sum()), int((kept >= low + extent).sum()), 0))
    return [jax.lax.pad(x, filling, config)]


def _pad_relate(site: Site, relations: Relations, i: int) -> None:
    _relate_moves(_pad_axes)(site, relations, i)
    for a, (_, _, step) in enumerate(site.eqn.params["padding_config"]):
        if step:
            pin(relations, i, nodes(relations, site.eqn.ins[0], a))
            pin(relations, i, nodes(relations, site.eqn.outs[0], a))


# Products, and sums


def _product_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    (x, y), name, params = states, site.eqn.primitive.name, site.eqn.params
    nonzero = products.product(name, params, x.nonzero, y.nonzero)
    varies = np.zeros(site.outs[0], bool)
    for first, second, same in (
        (x.varies, y.nonzero, x.varies is x.nonzero or (x.varies == x.nonzero).all()),
        (x.nonzero, y.varies, y.varies is y.nonzero or (y.varies == y.nonzero).all()),
    ):
        if first.any() and second.any():
            varies |= nonzero if same else products.product(name, params, first, second)
    return [State(varies, nonzero)]


def _product_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    result = []
    for side in (0, 1):
        own, other = states[side], states[1 - side]
        args = (site.eqn.primitive.name, site.eqn.params, side, needs[0])
        through = products.transpose(*args, other.nonzero, site.ins[side])
        if not site.carries:
            result.append(own.nonzero & through)
            continue
        need = own.varies & through
        if other.varies.any():
            same = (other.varies == other.nonzero).all()
            if not same:
                through = products.transpose(*args, other.varies, site.ins[side])
            need |= own.nonzero & through
        result.append(need)
    return result


def _relate_dot(site: Site, relations: Relations, i: int) -> None:
    del i
    (cx, cy), (bx, by) = site.eqn.params["dimension_numbers"]
    (x, y), (out,) = site.eqn.ins, site.eqn.outs
    free_x = [a for a in range(len(site.ins[0])) if a not in (*cx, *bx)]
    free_y = [a for a in range(len(site.ins[1])) if a not in (*cy, *by)]
    for a, b in zip((*cx, *bx), (*cy, *by), strict=True):
        tie(relations, nodes(relations, x, a), nodes(relations, y, b))
    relations.mixed += [nodes(relations, x, a) for a in cx]
    for out_axis, a in enumerate((*bx, *free_x)):
        tie(relations, nodes(relations, x, a), nodes(relations, out, out_axis))
    for k, b in enumerate(free_y):
        axis = len(bx) + len(free_x) + k
        tie(relations, nodes(relations, y, b), nodes(relations, out, axis))


def _relate_conv(site: Site, relations: Relations, i: int) -> None:
    params = site.eqn.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    (x, y), (out,) = site.eqn.ins, site.eqn.outs
    tie(
        relations,
        nodes(relations, x, numbers.lhs_spec[0]),
        nodes(relations, out, numbers.out_spec[0]),
    )
    channels = nodes(relations, x, numbers.lhs_spec[1])
    relations.mixed.append(channels)
    kernel_in = nodes(relations, y, numbers.rhs_spec[1])
    kernel_out = nodes(relations, y, numbers.rhs_spec[0])
    tie(relations, kernel_out, nodes(relations, out, numbers.out_spec[1]))
    if groups == 1:
        tie(relations, channels, kernel_in)
    else:
        (group,) = factors(relations, [groups])
        per_group = len(kernel_out) // groups
        relations.products.append((channels, [group, kernel_in]))
        (within,) = factors(relations, [per_group])
        relations.products.append((kernel_out, [group, within]))
    for axis in (*numbers.lhs_spec[2:],):
        pin(relations, i, nodes(relations, x, axis))
    for axis in (*numbers.out_spec[2:],):
        pin(relations, i, nodes(relations, out, axis))
    for axis in (*numbers.rhs_spec[2:],):
        relations.hulls.append(nodes(relations, y, axis))


def small_padding(
    eqn: Eqn, keep: Keep, shape: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the padding of a convolution whose kernel lost taps at its edges.

    Args:
        eqn: the convolution.
        keep: positions that are kept of the kernel.
        shape: of the kernel before.

    Returns:
        Pixels before and after, along each axis of the window.
    """
    params, padding = eqn.params, []
    for k, (before, after) in enumerate(params["padding"]):
        axis = params["dimension_numbers"].rhs_spec[2 + k]
        apart, taps = params["rhs_dilation"][k], _positions(keep[axis], shape[axis])
        if not len(taps):
            return tuple(params["padding"])
        last = shape[axis] - 1 - int(taps[-1])
        padding.append((before - int(taps[0]) * apart, after - last * apart))
    return tuple(padding)


def _rewrite_conv(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    numbers = site.eqn.params["dimension_numbers"]
    inputs, kernel = (operand.shape for operand in operands)
    return bind(
        site.eqn,
        operands,
        padding=small_padding(site.eqn, small.ins[1], site.ins[1]),
        feature_group_count=inputs[numbers.lhs_spec[1]] // kernel[numbers.rhs_spec[1]],
    )


def _reduce_axes(site: Site) -> list[tuple]:
    gone = site.eqn.params["axes"]
    left = [a for a in range(len(site.ins[0])) if a not in gone]
    return [
        (k, axis, _ALL, out, place, _ALL)
        for out in range(len(site.outs))
        for k in range(len(site.ins))
        for place, axis in enumerate(left)
    ]


def _reduce_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    axes = tuple(site.eqn.params["axes"])
    one = State(states[0].varies.any(axes), states[0].nonzero.any(axes))
    return [one] * len(site.outs)


def _spread(need: Bools, axes: Sequence[int], shape: tuple[Any, ...]) -> Bools:
    return np.broadcast_to(np.expand_dims(need, tuple(axes)), shape)


def _sum_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    need = _spread(needs[0], tuple(map(int, site.eqn.params["axes"])), site.ins[0])
    return [need & (states[0].varies if site.carries else states[0].nonzero)]


def _relate_sum(site: Site, relations: Relations, i: int) -> None:
    del i
    relations.mixed += [
        nodes(relations, site.eqn.ins[0], axis) for axis in site.eqn.params["axes"]
    ]
    for k, axis, _, out, place, _ in _reduce_axes(site):
        tie(
            relations,
            nodes(relations, site.eqn.ins[k], axis),
            nodes(relations, site.eqn.outs[out], place),
        )


def _reduce_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    return [
        _spread(needs[0], tuple(map(int, site.eqn.params["axes"])), shape)
        for shape in site.ins
    ]


# Windows, scans of an axis, and lookups


def _window_any(site: Site, array: Bools) -> Bools:
    params = site.eqn.params
    sizes, steps = params["window_dimensions"], params["window_strides"]
    base = params.get("base_dilation") or (1,) * len(sizes)
    apart = params.get("window_dilation") or (1,) * len(sizes)
    for axis, size in enumerate(sizes):
        if (size, steps[axis], base[axis], apart[axis]) == (1, 1, 1, 1):
            continue
        low, high = params["padding"][axis]
        inside = (array.shape[axis] - 1) * base[axis] + 1
        padded = np.zeros(
            (*array.shape[:axis], low + inside + high, *array.shape[axis + 1 :]), bool
        )
        index = [_ALL] * array.ndim
        index[axis] = slice(low, low + inside, base[axis])
        padded[tuple(index)] = array
        out = np.zeros(
            (*array.shape[:axis], site.outs[0][axis], *array.shape[axis + 1 :]), bool
        )
        for tap in range(size):
            begin = tap * apart[axis]
            index[axis] = slice(
                begin, begin + steps[axis] * (out.shape[axis] - 1) + 1, steps[axis]
            )
            out |= padded[tuple(index)]
        array = out
    return array


def _window_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    x = states[0]
    return [State(_window_any(site, x.varies), _window_any(site, x.nonzero))]


def _window_axes(site: Site) -> list[int]:
    """Return the axes along which a window is wider than one entry."""
    params = site.eqn.params
    pairs = zip(params["window_dimensions"], params["window_strides"], strict=True)
    return [
        axis
        for axis, (size, step) in enumerate(pairs)
        if size != 1 or step != 1 or params["padding"][axis] != (0, 0)
    ]


def _along_backward(axes_of: Callable[[Site], Sequence[int]]) -> Callable[..., Any]:
    """Need everything along some axes where anything along them is needed."""

    def backward(
        site: Site, states: Sequence[State], needs: Sequence[Bools]
    ) -> Sequence[Bools]:
        del states
        axes = tuple(axes_of(site))
        need = np.logical_or.reduce(list(needs)).any(axes, keepdims=True)
        return [
            np.broadcast_to(need, shape) if shape else np.asarray(need.any())
            for shape in site.ins
        ]

    return backward


def _along_forward(axes_of: Callable[[Site], Sequence[int]]) -> Callable[..., Any]:
    def forward(site: Site, states: Sequence[State]) -> Sequence[State]:
        axes = tuple(axes_of(site))
        varies, nonzero = (
            np.logical_or.reduce([np.broadcast_to(part, site.ins[0]) for part in parts])
            for parts in zip(*states, strict=True)
        )
        return [
            State(
                np.broadcast_to(varies.any(axes, keepdims=True), shape),
                np.broadcast_to(nonzero.any(axes, keepdims=True), shape),
            )
            for shape in site.outs
        ]

    return forward


def _relate_along(axes_of: Callable[[Site], Sequence[int]]) -> Callable[..., None]:
    """Tie the axes of all operands and outputs; keep some of them whole."""

    def relate(site: Site, relations: Relations, i: int) -> None:
        axes = axes_of(site)
        pairs = zip(
            (*site.eqn.ins, *site.eqn.outs), (*site.ins, *site.outs), strict=True
        )
        for value, shape in pairs:
            if not shape:
                pin(relations, i, nodes(relations, value, 0))
            for axis in range(len(shape)):
                if axis in axes:
                    pin(relations, i, nodes(relations, value, axis))
                else:
                    tie(
                        relations,
                        nodes(relations, site.eqn.outs[0], axis),
                        nodes(relations, value, axis),
                    )

    return relate


def _one_axis(name: str) -> Callable[[Site], Sequence[int]]:
    return lambda site: [site.eqn.params[name]]


def _cumulative() -> Rule:
    axes = _one_axis("axis")
    return Rule(
        _along_forward(axes), _along_backward(axes), _relate_along(axes), _as_is
    )


# A reduction that keeps what it reduces: the result of removing an entry is another one.
_REDUCE = Rule(_reduce_forward, _reduce_backward, _relate_moves(_reduce_axes), _as_is)
_SUM = Rule(_reduce_forward, _sum_backward, _relate_sum, _as_is, sums=True)
_WINDOW = Rule(
    _window_forward, _along_backward(_window_axes), _relate_along(_window_axes), _as_is
)
_SORT = Rule(
    _along_forward(_one_axis("dimension")),
    _along_backward(_one_axis("dimension")),
    _relate_along(_one_axis("dimension")),
    _as_is,
)
_DOT = Rule(_product_forward, _product_backward, _relate_dot, _as_is, sums=True)
_CONV = Rule(
    _product_forward, _product_backward, _relate_conv, _rewrite_conv, sums=True
)


def _iota_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    del states
    return [State(np.zeros(site.outs[0], bool), np.ones(site.outs[0], bool))]


def _rewrite_iota(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    del operands
    axis, dtype = site.eqn.params["dimension"], site.eqn.params["dtype"]
    kept = small.outs[0][axis]
    if kept is None:
        return [jax.lax.broadcasted_iota(dtype, small.shapes[0], axis)]
    row = jnp.asarray(kept, dtype)
    return [jax.lax.broadcast_in_dim(row, small.shapes[0], (axis,))]


_IOTA = Rule(
    _iota_forward,
    lambda site, states, needs: [],
    lambda site, relations, i: None,
    _rewrite_iota,
)


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
    full = _full_slices(site)
    other = tuple(
        a for a in range(len(site.ins[0])) if a not in [axis for axis, _ in full]
    )

    def place(array: Bools) -> Bools:
        array, shape = array.any(other), [1] * len(site.outs[0])
        for extent, (_, out) in zip(array.shape, full, strict=True):
            shape[out] = extent
        return np.broadcast_to(array.reshape(shape), site.outs[0])

    nonzero = place(operand.nonzero)
    moves = indices.varies.any()
    return [State(nonzero if moves else place(operand.varies), nonzero)]


def _gather_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    full = _full_slices(site)
    outs = [out for _, out in full]
    need = needs[0].any(tuple(a for a in range(needs[0].ndim) if a not in outs))
    shape = [1] * len(site.ins[0])
    for extent, (axis, _) in zip(need.shape, full, strict=True):
        shape[axis] = extent
    operand = np.broadcast_to(need.reshape(shape), site.ins[0]) & states[0].nonzero
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


# Everything else


def _opaque_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    varies = any(state.varies.any() for state in states)
    return [State(np.full(s, varies), np.ones(s, bool)) for s in site.outs]


def _opaque_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    needed = any(need.any() for need in needs)
    return [np.full(shape, needed) for shape in site.ins]


def _relate_opaque(site: Site, relations: Relations, i: int) -> None:
    pairs = zip((*site.eqn.ins, *site.eqn.outs), (*site.ins, *site.outs), strict=True)
    for value, shape in pairs:
        for axis in range(len(shape) or 1):
            pin(relations, i, nodes(relations, value, axis))


OPAQUE = Rule(_opaque_forward, _opaque_backward, _relate_opaque, _as_is, opaque=True)


def _moves(
    move: Move, relate: Any, rewrite: Any = _as_is, backward: Any = None
) -> Rule:
    return Rule(_move_forward(move), backward or _move_backward(move), relate, rewrite)


def _many(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_many(
        _ZERO,
        "add add_any sub neg max min abs sign floor ceil round sqrt cbrt tanh sin tan asin "
        "atan sinh asinh atanh expm1 log1p erf erf_inv real imag conj square copy copy_p "
        "convert_element_type reduce_precision or xor atan2 rem optimization_barrier "
        "sharding_constraint stop_gradient",
    ),
    **_many(
        _NONZERO,
        "exp exp2 log logistic cos cosh acos acosh rsqrt pow erfc lgamma digamma is_finite "
        "eq ne lt le gt ge not nextafter clamp shift_left shift_right_logical "
        "shift_right_arithmetic population_count clz bessel_i0e bessel_i1e igamma igammac "
        "regularized_incomplete_beta polygamma zeta",
    ),
    **_many(_MUL, "mul and"),
    "div": _DIV,
    "integer_pow": _POWER,
    "select_n": _SELECT,
    "reshape": _moves(_reshape, _relate_reshape, _rewrite_to_shape),
    "transpose": _moves(_transpose, _relate_moves(_transpose_axes)),
    "squeeze": _moves(_reshape, _relate_moves(_squeeze_axes)),
    "broadcast_in_dim": _moves(
        _broadcast,
        _relate_moves(_broadcast_axes),
        _rewrite_broadcast,
        _broadcast_backward,
    ),
    "slice": _moves(_slice, _relate_moves(_slice_axes), _rewrite_slice),
    "rev": _moves(_rev, _relate_moves(_rev_axes)),
    "split": _moves(_split, _relate_moves(_split_axes), _rewrite_split),
    "concatenate": _moves(
        _concatenate, _relate_moves(_concatenate_axes), _as_is, _concatenate_backward
    ),
    "stack": _moves(_stack, _relate_stack, _as_is, _stack_backward),
    "pad": _moves(_pad, _pad_relate, _rewrite_pad, _pad_backward),
    "dot_general": _DOT,
    "conv_general_dilated": _CONV,
    "reduce_sum": _SUM,
    **_many(
        _REDUCE, "reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin"
    ),
    **_many(_WINDOW, "reduce_window_max reduce_window_min reduce_window_sum"),
    **_many(_cumulative(), "cumsum cumprod cummax cummin cumlogsumexp"),
    "sort": _SORT,
    "iota": _IOTA,
    "gather": _GATHER,
}


def rule_of(eqn: Eqn, rules: Mapping[str, Rule]) -> Rule:
    """Return the rule of an equation; what can't be followed is opaque."""
    name, rule = eqn.primitive.name, rules.get(eqn.primitive.name, OPAQUE)
    if name in ("dot_general", "conv_general_dilated") and not products.is_product(
        name, eqn.params
    ):
        return OPAQUE
    return rule
