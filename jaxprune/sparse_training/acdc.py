"""AC/DC: alternate compressed and decompressed phases of training."""

from typing import Any

import jax
import optax
from jaxtyping import Array

from jaxprune import masks, scores
from jaxprune.sparse_training.changing import Steps, changing, counts, dense, part_of
from jaxprune.types import Budget, Fraction, Params, Prunable


def acdc(
    inner: Any,
    density: Fraction | Budget,
    steps: Steps | Any,
    *,
    prunable: Prunable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Alternate dense and sparse phases of training, and end sparse.

    Training is dense at first. The changes at `steps.start + steps.every`, two intervals
    later, and so on, keep the largest weights; those between bring all weights back, from
    zero and with fresh moments of the optimizer. From `steps.stop` on, the network is sparse.
    The authors train the first tenth dense, then alternate every 5 of 100 epochs. With
    short phases, or at densities at which the largest weights leave a layer empty, training
    may fail.

    Args:
        inner: the optimizer, such as `optax.sgd(0.1, momentum=0.9)`; the whole chain.
        density: kept / prunable in compressed phases, in (0, 1], of all leaves together; or
            a budget for each leaf by itself.
        steps: when the phases change.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        An optax transformation whose state, a `SparseState`, holds the mask.

    Raises:
        TypeError: if `inner` is not an optax transformation, or `steps` not `Steps`.
        ValueError: from `init`, if the density is out of range, no leaf is prunable or the
            budget does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = acdc(optax.sgd(0.1), 0.5, Steps(stop=3, every=1))
        >>> params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
        >>> state = optimizer.init(params)
        >>> kept = []
        >>> for _ in range(5):
        ...     _, state = optimizer.update(params, state, params)
        ...     kept.append(state.mask["w"].sum().item())
        >>> kept
        [8, 4, 8, 4, 4]

    References:
        Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
        Networks, https://arxiv.org/abs/2106.12379, NeurIPS 2021, algorithm 1.
    """

    def change(step: Array, mask: Any, params: Params, gradients: Params) -> Any:
        del gradients
        is_sparse = (steps.index(step) % 2 == 1) | (step == steps.stop)
        kept = masks.highest(
            scores.magnitude(params),
            counts(density, params, prunable),
            mask=mask,
            prunable=part_of(prunable, params),
        )
        return jax.tree.map(lambda leaf: leaf | ~is_sparse, kept)

    return changing(inner, dense(density, prunable), steps, change)
