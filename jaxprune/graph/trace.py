"""From a function to a flat program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxprune import tree
from jaxprune.graph.program import Eqn, Program, Region
from jaxprune.graph.variance import fuse_variances
from jaxprune.types import Params

# A scan is unrolled up to this many equations; a longer one is one opaque equation.
_MOST_UNROLLED = 20_000

# Equations that only call a jaxpr, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_lin": "call_jaxpr",
}


class _Builder(NamedTuple):
    eqns: list[Eqn]
    avals: list[Any]
    constants: dict[int, Any]
    regions: list[Region]
    scanned: set[int]


def trace(fn: Callable[..., Any], params: Params, *args: Any) -> Program:
    """Trace `fn(params, *args)` into a flat program.

    Calls are inlined, scans are unrolled, and equations that no output depends on are left
    out. A call with its own derivative, or with one branch per platform, is inlined too and
    recorded as a region. A centered variance is one equation.

    Args:
        fn: any function that `jax.make_jaxpr` can trace.
        params: parameters: arrays or `jax.ShapeDtypeStruct`.
        args: arrays or `jax.ShapeDtypeStruct`, in any trees.

    Returns:
        The program.

    Raises:
        ValueError: if the function has side effects.

    Example:
        >>> import jax.numpy as jnp
        >>> params, x = {"w": jnp.ones((2, 3))}, jnp.ones((1, 2))
        >>> program = trace(lambda params, x: x @ params["w"], params, x)
        >>> [eqn.primitive.name for eqn in program.eqns]
        ['dot_general']
    """
    closed = jax.make_jaxpr(fn)(params, *args)
    if closed.effects:
        raise ValueError(
            f"the function has side effects ({', '.join(map(str, closed.effects))}), such as "
            "jax.debug.print or a host callback. Pass a pure function."
        )
    return trace_jaxpr(*open_jaxpr(closed), names=tree.names(params))


def trace_jaxpr(
    jaxpr: Any, consts: Sequence[Any], *, names: Sequence[str] = ()
) -> Program:
    """Return the program of a jaxpr.

    Args:
        jaxpr: such as a branch, or a rule for the derivative of a call.
        consts: arrays that it closes over.
        names: names of its first inputs, which are parameters; the others are arguments.

    Returns:
        The program.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: x + 1)(1.0)
        >>> len(trace_jaxpr(closed.jaxpr, closed.consts).eqns)
        1
    """
    builder = _Builder([], [], {}, [], set())
    ins = [_new(builder, var.aval) for var in jaxpr.invars]
    outs = _inline(builder, jaxpr, consts, ins, "")
    number = len(names)
    program = Program(
        builder.eqns,
        builder.avals,
        builder.constants,
        ins[:number],
        ins[number:],
        outs,
        sorted(builder.regions, key=lambda r: (r.start, -r.stop)),
        names,
        frozenset(builder.scanned),
    )
    return fuse_variances(program)


def open_jaxpr(closed: Any) -> tuple[Any, Sequence[Any]]:
    """Return a jaxpr and its constants; newer versions of JAX hold both in one object."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def _new(builder: _Builder, aval: Any) -> int:
    builder.avals.append(aval)
    return len(builder.avals) - 1


def _constant(builder: _Builder, aval: Any, array: Any) -> int:
    value = _new(builder, aval)
    builder.constants[value] = array
    return value


def _inline(
    builder: _Builder, jaxpr: Any, consts: Sequence[Any], ins: Sequence[int], where: str
) -> list[int]:
    """Append the equations of a jaxpr; return the values of its outputs."""
    numbers: dict[Any, int] = dict(zip(jaxpr.invars, ins, strict=True))
    for var, array in zip(jaxpr.constvars, consts, strict=True):
        numbers[var] = _constant(builder, var.aval, array)

    def number(var: Any) -> int:
        if isinstance(var, core.Literal):
            return _constant(builder, var.aval, var.val)
        return numbers[var]

    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        inner = "/".join(part for part in (where, stack) if part)
        operands = [number(var) for var in eqn.invars]
        outs = _append(builder, eqn, operands, inner)
        numbers.update(zip(eqn.outvars, outs, strict=True))
    return [number(var) for var in jaxpr.outvars]


def _append(
    builder: _Builder, eqn: Any, operands: Sequence[int], where: str
) -> Sequence[int]:
    """Append one equation of a jaxpr, or what it calls."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _inline(builder, *open_jaxpr(params[_CALLS[name]]), operands, where)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        branch, kind = params["call_jaxpr"], name.removesuffix("_call")
        return _append_region(builder, kind, branch, operands, params, where)
    if name == "cond" and params.get("branches_platforms"):
        # The default branch is the last one, if there is one.
        branch = params["branches"][-1]
        return _append_region(builder, "platform", branch, operands[1:], params, where)
    if name == "scan":
        body, consts = open_jaxpr(params["jaxpr"])
        builder.scanned.update(operands[sum(scan_parts(params)) :])
        if params["length"] * len(body.eqns) <= _MOST_UNROLLED:
            return _unroll(builder, params, (body, consts), operands, where)
    outs = [_new(builder, var.aval) for var in eqn.outvars]
    builder.eqns.append(Eqn(eqn.primitive, params, tuple(operands), tuple(outs), where))
    return outs


def _append_region(
    builder: _Builder,
    kind: Any,
    branch: Any,
    operands: Sequence[int],
    call: Mapping[str, Any],
    where: str,
) -> Sequence[int]:
    start = len(builder.eqns)
    outs = _inline(builder, *open_jaxpr(branch), operands, where)
    region = Region(
        kind, start, len(builder.eqns), tuple(operands), tuple(outs), dict(call), where
    )
    builder.regions.append(region)
    return outs


def scan_parts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many operands of a scan are the same each time, and how many carried."""
    if "num_consts" in params:  # jax 0.10
        return params["num_consts"], params["num_carry"]
    parts = params["ft_in"].unpack()
    return len(parts[0]), len(parts[1])


def _unroll(
    builder: _Builder,
    params: Mapping[str, Any],
    body: tuple[Any, Sequence[Any]],
    operands: Sequence[int],
    where: str,
) -> Sequence[int]:
    """Append the equations of every iteration of a scan."""
    jaxpr, consts = body
    fixed, carried = scan_parts(params)
    shared, carry = operands[:fixed], list(operands[fixed : fixed + carried])
    stacked, length = operands[fixed + carried :], params["length"]
    order = reversed(range(length)) if params["reverse"] else range(length)
    results: dict[int, list[int]] = {}
    for i in order:
        inner = f"{where}[{i}]"
        rows = [
            _call(
                builder,
                lambda x, i=i: jax.lax.index_in_dim(x, i, 0, False),
                [xs],
                inner,
            )
            for xs in stacked
        ]
        outs = _inline(builder, jaxpr, consts, [*shared, *carry, *rows], inner)
        carry, results[i] = outs[:carried], outs[carried:]
    if not length:
        results[0] = []

    def stack(*rows: Any) -> Any:
        return jax.lax.concatenate([jax.lax.expand_dims(row, [0]) for row in rows], 0)

    columns = zip(*(results[i] for i in range(length)), strict=True)
    return [*carry, *(_call(builder, stack, column, where) for column in columns)]


def _call(
    builder: _Builder, fn: Callable[..., Any], operands: Sequence[int], where: str
) -> int:
    """Append the equations of a small function of existing values."""
    shapes = [
        jax.ShapeDtypeStruct(builder.avals[value].shape, builder.avals[value].dtype)
        for value in operands
    ]
    jaxpr, consts = open_jaxpr(jax.make_jaxpr(fn)(*shapes))
    return _inline(builder, jaxpr, consts, operands, where)[0]
