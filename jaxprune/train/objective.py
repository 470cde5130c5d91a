"""The training loss, and the number of correct predictions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int32

from jaxprune.models import Model


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int32[Array, " batch"],
    where: Bool[Array, " batch"] | None = None,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Average the cross-entropy, in nats per example.

    Args:
        logits: any floating dtype; the loss is float32, or float64 for float64 logits.
        labels: from 0; the loss of a label that is out of range is nan.
        where: the examples to average over; None for all.
        smoothing: share of the target that is spread evenly over the classes.

    Returns:
        The mean loss.

    Example:
        >>> round(cross_entropy(jnp.zeros((1, 10)), jnp.array([3])).item(), 4)
        2.3026
    """
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    logits = logits.astype(dtype)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=dtype)
    targets = optax.smooth_labels(one_hot, smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    # A label out of range would have the loss 0.
    known = (labels >= 0) & (labels < logits.shape[-1])
    losses = jnp.where(known, losses, jnp.nan)
    if where is None:
        return losses.mean()
    return jnp.where(where, losses, 0.0).sum() / where.sum().astype(dtype)


def count_correct(
    logits: Float[Array, "batch classes"],
    labels: Int32[Array, " batch"],
    where: Bool[Array, " batch"] | None = None,
) -> Int32[Array, ""]:
    """Count the examples whose highest logit is their label.

    Args:
        logits: any floating dtype.
        labels: from 0.
        where: the examples to look at; None for all.

    Returns:
        The number of correct predictions.

    Example:
        >>> count_correct(jnp.eye(2), jnp.array([0, 0]), jnp.array([True, True])).item()
        1
    """
    is_correct = logits.argmax(-1) == labels
    return (is_correct if where is None else is_correct & where).sum(dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The loss of a network in one mode; compared by value."""

    apply: Any
    train: bool
    temperature: float

    def __call__(self, state: Any, params: Any, batch: Any) -> Array:
        inputs, labels = batch
        logits = self.apply(params, state, inputs, train=self.train)[0]
        return cross_entropy(logits / self.temperature, labels)


def loss_function(
    model: Model, *, train: bool = False, temperature: float = 1.0
) -> Partial:
    """Make the loss that `scores.snip` and `scores.grasp` differentiate.

    Args:
        model: the network.
        train: run BatchNorm and Dropout in training mode, as GraSP's authors do. On
            BatchNorm networks that strongly affects GraSP's result (experiments/README.md).
        temperature: divides the logits; GraSP uses 200.

    Returns:
        `loss_fn(params, (inputs, labels))`, in nats per example; a pytree, so that it can be
        an argument of a jitted function.

    Example:
        >>> apply = lambda params, state, x, train: (x @ params["w"], state)
        >>> params = {"w": jnp.zeros((4, 2))}
        >>> loss_fn = loss_function(Model(params, {}, apply))
        >>> loss_fn(params, (jnp.ones((1, 4)), jnp.array([1])))
        Array(0.6931472, dtype=float32)
    """
    return Partial(_Loss(model.apply, train, temperature), model.state)
