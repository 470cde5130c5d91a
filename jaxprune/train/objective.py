"""The objective of training: a loss, and a metric that is reported beside it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxprune.models import Model
from jaxprune.types import Params


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
    return _mean(_cross_entropies(logits, labels, smoothing), where)


def _cross_entropies(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    logits = logits.astype(dtype)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=dtype)
    targets = optax.smooth_labels(one_hot, smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    # A label out of range would have the loss 0.
    known = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(known, losses, jnp.nan)


def _mean(losses: Array, where: Array | None) -> Array:
    if where is None:
        return losses.mean()
    return jnp.where(where, losses, 0.0).sum() / where.sum().astype(losses.dtype)


def _is_correct(logits: Array, labels: Array) -> Array:
    return logits.argmax(-1) == labels


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimizes, and what is reported beside it.

    Attributes:
        loss: `loss(outputs, targets) -> (batch,)`, one loss for each example; floating.
        metric: `metric(outputs, targets) -> (batch,)`, one value for each example, whose mean
            is reported.
        metric_name: name of the metric in histories and tables.
        metric_unit: unit of the metric. With "%", values from 0 to 1, or booleans, are
            reported in percent.
        higher_is_better: whether more of it is better.

    Example:
        >>> errors = lambda outputs, targets: jnp.abs(outputs - targets)
        >>> objective = Objective(errors, errors, "absolute error", higher_is_better=False)
    """

    loss: Callable[[Any, Any], Array]
    metric: Callable[[Any, Any], Array]
    metric_name: str = "accuracy"
    metric_unit: str = ""
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.metric_name in ("epoch", "loss", "learning_rate"):
            raise ValueError(
                f"metric_name {self.metric_name!r} is another entry of the history. Pass "
                "another name, such as 'surprise' or 'squared error'."
            )
        for name in ("loss", "metric"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"{name} is a {type(getattr(self, name)).__name__}. Pass a function of "
                    "outputs and targets that returns one value for each example."
                )


CLASSIFICATION = Objective(_cross_entropies, _is_correct, metric_unit="%")


def describe(value: Any) -> str:
    """Return the dtype and shape of a value for an error message."""
    if not hasattr(value, "shape"):
        return f"a {type(value).__name__}"
    return f"{value.dtype}{list(value.shape)}"


def run(
    apply: Callable[..., Any], params: Params, state: Any, inputs: Any, **mode: bool
) -> tuple[Any, Any]:
    """Return the outputs and the state that a network's function returns.

    Raises:
        TypeError: if it returns something else, of which parts would be taken for outputs.
    """
    returned = apply(params, state, inputs, **mode)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"apply of the model returned {describe(returned)}. Return (outputs, state), "
            "the state as it came in if nothing in it changes."
        )
    return returned


def mean_loss(
    objective: Objective,
    outputs: Any,
    targets: Array,
    where: Bool[Array, " batch"] | None = None,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Average the loss over a batch.

    Args:
        objective: whose loss.
        outputs: of the network.
        targets: of the same examples.
        where: the examples to average over; None for all.
        smoothing: of the labels, where the loss is that of CLASSIFICATION.

    Raises:
        ValueError: if the loss is not one floating value for each example.
    """
    if objective.loss is _cross_entropies:
        losses = _cross_entropies(outputs, targets, smoothing)
    else:
        losses = objective.loss(outputs, targets)
    _check_per_example("loss", losses, targets)
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            f"loss returned {describe(losses)}. Return floating values, one for each example."
        )
    if losses.dtype not in (jnp.float32, jnp.float64):
        losses = losses.astype(jnp.float32)
    return _mean(losses, where)


def metric_sum(
    objective: Objective,
    outputs: Any,
    targets: Array,
    where: Bool[Array, " batch"] | None = None,
) -> Float32[Array, ""]:
    """Add up the metric over a batch, in float32.

    Args:
        objective: whose metric.
        outputs: of the network.
        targets: of the same examples.
        where: the examples to count; None for all.

    Raises:
        ValueError: if the metric is not one value for each example.
    """
    values = objective.metric(outputs, targets)
    _check_per_example("metric", values, targets)
    values = values.astype(jnp.float32)
    return (values if where is None else jnp.where(where, values, 0.0)).sum()


def mean_metric(objective: Objective, total: Any, number: int) -> float:
    """Return the mean of a sum of the metric, in its unit."""
    factor = 100.0 if objective.metric_unit == "%" else 1.0
    return factor * float(total) / number


def _check_per_example(name: str, values: Any, targets: Array) -> None:
    if getattr(values, "shape", None) != targets.shape[:1]:
        raise ValueError(
            f"{name} returned {describe(values)} for a batch of {targets.shape[0]}. Return "
            f"an array of shape ({targets.shape[0]},), one value for each example, such as "
            "a mean over its other axes."
        )


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The loss of a network in one mode; compared by value."""

    apply: Any
    train: bool
    temperature: float
    objective: Objective

    def __call__(self, state: Any, params: Any, batch: Any) -> Array:
        inputs, targets = batch
        outputs, _ = run(self.apply, params, state, inputs, train=self.train)
        if self.temperature != 1.0:
            outputs = outputs / self.temperature
        return mean_loss(self.objective, outputs, targets)


def loss_function(
    model: Model,
    *,
    train: bool = False,
    temperature: float = 1.0,
    objective: Objective = CLASSIFICATION,
) -> Partial:
    """Make the loss that `scores.snip` and `scores.grasp` differentiate.

    Args:
        model: the network.
        train: run BatchNorm and Dropout in training mode, as GraSP's authors do. On
            BatchNorm networks that strongly affects GraSP's result
            (experiments/results/poster-reduced/README.md).
        temperature: divides the logits; GraSP uses 200.
        objective: whose loss; by default the cross-entropy, in nats per example.

    Returns:
        `loss_fn(params, (inputs, targets))`; a pytree, so that it can be
        an argument of a jitted function.

    Example:
        >>> apply = lambda params, state, x, train: (x @ params["w"], state)
        >>> params = {"w": jnp.zeros((4, 2))}
        >>> loss_fn = loss_function(Model(params, {}, apply))
        >>> loss_fn(params, (jnp.ones((1, 4)), jnp.array([1])))
        Array(0.6931472, dtype=float32)
    """
    return Partial(_Loss(model.apply, train, temperature, objective), model.state)
