"""Count the multiply-accumulates (MACs) of any function by walking its jaxpr.

XLA's own cost analysis does not account for zero weights, and has no count per layer.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from jaxprune.types import Mask, Params

# What a value of the program is computed from: constants only (None), one leaf and
# constants (the leaf's index), or anything else (_DATA).
_DATA = -1
_Origin = int | None
_ELEMENTWISE = ("add", "add_any", "sub", "mul", "div")


def macs(fn: Callable[..., Any], params: Params, *args: Any) -> PyTree:
    """Count the multiply-accumulates that each leaf takes part in, for one call.

    A matrix product or convolution counts for the leaf that is its kernel. Adding a bias or
    multiplying by a scale counts one per output element. Pooling and activations count
    nothing, as in the published study. Constants that `fn` closes over, such as BatchNorm
    statistics, may be combined with a leaf; values that depend on `args` are data. A scan
    counts its body once per iteration, and a conditional counts its most expensive branch.
    A `while` loop counts one iteration, since its length is unknown.

    Args:
        fn: `fn(params, *args)`; traced, not run.
        params: arrays or shapes.
        args: arrays or shapes. For a count per image, pass a batch of one image.

    Returns:
        A tree like `params` of Python ints.

    Example:
        >>> fn = lambda params, x: x @ params["kernel"] + params["bias"]
        >>> params = {"kernel": np.ones((3, 4)), "bias": np.ones((1, 4))}
        >>> macs(fn, params, np.ones((2, 3)))
        {'bias': 8, 'kernel': 24}

    References:
        Counts as in the code of Tanaka et al., https://arxiv.org/abs/2006.05467, 2020:
        convolution Cin * Cout * kh * kw * Hout * Wout, its bias Cout * Hout * Wout, linear
        layer in * out, batch normalization 2 * C * H * W.
    """
    closed = jax.make_jaxpr(fn)(params, *args)
    leaves, structure = jax.tree.flatten(params)
    inputs = len(jax.tree.leaves(args))
    origins: list[_Origin] = [*range(len(leaves)), *[_DATA] * inputs]
    counts = [0] * len(leaves)
    constants: list[_Origin] = [None] * len(closed.jaxpr.constvars)
    _count_jaxpr(closed.jaxpr, constants + origins, counts, 1)
    return jax.tree.unflatten(structure, counts)


def kept_macs(dense: PyTree, mask: Mask) -> PyTree:
    """Count the multiply-accumulates of the weights that a mask keeps, per leaf.

    Args:
        dense: the result of `macs`.
        mask: True keeps; leaves that are never pruned count in full.

    Returns:
        A tree like `dense` of floats.

    Example:
        >>> kept_macs({"kernel": 24}, {"kernel": np.array([[True, False]])})
        {'kernel': 12.0}
    """
    return jax.tree.map(
        lambda count, leaf: count * int(np.asarray(leaf).sum()) / leaf.size, dense, mask
    )


def _count_jaxpr(
    jaxpr: Any, origins: Sequence[_Origin], counts: list[int], times: int
) -> list[_Origin]:
    """Add the counts of a jaxpr that runs `times` times; return its outputs' origins."""
    known: dict[Any, _Origin] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], origins, strict=True)
    )

    def origin(var: Any) -> _Origin:
        return None if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        inputs = [origin(var) for var in eqn.invars]
        outputs = _count_equation(eqn, inputs, counts, times)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [origin(var) for var in jaxpr.outvars]


def _count_equation(
    eqn: Any, inputs: list[_Origin], counts: list[int], times: int
) -> list[_Origin]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        body = params["jaxpr"].jaxpr
        return _count_jaxpr(body, inputs, counts, times * params["length"])
    if name == "cond":
        return _count_branches(params["branches"], inputs[1:], counts, times)
    if name == "while":
        body = params["body_jaxpr"].jaxpr
        return _count_jaxpr(body, inputs[params["cond_nconsts"] :], counts, times)
    inner = _inner_jaxpr(params, len(inputs))
    if inner is not None:
        return _count_jaxpr(inner, inputs, counts, times)

    work = None
    if name in ("dot_general", "conv_general_dilated"):
        work = _count_product(eqn)
    elif name in _ELEMENTWISE and _DATA in inputs:
        work = math.prod(eqn.outvars[0].aval.shape)
    origins = {origin for origin in inputs if origin is not None}
    if work is not None:
        for leaf in origins - {_DATA}:
            counts[leaf] += times * work
    output: _Origin = None
    if origins:
        output = origins.pop() if len(origins) == 1 else _DATA
    return [output] * len(eqn.outvars)


def _inner_jaxpr(params: dict[str, Any], inputs: int) -> Any:
    """Return the jaxpr that an equation such as a jit or a custom rule calls, or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = params.get(name)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == inputs:
            return inner
    return None


def _count_branches(
    branches: Sequence[Any], inputs: list[_Origin], counts: list[int], times: int
) -> list[_Origin]:
    """Add the counts of the most expensive branch; return the origins of its outputs."""
    candidates = []
    for branch in branches:
        branch_counts = [0] * len(counts)
        outputs = _count_jaxpr(branch.jaxpr, inputs, branch_counts, times)
        candidates.append((branch_counts, outputs))
    added, outputs = max(candidates, key=lambda candidate: sum(candidate[0]))
    counts[:] = [count + more for count, more in zip(counts, added, strict=True)]
    return outputs


def _count_product(eqn: Any) -> int:
    """Count the multiply-accumulates of one matrix product or convolution."""
    left, right = (var.aval.shape for var in eqn.invars)
    outputs = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return outputs * math.prod(left[axis] for axis in contracted)
    numbers = eqn.params["dimension_numbers"]
    spatial = math.prod(right[axis] for axis in numbers.rhs_spec[2:])
    return outputs * spatial * right[numbers.rhs_spec[1]]
