"""The order of the examples in each epoch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxprune.types import RandomKey


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Count the steps of an epoch; the last batch may be short.

    Args:
        examples: number of examples in the training set.
        batch_size: examples per step.

    Returns:
        `examples / batch_size`, rounded up.

    Example:
        >>> steps_per_epoch(50_000, 256)
        196
    """
    return -(-examples // batch_size)


def epoch_order(
    key: RandomKey, examples: int, epoch: int, *, shuffle: bool = True
) -> Int32[Array, " examples"]:
    """Permute the examples of one epoch.

    Args:
        key: the same key for all epochs.
        examples: number of examples.
        epoch: number of the epoch; each has its own permutation.
        shuffle: False for the order of the data, in which `key` and `epoch` have no effect.

    Returns:
        Indices of the examples in the order of training; the last batch may be short.

    Example:
        >>> sorted(epoch_order(jax.random.key(0), 5, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return jnp.arange(examples, dtype=jnp.int32)
    return _permutation(key, epoch, examples)


@functools.partial(jax.jit, static_argnames="examples")
def _permutation(key: Any, epoch: Any, examples: int) -> Array:
    permutation = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return permutation.astype(jnp.int32)


def sample_examples(
    key: RandomKey, examples: int, number: int
) -> Int32[Array, " number"]:
    """Choose examples for scoring, without replacement and without balancing classes.

    Args:
        key: randomness of the choice.
        examples: number of examples in the training set.
        number: number of examples to choose.

    Returns:
        Indices of distinct examples, in random order.

    Raises:
        ValueError: if `number` is larger than `examples`.

    Example:
        >>> sample_examples(jax.random.key(0), 10, 3).shape
        (3,)
    """
    if number > examples:
        raise ValueError(
            f"scoring needs {number} examples, but the training set has {examples}. "
            "Score with fewer, or train on more."
        )
    return jax.random.permutation(key, examples)[:number].astype(jnp.int32)
