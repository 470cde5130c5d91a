"""Windows, operations along one axis, and what can't be followed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.graph.relations import Relations, nodes, pin, tie
from jaxprune.graph.rules.base import ALL, Bools, Rule, Site, Small, State, as_is


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
        index = [ALL] * array.ndim
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
    # A window that sees nothing but padding gives the initial value, such as -inf.
    unseen = ~_window_any(site, np.ones(site.ins[0], bool))
    nonzero = _window_any(site, x.nonzero) | unseen
    return [State(_window_any(site, x.varies), nonzero)]


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
    return Rule(_along_forward(axes), _along_backward(axes), _relate_along(axes), as_is)


_WINDOW = Rule(
    _window_forward, _along_backward(_window_axes), _relate_along(_window_axes), as_is
)
_SORT = Rule(
    _along_forward(_one_axis("dimension")),
    _along_backward(_one_axis("dimension")),
    _relate_along(_one_axis("dimension")),
    as_is,
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


def _relate_iota(site: Site, relations: Relations, i: int) -> None:
    del i
    axis = nodes(relations, site.eqn.outs[0], site.eqn.params["dimension"])
    relations.mixed.append(axis)


_IOTA = Rule(
    _iota_forward,
    lambda site, states, needs: [],
    _relate_iota,
    _rewrite_iota,
)


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


OPAQUE = Rule(_opaque_forward, _opaque_backward, _relate_opaque, as_is, opaque=True)


ALONG: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _WINDOW
    ),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin"), _cumulative()),
    "sort": _SORT,
    "iota": _IOTA,
}
