"""Evaluating a network on every example of a set."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxprune import sharding
from jaxprune.models import Model, check_model
from jaxprune.train import objective
from jaxprune.train.examples import (
    Examples,
    ImageSet,
    Task,
    examples_per_batch,
    sharded,
    unpack,
)


class EvaluationResult(NamedTuple):
    """Averages over all examples.

    Attributes:
        loss: of the objective; the cross-entropy is in nats per example.
        metric: of the objective, in its unit; the accuracy is in percent.
    """

    loss: float
    metric: float


def evaluate(
    model: Model, examples: ImageSet | Examples, *, batch_size: int = 256
) -> EvaluationResult:
    """Evaluate a network on every example, each counted once.

    Args:
        model: the network, its parameters masked already.
        examples: the test set.
        batch_size: examples per call, rounded up to a multiple of the parts of a mesh.

    Returns:
        Mean loss and metric, such as the accuracy.

    Raises:
        TypeError: if `model` is not a `Model` whose `apply` returns (outputs, state), or
            `examples` is neither an `ImageSet` nor `Examples`, its images are not uint8 or
            its labels not int32.
        ValueError: if `batch_size` is not an integer of 1 or more, sizes do not fit, or its
            loss or metric is not one value for each example.

    Example:
        >>> from jaxprune import data
        >>> image_set = ImageSet(
        ...     jnp.full((3, 1, 1, 1), 255, jnp.uint8),
        ...     jnp.zeros(3, jnp.int32),
        ...     data.Preprocessing(mean=(0.0,), std=(1.0,)),
        ... )
        >>> apply = lambda params, state, x: (x[:, 0, 0] * params["w"], state)
        >>> evaluate(Model({"w": jnp.array([[1.0, 0.0]])}, {}, apply), image_set).metric
        100.0
    """
    check_model(model)
    inputs, targets, task = unpack(examples)
    total, mesh = inputs.shape[0], sharding.mesh_of(inputs)
    batch_size = examples_per_batch(batch_size, inputs)
    batch_size += -batch_size % (mesh.shape["data"] if mesh else 1)
    loss, metric = 0.0, 0.0
    for first in range(0, total, batch_size):
        number = min(batch_size, total - first)
        batch_loss, batch_metric = _evaluate(
            model, (inputs, targets), np.int32(first), batch_size, task, mesh
        )
        loss += float(batch_loss) * number
        metric += float(batch_metric)
    mean = objective.mean_metric(task.objective, metric, total)
    return EvaluationResult(loss / total, mean)


@functools.partial(jax.jit, static_argnames=("size", "task", "mesh"))
def _evaluate(
    model: Model, arrays: tuple, first: Array, size: int, task: Task, mesh: Mesh | None
) -> tuple[Array, Array]:
    """Return the mean loss and the sum of the metric of `size` examples, or of the rest."""
    total = arrays[0].shape[0]
    places = first + jnp.arange(size, dtype=jnp.int32)
    places = sharded(places, mesh)
    counts = places < total
    inputs, targets = (array[places % total] for array in arrays)
    outputs, _ = objective.run(
        model.apply, model.params, model.state, task.inputs(inputs)
    )
    return (
        objective.mean_loss(task.objective, outputs, targets, counts),
        objective.metric_sum(task.objective, outputs, targets, counts),
    )
