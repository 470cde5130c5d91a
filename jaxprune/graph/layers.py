"""The layers of any function: products of a kernel with data.

A kernel is a leaf of the parameters, or a part of one or several, whose entries are moved but
not changed on the way to a product: transposed, reshaped, sliced, concatenated. Scans are
unrolled by `trace`, so each slice of a stacked leaf is a layer of its own.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune.graph.program import PRODUCTS, Eqn, Program, depends_on
from jaxprune.graph.rules import bind
from jaxprune.types import Prunable

# What these return has the entries of their first operand, or of all operands.
_MOVES = (
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "expand_dims",
    "gather",
    "name",
    "reshape",
    "rev",
    "slice",
    "squeeze",
    "transpose",
)


class Layer(NamedTuple):
    """A product of a kernel with data.

    Attributes:
        number: the number of its equation in the program.
        eqn: the equation.
        side: which operand is the kernel, 0 or 1.
        leaves: numbers of the leaves that the kernel is moved from.
        moves: numbers of the equations that move them.
        shape: of the kernel.
    """

    number: int
    eqn: Eqn
    side: int
    leaves: tuple[int, ...]
    moves: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def data(self) -> int:
        """Return the value that the kernel is multiplied with."""
        return self.eqn.ins[1 - self.side]


def find(program: Program) -> list[Layer]:
    """List the products of a kernel with data, in order.

    Args:
        program: of `trace`.

    Returns:
        The layers. Products inside loops that `trace` does not unroll, and products with
        kernels that are computed from leaves, are not among them.

    Example:
        >>> from jaxprune.graph import trace
        >>> fn = lambda params, x: x @ params["w"].T
        >>> program = trace(fn, {"w": jnp.ones((4, 3))}, jnp.ones((2, 3)))
        >>> [(layer.side, layer.leaves, len(layer.moves)) for layer in find(program)]
        [(1, (0,), 1)]
    """
    return [
        layer
        for layer in _readers(program, PRODUCTS)
        if layer.eqn.primitive.name == "dot_general"
        or (layer.side == 1 and layer.eqn.params["batch_group_count"] == 1)
    ]


def find_added(program: Program) -> list[Layer]:
    """List the additions of a leaf to data, such as that of a bias, in order.

    Args:
        program: of `trace`.

    Returns:
        Layers, with the leaf that is added as the kernel.

    Example:
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x + p["b"], {"b": jnp.ones(3)}, jnp.ones(3))
        >>> [(added.side, added.leaves) for added in find_added(program)]
        [(1, (0,))]
    """
    return [
        added
        for added in _readers(program, ("add", "add_any"))
        if jnp.issubdtype(program.avals[added.eqn.outs[0]].dtype, jnp.floating)
    ]


def _readers(program: Program, names: Sequence[str]) -> list[Layer]:
    """List the equations that combine moved leaves with data."""
    data, moved = depends_on(program, program.args), _moved(program)
    return [
        Layer(number, eqn, side, *moved[eqn.ins[side]], program.shape(eqn.ins[side]))
        for number, eqn in enumerate(program.eqns)
        if eqn.primitive.name in names
        for side in (0, 1)
        if eqn.ins[side] in moved and eqn.ins[1 - side] in data
    ]


def _moved(program: Program) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the values that hold entries of leaves, with these and the moves."""
    dependent = depends_on(program, (*program.args, *program.params))
    moved: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
        v: ((i,), ()) for i, v in enumerate(program.params)
    }
    for number, eqn in enumerate(program.eqns):
        sources = [moved[v] for v in eqn.ins if v in moved]
        others = [v for v in eqn.ins if v not in moved]
        if eqn.primitive.name not in _MOVES or not sources:
            continue
        if dependent.intersection(others):  # such as an index that depends on the input
            continue
        if others and eqn.primitive.name == "concatenate":
            continue
        leaves, moves = (sum(parts, ()) for parts in zip(*sources, strict=True))
        moves = sorted({*moves, number})
        moved[eqn.outs[0]] = tuple(dict.fromkeys(leaves)), tuple(moves)
    return moved


def check(
    program: Program, kernels: Sequence[Layer], prunable: Prunable, method: str
) -> None:
    """Check that products read every prunable leaf, and that all of these are known.

    Args:
        program: of `trace`.
        kernels: of `find`.
        prunable: one bool per leaf.
        method: what the error message calls the method.

    Raises:
        ValueError: naming the first leaf that no layer has, or that is read in a loop which
            is not unrolled.
    """
    read = {leaf for layer in kernels for leaf in layer.leaves}
    looped = _read_in_loops(program)
    remedy = (
        "Leave it out: pass prunable=tree.prunable(params, exclude=...), here and to "
        "masks.select."
    )
    for leaf, is_prunable in enumerate(jax.tree.leaves(prunable)):
        name = program.names[leaf]
        if is_prunable and leaf not in read:
            raise ValueError(
                f"{method} needs the inputs of each kernel, but no product multiplies "
                f"'{name}' with data{_reason(program, leaf)}. {remedy}"
            )
        if is_prunable and leaf in looped:
            raise ValueError(
                f"{method} needs the inputs of each kernel, but '{name}' is also read by a "
                f"'{looped[leaf]}' that is not unrolled. {remedy}"
            )


def _read_in_loops(program: Program) -> dict[int, str]:
    """Return the leaves that loops and branches read, and the names of these."""
    moved, looped = _moved(program), {}
    for eqn in program.eqns:
        if eqn.primitive.name in ("scan", "while", "cond"):
            for value in eqn.ins:
                looped |= dict.fromkeys(
                    moved.get(value, ((), ()))[0], eqn.primitive.name
                )
    return looped


def _reason(program: Program, leaf: int) -> str:
    """Name what reads a leaf, other than a layer."""
    reached = {program.params[leaf]}
    for eqn in program.eqns:
        if reached.intersection(eqn.ins):
            if eqn.primitive.name not in _MOVES:
                where = f" in '{eqn.where}'" if eqn.where else ""
                return f"; it is read by '{eqn.primitive.name}'{where}"
            reached.update(eqn.outs)
    return ""


def evaluate(
    program: Program, values: dict[int, Any], numbers: Sequence[int] | range
) -> None:
    """Run some equations of a program.

    Args:
        program: of `trace`.
        values: arrays by value; the results are added to them.
        numbers: the equations, in order.
    """
    for number in numbers:
        eqn = program.eqns[number]
        operands = [values[v] for v in eqn.ins]
        values.update(zip(eqn.outs, bind(eqn, operands), strict=True))


def run(
    program: Program, kernels: Sequence[Layer], inputs: Sequence[Any]
) -> Iterator[tuple[Layer, Any]]:
    """Run a program, and stop at each layer.

    Args:
        program: of `trace`.
        kernels: of `find`.
        inputs: the leaves of the parameters, then those of the other arguments.

    Yields:
        A layer and the data that its kernel is multiplied with.
    """
    values = dict(program.constants)
    values |= zip((*program.params, *program.args), inputs, strict=True)
    done = 0
    for layer in kernels:
        evaluate(program, values, range(done, layer.number))
        done = layer.number
        yield layer, values[layer.data]


def kernel_of(program: Program, layer: Layer, leaves: Sequence[Any]) -> Any:
    """Return the kernel of a layer, in the dtype of its leaves.

    Args:
        program: of `trace`.
        layer: of `find`.
        leaves: the arrays of `layer.leaves`, of any dtype.

    Example:
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x @ p.T, jnp.ones((4, 3)), jnp.ones((2, 3)))
        >>> kernel_of(program, find(program)[0], [jnp.ones((4, 3))]).shape
        (3, 4)
    """
    values = dict(program.constants)
    values |= {
        program.params[i]: leaf for i, leaf in zip(layer.leaves, leaves, strict=True)
    }
    for number in layer.moves:
        eqn = program.eqns[number]
        if eqn.primitive.name == "convert_element_type":
            values[eqn.outs[0]] = values[eqn.ins[0]]
        else:
            evaluate(program, values, [number])
    return values[layer.eqn.ins[layer.side]]


def pull_back(
    program: Program, layer: Layer, kernel: Float[Array, "..."]
) -> dict[int, Float[Array, "..."]]:
    """Move the entries of an array like a kernel to where they are in the leaves.

    Args:
        program: of `trace`.
        layer: of `find`.
        kernel: an array of the shape of its kernel.

    Returns:
        An array for each leaf of the layer, by number; 0 for entries that the layer does not
        read, and the sum for those that it reads more than once.
    """
    shapes = [
        jax.ShapeDtypeStruct(program.shape(program.params[i]), kernel.dtype)
        for i in layer.leaves
    ]
    moved: Callable[..., Any] = lambda *leaves: kernel_of(program, layer, leaves)
    parts = jax.linear_transpose(moved, *shapes)(kernel)
    return dict(zip(layer.leaves, parts, strict=True))


def starts(program: Program) -> list[int]:
    """Return where each leaf starts in one row of all entries, and where the last stops."""
    sizes = [math.prod(program.shape(v)) for v in program.params]
    return list(itertools.accumulate(sizes, initial=0))


def positions(program: Program, layer: Layer) -> np.ndarray:
    """Return which entry of the leaves each entry of a kernel is.

    Args:
        program: of `trace`.
        layer: of `find`.

    Returns:
        Positions in one row of the entries of all leaves, of the shape of the kernel.

    Example:
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x @ p.T, jnp.ones((2, 3)), jnp.ones((2, 3)))
        >>> positions(program, find(program)[0]).tolist()
        [[0, 3], [1, 4], [2, 5]]
    """
    first = starts(program)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        numbered = [
            jnp.asarray(np.arange(first[i], first[i + 1]).reshape(shape))
            for i, shape in (
                (i, program.shape(program.params[i])) for i in layer.leaves
            )
        ]
        return np.asarray(kernel_of(program, layer, numbered))
