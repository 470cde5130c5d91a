"""SNIP: connection sensitivity, from one gradient of the loss."""

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.types import Batches, LossFn, Mask, Params, Scores


def snip(
    loss_fn: LossFn, params: Params, batches: Batches, *, mask: Mask | None = None
) -> Scores:
    r"""Score a weight by its connection sensitivity, `|w * dL/dw|`, at `mask * params`.

    The paper divides by the sum over all weights; the order does not change, so scores
    compare within one call only. Gradients are taken with matrix products of the
    highest precision, since bfloat16 or TF32 would move the scores.

    Args:
        loss_fn: `loss_fn(params, batch)`, mean loss in nats per example.
        params: parameters.
        batches: batches whose losses are summed before the absolute value is taken.
        mask: where given, gradients are taken at the masked weights, and a pruned
            weight still gets the score of bringing it back.

    Returns:
        Scores that mirror `params`, in nats.

    Raises:
        ValueError: if `batches` is empty, `mask` does not mirror `params`, or a score
            is not finite.

    Example:
        >>> loss = lambda params, x: ((x @ params["w"]) ** 2).mean()
        >>> snip(loss, {"w": jnp.array([1.0, -2.0])}, [jnp.eye(2)])
        {'w': Array([1., 4.], dtype=float32)}

    References:
        Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity,
        https://arxiv.org/abs/1810.02340, ICLR 2019, eq. 5.
    """
    tree.check_batches(batches)
    masked = tree.apply_mask(params, mask)
    with jax.default_matmul_precision("highest"):
        gradients = [jax.grad(loss_fn)(masked, batch) for batch in batches]
    scores = jax.tree.map(lambda w, *g: jnp.abs(w * sum(g)), params, *gradients)
    tree.check_finite(
        scores, "check the loss on this batch, and that params are finite."
    )
    return scores
