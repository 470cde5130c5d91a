"""From a function and a mask to a smaller function that computes the same.

A channel is removed if no path leads from it to an output, or none from the input to it. In
the second case it emits a constant, which is added further on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import graph, masks, tree
from jaxprune.compact import constants
from jaxprune.compact.constants import Carried
from jaxprune.compact.fold import Folded, fold
from jaxprune.compact.rewrite import cut, run
from jaxprune.compact.small import SmallFunction
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
    names it. The result is checked on random inputs before it is returned (to 2.4e-4 of the
    largest output in float32, 0.05 in 16 bits), and is never
    larger than the dense function. Jit it; it can be differentiated (`info.inlined` names
    derivatives of `custom_vjp` that are lost), trained further and pickled.

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
        fn: `fn(params, *args)`, any function that JAX can trace, in inference form.
        params: its parameters; the mask is applied here.
        mask: True keeps.
        args: example arguments, or `jax.ShapeDtypeStruct`. Integers, such as tokens, should
            be examples.
        inputs: "keep" reads the arguments as they are; "gather" takes the positions that
            matter first.
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
    mask = _check(params, mask, inputs)
    leaves = jax.tree.leaves(masks.apply(params, mask))
    mask_leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
    program = graph.trace(fn, params, *args)
    whole = program.args if inputs == "keep" else ()

    def plan(carry: Callable[[int], bool]) -> _Plan:
        liveness = graph.live(program, mask_leaves, carry=carry)
        keep = graph.keep(program, liveness, whole)
        carried = constants.carry(program, liveness, keep, leaves)
        small = [
            cut(leaf, keep[v]) for v, leaf in zip(program.params, leaves, strict=True)
        ]
        merged = constants.merge_into_biases(program, keep, carried, small)
        return _Plan(liveness, keep, *merged)

    everything = plan(lambda i: True)
    best = _fewest(everything, plan)
    kept_constants = {v: cut(a, best.keep[v]) for v, a in program.constants.items()}
    folded = Folded(list(best.small), dict(best.carried), {}, ())
    if fold_batch_norm:
        folded = fold(program, best.keep, best.carried, best.small, kept_constants)
        best = best._replace(small=folded.small, carried=folded.carried)
    shapes, arg_shapes = jax.tree.map(_shape, (params, args))
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
        folded.products,
        {program.names[i]: (0,) for i in folded.emptied},
    )
    structure = jax.tree.structure(params)
    small_params = jax.tree.unflatten(structure, best.small)
    _verify(small_fn, leaves, small_params, args)
    info = _describe(program, everything, best, mask_leaves)
    live = jax.tree.unflatten(structure, info.live)
    return Compacted(small_fn, small_params, info._replace(live=live))


def _check(params: Params, mask: Mask, inputs: str) -> Mask:
    if inputs not in ("keep", "gather"):
        raise ValueError(f"inputs '{inputs}' is unknown. Pass 'keep' or 'gather'.")
    tree.check_arrays(params)
    if any(
        isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((params, mask))
    ):
        raise TypeError("compact needs the numbers of params and mask. Pass arrays.")
    mask = tree.check_mirrors(mask, params)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, mask))):
        raise ValueError(
            "compact decides by the mask what shapes are left, which jit can't trace. Call "
            "it outside, and jit the function that it returns."
        )
    return mask


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


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


def _batch_axes(
    fn: Callable[..., Any], params: Params, args: Any, program: graph.Program
) -> frozenset[tuple[int, int]] | None:
    """Return the axes that have another size with another number of examples."""
    if all(leaf.shape[:1] == (1,) for leaf in jax.tree.leaves(args)):
        two = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), args
        )
        try:
            program = graph.trace(fn, params, *two)
        except Exception:  # anything that the user's function raises at this size
            return None
    return graph.batch_axes(program)


def _examples(args: Any) -> list[Any]:
    """Draw random inputs of the kind of each argument; integers are those passed."""
    rng, drawn = np.random.default_rng(0), []
    for leaf in jax.tree.leaves(args):
        dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
        if jnp.issubdtype(dtype, jnp.floating):
            drawn.append(jnp.asarray(rng.standard_normal(shape), dtype))
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            drawn.append(jnp.zeros(shape, dtype))
        else:
            drawn.append(jnp.asarray(leaf))
    return drawn


def _verify(
    small_fn: SmallFunction, leaves: Sequence[Any], small_params: Params, args: Any
) -> None:
    """Compare the smaller function with the masked one on random inputs."""
    drawn = _examples(args)
    structure = jax.tree.structure(small_fn.params)
    full_args = jax.tree.unflatten(jax.tree.structure(args), drawn)
    expected = jax.jit(small_fn.fn)(jax.tree.unflatten(structure, leaves), *full_args)
    results = jax.jit(small_fn.__call__)(small_params, *full_args)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(results), strict=True):
        if not _agree(a, b):
            if not _is_finite(a) and _is_finite(b):
                raise ValueError(
                    "the masked function returns numbers that are not finite on random "
                    "inputs, so there is nothing to compare with. A removed channel may be "
                    "divided by its norm, which is 0. Add an epsilon."
                )
            where = _first_difference(small_fn, leaves, small_params, drawn)
            raise ValueError(
                f"the compacted function computes something else, from {where} on, so it is "
                "not returned. If the function treats equal inputs differently from call to "
                "call, make it pure; otherwise please report this as a bug."
            )


def _is_finite(array: Any) -> bool:
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(
        jnp.isfinite(array).all()
    )


def _agree(first: Any, second: Any) -> bool:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape:
        return False
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return bool(np.mean(a == b) > 0.99) if a.size else True  # argmax of near ties
    a, b = a.astype(np.float64), b.astype(np.float64)
    eps = float(jnp.finfo(first.dtype).eps)
    scale = np.abs(a).max(initial=0, where=np.isfinite(a))
    tolerance = min(2000 * eps, 0.05)  # 2.4e-4 in float32, 0.05 in float16 and bfloat16
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True))


def _first_difference(
    small_fn: SmallFunction, leaves: Sequence[Any], small_params: Params, drawn: Any
) -> str:
    """Name the first operation whose kept and needed entries differ."""
    program, keep = small_fn.program, small_fn.keep
    if small_fn.products:  # folded: intermediate values differ on purpose
        return "its outputs"
    full: list[Keep] = [[None] * len(aval.shape) for aval in program.avals]
    values = dict(zip((*program.params, *program.args), (*leaves, *drawn), strict=True))
    values = run(program, full, values, {})
    small = dict(
        zip(
            (*program.params, *program.args),
            (*jax.tree.leaves(small_params), *drawn),
            strict=True,
        )
    )
    small = run(program, keep, small, small_fn.carried)
    for eqn in program.eqns:
        for v in eqn.outs:
            if v in small and not _agree(cut(values[v], keep[v]), small[v]):
                return f"{eqn.primitive.name} at '{eqn.where}'"
    return "its outputs"


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
    varies = any(everything.liveness.states[v].varies.any() for v in program.outs)
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
        None
        if varies
        else masks.Collapse(
            tuple(empty), tuple(graph.cuts(program, everything.liveness))
        ),
    )
