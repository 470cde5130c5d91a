"""The precision of products: GPUs and TPUs round their float32 operands by default.

What is computed once and stored, or compared, is computed at the highest precision.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core

from jaxprune.graph.program import PRODUCTS, Eqn, Program
from jaxprune.graph.trace import open_jaxpr

_PRODUCTS = (*PRODUCTS, "ragged_dot", "ragged_dot_general")
_HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def precise(program: Program) -> Program:
    """Return a program whose products have the highest precision.

    Args:
        program: of `trace`.

    Returns:
        The program; products inside loops and branches have it too.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x @ p, jnp.ones((2, 2)), jnp.ones((2, 2)))
        >>> precise(program).eqns[0].params["precision"][0].name
        'HIGHEST'
    """
    return dataclasses.replace(program, eqns=list(map(precise_eqn, program.eqns)))


def precise_eqn(eqn: Eqn) -> Eqn:
    """Return an equation whose products have the highest precision."""
    return eqn._replace(params=_raised(eqn.primitive.name, eqn.params))


def precise_jaxpr(jaxpr: Any) -> Any:
    """Return a jaxpr whose products have the highest precision.

    Args:
        jaxpr: of `jax.make_jaxpr`.

    Returns:
        The jaxpr; products inside loops and branches have it too.

    Example:
        >>> import jax.numpy as jnp
        >>> jaxpr = jax.make_jaxpr(jnp.dot)(jnp.ones(2), jnp.ones(2))
        >>> "HIGHEST" in str(jaxpr), "HIGHEST" in str(precise_jaxpr(jaxpr))
        (False, True)
    """
    opened, _ = open_jaxpr(jaxpr)
    if type(opened) is not type(jaxpr):
        return jaxpr.replace(jaxpr=precise_jaxpr(opened))
    return jaxpr.replace(
        eqns=[
            eqn.replace(params=_raised(eqn.primitive.name, eqn.params))
            for eqn in jaxpr.eqns
        ]
    )


def _raised(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    raised = {key: _precise(value) for key, value in params.items()}
    return {**raised, "precision": _HIGHEST} if name in _PRODUCTS else raised


def _precise(value: Any) -> Any:
    """Raise the precision in all jaxprs of a parameter."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return precise_jaxpr(value)
    if not isinstance(value, tuple):
        return value
    items = map(_precise, value)
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
