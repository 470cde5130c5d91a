"""What the leaves of the parameters are used for: kernels, and multiply-accumulates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.graph.liveness import Liveness
from jaxprune.graph.program import PRODUCTS, Eqn, Program
from jaxprune.graph.rules.elementwise import ELEMENTWISE
from jaxprune.graph.trace import open_jaxpr, scan_parts, trace, trace_jaxpr
from jaxprune.types import Params, Prunable

_ELEMENTWISE = ("add", "add_any", "sub", "mul", "div")
# Operations after which an array is another one than the leaf that it comes from.
_DERIVED = ("broadcast_in_dim", "gather", "argmax", "argmin")


class Use(NamedTuple):
    """An operation that reads leaves of the parameters.

    Attributes:
        eqn: the operation.
        leaves: numbers of the leaves that it reads, the largest first.
        kernels: those of them that a product multiplies with data.
        macs: multiply-accumulates of one call of the function.
        is_inside: whether `eqn` is inside an equation of the program, such as a long loop.
    """

    eqn: Eqn
    leaves: tuple[int, ...]
    kernels: tuple[int, ...]
    macs: int
    is_inside: bool = False


class _Origin(NamedTuple):
    """What a value is computed from.

    Attributes:
        is_data: whether it depends on the arguments.
        leaves: the leaves that it depends on, and whether each keeps its entries: it was
            moved, scaled or added to, but not repeated or summed.
    """

    is_data: bool
    leaves: Mapping[int, bool]


_CONSTANT = _Origin(False, {})


def kernels(fn: Callable[..., Any], params: Params, *args: Any) -> Prunable:
    """Choose the leaves that a matrix product or convolution multiplies with data.

    These are the leaves that can be pruned, whatever their names: no biases, norms, positions
    or tables that are only looked up in.

    Args:
        fn: `fn(params, *args)`; traced, not run.
        params: arrays or shapes.
        args: arrays or shapes.

    Returns:
        A tree like `params` with one bool per leaf, to be passed as `prunable`.

    Raises:
        ValueError: if the function has side effects.

    Example:
        >>> import numpy as np
        >>> fn = lambda params, x: x @ params["w"] + params["bias"]
        >>> kernels(fn, {"w": np.ones((3, 4)), "bias": np.ones((2, 4))}, np.ones((2, 3)))
        {'bias': False, 'w': True}
    """
    found = {leaf for use in uses(trace(fn, params, *args)) for leaf in use.kernels}
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [i in found for i in range(len(leaves))])


def uses(program: Program) -> list[Use]:
    """List the operations that read leaves, in order.

    A loop that is one opaque equation counts its body once per iteration, a `while` loop
    one iteration, and a conditional its most expensive branch.

    Args:
        program: of `trace`.

    Returns:
        Products, and elementwise operations with data.

    Example:
        >>> import numpy as np
        >>> program = trace(lambda p, x: x @ p, np.ones((3, 4)), np.ones((2, 3)))
        >>> [use.macs for use in uses(program)]
        [24]
    """
    sizes = [math.prod(program.shape(v)) for v in program.params]
    origins = {v: _Origin(False, {i: True}) for i, v in enumerate(program.params)}
    origins |= {v: _Origin(True, {}) for v in program.args}
    found, _ = _walk(program, origins, sizes)
    return found


def _walk(
    program: Program, known: Mapping[int, _Origin], sizes: Sequence[int]
) -> tuple[list[Use], list[_Origin]]:
    """Return the uses in a program, and the origins of its outputs."""
    origins, found = dict(known), []
    for eqn in program.eqns:
        ins = [origins.get(v, _CONSTANT) for v in eqn.ins]
        inner = _called(eqn, ins, sizes)
        if inner is None:
            use = _use(program, eqn, ins, sizes)
            if use is not None:
                found.append(use)
            outs = [_merge(program, eqn, ins)] * len(eqn.outs)
        else:
            more, outs = inner
            found += [use._replace(is_inside=True) for use in more]
        origins.update(zip(eqn.outs, outs, strict=True))
    return found, [origins.get(v, _CONSTANT) for v in program.outs]


def _merge(program: Program, eqn: Eqn, ins: Sequence[_Origin]) -> _Origin:
    if any(origin.is_data for origin in ins):
        return _Origin(True, {})
    name, leaves = eqn.primitive.name, {}
    size = math.prod(program.shape(eqn.outs[0]))
    for v, origin in zip(eqn.ins, ins, strict=True):
        is_repeated = name in ELEMENTWISE and math.prod(program.shape(v)) < size
        derived = is_repeated or name in _DERIVED or name.startswith(("reduce_", "cum"))
        for leaf, is_whole in origin.leaves.items():
            leaves[leaf] = leaves.get(leaf, False) or (is_whole and not derived)
    return _Origin(False, leaves)


def _use(
    program: Program, eqn: Eqn, ins: Sequence[_Origin], sizes: Sequence[int]
) -> Use | None:
    """Return what an equation does with leaves; None if it reads none, or only moves."""
    leaves = {leaf for origin in ins for leaf in origin.leaves}
    leaves = tuple(sorted(leaves, key=lambda leaf: (-sizes[leaf], leaf)))
    has_data = any(origin.is_data for origin in ins)
    if not leaves:
        return None
    if eqn.primitive.name in PRODUCTS:
        whole = [
            i for origin in ins for i, is_whole in origin.leaves.items() if is_whole
        ]
        return Use(eqn, leaves, tuple(whole) if has_data else (), macs_of(program, eqn))
    if eqn.primitive.name in _ELEMENTWISE and has_data:
        return Use(eqn, leaves, (), math.prod(program.shape(eqn.outs[0])))
    return None


def cuts(program: Program, liveness: Liveness) -> list[str]:
    """Name the kernels that nothing of the input passes, although it reaches them.

    Args:
        program: of `trace`.
        liveness: of `live`.

    Returns:
        Names of leaves, in order.

    Example:
        >>> import numpy as np
        >>> from jaxprune.graph import live
        >>> program = trace(lambda p, x: x @ p["w"], {"w": np.ones((3, 4))}, np.ones((2, 3)))
        >>> cuts(program, live(program, [np.zeros((3, 4), bool)]))
        ['w']
    """
    states = liveness.states
    return [
        program.names[use.kernels[0]]
        for use in uses(program)
        if use.kernels
        and not use.is_inside
        and any(states[v].varies.any() for v in use.eqn.ins)
        and not states[use.eqn.outs[0]].varies.any()
    ]


def macs_of(program: Program, eqn: Eqn) -> int:
    """Count the multiply-accumulates of a matrix product or convolution.

    Args:
        program: of `trace`.
        eqn: a `dot_general` or `conv_general_dilated` of it.

    Returns:
        The number for one call; a convolution counts its padding as well.

    Example:
        >>> import numpy as np
        >>> program = trace(lambda p, x: x @ p, np.ones((3, 4)), np.ones((2, 3)))
        >>> macs_of(program, program.eqns[0])
        24
    """
    left, right = (program.shape(v) for v in eqn.ins)
    outputs = math.prod(program.shape(eqn.outs[0]))
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return outputs * math.prod(left[axis] for axis in contracted)
    numbers = eqn.params["dimension_numbers"]
    return outputs * math.prod(right[axis] for axis in numbers.rhs_spec[1:])


def _called(
    eqn: Eqn, ins: Sequence[_Origin], sizes: Sequence[int]
) -> tuple[list[Use], list[_Origin]] | None:
    """Return the uses in what an equation calls, and the origins of its results."""
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        branches = [_body(branch, ins[1:], sizes) for branch in params["branches"]]
        return max(branches, key=lambda branch: sum(use.macs for use in branch[0]))
    if name == "while":
        skip, consts = params["cond_nconsts"], params["body_nconsts"]
        return _loop(params["body_jaxpr"], ins[skip:], sizes, consts)
    if name == "scan":
        consts, carried = scan_parts(params)
        found, outs = _loop(params["jaxpr"], ins, sizes, consts, carried)
        times = params["length"]
        return [use._replace(macs=times * use.macs) for use in found], outs
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        jaxpr: Any = open_jaxpr(params[key])[0] if key in params else None
        if hasattr(jaxpr, "invars") and len(jaxpr.invars) == len(ins):
            return _body(params[key], ins, sizes)
    return None


def _body(
    closed: Any, ins: Sequence[_Origin], sizes: Sequence[int]
) -> tuple[list[Use], list[_Origin]]:
    program = trace_jaxpr(*open_jaxpr(closed))
    return _walk(program, dict(zip(program.args, ins, strict=True)), sizes)


def _loop(
    closed: Any,
    ins: Sequence[_Origin],
    sizes: Sequence[int],
    consts: int,
    carried: int | None = None,
) -> tuple[list[Use], list[_Origin]]:
    """Walk a body until what it carries from one iteration to the next is known."""
    ins = list(ins)
    last = len(ins) if carried is None else consts + carried
    for _ in range(len(ins) + 1):
        found, outs = _body(closed, ins, sizes)
        carry = [
            _Origin(a.is_data or b.is_data, {**b.leaves, **a.leaves})
            for a, b in zip(ins[consts:last], outs, strict=False)
        ]
        if carry == ins[consts:last]:
            break
        ins[consts:last] = carry
    return found, outs
