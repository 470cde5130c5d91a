"""Taylor: the change of the loss when a weight, or a whole channel, is removed."""

import jax

from jaxprune import tree
from jaxprune.types import Batches, LossFn, Mask, Params, Scores


def taylor(
    loss_fn: LossFn, params: Params, batches: Batches, *, mask: Mask | None = None
) -> Scores:
    r"""Score each weight by `w * dL/dw` with its sign, at `mask * params`.

    It is SNIP before the absolute value. Summed over a channel it estimates, to first order,
    how much the loss falls when the channel is removed; `masks.select_channels` with
    `reduce="abs"` ranks channels by the size of that change. To rank single weights, use
    `scores.snip`. Matrix products run at the highest precision.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss in nats per example.
        params: parameters; leaves that are not floating get the score False.
        batches: a list of batches. Their losses are summed.
        mask: if given, gradients are taken at the masked weights.

    Returns:
        Scores that mirror `params`, in the unit of the loss.

    Raises:
        ValueError: if `batches` is empty or a single batch, `params` holds BatchNorm
            statistics, `mask` does not mirror `params`, a score is not finite, or all
            scores are 0.
        TypeError: if `params` holds something other than arrays, or `loss_fn` returns a
            tuple.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, x: ((x @ params["w"]) ** 2).mean()
        >>> taylor(loss, {"w": jnp.array([1.0, -2.0])}, [jnp.eye(2)])
        {'w': Array([1., 4.], dtype=float32)}

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning,
        https://arxiv.org/abs/1906.10771, CVPR 2019, eq. 8, before the square.
    """
    tree.check_batches(batches)
    tree.check_trainable(params)
    weights, merge = tree.split_floating(params)
    masked, merge_masked = tree.split_floating(tree.apply_mask(params, mask))
    with jax.default_matmul_precision("highest"):
        gradients = tree.gradient(
            lambda w, batch: loss_fn(merge_masked(w), batch), masked, batches
        )
    scored = jax.tree.map(lambda w, g: w * g, weights, gradients)
    scores = tree.non_floating_to_false(merge(scored))
    tree.check_finite(
        scores, "check that params and the loss on every batch are finite."
    )
    tree.check_informative(scores, mask)
    return scores
