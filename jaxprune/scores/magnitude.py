"""Magnitude: the oldest score, and with training before it still hard to beat."""

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.types import Mask, Params, Scores


def magnitude(params: Params, *, mask: Mask | None = None) -> Scores:
    """Score a weight by its absolute value, `|m * w|`.

    A pruned weight scores 0: its stale value does not compete with living weights.

    Args:
        params: parameters.
        mask: weights still alive; None means all.

    Returns:
        Scores that mirror `params`, in the unit of the weights.

    Raises:
        ValueError: if `mask` does not mirror `params`.

    Example:
        >>> magnitude({"w": jnp.array([-3.0, 2.0])})
        {'w': Array([3., 2.], dtype=float32)}

    References:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks,
        https://arxiv.org/abs/1506.02626, NeurIPS 2015, section 3. The SynFlow authors'
        code scores the unmasked weight; leave `mask` out for that.
    """
    return jax.tree.map(jnp.abs, tree.apply_mask(params, mask))
