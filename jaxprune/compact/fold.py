"""BatchNorm in inference form, folded into the kernel before it.

What is added to the result of a product or multiplied with it, channel by channel, is one
scale and one shift of each channel. The scale goes into the kernel, the shift into the last
bias.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import graph
from jaxprune.compact.constants import Carried
from jaxprune.compact.rewrite import Run, run_eqn
from jaxprune.graph import Keep, Program

_AFFINE = ("add", "sub", "mul", "div")


class Folded(NamedTuple):
    """What folding makes of a smaller function.

    Attributes:
        small: the parameters; those that are no longer read are empty.
        carried: what dropped constants add, scaled as the kernels are.
        products: equations that are computed in another way.
        emptied: numbers of the leaves that are empty.
    """

    small: list[Any]
    carried: dict[int, Carried]
    products: dict[int, Callable[..., Any]]
    emptied: tuple[int, ...]


class _Link(NamedTuple):
    """An equation that scales or shifts each channel.

    Attributes:
        eqn: its number.
        side: which operand comes from the product.
        vector: the other operand before it was repeated, one number a channel or one for all.
    """

    eqn: int
    side: int
    vector: int


class _Place(NamedTuple):
    """Where the channels of a product lie.

    Attributes:
        kernel: the leaf that it multiplies with data.
        kernel_axis: the axis of the channels in that leaf.
        axis: the axis of the channels in the result.
    """

    kernel: int
    kernel_axis: int
    axis: int


class _Chain(NamedTuple):
    """A product and what follows it, channel by channel, up to the addition of a bias.

    Attributes:
        product: number of the product.
        place: where its channels lie.
        links: the equations that follow; the last one adds `bias`.
        bias: the leaf that takes the shift.
    """

    product: int
    place: _Place
    links: tuple[_Link, ...]
    bias: int


def fold(
    program: Program,
    keep: Sequence[Keep],
    carried: Mapping[int, Carried],
    small: Sequence[Any],
    constants: Mapping[int, Any],
) -> Folded:
    """Fold scales and shifts of channels into kernels and biases.

    Args:
        program: of the function.
        keep: positions that are kept of each value.
        carried: what dropped constants add, by equation.
        small: the smaller parameters.
        constants: the arrays that the function closes over, cut to these positions.

    Returns:
        The parameters after folding, and what changes in the program.
    """
    chains = _chains(program)
    vectors = {link.vector for chain in chains for link in chain.links}
    values = _evaluate(program, keep, small, constants, vectors)
    result, added = list(small), dict(carried)
    for chain in chains:
        scale, shift = _scale_and_shift(program, chain, values)
        leaf, kernel_axis, axis = chain.place
        kernel, bias = result[leaf], result[chain.bias]
        result[leaf] = _scaled(kernel, scale, kernel_axis)
        if chain.product in added:
            constant = added[chain.product]
            along = axis if constant.form == "array" else kernel_axis
            array = _scaled(constant.array, scale, along)
            added[chain.product] = constant._replace(array=array)
        shift = jnp.broadcast_to(shift, (kernel.shape[kernel_axis],))
        result[chain.bias] = _flushed(shift.astype(bias.dtype)).reshape(bias.shape)
    sides = {link.eqn: link.side for chain in chains for link in chain.links[:-1]}
    needed, alive = set(program.outs), set()
    for i in reversed(range(len(program.eqns))):
        eqn = program.eqns[i]
        if needed.intersection(eqn.outs):
            alive.add(i)
            needed.update([eqn.ins[sides[i]]] if i in sides else eqn.ins)
    products: dict[int, Callable[..., Any]] = {
        i: _passes(sides[i]) if i in sides else _nothing
        for i in range(len(program.eqns))
        if i in sides or i not in alive
    }
    read = {v for eqn in program.eqns for v in eqn.ins}
    emptied = tuple(
        i for i, v in enumerate(program.params) if v in read and v not in needed
    )
    for leaf in emptied:
        result[leaf] = result[leaf].reshape(-1)[:0]
    return Folded(result, added, products, emptied)


def _passes(side: int) -> Callable[..., Any]:
    return lambda eqn, *operands: operands[side]


def _nothing(eqn: graph.Eqn, *operands: Any) -> None:
    del eqn, operands


def _flushed(array: Any) -> Any:
    """Set subnormal numbers to zero: a CPU multiplies by them slowly."""
    return jnp.where(jnp.abs(array) < jnp.finfo(array.dtype).tiny, 0, array)


def _scaled(array: Any, scale: Any, axis: int) -> Any:
    shape = [1] * array.ndim
    shape[axis] = -1
    return _flushed((array * scale.reshape(shape)).astype(array.dtype))


def _scale_and_shift(
    program: Program, chain: _Chain, values: Mapping[int, Any]
) -> tuple[Any, Any]:
    """Return what a chain makes of 1 and of 0, channel by channel."""
    scale, shift = jnp.ones(1), jnp.zeros(1)
    for link in chain.links:
        name, vector = program.eqns[link.eqn].primitive.name, values[link.vector]
        scale, shift = scale.astype(vector.dtype), shift.astype(vector.dtype)
        if name == "add":
            shift = shift + vector
        elif name == "sub" and link.side == 0:
            shift = shift - vector
        elif name == "sub":
            scale, shift = -scale, vector - shift
        elif name == "mul":
            scale, shift = scale * vector, shift * vector
        else:
            scale, shift = scale / vector, shift / vector
    return scale, shift


def _evaluate(
    program: Program,
    keep: Sequence[Keep],
    small: Sequence[Any],
    constants: Mapping[int, Any],
    wanted: Collection[int],
) -> dict[int, Any]:
    """Return values that depend on parameters and constants alone, flattened."""
    program = graph.precise(program)
    producers, pending = graph.producers(program), list(wanted)
    needed: set[int] = set()
    while pending:
        i = producers.get(pending.pop())
        if i is not None and i not in needed:
            needed.add(i)
            pending += program.eqns[i].ins

    @jax.jit
    def run(small: Sequence[Any]) -> dict[int, Any]:
        values = dict(zip(program.params, small, strict=True)) | dict(constants)
        job = Run(program, program, keep, values, {}, {})
        for i in sorted(needed):
            run_eqn(job, i)
        return {v: jnp.asarray(job.values[v]).reshape(-1) for v in wanted}

    return run(list(small))


def _chains(program: Program) -> list[_Chain]:
    """Return the products whose result is scaled and shifted before anything else."""
    readers, producers = graph.readers(program), graph.producers(program)
    data = graph.depends_on(program, program.args)
    leaves = {v: i for i, v in enumerate(program.params)}
    chains = []
    for i, eqn in enumerate(program.eqns):
        place = _place(program, eqn, leaves)
        around = [r for r in program.regions if r.start <= i < r.stop]
        if (
            place is None
            or readers[program.params[place.kernel]] != [i]
            or any(r.kind != "platform" or r.outs != eqn.outs for r in around)
        ):
            continue
        links, current, length = [], eqn.outs[0], 0
        while len(readers[current]) == 1 and readers[current] != [-1]:
            (j,) = readers[current]
            side = _side(program, j, current, data)
            if side is None:
                break
            path = _path(program, producers, program.eqns[j].ins[1 - side], place.axis)
            if path is None:
                break
            vector = path[-1]
            links.append(_Link(j, side, vector))
            (current,) = program.eqns[j].outs
            size = math.prod(program.shape(vector))
            if (
                program.eqns[j].primitive.name == "add"
                and vector in leaves
                and all(len(readers[v]) == 1 for v in path)
                and size == program.shape(current)[place.axis]
            ):
                length = len(links)
        if length > 1:
            bias = leaves[links[length - 1].vector]
            chains.append(_Chain(i, place, tuple(links[:length]), bias))
    return chains


def _place(
    program: Program, eqn: graph.Eqn, leaves: Mapping[int, int]
) -> _Place | None:
    """Return where the channels of a product with a leaf lie; None for other equations."""
    if eqn.primitive.name not in graph.PRODUCTS or eqn.ins[1] not in leaves:
        return None
    kernel, numbers = leaves[eqn.ins[1]], eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        return _Place(kernel, numbers.rhs_spec[0], numbers.out_spec[1])
    (_, contracted), (batch, _) = numbers
    ndim = len(program.shape(eqn.ins[1]))
    free = [a for a in range(ndim) if a not in contracted]
    if len(free) != 1 or batch:
        return None
    return _Place(kernel, free[0], len(program.shape(eqn.outs[0])) - 1)


def _side(program: Program, i: int, value: int, data: Collection[int]) -> int | None:
    """Return which operand a value is of an equation that scales or shifts it, else None."""
    eqn = program.eqns[i]
    if eqn.primitive.name not in _AFFINE or eqn.ins[0] == eqn.ins[1]:
        return None
    if any(r.kind != "platform" and r.start <= i < r.stop for r in program.regions):
        return None
    side = eqn.ins.index(value)
    is_divisor = eqn.primitive.name == "div" and side == 1
    return None if is_divisor or eqn.ins[1 - side] in data else side


def _path(
    program: Program, producers: Mapping[int, int], value: int, axis: int
) -> list[int] | None:
    """Follow a value back to what was repeated; None if it differs along other axes too."""
    path = [value]
    while value in producers:
        eqn = program.eqns[producers[value]]
        if eqn.primitive.name not in ("broadcast_in_dim", "reshape"):
            break
        if eqn.primitive.name == "reshape" and _wide(program, value) not in (
            [],
            [axis],
        ):
            return None
        (value,) = eqn.ins[:1]
        path.append(value)
        wide = _wide(program, value)
        if len(wide) > 1:
            return None
        if wide:
            is_repeated = eqn.primitive.name == "broadcast_in_dim"
            if is_repeated and eqn.params["broadcast_dimensions"][wide[0]] != axis:
                return None
            (axis,) = wide
    return path if _wide(program, value) in ([], [axis]) else None


def _wide(program: Program, value: int) -> list[int]:
    return [axis for axis, size in enumerate(program.shape(value)) if size > 1]
