"""The precision of products: GPUs and TPUs round their float32 operands by default."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core

from jaxprune.graph.trace import open_jaxpr

_HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def at_highest(jaxpr: Any) -> Any:
    """Return a jaxpr whose products all have the highest precision."""
    opened, _ = open_jaxpr(jaxpr)
    if type(opened) is not type(jaxpr):
        return jaxpr.replace(jaxpr=at_highest(opened))
    return jaxpr.replace(
        eqns=[eqn.replace(params=highest(eqn.params)) for eqn in jaxpr.eqns]
    )


def highest(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a primitive with the highest precision, nested ones too."""
    raised = {name: _raised(value) for name, value in params.items()}
    return {**raised, "precision": _HIGHEST} if "precision" in params else raised


def _raised(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return at_highest(value)
    return tuple(map(_raised, value)) if type(value) is tuple else value
