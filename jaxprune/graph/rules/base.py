"""What a rule is, and what all rules share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.graph.program import PRODUCTS, Eqn
from jaxprune.graph.relations import Keep, Relations

ALL = slice(None)

# A bool array of NumPy; of rank 0 it may be a scalar.
Bools: TypeAlias = Any


class State(NamedTuple):
    """What is known of a value without running the function.

    Attributes:
        varies: entries that depend on the arguments.
        nonzero: entries that may be nonzero; others are zero through the mask.
    """

    varies: Bools
    nonzero: Bools


class Site(NamedTuple):
    """An equation and the shapes around it.

    Attributes:
        eqn: the equation.
        ins: shapes of what it reads.
        outs: shapes of what it computes.
        carries: whether constants that it sums may be carried behind it.
        known: returns the array of a value that depends on constants alone, or None.
    """

    eqn: Eqn
    ins: Sequence[tuple[Any, ...]]
    outs: Sequence[tuple[Any, ...]]
    carries: bool
    known: Callable[[int], Any]


class Small(NamedTuple):
    """The sizes that are left around an equation.

    Attributes:
        ins: positions that are kept of each axis of what it reads; None for all.
        outs: the same of what it computes.
        shapes: the shapes of what it computes, after keeping these positions.
    """

    ins: Sequence[Keep]
    outs: Sequence[Keep]
    shapes: Sequence[tuple[Any, ...]]


class Rule(NamedTuple):
    """The rule of a primitive.

    Attributes:
        forward: `forward(site, states) -> states` of the outputs.
        backward: `backward(site, states, needs) -> needs` of what the equation reads, from
            what is needed of its outputs.
        relate: `relate(site, relations, i)` records ties of equation number i.
        rewrite: `rewrite(site, operands, small) -> outputs` of smaller operands.
        sums: whether it adds up entries, so that constants among them can be carried.
        opaque: whether it keeps all that it reads.
    """

    forward: Callable[[Site, Sequence[State]], Sequence[State]]
    backward: Callable[[Site, Sequence[State], Sequence[Bools]], Sequence[Bools]]
    relate: Callable[[Site, Relations, int], None]
    rewrite: Callable[[Site, Sequence[Any], Small], Sequence[Any]]
    sums: bool = False
    opaque: bool = False


def bind(eqn: Eqn, operands: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """Run the primitive of an equation, with some parameters changed.

    A product without a precision uses that of `jax.default_matmul_precision` at this call;
    products inside loops that are not followed keep the one at which they were traced.
    """
    params = {**eqn.params, **changed}
    if eqn.primitive.name in PRODUCTS:
        return [getattr(jax.lax, eqn.primitive.name)(*operands, **params)]
    params = eqn.primitive.get_bind_params(params)
    result = eqn.primitive.bind(*operands, **params)
    return result if eqn.primitive.multiple_results else [result]


def as_is(site: Site, operands: Sequence[Any], small: Small) -> Sequence[Any]:
    """Run an equation on smaller operands as it is."""
    del small
    return bind(site.eqn, operands)


def take(array: Any, axis: Any, have: np.ndarray | None, wanted: np.ndarray) -> Any:
    """Take positions of the original axis from what is left of it."""
    index = wanted if have is None else np.searchsorted(have, wanted)
    if len(index) == array.shape[axis] and (index == np.arange(len(index))).all():
        return array
    steps = np.diff(index)
    if (
        len(index)
        and (steps == (steps[0] if len(steps) else 1)).all()
        and (not len(steps) or steps[0] > 0)
    ):
        step = int(steps[0]) if len(steps) else 1
        return jax.lax.slice_in_dim(
            array, int(index[0]), int(index[-1]) + 1, step, axis
        )
    return jnp.take(array, index, axis, indices_are_sorted=bool((steps >= 0).all()))


def positions(keep: np.ndarray | None, extent: Any) -> np.ndarray:
    """Return the positions that are kept of an axis."""
    return np.arange(extent) if keep is None else keep


def unfit(need: Bools, shape: tuple[Any, ...]) -> Bools:
    """Undo broadcasting: an entry is needed if any of its copies is."""
    if need.shape == shape:
        return need
    if not shape:
        return np.asarray(need.any())
    axes = tuple(a for a, n in enumerate(shape) if n == 1 and need.shape[a] != 1)
    return need.any(axes, keepdims=True)
