"""What is minimised, and what is counted."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32

from jaxprune.types import LossFn


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int32[Array, " batch"],
    counts: Bool[Array, " batch"] | None = None,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Average the cross-entropy, in nats per example.

    Args:
        logits: in any floating dtype; the loss is taken in float32, of float64 in that.
        labels: from 0.
        counts: the examples to average over; None for all.
        smoothing: share of the target spread evenly over the classes.

    Returns:
        The mean loss.

    Example:
        >>> round(cross_entropy(jnp.zeros((1, 10)), jnp.array([3])).item(), 4)
        2.3026
    """
    wide = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    logits = logits.astype(wide)
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=wide)
    targets = optax.smooth_labels(hot, smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    if counts is None:
        return losses.mean()
    return jnp.where(counts, losses, 0.0).sum() / counts.sum().astype(wide)


def correct(
    logits: Float[Array, "batch classes"],
    labels: Int32[Array, " batch"],
    counts: Bool[Array, " batch"],
) -> Int32[Array, ""]:
    """Count the examples whose highest logit is their label.

    Args:
        logits: in any floating dtype.
        labels: from 0.
        counts: the examples to look at.

    Example:
        >>> correct(jnp.eye(2), jnp.array([0, 0]), jnp.array([True, True])).item()
        1
    """
    return ((logits.argmax(-1) == labels) & counts).sum(dtype=jnp.int32)


def loss_function(apply: Any, state: Any, temperature: float = 1.0) -> LossFn:
    """Make the loss that `scores.snip` and `scores.grasp` differentiate.

    The network is in evaluation mode, as in the reference code.

    Args:
        apply: `Model.apply`.
        state: `Model.state`.
        temperature: divides the logits; GraSP uses 200.

    Returns:
        `loss_fn(params, (inputs, labels))`, in nats per example.

    Example:
        >>> apply = lambda params, state, x: (x @ params["w"], state)
        >>> loss_fn = loss_function(apply, {})
        >>> loss_fn({"w": jnp.zeros((4, 2))}, (jnp.ones((1, 4)), jnp.array([1])))
        Array(0.6931472, dtype=float32)
    """

    def loss_fn(params: Any, batch: Any) -> Array:
        inputs, labels = batch
        logits = apply(params, state, inputs)[0]
        return cross_entropy(logits / temperature, labels)

    return loss_fn
