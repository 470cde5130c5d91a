"""Which examples make up which step: a fresh permutation every epoch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxprune.types import RandomKey


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Count the steps of an epoch; the last one may be partly filled.

    Example:
        >>> steps_per_epoch(50_000, 256)
        196
    """
    return -(-examples // batch_size)


def order(
    key: RandomKey, examples: int, batch_size: int, epoch: int
) -> Int32[Array, "steps batch"]:
    """Permute the examples of one epoch into batches.

    The last batch is filled up from the front of the same permutation, so that all
    have one shape; `train` gives what is filled up no weight in the loss.

    Args:
        key: the same for all epochs.
        examples: number of examples.
        batch_size: examples a step.
        epoch: which epoch; each has its own permutation.

    Returns:
        Row by row the indices of the examples of a step.

    Example:
        >>> order(jax.random.key(0), 5, 2, epoch=0).shape
        (3, 2)
    """
    permutation = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    size = steps_per_epoch(examples, batch_size) * batch_size
    return jnp.resize(permutation, (size,)).reshape(-1, batch_size).astype(jnp.int32)


def choose(key: RandomKey, examples: int, number: int) -> Int32[Array, " number"]:
    """Choose examples for scoring, without replacement and without balancing classes.

    Args:
        key: used once.
        examples: number of examples there are.
        number: how many to choose.

    Raises:
        ValueError: if there are not that many.

    Example:
        >>> choose(jax.random.key(0), 10, 3).shape
        (3,)
    """
    if number > examples:
        raise ValueError(
            f"scoring wants {number} examples, but the training set has {examples}. "
            "Score with fewer, or train on more."
        )
    return jax.random.permutation(key, examples)[:number].astype(jnp.int32)
