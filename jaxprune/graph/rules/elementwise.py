"""Operations that work entry by entry."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.graph.relations import Relations, nodes, pin, tie
from jaxprune.graph.rules.base import Bools, Rule, Site, State, as_is, unfit


def _fit(array: Bools, shape: tuple[Any, ...]) -> Bools:
    return np.broadcast_to(array, shape)


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
        return [unfit(needs[k if several else 0], s) for k, s in enumerate(site.ins)]

    return Rule(forward, backward, _relate_elementwise, as_is)


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
        unfit(needs[0] & y.nonzero, site.ins[0]),
        unfit(needs[0] & x.nonzero, site.ins[1]),
    ]


def _div_forward(site: Site, states: Sequence[State]) -> Sequence[State]:
    x, y = states
    nonzero = x.nonzero | ~y.nonzero  # 0 / 0 is nan
    varies = (x.varies | y.varies) & nonzero
    return [State(_fit(varies, site.outs[0]), _fit(nonzero, site.outs[0]))]


def _div_backward(
    site: Site, states: Sequence[State], needs: Sequence[Bools]
) -> Sequence[Bools]:
    x, y = states
    matters = x.nonzero | ~y.nonzero
    return [unfit(needs[0], site.ins[0]), unfit(needs[0] & matters, site.ins[1])]


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
    result = [unfit(needs[0], site.ins[0])]
    for k, shape in enumerate(site.ins[1:]):
        need = needs[0]
        if known is not None:
            need = need & (
                np.broadcast_to(np.asarray(known).astype(np.int8), need.shape) == k
            )
        result.append(unfit(need, shape))
    return result


def _power_rule(site: Site) -> Rule:
    return _ZERO if site.eqn.params["y"] > 0 else _NONZERO


_ZERO, _NONZERO = elementwise(zero=True), elementwise()
_MUL = Rule(_mul_forward, _mul_backward, _relate_elementwise, as_is)
_DIV = Rule(_div_forward, _div_backward, _relate_elementwise, as_is)
_SELECT = Rule(_select_forward, _select_backward, _relate_elementwise, as_is)
_POWER = Rule(
    lambda site, states: _power_rule(site).forward(site, states),
    _ZERO.backward,
    _relate_elementwise,
    as_is,
)


def _many(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


ELEMENTWISE: Mapping[str, Rule] = {
    **_many(
        _ZERO,
        "add add_any sub neg max min abs sign floor ceil round sqrt cbrt tanh sin tan asin "
        "atan sinh asinh atanh expm1 log1p erf erf_inv real imag conj square copy copy_p "
        "convert_element_type reduce_precision or xor atan2 optimization_barrier "
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
    "rem": _DIV,
    "integer_pow": _POWER,
    "select_n": _SELECT,
}
