"""SNIP: connection sensitivity, from one gradient of the loss."""

import jax
import jax.numpy as jnp

from jaxprune.scores.taylor import taylor
from jaxprune.types import Batches, LossFn, Mask, Params, Scores


def snip(
    loss_fn: LossFn, params: Params, batches: Batches, *, mask: Mask | None = None
) -> Scores:
    r"""Score each weight by its connection sensitivity, `|w * dL/dw|`, at `mask * params`.

    The paper normalizes by the sum over all weights. That does not change the ranking, so
    it is omitted; compare scores within one call only. Matrix products run at the highest
    precision, since bfloat16 or TF32 would change the scores.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss in nats per example.
        params: parameters; leaves that are not floating get the score False.
        batches: a list of batches. Their losses are summed before the absolute value is
            taken.
        mask: if given, gradients are taken at the masked weights, and a pruned weight is
            scored by the effect of restoring it.

    Returns:
        Scores that mirror `params`, in the unit of the loss.

    Raises:
        ValueError: if `batches` is empty or a single batch, `params` holds BatchNorm
            statistics, `mask` does not mirror `params`, a score is not finite, or all
            scores are 0.
        TypeError: if `params` holds something other than arrays, or `loss_fn` returns a
            tuple.

    Example:
        >>> loss = lambda params, x: ((x @ params["w"]) ** 2).mean()
        >>> snip(loss, {"w": jnp.array([1.0, -2.0])}, [jnp.eye(2)])
        {'w': Array([1., 4.], dtype=float32)}

    References:
        Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity,
        https://arxiv.org/abs/1810.02340, ICLR 2019, eq. 5.
    """
    signed = taylor(loss_fn, params, batches, mask=mask)
    return jax.tree.map(jnp.abs, signed)
