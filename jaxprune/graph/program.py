"""A traced function as flat data: equations over numbered values."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

# Matrix products and convolutions.
PRODUCTS = ("dot_general", "conv_general_dilated")


class Eqn(NamedTuple):
    """One operation.

    Attributes:
        primitive: the JAX primitive.
        params: its parameters.
        ins: numbers of the values that it reads.
        outs: numbers of the values that it computes.
        where: the name stack of the user's code, for messages.
    """

    primitive: Any
    params: Mapping[str, Any]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    where: str


class Region(NamedTuple):
    """A range of equations that was one call with more to it than its equations.

    Attributes:
        kind: "custom_jvp" or "custom_vjp", whose call has its own derivative, or "platform",
            of which the equations are the default branch.
        start: first equation.
        stop: one past the last equation.
        ins: values that the call reads.
        outs: values that the call returns.
        call: the parameters of the call.
        where: the name stack of the user's code.
    """

    kind: Literal["custom_jvp", "custom_vjp", "platform"]
    start: int
    stop: int
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    call: Mapping[str, Any]
    where: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
        eqns: the equations, in order.
        avals: shape and dtype of each value.
        constants: arrays that the function closes over, and literals, by value.
        params: values of the leaves of the parameters, then of no others.
        args: values of the leaves of the other arguments.
        outs: values that the function returns.
        regions: calls with their own derivative or a choice by platform; outer ones first.
        names: names of the leaves of the parameters.
        scanned: values that a scan reads slice by slice, along their first axis.
    """

    eqns: Sequence[Eqn]
    avals: Sequence[Any]
    constants: Mapping[int, Any]
    params: Sequence[int]
    args: Sequence[int]
    outs: Sequence[int]
    regions: Sequence[Region]
    names: Sequence[str]
    scanned: frozenset[int] = frozenset()

    def shape(self, value: int) -> tuple[Any, ...]:
        """Return the shape of a value."""
        return tuple(self.avals[value].shape)


def without_dead_code(program: Program) -> Program:
    """Leave out the equations that no output depends on."""
    needed = set(program.outs)
    by_stop: dict[int, list[Region]] = {}
    for region in reversed(program.regions):  # inner ones before outer ones
        by_stop.setdefault(region.stop, []).append(region)
    keep = [False] * len(program.eqns)
    for i in reversed(range(len(program.eqns))):
        for region in reversed(by_stop.get(i + 1, [])):
            if needed.intersection(region.outs):  # a call returns all or nothing
                needed.update(region.outs)
        eqn = program.eqns[i]
        if needed.intersection(eqn.outs):
            keep[i] = True
            needed.update(eqn.ins)
    position = [0]
    for is_kept in keep:
        position.append(position[-1] + is_kept)
    regions = [
        region._replace(start=position[region.start], stop=position[region.stop])
        for region in program.regions
        if needed.intersection(region.outs)
    ]
    eqns = [eqn for eqn, is_kept in zip(program.eqns, keep, strict=True) if is_kept]
    return dataclasses.replace(program, eqns=eqns, regions=regions)


def depends_on(program: Program, values: Collection[int]) -> set[int]:
    """Return the values that are computed from some values, and these.

    Args:
        program: of `trace`.
        values: numbers of values.

    Returns:
        Numbers of values.

    Example:
        >>> import numpy as np
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x * p, np.ones(2), np.ones(2))
        >>> program.outs[0] in depends_on(program, program.args)
        True
    """
    reached = set(values)
    for eqn in program.eqns:
        if reached.intersection(eqn.ins):
            reached.update(eqn.outs)
    return reached


def producers(program: Program) -> dict[int, int]:
    """Return the equation that computes each value.

    Args:
        program: of `trace`.

    Returns:
        The number of the equation, by value; constants and inputs have none.

    Example:
        >>> import numpy as np
        >>> from jaxprune.graph import trace
        >>> list(producers(trace(lambda p, x: x * p, np.ones(2), np.ones(2))).values())
        [0]
    """
    return {out: i for i, eqn in enumerate(program.eqns) for out in eqn.outs}


def readers(program: Program) -> dict[int, list[int]]:
    """Return the equations that read each value.

    Args:
        program: of `trace`.

    Returns:
        Numbers of equations, by value; -1 if the program returns the value.

    Example:
        >>> import numpy as np
        >>> from jaxprune.graph import trace
        >>> dict(sorted(readers(trace(lambda p, x: x * p, np.ones(2), np.ones(2))).items()))
        {0: [0], 1: [0], 2: [-1]}
    """
    found: dict[int, list[int]] = {v: [-1] for v in program.outs}
    for i, eqn in enumerate(program.eqns):
        for v in eqn.ins:
            found.setdefault(v, []).append(i)
    return found
