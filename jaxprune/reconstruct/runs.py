"""A network that is run equation by equation, on all batches side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from jaxprune import graph, tree
from jaxprune.graph import layers
from jaxprune.types import ApplyFn, Batches, Params


class Run(NamedTuple):
    """A run of a network that has reached some equation.

    Attributes:
        program: the traced network, for the first batch.
        values: the arrays of each batch that later equations read, by value.
        last: the last equation that reads each value.
    """

    program: graph.Program
    values: list[dict[int, Any]]
    last: dict[int, int]


def start(fn: ApplyFn, params: Params, batches: Batches) -> Run:
    """Trace a network, and put its inputs in place.

    Args:
        fn: `fn(params, batch)`.
        params: parameters.
        batches: a list of batches of one shape.

    Raises:
        ValueError: if `batches` is empty, a single batch, or of several shapes.
        TypeError: if `params` holds something other than arrays, or is traced.
    """
    tree.check_batches(batches)
    tree.check_arrays(params)
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TypeError(
            "reconstruction chooses by numbers, so it can't run under jit. Call it outside."
        )
    shapes = {str(tree.shapes(batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"batches have {len(shapes)} different shapes. Pass batches of one shape, "
            "without a short last one."
        )
    program = graph.trace(fn, params, batches[0])
    last = {
        v: max(numbers, default=-1) for v, numbers in graph.readers(program).items()
    }
    inputs = (*program.params, *program.args)
    values = [
        dict(program.constants)
        | dict(zip(inputs, [*leaves, *jax.tree.leaves(b)], strict=True))
        for b in batches
    ]
    return Run(program, values, last)


def copy(run: Run) -> Run:
    """Return a run that continues independently."""
    return run._replace(values=[dict(values) for values in run.values])


def advance(run: Run, numbers: Sequence[int] | range) -> None:
    """Run some equations on all batches, and forget what no later equation reads."""
    inputs = {*run.program.params, *run.program.constants}
    for number in numbers:
        for values in run.values:
            layers.evaluate(run.program, values, [number])
            for v in run.program.eqns[number].ins:
                if run.last[v] <= number and v not in inputs:
                    values.pop(v, None)


def set_kernel(run: Run, layer: layers.Layer, leaves: Sequence[Any]) -> None:
    """Put the kernel of a layer in place, from the newest leaves."""
    kernel = layers.kernel_of(run.program, layer, [leaves[i] for i in layer.leaves])
    value = layer.eqn.ins[layer.side]
    kernel = kernel.astype(run.program.avals[value].dtype)
    for values in run.values:
        values[value] = kernel
        for i in layer.leaves:
            values[run.program.params[i]] = leaves[i]
