"""Random scores: the baseline that every method must beat."""

import jax

from jaxprune.types import Params, RandomKey, Scores


def random(key: RandomKey, params: Params) -> Scores:
    """Score every weight by one draw of N(0, 1), whatever its value.

    Args:
        key: used once; another key gives another pruning.
        params: parameters; only their shapes and dtypes matter.

    Returns:
        Scores that mirror `params`, without a unit.

    Example:
        >>> scored = random(jax.random.key(0), {"w": jax.numpy.ones((2, 3))})
        >>> scored["w"].shape
        (2, 3)

    References:
        The baseline of Tanaka et al., Pruning neural networks without any data by
        iteratively conserving synaptic flow, https://arxiv.org/abs/2006.05467, 2020.
    """
    leaves, structure = jax.tree.flatten(params)
    draws = [
        jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf_key, leaf in zip(
            jax.random.split(key, len(leaves)), leaves, strict=True
        )
    ]
    return jax.tree.unflatten(structure, draws)
