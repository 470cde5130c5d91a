"""Controls that tell what a pruning method really found: the weights, or just the layers.

References:
    Frankle et al., Pruning Neural Networks at Initialization: Why are We Missing the
    Mark?, https://arxiv.org/abs/2009.08576, ICLR 2021, section 5.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.types import Mask, Params, Prunable, RandomKey, Scores


def shuffle(key: RandomKey, mask: Mask, prunable: Prunable | None = None) -> Mask:
    """Shuffle a mask within each layer, so that only the layers' densities remain.

    Args:
        key: used once.
        mask: the mask to shuffle.
        prunable: the leaves to shuffle; by default those with ndim >= 2.

    Returns:
        A mask that keeps as many weights in every leaf.

    Example:
        >>> mask = {"kernel": jnp.eye(3, dtype=bool)}
        >>> shuffle(jax.random.key(0), mask)["kernel"].sum().item()
        3
    """
    tree.check_bool(mask)
    leaves, structure = jax.tree.flatten(mask)
    chosen = jax.tree.leaves(tree.prunable(mask, prunable))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape) if may else leaf
            for k, leaf, may in zip(keys, leaves, chosen, strict=True)
        ],
    )


def reinitialise(
    init_fn: Callable[[RandomKey], Any],
    key: RandomKey,
    params: Params,
    prunable: Prunable | None = None,
) -> Params:
    """Draw the prunable weights anew, so that a mask loses the weights it was made for.

    Args:
        init_fn: `init_fn(key) -> params`, the network's own initialisation.
        key: a key other than the one `params` came from.
        params: parameters.
        prunable: the leaves to draw anew; by default those with ndim >= 2.

    Returns:
        `params` with fresh prunable leaves.

    Example:
        >>> init = lambda key: {"bias": jnp.ones(1), "w": jax.random.normal(key, (1, 2))}
        >>> fresh = reinitialise(init, jax.random.key(1), init(jax.random.key(0)))
        >>> (fresh["w"] == init(jax.random.key(1))["w"]).all().item()
        True
    """
    return jax.tree.map(
        lambda may, new, old: new if may else old,
        tree.prunable(params, prunable),
        init_fn(key),
        params,
    )


def invert(scores: Scores) -> Scores:
    """Turn the order of the scores around: keep what the method would prune.

    Args:
        scores: scores of any method.

    Returns:
        The negated scores.

    Example:
        >>> invert({"w": jnp.array([1.0, -2.0])})
        {'w': Array([-1.,  2.], dtype=float32)}
    """
    return jax.tree.map(jnp.negative, scores)
