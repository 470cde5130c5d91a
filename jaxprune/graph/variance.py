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

    Its parameters: `axes`, which are summed, `dimensions`, the axes of `x` along which the
    mean lies, and `dtype`, in which the squares are summed.
    """

    name = "reduce_centered_squares"
    multiple_results = False

    def get_bind_params(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return params

    def bind(
        self,
        x: Any,
        mean: Any,
        *,
        axes: Sequence[int],
        dimensions: Sequence[int],
        dtype: Any,
    ) -> Any:
        shape = [1 if axis in axes else extent for axis, extent in enumerate(x.shape)]
        mean = lax.broadcast_in_dim(mean, shape, dimensions)
        return jnp.square(x - mean).astype(dtype).sum(axes, dtype=dtype)


_CENTERED_SQUARES = _CenteredSquares()


def fuse_variances(program: Program) -> Program:
    """Return a program in which each centered variance is one equation.

    Args:
        program: a flat program.

    Returns:
        The program. The mean may be anything that depends on the input and is equal along
        the summed axes.
    """
    producer_of, data = producers(program), depends_on(program, program.args)
    eqns = list(program.eqns)
    for i, eqn in enumerate(program.eqns):
        if eqn.primitive.name == "reduce_sum":
            fused = _fused(program, producer_of, i)
            if fused is not None and fused.ins[1] in data:
                eqns[i] = fused
    return without_dead_code(dataclasses.replace(program, eqns=eqns))


def _fused(program: Program, producer_of: Mapping[int, int], i: int) -> Eqn | None:
    """Return what replaces a sum; None if it does not add squares of differences."""

    def producer(value: int, name: str) -> Eqn | None:
        j = producer_of.get(value)
        if j is None or program.eqns[j].primitive.name != name:
            return None
        is_near = all(
            (r.start <= j < r.stop) == (r.start <= i < r.stop) for r in regions
        )
        return program.eqns[j] if is_near else None

    eqn, regions = program.eqns[i], program.regions
    axes = tuple(map(int, eqn.params["axes"]))
    difference, summed = None, eqn.ins[0]
    converted = producer(summed, "convert_element_type")
    if converted:  # bfloat16 is summed in float32
        summed = converted.ins[0]
    squares = producer(summed, "square") or producer(summed, "integer_pow")
    if squares and squares.params.get("y", 2) == 2:
        difference = producer(squares.ins[0], "sub")
    squares = producer(summed, "mul")
    if squares and squares.ins[0] == squares.ins[1]:
        difference = producer(squares.ins[0], "sub")
    if difference is None:
        return None
    shape = program.shape(difference.outs[0])
    for x, mean in (difference.ins, difference.ins[::-1]):
        dimensions = tuple(range(len(program.shape(mean))))
        copies = producer(mean, "broadcast_in_dim")
        if copies and len(copies.ins) == 1:
            dimensions = tuple(copies.params["broadcast_dimensions"])
            mean = copies.ins[0]
        extents = dict(zip(dimensions, program.shape(mean), strict=True))
        if program.shape(x) == shape and all(extents.get(a, 1) == 1 for a in axes):
            dtype = program.avals[eqn.ins[0]].dtype
            params = {"axes": axes, "dimensions": dimensions, "dtype": dtype}
            return Eqn(_CENTERED_SQUARES, params, (x, mean), eqn.outs, eqn.where)
    return None
