"""The smaller function: a value that is called, pickled, and run at other batch sizes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune import graph, tree
from jaxprune.compact.constants import Carried
from jaxprune.compact.rewrite import Run, cut, run_job
from jaxprune.compact.store import Exported, serialize
from jaxprune.graph import Keep, small_shape
from jaxprune.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class SmallFunction:
    """The smaller function: call it as `fn(params, *args)`.

    Attributes:
        fn: the function before compaction.
        params: shapes of its parameters, before compaction.
        args: shapes of the arguments it was compacted for.
        structure: structure of its result.
        program: its trace at these shapes.
        keep: positions that are kept of each value of the program.
        constants: the arrays that the function closes over, cut to these positions.
        carried: what dropped constants add, by equation.
        batch: the axes that have another size with another number of examples; None if the
            first axis of the arguments must have the size of the example.
        products: products that are computed in another way, by equation.
        vectors: shapes of the parameters of these products, by name.
        of_one: the same for one example, where that is another program: `jnp.matmul` drops
            an axis of one.
    """

    fn: Callable[..., Any]
    params: PyTree
    args: tuple[Any, ...]
    structure: Any
    program: graph.Program
    keep: Sequence[Keep]
    constants: Mapping[int, Any]
    carried: Mapping[int, Carried]
    batch: frozenset[tuple[int, int]] | None
    products: Mapping[int, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    vectors: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    of_one: "SmallFunction | None" = None

    def __call__(self, params: Params, *args: Any) -> Any:
        """Run the smaller function."""
        if self.of_one is not None and has_one_example(args):
            return self.of_one(params, *args)
        leaves = self._check_params(params)
        program, keep = self.at(args)
        values: dict[int, Any] = dict(zip(program.params, leaves, strict=True))
        values.update(zip(program.args, jax.tree.leaves(args), strict=True))
        for value in program.args:  # keys are never cut
            values[value] = cut(values[value], keep[value])
        values.update(self._constants(program, keep))
        job = Run(program, self.program, keep, values, self.carried, self.products)
        values = run_job(job)
        return jax.tree.unflatten(self.structure, [values[v] for v in program.outs])

    def _constants(
        self, program: graph.Program, keep: Sequence[Keep]
    ) -> Mapping[int, Any]:
        if program is self.program:
            return self.constants
        return {
            value: self.constants[value]
            if program.shape(value) == self.program.shape(value)
            else cut(array, keep[value])
            for value, array in program.constants.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the exported program, which needs none of the user's code."""
        params = jax.tree.unflatten(jax.tree.structure(self.params), self._shapes())
        return Exported, (serialize(self.__call__, params, *self.args),)

    def _shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of the smaller parameters."""
        program = self.program
        return [
            jax.ShapeDtypeStruct(
                self.vectors.get(name, small_shape(program.shape(v), self.keep[v])),
                program.avals[v].dtype,
            )
            for name, v in zip(program.names, program.params, strict=True)
        ]

    def __deepcopy__(self, memo: Any) -> "SmallFunction":
        """Return itself: it can't be changed."""
        return self

    def arrays(self) -> list[Any]:
        """Return the arrays besides the parameters: closed-over ones and carried ones."""
        carried = [constant.array for constant in self.carried.values()]
        return [*map(jnp.asarray, self.constants.values()), *carried]

    def _check_params(self, params: Params) -> list[Any]:
        leaves = jax.tree.leaves(params)
        names = self.program.names
        if tree.names(params) != list(names):
            raise ValueError(
                f"params has the leaves {', '.join(tree.names(params)[:4])}, ..., but the "
                f"compacted function has {', '.join(names[:4])}, .... Pass "
                "Compacted.params, or a trained version of it."
            )
        for name, expected, leaf in zip(names, self._shapes(), leaves, strict=True):
            if tuple(jnp.shape(leaf)) != expected.shape:
                raise ValueError(
                    f"params has shape {tuple(jnp.shape(leaf))} at '{name}', where the "
                    f"compacted function has {expected.shape}. Pass Compacted.params, or a "
                    "trained version of it."
                )
            if jnp.result_type(leaf) != expected.dtype:
                raise ValueError(
                    f"params is {jnp.result_type(leaf)} at '{name}', where the function was "
                    f"compacted for {expected.dtype}. Convert it, or compact it with "
                    "parameters of this dtype."
                )
        return leaves

    def at(self, args: tuple[Any, ...]) -> tuple[graph.Program, Sequence[Keep]]:
        """Return the program and what it keeps at the shapes of a call."""
        if jax.tree.structure(args) != jax.tree.structure(self.args):
            raise ValueError(
                f"the arguments have the structure {jax.tree.structure(args)}, but the "
                f"function was compacted for {jax.tree.structure(self.args)}. Pass such "
                "arguments."
            )
        dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(args)]
        own_dtypes = [leaf.dtype for leaf in jax.tree.leaves(self.args)]
        if dtypes != own_dtypes:
            raise ValueError(
                f"the arguments have the dtypes {', '.join(map(str, dtypes))}, but the "
                f"function was compacted for {', '.join(map(str, own_dtypes))}. Convert "
                "them, or compact it with arguments of these dtypes."
            )
        shapes = [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(args)]
        own = [tuple(leaf.shape) for leaf in jax.tree.leaves(self.args)]
        if shapes == own:
            return self.program, self.keep
        same = [s[1:] == o[1:] for s, o in zip(shapes, own, strict=True)]
        if self.batch is None or not all(same):
            remedy = "Compact it with arguments of these shapes."
            if self.batch is not None:
                remedy = "Only the first axis may differ."
            raise ValueError(
                f"the function was compacted for arguments of the shapes {own}; got "
                f"{shapes}. {remedy}"
            )
        program = graph.trace(self.fn, self.params, *args)
        return program, _transfer(self.program, self.keep, program, self.batch)


def has_one_example(args: Any) -> bool:
    """Return whether the first axis of all arguments is one."""
    return all(jnp.shape(leaf)[:1] == (1,) for leaf in jax.tree.leaves(args))


def _same_constants(first: Mapping[int, Any], second: Mapping[int, Any]) -> bool:
    """Return whether two traces of a function close over the same numbers."""

    def is_same(one: Any, other: Any) -> bool:
        if one is other:
            return True
        a, b = np.asarray(one), np.asarray(other)
        if a.shape == b.shape:
            return np.array_equal(a, b, equal_nan=jnp.issubdtype(a.dtype, jnp.inexact))
        # An array of one number, such as a state of zeros for each example.
        return bool(
            a.size and b.size and (a == a.flat[0]).all() and (b == a.flat[0]).all()
        )

    return first.keys() == second.keys() and all(
        is_same(array, second[value]) for value, array in first.items()
    )


# Parameters that hold sizes, which the shapes of the values repeat.
_SIZES = ("shape", "new_sizes", "limit_indices", "slice_sizes", "sizes")


def _same_eqn(first: graph.Eqn, second: graph.Eqn) -> bool:
    """Return whether two equations differ in sizes and precision alone.

    Opaque ones keep all that they read anyway.
    """
    return first.primitive.name == second.primitive.name and (
        graph.rule_of(first, graph.RULES).opaque
        or all(
            name in (*_SIZES, "precision") or param is second.params[name]
            or str(param) == str(second.params[name])
            for name, param in first.params.items()
        )
    )  # fmt: skip


def same_program(
    first: graph.Program, second: graph.Program, batch: frozenset[tuple[int, int]]
) -> bool:
    """Return whether two traces differ in the number of examples alone."""
    return (
        len(first.eqns) == len(second.eqns)
        and all(map(_same_eqn, first.eqns, second.eqns))
        and _same_constants(first.constants, second.constants)
        and all(
            extent == other or (value, axis) in batch
            for eqn in first.eqns
            for value in (*eqn.ins, *eqn.outs)
            for axis, (extent, other) in enumerate(
                zip(first.shape(value), second.shape(value), strict=True)
            )
        )
    )


def _transfer(
    program: graph.Program,
    keep: Sequence[Keep],
    other: graph.Program,
    batch: frozenset[tuple[int, int]],
) -> Sequence[Keep]:
    """Return what a program keeps that differs from another in the number of examples."""
    if not same_program(program, other, batch):
        raise ValueError(
            "the function computes something else with another number of examples, such as "
            "x / x.shape[0]. Compact it with arguments of these shapes."
        )
    sizes_fit = all(
        positions is None or extent == own
        for value in range(len(program.avals))
        for positions, extent, own in zip(
            keep[value],
            other.avals[value].shape,
            program.avals[value].shape,
            strict=True,
        )
    )
    if sizes_fit:
        return keep
    closed = graph.between(
        other,
        [keep[v] for v in (*program.params, *program.args)],
        [keep[v] for v in program.outs],
    )
    if closed is None:
        raise ValueError(
            "the compacted function can't run on arguments of these shapes. Compact it with "
            "arguments of these shapes."
        )
    return closed
