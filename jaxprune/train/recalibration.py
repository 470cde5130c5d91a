"""BatchNorm statistics of a network whose weights have changed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxprune import tree
from jaxprune.models import Model
from jaxprune.train.examples import Examples, ImageSet, Task, unpack


def recalibrate(
    model: Model, examples: ImageSet | Examples, *, batch_size: int = 256
) -> Model:
    """Estimate the BatchNorm statistics of a network again, without training it.

    After pruning without retraining, the statistics are those of the dense network. The new
    ones are the mean over all batches of the statistics of each batch, whatever the momentum
    of the layers.

    Args:
        model: the network, its parameters masked already.
        examples: such as the training set, or a part of it.
        batch_size: examples per batch; a last batch that is not whole is left out, if there
            is another one.

    Returns:
        The network with other statistics; state that is not floating stays as it is.

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
    inputs, _, task = unpack(examples)
    if batch_size < 1:
        raise ValueError(
            f"batch_size is the number of examples per batch; got {batch_size}. Pass 1 or "
            "more."
        )
    size = min(batch_size, inputs.shape[0])
    number = inputs.shape[0] // size
    batch = lambda k: inputs[k * size : (k + 1) * size]
    zeros, ones = (
        tree.map_floating(
            lambda leaf, fill=fill: jnp.full_like(leaf, fill), model.state
        )
        for fill in (0, 1)
    )
    # A new statistic is momentum * old + share of the batch: from 0 and 1, both are found.
    shares, sums = (_new_state(model, state, batch(0), task) for state in (zeros, ones))
    momentum = tree.map_floating(lambda one, share: one - share, sums, shares)
    totals = shares
    for k in range(1, number):
        after = _new_state(model, zeros, batch(k), task)
        totals = tree.map_floating(jnp.add, totals, after)
    state = tree.map_floating(
        lambda old, total, kept: jnp.where(
            kept < 1, total / number / jnp.where(kept < 1, 1 - kept, 1), old
        ),
        model.state,
        totals,
        momentum,
    )
    return dataclasses.replace(model, state=state)


@functools.partial(jax.jit, static_argnames="task")
def _new_state(model: Model, state: PyTree, inputs: Array, task: Task) -> Any:
    """Return the state after one batch in training mode."""
    after = model.apply(model.params, state, task.inputs(inputs), train=True)[1]
    return tree.map_floating(lambda new, old: new.astype(old.dtype), after, state)
