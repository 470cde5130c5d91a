"""The check of a compacted function: both functions, at full precision, on random inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxprune import graph, tree
from jaxprune.compact.rewrite import cut, run
from jaxprune.compact.small import SmallFunction
from jaxprune.graph import Keep
from jaxprune.types import Params


def verify(
    small_fn: SmallFunction, leaves: Sequence[Any], small_params: Params, args: Any
) -> None:
    """Compare the smaller function with the masked one on random inputs.

    Both run at the highest precision: at the default of a GPU, rounding alone would exceed
    the tolerance.
    """
    drawn = _examples(args)
    structure = jax.tree.structure(small_fn.params)
    full_args = jax.tree.unflatten(jax.tree.structure(args), drawn)
    params = jax.tree.unflatten(structure, leaves)
    expected = _outputs(small_fn.fn, params, *full_args)
    results = _outputs(small_fn.__call__, small_params, *full_args)
    for a, b in zip(expected, results, strict=True):
        if not _is_finite(a):  # nan everywhere would be equal to nan everywhere
            tree.check_finite(params, "correct them first.", what="params")
        if not agree(a, b):
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


def _outputs(fn: Callable[..., Any], *args: Any) -> Sequence[Any]:
    """Return the output leaves of a function, with products of the highest precision."""
    jaxpr = graph.precise_jaxpr(jax.make_jaxpr(fn)(*args))
    return jax.jit(core.jaxpr_as_fun(jaxpr))(*jax.tree.leaves(args))


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


def _is_finite(array: Any) -> bool:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    return bool(np.isfinite(np.asarray(array)).all())


def agree(first: Any, second: Any) -> bool:
    """Return whether two arrays are equal but for rounding."""
    if tree.is_key(first):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
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
    program, keep = graph.precise(small_fn.program), small_fn.keep
    if small_fn.products:  # folded: intermediate values differ on purpose
        return "its outputs"
    full: list[Keep] = [[None] * len(aval.shape) for aval in program.avals]
    values = dict(zip((*program.params, *program.args), (*leaves, *drawn), strict=True))
    small_leaves = (*jax.tree.leaves(small_params), *drawn)
    small = dict(zip((*program.params, *program.args), small_leaves, strict=True))
    values = run(program, full, values, {})
    small = run(program, keep, small, small_fn.carried)
    for eqn in program.eqns:
        for v in eqn.outs:
            if v in small and not agree(cut(values[v], keep[v]), small[v]):
                return f"{eqn.primitive.name} at '{eqn.where}'"
    return "its outputs"
