"""Matrix products, convolutions and reductions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.graph import products
from jaxprune.graph.program import Eqn
from jaxprune.graph.relations import Keep, Relations, factors, nodes, pin, tie
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
    unfit,
)
from jaxprune.graph.rules.moves import relate_moves


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
        apart, taps = params["rhs_dilation"][k], positions(keep[axis], shape[axis])
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
        (k, axis, ALL, out, place, ALL)
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


def _along_mean(site: Site, array: Bools) -> Bools:
    """Bring an array of the shape of the mean in line with the axes of `x`."""
    shape = [1] * len(site.ins[0])
    for axis, extent in zip(site.eqn.params["dimensions"], site.ins[1], strict=True):
        shape[axis] = extent
    return np.reshape(array, shape)


def _centered_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    axes, (x, mean) = tuple(site.eqn.params["axes"]), states
    varies = x.varies | _along_mean(site, mean.varies)
    nonzero = x.nonzero | _along_mean(site, mean.nonzero)
    return [State(varies.any(axes), nonzero.any(axes))]


def _centered_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    need = _spread(needs[0], site.eqn.params["axes"], site.ins[0])
    of_mean = unfit(need, _along_mean(site, np.zeros(site.ins[1])).shape)
    return [need & states[0].nonzero, of_mean.reshape(site.ins[1])]


def _relate_centered(site: Site, relations: Relations, i: int) -> None:
    x, mean = site.eqn.ins
    _relate_sum(site._replace(ins=site.ins[:1]), relations, i)
    for own, axis in enumerate(site.eqn.params["dimensions"]):
        if site.ins[1][own] == site.ins[0][axis]:
            tie(relations, nodes(relations, mean, own), nodes(relations, x, axis))
        else:
            pin(relations, i, nodes(relations, mean, own))
    if not site.ins[1]:
        pin(relations, i, nodes(relations, mean, 0))


def _rewrite_centered(
    site: Site, operands: Sequence[Any], small: Small
) -> Sequence[Any]:
    del small
    (x, mean), axes = operands, site.eqn.params["axes"]
    (total,) = bind(site.eqn, operands)
    dropped = math.prod(site.ins[0][a] for a in axes) - math.prod(
        x.shape[a] for a in axes
    )
    if not dropped:
        return [total]
    zero = jnp.zeros([1 if a in axes else n for a, n in enumerate(x.shape)], x.dtype)
    (square,) = bind(site.eqn, [zero, mean])
    return [total + jnp.asarray(dropped, total.dtype) * square]


def _reduce_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    del states
    return [
        _spread(needs[0], tuple(map(int, site.eqn.params["axes"])), shape)
        for shape in site.ins
    ]


# A reduction that keeps what it reduces: the result of removing an entry is another one.
_REDUCE = Rule(_reduce_forward, _reduce_backward, relate_moves(_reduce_axes), as_is)
_CENTERED = Rule(
    _centered_forward, _centered_backward, _relate_centered, _rewrite_centered
)
_SUM = Rule(_reduce_forward, _sum_backward, _relate_sum, as_is, sums=True)
_DOT = Rule(_product_forward, _product_backward, _relate_dot, as_is, sums=True)
_CONV = Rule(
    _product_forward, _product_backward, _relate_conv, _rewrite_conv, sums=True
)


SUMS: Mapping[str, Rule] = {
    "dot_general": _DOT,
    "conv_general_dilated": _CONV,
    "reduce_sum": _SUM,
    "reduce_centered_squares": _CENTERED,
    **dict.fromkeys(
        (
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "argmax",
            "argmin",
        ),
        _REDUCE,
    ),
}
