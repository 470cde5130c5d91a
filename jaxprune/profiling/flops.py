"""Multiply-accumulates of any function, counted by walking its jaxpr.

XLA's own cost analysis does not see that a weight is zero, and counts no layer apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from jaxprune.types import Mask, Params

# What a value of the program is made of: nothing but constants (None), one leaf and
# constants (its index), or data.
_DATA = -1
_ELEMENTWISE = ("add", "add_any", "sub", "mul", "div")
_Origin = int | None


def macs(fn: Callable[..., Any], params: Params, *args: Any) -> PyTree:
    """Count for each leaf the multiply-accumulates it takes part in, in one call.

    A product counts its multiply-accumulates for the kernel in it; an addition or
    multiplication of a bias or scale counts one for each number it makes. Pooling and
    activations count nothing, as in the published study. Constants that `fn` closes
    over (statistics of batch normalization) may be folded into a leaf; what depends on
    `args` is data. Loops count their length, branches the most expensive one, and a
    `while` one turn, since its length is not known.

    Args:
        fn: `fn(params, *args)`; traced, not run.
        params: arrays or shapes.
        args: arrays or shapes; with a batch of one picture, the count is per picture.

    Returns:
        A tree like `params` of Python ints.

    Example:
        >>> fn = lambda params, x: x @ params["kernel"] + params["bias"]
        >>> params = {"kernel": np.ones((3, 4)), "bias": np.ones((1, 4))}
        >>> macs(fn, params, np.ones((2, 3)))
        {'bias': 8, 'kernel': 24}

    References:
        The counting of Tanaka et al.'s code, https://arxiv.org/abs/2006.05467, 2020:
        convolution Cin Cout kh kw Hout Wout, its bias Cout Hout Wout, linear in out,
        batch normalization 2 C H W.
    """
    closed = jax.make_jaxpr(fn)(params, *args)
    leaves, structure = jax.tree.flatten(params)
    inputs = len(jax.tree.leaves(args))
    origins: list[_Origin] = [*range(len(leaves)), *[_DATA] * inputs]
    counts = [0] * len(leaves)
    _walk(closed.jaxpr, [None] * len(closed.jaxpr.constvars) + origins, counts, 1)
    return jax.tree.unflatten(structure, counts)


def kept_macs(dense: PyTree, mask: Mask) -> PyTree:
    """Count the multiply-accumulates that a mask leaves of each leaf.

    Args:
        dense: what `macs` counted.
        mask: the mask; leaves that are never pruned count in full.

    Returns:
        A tree like `dense` of floats.

    Example:
        >>> kept_macs({"kernel": 24}, {"kernel": np.array([[True, False]])})
        {'kernel': 12.0}
    """
    return jax.tree.map(
        lambda count, leaf: count * int(np.asarray(leaf).sum()) / leaf.size, dense, mask
    )


def _walk(
    jaxpr: Any, origins: Sequence[_Origin], counts: list[int], times: int
) -> list[_Origin]:
    """Add up the counts of a jaxpr, `times` over; return the origins of its outputs."""
    known: dict[Any, _Origin] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], origins, strict=True)
    )

    def origin(var: Any) -> _Origin:
        return None if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        inputs = [origin(var) for var in eqn.invars]
        outputs = _equation(eqn, inputs, counts, times)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [origin(var) for var in jaxpr.outvars]


def _equation(
    eqn: Any, inputs: list[_Origin], counts: list[int], times: int
) -> list[_Origin]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _walk(params["jaxpr"].jaxpr, inputs, counts, times * params["length"])
    if name == "cond":
        return _dearest(params["branches"], inputs[1:], counts, times)
    if name == "while":
        body = inputs[params["cond_nconsts"] :]
        return _walk(params["body_jaxpr"].jaxpr, body, counts, times)
    inner = _inner(params, len(inputs))
    if inner is not None:
        return _walk(inner, inputs, counts, times)

    work = None
    if name in ("dot_general", "conv_general_dilated"):
        work = _product(eqn)
    elif name in _ELEMENTWISE and _DATA in inputs:
        work = math.prod(eqn.outvars[0].aval.shape)
    held = {leaf for leaf in inputs if leaf is not None}
    if work is not None:
        for leaf in held - {_DATA}:
            counts[leaf] += times * work
        held = {_DATA} if len(held) > 1 else held
    made: _Origin = None if not held else (held.pop() if len(held) == 1 else _DATA)
    return [made] * len(eqn.outvars)


def _inner(params: dict[str, Any], inputs: int) -> Any:
    """Find the one program that an equation such as a jit or a custom rule calls."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = params.get(name)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == inputs:
            return inner
    return None


def _dearest(
    branches: Sequence[Any], inputs: list[_Origin], counts: list[int], times: int
) -> list[_Origin]:
    outcomes = []
    for branch in branches:
        tried = [0] * len(counts)
        outputs = _walk(branch.jaxpr, inputs, tried, times)
        outcomes.append((sum(tried), tried, outputs))
    _, dearest, outputs = max(outcomes, key=lambda outcome: outcome[0])
    counts[:] = [count + more for count, more in zip(counts, dearest, strict=True)]
    return outputs


def _product(eqn: Any) -> int:
    """Count the multiply-accumulates of one product."""
    left, right = (var.aval.shape for var in eqn.invars)
    made = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return made * math.prod(left[axis] for axis in contracted)
    numbers = eqn.params["dimension_numbers"]
    spatial = math.prod(right[axis] for axis in numbers.rhs_spec[2:])
    return made * spatial * right[numbers.rhs_spec[1]]
