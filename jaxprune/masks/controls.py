"""Controls for pruning methods: do the weights matter, or only the layer densities.

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
    """Shuffle a mask within each leaf, so that only the leaves' densities remain.

    Args:
        key: used once.
        mask: the mask to shuffle.
        prunable: the leaves to shuffle; by default those of `tree.prunable`.

    Returns:
        A mask that keeps the same number of weights in every leaf. In a leaf of stacked
        layers, weights also move between the layers.

    Raises:
        TypeError: if a leaf of `mask` is not bool.

    Example:
        >>> mask = {"kernel": jnp.eye(3, dtype=bool)}
        >>> shuffle(jax.random.key(0), mask)["kernel"].sum().item()
        3
    """
    tree.check_bool(mask)
    leaves, structure = jax.tree.flatten(mask)
    chosen = jax.tree.leaves(tree.check_prunable(mask, prunable))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape)
            if is_prunable
            else leaf
            for k, leaf, is_prunable in zip(keys, leaves, chosen, strict=True)
        ],
    )


def reinitialize(
    init_fn: Callable[[RandomKey], Any],
    key: RandomKey,
    params: Params,
    prunable: Prunable | None = None,
) -> Params:
    """Redraw the prunable weights, to test a mask on weights it was not selected for.

    Args:
        init_fn: `init_fn(key) -> params`, the network's own initialization.
        key: a key other than the one `params` came from.
        params: parameters.
        prunable: the leaves to redraw; by default those of `tree.prunable`.

    Returns:
        `params` with fresh prunable leaves.

    Raises:
        ValueError: if `init_fn` returns another tree, or other shapes.

    Example:
        >>> init = lambda key: {"bias": jnp.ones(1), "w": jax.random.normal(key, (1, 2))}
        >>> fresh = reinitialize(init, jax.random.key(1), init(jax.random.key(0)))
        >>> (fresh["w"] == init(jax.random.key(1))["w"]).all().item()
        True
    """
    remedy = "Pass the network's own initialization function."
    fresh = tree.align(init_fn(key), params, "init_fn(key)", remedy)
    chosen = tree.check_prunable(params, prunable)
    tree.check_shapes(fresh, params, "init_fn(key)", remedy)
    return jax.tree.map(
        lambda is_prunable, new, old: new if is_prunable else old, chosen, fresh, params
    )


def invert(scores: Scores) -> Scores:
    """Reverse the order of the scores: keep what the method would prune.

    Args:
        scores: scores of any method.

    Returns:
        The negated scores.

    Example:
        >>> invert({"w": jnp.array([1.0, -2.0])})
        {'w': Array([-1.,  2.], dtype=float32)}
    """
    return tree.map_floating(jnp.negative, scores)
