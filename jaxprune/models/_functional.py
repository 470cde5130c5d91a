"""From a Flax NNX module to pure functions over plain dicts."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxprune.models._layers import EPSILON
from jaxprune.types import ApplyFn, Params

FLOWS = ("identity", "absolute")


# apply(params, state, x, *, train=False) -> (logits, state): the forward pass, and the
# state with new statistics if training.
Apply: TypeAlias = Callable[..., tuple[Array, Any]]


class Model(NamedTuple):
    """A network as data and one pure function.

    params: trainable arrays, a dict of dicts; state: statistics of batch normalisation,
    keyed like the layers, empty without it; apply: `apply(params, state, x,
    train=False) -> (logits, state)`, x in (batch, height, width, channels); graph: what
    `flax.nnx.merge` makes the module of again, or None.
    """

    params: Params
    state: PyTree
    apply: Apply
    graph: Any = None


def functional(module: nnx.Module) -> Model:
    """Split an NNX module whose call is `module(x, train)` into a `Model`.

    Args:
        module: a module that holds its weights in `nnx.Param`.

    Returns:
        `Model(params, state, apply, graph)`; the module itself is not kept.

    Example:
        >>> class Double(nnx.Module):
        ...     def __init__(self):
        ...         self.factor = nnx.Param(jnp.array(2.0))
        ...
        ...     def __call__(self, x, train):
        ...         return self.factor * x
        >>> model = functional(Double())
        >>> model.apply(model.params, model.state, jnp.array(3.0))[0].item()
        6.0
    """
    graph, params, state = nnx.split(module, nnx.Param, ...)

    def apply(
        params: Any, state: Any, x: Any, *, train: bool = False
    ) -> tuple[Array, Any]:
        whole = nnx.merge(graph, nnx.State(params), nnx.State(state))
        only = getattr(whole, "only_shape", None)  # of what was rebuilt for one size
        if only is not None and x.shape[1:] != only:
            raise ValueError(
                f"this network was compacted for pictures of {only}; got {x.shape[1:]}. "
                "Compact it anew from a network of that input_shape."
            )
        logits = whole(x, train)
        return logits, nnx.to_pure_dict(nnx.state(whole, nnx.Not(nnx.Param)))

    return Model(nnx.to_pure_dict(params), nnx.to_pure_dict(state), apply, graph)


def flow(model: Model, *, batch_norm: str = "identity") -> ApplyFn:
    """Make the forward pass that `scores.synflow` and `masks.health` want.

    Args:
        model: the network.
        batch_norm: "identity" leaves normalisation out, so that it cannot stop the
            flow; "absolute" keeps it in evaluation mode with the absolute value of its
            statistics, as the reference code does.

    Returns:
        `apply_fn(params, inputs) -> logits`, in the dtype of `inputs`.

    Raises:
        ValueError: if `batch_norm` is not known.

    Example:
        >>> from jaxprune import models
        >>> model = models.create("mlp", key=jax.random.key(0), input_shape=(2, 2, 1))
        >>> flow(model)(model.params, jnp.ones((1, 2, 2, 1))).shape
        (1, 10)
    """
    if batch_norm not in FLOWS:
        raise ValueError(
            f"batch_norm '{batch_norm}' is not known. Pass one of {', '.join(FLOWS)}."
        )

    def apply_fn(params: Params, inputs: Float[Array, "..."]) -> Array:
        if batch_norm == "identity":
            params, state = _identity_norms(params, model.state)
        else:
            state = jax.tree.map(jnp.abs, model.state)
        state = jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), state)
        return model.apply(params, state, inputs)[0]

    return apply_fn


def _identity_norms(params: Any, state: Any) -> tuple[Any, Any]:
    """Make every layer that has statistics the identity; `params` keeps its leaves."""
    new_params, new_state = dict(params), {}
    for layer, held in state.items():
        if "mean" in held:
            new_state[layer] = {
                "mean": jnp.zeros_like(held["mean"]),
                "var": jnp.full_like(held["var"], 1.0 - EPSILON),
            }
            new_params[layer] = {
                "scale": jnp.ones_like(params[layer]["scale"]),
                "bias": jnp.zeros_like(params[layer]["bias"]),
            }
        else:
            new_params[layer], new_state[layer] = _identity_norms(params[layer], held)
    return new_params, new_state
