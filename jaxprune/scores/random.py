"""Random scores: the baseline that every method must beat."""

from typing import Any

import jax

from jaxprune import tree
from jaxprune.types import Mask, Params, RandomKey, Scores


def random(key: RandomKey | Any, params: Params, *, mask: Mask | None = None) -> Scores:
    """Score each weight by one draw of N(0, 1), whatever its value.

    Args:
        key: one key gives one ranking, at every mask.
        params: parameters; only their shapes and dtypes matter. Leaves that are not
            floating get the score False.
        mask: not used; accepted so that all scoring functions are called alike.

    Returns:
        Scores that mirror `params`, without a unit.

    Raises:
        TypeError: if `key` is not a key, or `params` holds something other than arrays.

    Example:
        >>> scored = random(jax.random.key(0), {"w": jax.numpy.ones((2, 3))})
        >>> scored["w"].shape
        (2, 3)

    References:
        The baseline of Tanaka et al., Pruning neural networks without any data by
        iteratively conserving synaptic flow, https://arxiv.org/abs/2006.05467, 2020.
    """
    del mask
    tree.check_key(key)
    tree.check_arrays(params)
    leaves, structure = jax.tree.flatten(params)
    # A clone, since the rounds of prune.prune use one key on purpose.
    leaf_keys = jax.random.split(jax.random.clone(key), len(leaves))
    keys = jax.tree.unflatten(structure, list(leaf_keys))
    draws = tree.map_floating(
        lambda leaf, leaf_key: jax.random.normal(leaf_key, leaf.shape, leaf.dtype),
        params,
        keys,
    )
    return tree.non_floating_to_false(draws)
