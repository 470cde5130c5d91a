"""LAMP: magnitude, rescaled in each layer so that layers can be ranked together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import tree
from jaxprune.types import Mask, Params, Scores


def lamp(params: Params, *, mask: Mask | None = None) -> Scores:
    r"""Score each weight by `w^2` over the sum of `v^2` of all `v` in its leaf from `w` up.

    The largest weight of each leaf scores exactly 1, so global selection empties no layer as
    long as it keeps as many weights as there are leaves. Within a leaf, the order is that of
    the magnitude: LAMP only decides the density of each layer, so select with
    `scope="global"`. Each leaf is one layer, also one that stacks the layers of a scan.

    Args:
        params: parameters of a trained network; leaves that are not floating get the score
            False.
        mask: weights that are kept; a pruned weight scores 0 and is left out of the sums.

    Returns:
        Scores that mirror `params`, from 0 to 1, without a unit. Those of a leaf in half
        precision are float32. Equal weights are ranked by position, the last one highest. In
        float32, a weight below 1e-19 times the largest of its leaf scores 0.

    Raises:
        ValueError: if `mask` does not mirror `params`, or a score is not finite.
        TypeError: if `params` holds something other than arrays.

    Example:
        >>> lamp({"w": jnp.array([-2.0, 4.0]), "v": jnp.array([0.5, 0.0])})
        {'v': Array([1., 0.], dtype=float32), 'w': Array([0.2, 1. ], dtype=float32)}

    References:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning,
        https://arxiv.org/abs/2010.07611, ICLR 2021, eq. 1. Weights are divided by the
        largest of their leaf before the square, which cancels out but avoids overflow.
    """
    tree.check_arrays(params)
    masked = tree.apply_mask(params, mask)
    scores = tree.non_floating_to_false(_scores(masked))
    tree.check_finite(scores, "check that params are finite.")
    return scores


@jax.jit
def _scores(params: Params) -> Scores:
    """Score all leaves in one program; outside `jit`, each shape would compile."""
    return tree.map_floating(_score_leaf, params)


def _score_leaf(weight: Array) -> Array:
    # In half precision the sum would stop growing after a few hundred weights.
    dtype = jnp.float64 if weight.dtype == jnp.float64 else jnp.float32
    magnitudes = jnp.abs(weight.astype(dtype)).ravel()
    largest = jnp.max(magnitudes, initial=0.0)
    squares = jnp.square(magnitudes / jnp.where(largest == 0, 1.0, largest))
    order = jnp.argsort(magnitudes)  # squares of neighbors can round to the same number
    ascending = squares[order]
    sums = jnp.cumsum(ascending[::-1])[::-1]
    scores = ascending / jnp.where(sums == 0, 1.0, sums)
    # A sum that is computed in parallel is not monotone to the last bit.
    scores = jax.lax.cummax(scores)
    return jnp.zeros_like(scores).at[order].set(scores).reshape(weight.shape)
