"""Centered variances: `((x - mean) ** 2).sum()` as one equation.

Entry by entry, `x - mean` depends on the input and is not zero, even where `x` is a removed
channel, which is zero. As one equation, the sum over the channels that are left is increased
by the square of the mean, times the number of channels that were removed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxprune.graph.program import (
    Eqn,
    Program,
    depends_on,
    producers,
    without_dead_code,
)


class _CenteredSquares:
    """Stands for a primitive: `ins` are `x` and what is subtracted, without copies of it.

    Its parameters: `axes`, which are summed, and `dimensions`, the axes of `x` along which
    the mean lies.
    """

    name = "reduce_centered_squares"
    multiple_results = False

    def get_bind_params(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return params

    def bind(
        self, x: Any, mean: Any, *, axes: Sequence[int], dimensions: Sequence[int]
    ) -> Any:
        shape = [1 if axis in axes else extent for axis, extent in enumerate(x.shape)]
        mean = lax.broadcast_in_dim(mean, shape, dimensions)
        return jnp.square(x - mean).sum(axes)


_CENTERED_SQUARES = _CenteredSquares()


def fuse_variances(program: Program) -> Program:
    """Return a program in which each centered variance is one equation.

    Args:
        program: a flat program.

    Returns:
        The program. The mean may be anything that depends on the input and is equal along
        the summed axes.
    """
    made, data = producers(program), depends_on(program, program.args)
    eqns = list(program.eqns)
    for i, eqn in enumerate(program.eqns):
        fused = _fused(program, made, i) if eqn.primitive.name == "reduce_sum" else None
        if fused is not None and fused.ins[1] in data:
            eqns[i] = fused
    return without_dead_code(dataclasses.replace(program, eqns=eqns))


def _fused(program: Program, made: Mapping[int, int], i: int) -> Eqn | None:
    """Return what replaces a sum; None if it does not add squares of differences."""

    def maker(value: int, name: str) -> Eqn | None:
        j = made.get(value)
        if j is None or program.eqns[j].primitive.name != name:
            return None
        is_near = all(
            (r.start <= j < r.stop) == (r.start <= i < r.stop) for r in regions
        )
        return program.eqns[j] if is_near else None

    eqn, regions = program.eqns[i], program.regions
    axes = tuple(map(int, eqn.params["axes"]))
    difference = None
    squares = maker(eqn.ins[0], "square") or maker(eqn.ins[0], "integer_pow")
    if squares and squares.params.get("y", 2) == 2:
        difference = maker(squares.ins[0], "sub")
    squares = maker(eqn.ins[0], "mul")
    if squares and squares.ins[0] == squares.ins[1]:
        difference = maker(squares.ins[0], "sub")
    if difference is None:
        return None
    shape = program.shape(difference.outs[0])
    for x, mean in (difference.ins, difference.ins[::-1]):
        dimensions = tuple(range(len(program.shape(mean))))
        copies = maker(mean, "broadcast_in_dim")
        if copies and len(copies.ins) == 1:
            dimensions = tuple(copies.params["broadcast_dimensions"])
            mean = copies.ins[0]
        extents = dict(zip(dimensions, program.shape(mean), strict=True))
        if program.shape(x) == shape and all(extents.get(a, 1) == 1 for a in axes):
            params = {"axes": axes, "dimensions": dimensions}
            return Eqn(_CENTERED_SQUARES, params, (x, mean), eqn.outs, eqn.where)
    return None
