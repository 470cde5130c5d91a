"""From a function and a mask to a smaller function that computes the same.

A channel is removed if no path leads from it to an output, or none from the input to it. In
the second case it emits a constant, which is added further on.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxprune import graph, masks, tree
from jaxprune.compact import constants
from jaxprune.compact.constants import Carried
from jaxprune.compact.fold import fold
from jaxprune.compact.rewrite import cut
from jaxprune.compact.small import SmallFunction, has_one_example, same_program
from jaxprune.compact.store import with_examples
from jaxprune.compact.verify import agree, verify
from jaxprune.graph import Keep
from jaxprune.types import Mask, Params


class Info(NamedTuple):
    """Sizes before and after, and what was kept.

    Attributes:
        sizes: by leaf, the shapes before and after.
        dense: entries of the parameters before compaction.
        kept: entries that the mask keeps.
        left: entries of the parameters after compaction.
        carried: entries of the constants that removed channels add, beside the parameters.
        carries: where they are added, one line each.
        live: the mask without the weights that are on no path from input to output.
        beyond_need: by leaf, entries that are left only because another entry on the same
            axis is needed.
        opaque: operations that could not be followed, each with the name stack of the
            user's code; everything that they read is kept.
        inlined: calls with a `custom_vjp`, each with the name stack: the smaller function is
            differentiated through their operations, by JAX's rules.
        collapse: a warning if the output does not depend on the input, else None.
    """

    sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dense: int
    kept: int
    left: int
    carried: int
    carries: tuple[str, ...]
    live: Mask
    beyond_need: Mapping[str, int]
    opaque: tuple[str, ...]
    inlined: tuple[str, ...]
    collapse: masks.Collapse | None

    def __repr__(self) -> str:
        """List what is not the same for every leaf."""
        lines = [
            f"{self.left:,} of {self.dense:,} numbers are left; the mask keeps "
            f"{self.kept:,}, and {self.carried:,} are carried",
            *(f"not followed: {name}" for name in self.opaque),
            *(f"derivative lost: {name}" for name in self.inlined),
            *([] if self.collapse is None else [self.collapse.message]),
        ]
        return "\n  ".join(["Info:", *lines])


class Compacted(NamedTuple):
    """A smaller function.

    Attributes:
        fn: `fn(params, *args)`, to be jitted; the same outputs as the masked function.
        params: its parameters: the same tree, with smaller arrays. They are for `fn`: the
            original code, run on them, lacks the constants that `info.carries` lists.
        info: sizes before and after, and what was kept.
    """

    fn: Callable[..., Any]
    params: Params
    info: Info

    def __repr__(self) -> str:
        """Describe what is left."""
        return f"Compacted: {self.info!r}"


class _Plan(NamedTuple):
    liveness: graph.Liveness
    keep: Sequence[Keep]
    carried: Mapping[int, Carried]
    small: Sequence[Any]

    def numbers(self) -> int:
        """Count the numbers that are left, carried ones included."""
        carried = sum(constant.array.size for constant in self.carried.values())
        return sum(leaf.size for leaf in self.small) + carried


def compact(
    fn: Callable[..., Any],
    params: Params,
    mask: Mask,
    *args: Any,
    inputs: Literal["keep", "gather"] | str = "keep",
    fold_batch_norm: bool = False,
) -> Compacted:
    """Build the smaller function that computes what the masked one computes.

    The function is traced, and what the mask leaves is followed through every operation.
    Where an operation can't be followed, everything that it reads is kept and `info.opaque`
    names it. The result is checked on random inputs before it is returned, with products of
    the highest precision (to 2.4e-4 of the largest output in float32, 0.05 in 16 bits), and
    is never larger than the dense function. Jit it; it can be differentiated (`info.inlined`
    names calls whose own `custom_vjp` is replaced by JAX's derivative), trained further
    (BatchNorm keeps its statistics) and pickled. Scans are unrolled, up to 20,000 operations
    in all, so that long ones compile slowly.

    Other numbers of examples along the first axis of the arguments are accepted if the
    function treats examples one by one and does not use their number; compact it with two
    examples or more. Other sizes need a compaction of their own.

    Recipes: `lambda params, x: model.apply(params, model.state, x)[0]` for a `models.Model`;
    for NNX, `lambda params, x: nnx.merge(graphdef, params, rest)(x)`, with
    `graphdef, params, rest = nnx.split(model, nnx.Param, ...)` after `model.eval()`; for
    Linen, `lambda params, x: module.apply({"params": params, "batch_stats": stats}, x)`; for
    Equinox, `lambda params, x: jax.vmap(eqx.combine(params, static))(x)`. BatchNorm
    statistics that the function closes over are cut with their channels.

    Args:
        fn: `fn(params, *args)`, any function that JAX can trace, in inference form: without
            Dropout, and with the running statistics of BatchNorm.
        params: its parameters; the mask is applied here.
        mask: True keeps.
        args: example arguments, or `jax.ShapeDtypeStruct`. Pass real examples of
            integers, such as tokens: the check runs on them.
        inputs: "keep" multiplies whole arguments; "gather" first takes the entries whose
            weights are kept, so that the first kernel gets smaller too.
        fold_batch_norm: fold what scales and shifts each channel behind a product, such as
            BatchNorm in inference form, into its kernel and the last bias. Leaves that are no
            longer read, such as scales, are left empty. Outputs differ by rounding.

    Returns:
        The smaller function, its parameters, and their sizes.

    Raises:
        ValueError: if the mask does not mirror `params`, this is called under `jit`, or the
            result computes something else.
        TypeError: if a leaf of `params` is not an array.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]
        >>> params = {"w": jnp.ones((4, 8)), "b": jnp.ones((1, 8)), "v": jnp.ones((8, 2))}
        >>> mask = masks.ones_like(params)
        >>> mask["v"] = mask["v"].at[3:].set(False)
        >>> small = compact(fn, params, mask, jnp.ones((2, 4)))
        >>> small.params["w"].shape, small.info.left, small.info.dense
        ((4, 3), 21, 56)

    References:
        Unger Bragagnolo and Barbano, Simplify: A Python library for optimizing pruned
        neural networks, SoftwareX 2022, carries constants in the same way.
    """
    mask = _check(params, mask, args, inputs)
    leaves = jax.tree.leaves(masks.apply(params, mask))
    host_leaves = [_on_host(leaf) for leaf in leaves]
    mask_leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
    program = graph.trace(fn, params, *args)
    whole = program.args if inputs == "keep" else ()

    def plan(carry: Callable[[int], bool]) -> _Plan:
        liveness = graph.live(program, mask_leaves, carry=carry)
        keep = graph.keep(program, liveness, whole)
        carried = constants.carry(program, liveness, keep, leaves)
        small = [
            cut(leaf, keep[v])
            for v, leaf in zip(program.params, host_leaves, strict=True)
        ]
        merged = constants.merge_into_biases(program, keep, carried, small)
        return _Plan(liveness, keep, *merged)

    everything = plan(lambda i: True)
    best = _fewest(everything, plan)
    kept_constants = {
        v: cut(_on_host(array), best.keep[v]) for v, array in program.constants.items()
    }
    products: Mapping[int, Callable[..., Any]] = {}
    emptied: Sequence[int] = ()
    if fold_batch_norm:
        folded = fold(program, best.keep, best.carried, best.small, kept_constants)
        best = best._replace(small=folded.small, carried=folded.carried)
        products, emptied = folded.products, folded.emptied
    shapes, arg_shapes = tree.shapes((params, args))
    small_fn = SmallFunction(
        fn,
        shapes,
        arg_shapes,
        jax.tree.structure(jax.eval_shape(fn, shapes, *arg_shapes)),
        program,
        best.keep,
        kept_constants,
        best.carried,
        _batch_axes(fn, shapes, arg_shapes, program),
        products,
        {program.names[i]: (0,) for i in emptied},
    )
    structure = jax.tree.structure(params)
    small_params = jax.device_put(jax.tree.unflatten(structure, best.small))
    verify(small_fn, leaves, small_params, args)
    if _is_another_of_one(small_fn):
        one = jax.tree.map(_first_example, args)
        options = {"inputs": inputs, "fold_batch_norm": fold_batch_norm}
        with contextlib.suppress(ValueError):  # one example alone can't be compacted
            again = compact(fn, params, mask, *one, **options)
            if jax.tree.all(jax.tree.map(agree, again.params, small_params)):
                small_fn = dataclasses.replace(small_fn, of_one=again.fn)
    info = _describe(program, everything, best, mask_leaves)
    live = jax.tree.unflatten(structure, info.live)
    return Compacted(small_fn, small_params, info._replace(live=live))


def _on_host(array: Any) -> Any:
    """Return an array in NumPy, which compiles nothing to cut it; keys are never cut."""
    return array if tree.is_key(array) else np.asarray(array)


def _check(params: Params, mask: Mask, args: Any, inputs: str) -> Mask:
    tree.check_option("inputs", inputs, ("keep", "gather"))
    tree.check_arrays(params)
    if any(
        isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((params, mask))
    ):
        raise TypeError("compact needs the numbers of params and mask. Pass arrays.")
    mask = tree.check_mirrors(mask, params)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, mask, args))):
        raise ValueError(
            "compact decides by the mask what shapes are left, which jit can't trace. Call "
            "it outside, and jit the function that it returns."
        )
    return mask


def _fewest(first: _Plan, plan: Callable[[Callable[[int], bool]], _Plan]) -> _Plan:
    """Return the plan that leaves the fewest numbers.

    Constants that differ from pixel to pixel are maps, which may take more than the channels
    that they replace.
    """
    if not first.carried:
        return first
    is_map = {
        i
        for i, c in first.carried.items()
        if c.array.size > max(c.array.shape, default=1)
    }
    plans = [first, plan(lambda i: False)]
    if is_map:
        plans.append(plan(lambda i: i not in is_map))
    return min(plans, key=_Plan.numbers)


def _first_example(leaf: Any) -> Any:
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    return with_examples(leaf, 1) if is_shape else leaf[:1]


def _is_another_of_one(small_fn: SmallFunction) -> bool:
    """Return whether a function of several examples traces otherwise for one."""
    sizes = [leaf.shape[:1] for leaf in jax.tree.leaves(small_fn.args)]
    if small_fn.batch is None or not sizes or () in sizes or min(sizes) < (2,):
        return False
    other = _trace_of(1, small_fn.fn, small_fn.params, small_fn.args)
    return other is not None and not same_program(
        small_fn.program, other, small_fn.batch
    )


def _batch_axes(
    fn: Callable[..., Any], params: Params, args: Any, program: graph.Program
) -> frozenset[tuple[int, int]] | None:
    """Return the axes that have another size with another number of examples."""
    two = _trace_of(2, fn, params, args) if has_one_example(args) else program
    return None if two is None else graph.batch_axes(two)


def _trace_of(
    number: int, fn: Callable[..., Any], params: Params, args: Any
) -> graph.Program | None:
    """Trace a function of this many examples; None if it does not take so many."""
    try:
        return graph.trace(fn, params, *with_examples(args, number))
    except Exception:  # anything that the user's function raises at this size
        return None


def _describe(
    program: graph.Program, everything: _Plan, best: _Plan, mask_leaves: Sequence[Any]
) -> Info:
    live, beyond, sizes = [], {}, {}
    rows = zip(program.params, program.names, mask_leaves, best.small, strict=True)
    for v, name, mask, small in rows:
        need = everything.liveness.needs[v]
        is_live = mask & need if need is not None else np.zeros_like(mask)
        live.append(is_live)
        needed = best.liveness.needs[v]
        used = 0 if needed is None else int((needed & mask).sum())
        beyond[name] = max(small.size - used, 0)
        sizes[name] = (program.shape(v), tuple(small.shape))
    empty = [n for n, m in zip(program.names, mask_leaves, strict=True) if not m.any()]
    liveness = best.liveness
    return Info(
        sizes,
        sum(m.size for m in mask_leaves),
        sum(int(m.sum()) for m in mask_leaves),
        sum(leaf.size for leaf in best.small),
        sum(constant.array.size for constant in best.carried.values()),
        tuple(
            f"{constant.array.size} numbers behind {program.eqns[i].primitive.name} at "
            f"'{program.eqns[i].where}'"
            for i, constant in best.carried.items()
        ),
        live,
        beyond,
        tuple(
            f"{site.eqn.primitive.name} at '{site.eqn.where}'"
            for site, rule in zip(liveness.sites, liveness.rules, strict=True)
            if rule.opaque
        ),
        tuple(
            f"custom_vjp at '{region.where}'"
            for region in program.regions
            if region.kind == "custom_vjp"
        ),
        masks.find_collapse(program, everything.liveness, empty),
    )
