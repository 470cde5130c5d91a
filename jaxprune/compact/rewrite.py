"""A program run on smaller arrays."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import graph
from jaxprune.compact.constants import Carried
from jaxprune.graph import Keep, small_shape


class Run(NamedTuple):
    """A program that is being run.

    Attributes:
        program: the program, at the shapes of the call.
        like: the same program at the shapes of the example; the call's may be symbolic.
        keep: positions that are kept of each value.
        values: the arrays so far, by value.
        carried: what dropped constants add, by equation.
        products: products that are computed in another way, by equation.
    """

    program: graph.Program
    like: graph.Program
    keep: Sequence[Keep]
    values: dict[int, Any]
    carried: Mapping[int, Carried]
    products: Mapping[int, Callable[..., Any]]


def run(
    program: graph.Program,
    keep: Sequence[Keep],
    values: Mapping[int, Any],
    carried: Mapping[int, Carried],
    like: graph.Program | None = None,
) -> dict[int, Any]:
    """Run a program on arrays that are cut to what is kept.

    Args:
        program: the program.
        keep: positions that are kept of each value.
        values: its inputs, cut; constants that are missing are cut here.
        carried: what dropped constants add, by equation.
        like: the program at the shapes that `keep` was computed for; by default `program`.

    Returns:
        The array of each value that was computed.
    """
    constants = {
        value: cut(array, keep[value])
        for value, array in program.constants.items()
        if value not in values
    }
    all_values = {**constants, **values}
    return run_job(Run(program, like or program, keep, all_values, carried, {}))


def run_job(job: Run) -> dict[int, Any]:
    """Run all equations of a program; return the array of each value."""
    program = job.program
    pairs = list(zip(program.regions, job.like.regions, strict=True))
    _run_range(job, (0, len(program.eqns)), pairs)
    return job.values


def cut(array: Any, keep: Keep) -> Any:
    """Return the kept positions of an array; NumPy's stay NumPy's."""
    take = np.take if isinstance(array, np.ndarray) else jnp.take
    for axis, positions in enumerate(keep):
        if positions is not None:
            array = take(array, positions, axis)
    return array


# A region and the same region of the example.
_Pair = tuple[graph.Region, graph.Region]


def _run_range(job: Run, bounds: tuple[int, int], pairs: Sequence[_Pair]) -> None:
    """Run some equations, of which some belong to regions."""
    i, stop = bounds
    while i < stop:
        pairs = [pair for pair in pairs if pair[0].start >= i]
        if pairs and pairs[0][0].start == i < pairs[0][0].stop:
            (region, _), *rest = pairs
            inner = [pair for pair in rest if pair[0].stop <= region.stop]
            _run_region(job, pairs[0], inner)
            i = region.stop
        else:
            run_eqn(job, i)
            i += 1


def run_eqn(job: Run, i: int) -> None:
    """Run one equation, and keep what it computes."""
    eqn, keep = job.program.eqns[i], job.keep
    outs = [job.program.shape(v) for v in eqn.outs]
    shapes = [
        small_shape(shape, keep[v]) for v, shape in zip(eqn.outs, outs, strict=True)
    ]
    rule = graph.rule_of(eqn, graph.RULES)
    operands = [job.values[v] for v in eqn.ins]
    is_dropped = all(
        0 in shape and 0 not in full for shape, full in zip(shapes, outs, strict=True)
    )
    if i in job.products:
        results: Sequence[Any] = [job.products[i](eqn, *operands)] * len(eqn.outs)
    elif is_dropped or (rule.sums and any(0 in jnp.shape(x) for x in operands)):
        results = [
            jnp.zeros(shape, job.program.avals[v].dtype)
            for v, shape in zip(eqn.outs, shapes, strict=True)
        ]
    else:
        site = graph.site_of(job.program, eqn)
        small = graph.Small(
            [keep[v] for v in eqn.ins], [keep[v] for v in eqn.outs], shapes
        )
        results = rule.rewrite(site, operands, small)
    if i in job.carried:
        results = [results[0] + _behind(job, i)]
    job.values.update(zip(eqn.outs, results, strict=True))


def run_product(
    program: graph.Program, keep: Sequence[Keep], i: int, x: Any, y: Any
) -> Any:
    """Run one product on smaller operands, without what is carried behind it."""
    x_value, y_value = program.eqns[i].ins
    values = {x_value: x, y_value: y}
    job = Run(program, program, keep, values, {}, {})
    run_eqn(job, i)
    return job.values[program.eqns[i].outs[0]]


def _behind(job: Run, i: int) -> Any:
    """Return what dropped constants add to the result of an equation."""
    eqn, constant = job.program.eqns[i], job.carried[i]
    if constant.form == "array":
        return constant.array
    numbers = eqn.params["dimension_numbers"]
    shape = list(jnp.shape(job.values[eqn.ins[0]]))
    shape[numbers.lhs_spec[0]] = shape[numbers.lhs_spec[1]] = 1
    ones = jnp.ones(shape, constant.array.dtype)
    return graph.bind(eqn, [ones, constant.array], feature_group_count=1)[0]


def _run_region(job: Run, pair: _Pair, inner: Sequence[_Pair]) -> None:
    """Run a call that has its own derivative, or one branch per platform."""
    region, _ = pair
    inside = [i for i in job.carried if region.start <= i < region.stop]
    # The other branches don't know of carried constants, so these are added behind all.
    is_behind = region.kind == "platform" and [
        job.program.eqns[i].outs[0] for i in inside
    ] == list(region.outs)
    within = job._replace(carried={}) if is_behind else job

    def call(*operands: Any) -> list[Any]:
        values = {**job.values, **dict(zip(region.ins, operands, strict=True))}
        _run_range(within._replace(values=values), (region.start, region.stop), inner)
        return [values[v] for v in region.outs]

    wrapped = None
    is_changed = any(region.start <= i < region.stop for i in job.products)
    # The derivative of a custom_vjp is that of its equations; `Info.inlined` names it.
    if region.kind != "custom_vjp" and (is_behind or not inside) and not is_changed:
        wrap = _with_derivative if region.kind == "custom_jvp" else _with_branches
        wrapped = wrap(job, pair, call)
    operands = [job.values[v] for v in region.ins]
    results = (call if wrapped is None else wrapped)(*operands)
    if is_behind:
        results = [results[0] + _behind(job, i) for i in inside]
    job.values.update(zip(region.outs, results, strict=True))


def _with_branches(
    job: Run, pair: _Pair, call: Callable[..., Any]
) -> Callable[..., Any] | None:
    """Return the call with its branches for other platforms."""
    region, like = pair
    branches: dict[str, Any] = {}
    platforms = region.call["branches_platforms"]
    both = zip(region.call["branches"], like.call["branches"], strict=True)
    for names, (branch, like_branch) in list(zip(platforms, both, strict=True))[:-1]:
        program = like_program = graph.trace_jaxpr(*graph.open_jaxpr(branch))
        if like is not region:
            like_program = graph.trace_jaxpr(*graph.open_jaxpr(like_branch))
        run_branch = _sub_program(
            program,
            like_program,
            [job.keep[v] for v in region.ins],
            [job.keep[v] for v in region.outs],
        )
        if run_branch is None:
            return None
        branches |= dict.fromkeys(names, run_branch)
    if platforms[-1] is None:
        branches["default"] = call
    else:
        branches |= dict.fromkeys(platforms[-1], call)
    return functools.partial(jax.lax.platform_dependent, **branches)


def _sub_program(
    program: graph.Program,
    like: graph.Program,
    ins: Sequence[Keep],
    outs: Sequence[Keep],
) -> Callable[..., list[Any]] | None:
    """Return a program on what its inputs keep; None if it needs more of them."""
    keep = graph.between(like, ins, outs)
    if keep is None or len(program.avals) != len(like.avals):
        return None

    def call(*operands: Any) -> list[Any]:
        values = dict(zip(program.args, operands, strict=True))
        values = run(program, keep, values, {}, like)
        return [values[v] for v in program.outs]

    return call


def _with_derivative(
    job: Run, pair: _Pair, call: Callable[..., Any]
) -> Callable[..., Any] | None:
    """Return the call with its own derivative."""
    region, like = pair
    consts = region.call["num_consts"]
    dtypes = [job.program.avals[v].dtype for v in region.ins[consts:]]
    is_zero = [not jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes]
    jaxpr, jvp_consts, out_zeros = region.call["jvp_jaxpr_fun"].call_wrapped(*is_zero)
    primals = [job.keep[v] for v in region.ins[consts:]]
    outs = [job.keep[v] for v in region.outs]
    program = like_program = graph.trace_jaxpr(jaxpr, jvp_consts)
    if like is not region:
        like_jaxpr, consts_of, _ = like.call["jvp_jaxpr_fun"].call_wrapped(*is_zero)
        like_program = graph.trace_jaxpr(like_jaxpr, consts_of)
    derivative = _sub_program(
        program,
        like_program,
        [*primals, *_without(primals, is_zero)],
        [*outs, *_without(outs, out_zeros)],
    )
    if derivative is None:
        return None
    custom = jax.custom_jvp(call)

    @custom.defjvp
    def jvp(operands: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        changes = _without(tangents[consts:], is_zero)
        results = derivative(*operands[consts:], *changes)
        values, rest = results[: len(out_zeros)], iter(results[len(out_zeros) :])
        return values, [
            jnp.zeros_like(value) if zero else next(rest)
            for value, zero in zip(values, out_zeros, strict=True)
        ]

    return custom


def _without(items: Sequence[Any], left_out: Sequence[bool]) -> list[Any]:
    return [item for item, is_out in zip(items, left_out, strict=True) if not is_out]
