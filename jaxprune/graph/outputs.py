"""Which axes of a kernel count the outputs of its layer."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune.graph import layers, matrices
from jaxprune.graph.program import Program
from jaxprune.graph.trace import trace
from jaxprune.types import Params


def outputs(
    fn: Callable[..., Any], params: Params, *args: Any
) -> dict[str, tuple[int, ...]]:
    """Return which axes of each kernel count its outputs.

    It is the `scope` of `masks.select` that compares the weights of one output with each
    other, as Wanda does, whatever the layout: heads have two such axes, and of stacked
    layers each is by itself.

    Args:
        fn: `fn(params, *args)`; traced, not run.
        params: arrays or shapes.
        args: arrays or shapes.

    Returns:
        Leaf name -> axes, for each leaf that a product reads. Leaves whose outputs are not
        along some axes, or differ between two layers, are left out.

    Raises:
        ValueError: if the function has side effects.

    Example:
        >>> fn = lambda params, x: x @ params["w"].T
        >>> outputs(fn, {"w": np.ones((4, 3))}, np.ones((2, 3)))
        {'w': (0,)}
    """
    program = trace(fn, params, *args)
    rows: dict[int, set[tuple[int, ...] | None]] = {}
    for layer in layers.find(program):
        for leaf, axes in _output_axes(program, layer).items():
            rows.setdefault(leaf, set()).add(axes)
    return {
        program.names[leaf]: axes
        for leaf, (axes, *others) in sorted((i, list(s)) for i, s in rows.items())
        if axes is not None and not others
    }


def _output_axes(
    program: Program, layer: layers.Layer
) -> dict[int, tuple[int, ...] | None]:
    """Return the axes of each leaf along which the output of a layer changes."""
    positions, starts = layers.positions(program, layer), layers.starts(program)
    shape = matrices.shape(layer)
    number = np.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], 1)
    number = matrices.to_kernel(layer, np.broadcast_to(number, shape))
    axes = {}
    for leaf in layer.leaves:
        shape = program.shape(program.params[leaf])
        row = np.full(math.prod(shape), -1)
        is_here = (positions >= starts[leaf]) & (positions < starts[leaf + 1])
        row[positions[is_here] - starts[leaf]] = number[is_here]
        row = row.reshape(shape)
        differing = [
            axis for axis in range(row.ndim) if (row != row.take([0], axis)).any()
        ]
        others = [axis for axis in range(row.ndim) if axis not in differing]
        # Within a row, all entries must have one output, and no other row may have it.
        rows = row.transpose(*differing, *others).reshape(
            math.prod(row.shape[a] for a in differing), -1
        )
        read = rows[:, 0][rows[:, 0] >= 0]
        is_whole = (rows == rows[:, :1]).all() and len(set(read)) == len(read)
        axes[leaf] = tuple(differing) if is_whole else None
    return axes
