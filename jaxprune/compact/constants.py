"""The constants that dropped channels emit, and what they add further on."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import graph
from jaxprune.graph import Keep, Liveness, Program, Site


class Carried(NamedTuple):
    """What dropped constants add to the result of a product or a sum.

    Attributes:
        form: "array" is added to the result. "kernel" is convolved with a map of ones, which
            sees the same padding as the dropped channels did.
        array: the numbers; an axis along which they are equal has size 1.
    """

    form: str
    array: Any


# Selections of the operands of a sum: the terms that are dropped although they are constant.
_Term = list[Any]


def carry(
    program: Program, liveness: Liveness, keep: Sequence[Keep], leaves: Sequence[Any]
) -> dict[int, Carried]:
    """Compute what dropped constants add behind each product and sum.

    Args:
        program: of the function.
        liveness: of the program under the mask.
        keep: positions that are kept of each value.
        leaves: the masked parameters.

    Returns:
        What to add, by equation.
    """
    sites: dict[int, list[_Term]] = {}
    for i, site in enumerate(liveness.sites):
        shape = graph.small_shape(site.outs[0], keep[site.eqn.outs[0]])
        if site.carries and 0 not in shape:
            terms = _dropped_terms(program, liveness, keep, site)
            if terms:
                sites[i] = terms
    if not sites:
        return {}
    selections = _constant_entries(program, liveness, sites)
    # One compiled program: equation by equation, each shape would compile by itself.
    add_up = jax.jit(functools.partial(_added, graph.precise(program)))
    added = add_up(list(leaves), selections, sites)
    carried = {}
    for i, (array, x) in jax.device_get(added).items():
        smallest = _smallest(program, keep, i, array, sites[i], (x, leaves))
        if smallest is not None:
            carried[i] = smallest
    return carried


def _constant_entries(
    program: Program, liveness: Liveness, sites: Mapping[int, Any]
) -> dict[int, np.ndarray]:
    """Return the entries that are constant, of all values that the sums depend on."""
    producers = graph.producers(program)
    selections: dict[int, np.ndarray] = {}
    pending = [v for i in sites for v in program.eqns[i].ins]
    while pending:
        v = pending.pop()
        if v in selections or v not in producers:
            continue
        state = liveness.states[v]
        constant = ~state.varies & state.nonzero
        if constant.any():
            selections[v] = constant
            pending += program.eqns[producers[v]].ins
    return selections


def _added(
    program: Program,
    leaves: Sequence[Any],
    selections: Mapping[int, Any],
    sites: Mapping[int, list[_Term]],
) -> dict[int, tuple[Any, Any]]:
    """Return by equation the sum of its dropped terms, and its first operand.

    Entries that vary, and entries that are zero through the mask, count as 0, whatever an
    equation computes from zeros.
    """
    params = dict(zip(program.params, leaves, strict=True))
    producers = graph.producers(program)

    @functools.cache
    def results(i: int) -> Sequence[Any]:
        eqn = program.eqns[i]
        return graph.bind(eqn, [value(v) for v in eqn.ins])

    @functools.cache
    def value(v: int) -> Any:
        if v in program.constants:
            return jnp.asarray(program.constants[v])
        if v in params:
            return params[v]
        if v not in selections:
            return jnp.zeros(program.avals[v].shape, program.avals[v].dtype)
        i = producers[v]
        return _where(selections[v], results(i)[program.eqns[i].outs.index(v)])

    added = {}
    for i, terms in sites.items():
        eqn = program.eqns[i]
        parts = [
            graph.bind(
                eqn,
                [
                    value(v) if selected is None else _where(selected, value(v))
                    for v, selected in zip(eqn.ins, term, strict=True)
                ],
            )[0]
            for term in terms
        ]
        added[i] = sum(parts[1:], parts[0]), value(eqn.ins[0])
    return added


def _where(selected: Any, array: Any) -> Any:
    return jnp.where(selected, array, jnp.zeros((), array.dtype))


def _dropped_terms(
    program: Program, liveness: Liveness, keep: Sequence[Keep], site: Site
) -> list[_Term]:
    eqn, x = site.eqn, site.eqn.ins[0]
    name, params = eqn.primitive.name, eqn.params
    others: _Term = [None] * (len(eqn.ins) - 1)
    state = liveness.states[x]
    constant = ~state.varies & state.nonzero
    if name == "dot_general":
        axes: Sequence[Any] = params["dimension_numbers"][0][0]
    elif name == "conv_general_dilated":
        axes = (params["dimension_numbers"].lhs_spec[1],)
    else:
        axes = params["axes"]
    is_kept = _selection(program, keep, x, axes)
    terms: list[_Term] = []
    if (constant & ~is_kept).any():
        terms.append([constant & ~is_kept, *others])
    if name == "conv_general_dilated":  # a tap that sees nothing that varies is dropped
        taps = _selection(
            program, keep, eqn.ins[1], params["dimension_numbers"].rhs_spec[2:]
        )
        if (constant & is_kept).any() and not taps.all():
            terms.append([constant & is_kept, ~taps])
    return terms


def _selection(
    program: Program, keep: Sequence[Keep], value: int, axes: Sequence[Any]
) -> np.ndarray:
    """Return which entries of a value are at kept positions of some axes."""
    shape = program.shape(value)
    selection = np.ones(shape, bool)
    for axis in axes:
        positions = keep[value][axis]
        if positions is not None:
            row = np.zeros(shape[axis], bool)
            row[positions] = True
            selection &= row.reshape(
                [-1 if a == axis else 1 for a in range(len(shape))]
            )
    return selection


def _smallest(
    program: Program,
    keep: Sequence[Keep],
    i: int,
    array: np.ndarray,
    terms: list[_Term],
    operands: tuple[np.ndarray, Sequence[Any]],
) -> Carried | None:
    """Return what is added in the form that takes the fewest numbers; None for zeros."""
    eqn = program.eqns[i]
    for axis, positions in enumerate(keep[eqn.outs[0]]):
        if positions is not None:
            array = np.take(array, positions, axis)
        first = np.take(array, [0], axis)
        same = (array == first) | ((array != array) & (first != first))  # nan is nan
        if array.shape[axis] > 1 and same.all():
            array = first
    if not array.any():
        return None
    kernel = _as_kernel(program, keep, eqn, terms, operands)
    if kernel is not None and kernel.size < array.size:
        return Carried("kernel", kernel)
    return Carried("array", array)


def _as_kernel(
    program: Program,
    keep: Sequence[Keep],
    eqn: graph.Eqn,
    terms: list[_Term],
    operands: tuple[np.ndarray, Sequence[Any]],
) -> np.ndarray | None:
    """Return the kernel of one more input channel, of ones, that adds the same."""
    x, leaves = operands
    if (
        eqn.primitive.name != "conv_general_dilated"
        or eqn.params["feature_group_count"] != 1
        or eqn.ins[1] not in program.params
        or len(terms) != 1
    ):
        return None
    numbers = eqn.params["dimension_numbers"]
    selected, taps = terms[0]
    constants = np.moveaxis(np.where(selected, x, 0), numbers.lhs_spec[1], 0)
    constants = constants.reshape(len(constants), -1)
    if taps is not None or (constants != constants[:, :1]).any():
        return None
    kernel = np.asarray(leaves[list(program.params).index(eqn.ins[1])])
    outs = keep[eqn.ins[1]][numbers.rhs_spec[0]]
    if outs is not None:
        kernel = np.take(kernel, outs, numbers.rhs_spec[0])
    summed = np.tensordot(constants[:, 0], kernel, (0, numbers.rhs_spec[1]))
    return np.expand_dims(summed, numbers.rhs_spec[1]).astype(kernel.dtype)


def merge_into_biases(
    program: Program,
    keep: Sequence[Keep],
    carried: Mapping[int, Carried],
    small: Sequence[Any],
) -> tuple[dict[int, Carried], list[Any]]:
    """Add carried constants to biases, where a bias is all that is added to the result.

    Args:
        program: of the function.
        keep: positions that are kept of each value.
        carried: what to add, by equation.
        small: the smaller parameters.

    Returns:
        What is left to carry, and the parameters.
    """
    readers = graph.readers(program)
    producers = graph.producers(program)
    rest, small = {}, list(small)
    for i, constant in carried.items():
        bias = _bias_behind(program, i, readers, producers)
        shape = small[bias].shape if bias is not None else ()
        size = constant.array.size
        if (
            bias is None
            or constant.form != "array"
            or size != max(constant.array.shape)
        ):
            rest[i] = constant
        elif small[bias].size == size or (size == 1 and len(shape) == 1):
            flat = constant.array.reshape(-1).astype(small[bias].dtype)
            small[bias] = (small[bias].reshape(-1) + flat).reshape(shape)
        else:
            rest[i] = constant
    return rest, small


def _bias_behind(
    program: Program,
    i: int,
    readers: Mapping[int, list[int]],
    producers: Mapping[int, int],
) -> int | None:
    """Return the parameter that is all that is added to the result of an equation."""
    (out,) = program.eqns[i].outs
    if len(readers.get(out, [])) != 1 or readers[out][0] < 0:
        return None
    add = program.eqns[readers[out][0]]
    if add.primitive.name != "add" or add.ins[0] == add.ins[1]:
        return None
    (v,) = (v for v in add.ins if v != out)
    last = len(program.shape(v)) and program.shape(v)[-1]
    while v in producers and len(readers[v]) == 1:
        eqn = program.eqns[producers[v]]
        if eqn.primitive.name not in ("reshape", "broadcast_in_dim"):
            return None
        v = eqn.ins[0]
    if v not in program.params or len(readers[v]) != 1:
        return None
    shape = program.shape(v)
    # A vector over the last axis of the result.
    if math.prod(shape) != last or program.shape(out)[-1] != last:
        return None
    return list(program.params).index(v)
