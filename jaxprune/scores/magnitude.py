"""Magnitude: the oldest score, and a strong baseline for trained networks."""

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.types import Mask, Params, Scores


def magnitude(params: Params, *, mask: Mask | None = None) -> Scores:
    """Score each weight by its absolute value, `|m * w|`.

    A pruned weight scores 0, whatever value it still has in `params`.

    Args:
        params: parameters; leaves that are not floating get the score False.
        mask: weights that are kept; None means all.

    Returns:
        Scores that mirror `params`, in the unit of the weights.

    Raises:
        ValueError: if `mask` does not mirror `params`.
        TypeError: if `params` holds something other than arrays.

    Example:
        >>> magnitude({"w": jnp.array([-3.0, 2.0])})
        {'w': Array([3., 2.], dtype=float32)}

    References:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks,
        https://arxiv.org/abs/1506.02626, NeurIPS 2015, section 3. The SynFlow authors'
        code scores the unmasked weight; leave `mask` out for that.
    """
    tree.check_arrays(params)
    masked = tree.apply_mask(params, mask)
    return tree.non_floating_to_false(_absolute(masked))


@jax.jit
def _absolute(params: Params) -> Scores:
    """Take all absolute values in one program; outside `jit`, each shape would compile."""
    return tree.map_floating(jnp.abs, params)
