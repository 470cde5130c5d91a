"""BatchNorm statistics of a network whose weights have changed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxprune import tree
from jaxprune.models import Model, check_model
from jaxprune.train import objective
from jaxprune.train.examples import (
    Examples,
    ImageSet,
    Task,
    examples_per_batch,
    unpack,
)


def recalibrate(
    model: Model, examples: ImageSet | Examples, *, batch_size: int = 256
) -> Model:
    """Estimate the BatchNorm statistics of a network again, without training it.

    After pruning without retraining, the statistics are those of the dense network. The new
    ones are the mean over all batches of the statistics of each batch, whatever the momentum
    of the layers. A statistic is state that training mode changes to `momentum * old +
    (1 - momentum) * new`.

    Args:
        model: the network, its parameters masked already, such as
            `models.functional(nnx_module)`.
        examples: such as the training set, or a part of it.
        batch_size: examples per batch; a last batch that is not whole is left out, if there
            is another one.

    Returns:
        The network with other statistics; state that is no such average stays as it is.

    Raises:
        TypeError: if `examples` is neither an `ImageSet` nor `Examples`.
        ValueError: if `batch_size` is less than 1, or sizes do not fit.

    Example:
        >>> def apply(params, state, x, *, train=False):  # momentum 0.9
        ...     return x, {"mean": 0.9 * state["mean"] + 0.1 * x.mean(0)}
        >>> examples = Examples(jnp.arange(4.0).reshape(4, 1), jnp.zeros(4))
        >>> model = Model({}, {"mean": jnp.full(1, 99.0)}, apply)
        >>> round(recalibrate(model, examples, batch_size=2).state["mean"].item(), 3)
        1.5

    References:
        Cumulative averages, as in the code of Izmailov et al., Averaging Weights Leads to
        Wider Optima and Better Generalization, https://arxiv.org/abs/1803.05407, UAI 2018.
    """
    check_model(model)
    inputs, _, task = unpack(examples)
    size = examples_per_batch(batch_size, inputs)
    number = inputs.shape[0] // size
    batches = [inputs[k * size : (k + 1) * size] for k in range(number)]
    wide = tree.map_floating(lambda leaf: leaf.astype(_wide(leaf)), model.state)
    after = lambda state, batch: _new_state(model, state, batch, task)
    zeros, ones, twos = (
        tree.map_floating(lambda leaf, fill=fill: jnp.full_like(leaf, fill), wide)
        for fill in (0, 1, 2)
    )
    # An average is momentum * old + share of the batch.
    shares = [after(zeros, batch) for batch in batches]
    twice, from_ones, from_twos = (
        after(state, batches[0]) for state in (shares[0], ones, twos)
    )
    total = tree.map_floating(lambda *leaves: sum(leaves) / number, *shares)
    state = tree.map_floating(
        _estimate, model.state, total, shares[0], twice, from_ones, from_twos
    )
    return dataclasses.replace(model, state=state)


def _wide(leaf: Array) -> Any:
    return jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32


@jax.jit
def _estimate(
    old: Array, total: Array, share: Array, twice: Array, *probes: Array
) -> Array:
    """Return the mean of a statistic, from its mean share; `old` if it is no average."""
    square = jnp.square(share).sum()
    from_share = ((twice - share) * share).sum() / jnp.where(square > 0, square, 1)
    momentum = jnp.where(square > 0, from_share, (probes[0] - share).mean())
    errors = [
        jnp.abs(probe - share - momentum * start)
        for start, probe in enumerate(probes, start=1)
    ]
    worst = functools.reduce(jnp.maximum, errors)
    is_average = (worst <= 1e-3 * (1 + jnp.abs(share))).all()
    is_average &= momentum < 0.99999
    mean = total / jnp.where(is_average, 1 - momentum, 1)
    return jnp.where(is_average, mean.astype(old.dtype), old)


@functools.partial(jax.jit, static_argnames="task")
def _new_state(model: Model, state: PyTree, inputs: Array, task: Task) -> Any:
    """Return the state after one batch in training mode."""
    inputs = task.inputs(inputs)
    _, after = objective.run(model.apply, model.params, state, inputs, train=True)
    return tree.map_floating(lambda new, old: new.astype(old.dtype), after, state)
