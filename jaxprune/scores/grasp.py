"""GraSP: the effect of a weight on the gradient flow, from one Hessian-vector product."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import tree
from jaxprune.types import Batches, LossFn, Mask, Params, Prunable, Scores


def grasp(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    *,
    mask: Mask | None = None,
    prunable: Prunable | None = None,
) -> Scores:
    r"""Score each weight by `w * (H g)`, its contribution to the gradient flow.

    `g` is the gradient of the losses summed over `batches` and `H` their Hessian, both
    restricted to the kept prunable weights. `H g` is one forward-mode derivative of the
    gradient, so no Hessian is built. The authors run BatchNorm in training mode, which
    strongly affects the accuracy of the pruned network, and divide the logits by a
    temperature of 200: do both in `loss_fn`, or use `train.loss_function(model, train=True,
    temperature=200.0)`.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss in nats per example.
        params: parameters; leaves that are not floating get the score False.
        batches: a list of batches whose losses are summed.
        mask: if given, `g` and `H` are those of the masked network, restricted to its kept
            weights, and a pruned weight scores 0.
        prunable: the leaves that count in the gradient norm; by default those of
            `tree.prunable`.

    Returns:
        Scores that mirror `params`, not normalized. Removing the lowest-scoring weights
        reduces the gradient flow least.

    Raises:
        ValueError: if `batches` is empty or a single batch, `params` holds BatchNorm
            statistics, `mask` or `prunable` does not mirror `params`, a score is not
            finite, or all scores are 0.
        TypeError: if `params` holds something other than arrays, or `loss_fn` returns a
            tuple.

    Example:
        >>> loss = lambda params, x: (x * params["w"] ** 2).sum()
        >>> grasp(loss, {"w": jnp.array([[1.0, -2.0]])}, [jnp.array([[1.0, 3.0]])])
        {'w': Array([[  4., 144.]], dtype=float32)}

    References:
        Wang et al., Picking Winning Tickets Before Training by Preserving Gradient
        Flow, https://arxiv.org/abs/2002.07376, ICLR 2020, eq. 8. The paper's score has
        the opposite sign and prunes the highest.
    """
    tree.check_batches(batches)
    tree.check_trainable(params)
    chosen = tree.check_prunable(params, prunable)
    weights, merge = tree.split_floating(tree.apply_mask(params, mask))

    def gradient(weights: Sequence[Array]) -> list[Array]:
        loss = lambda weights, batch: loss_fn(merge(weights), batch)
        return tree.gradient(loss, weights, batches)

    with jax.default_matmul_precision("highest"):
        flow = tree.apply_mask(merge(gradient(weights)), mask)
        flow = tree.map_floating(
            lambda g, is_prunable: jnp.where(is_prunable, g, 0 * g), flow, chosen
        )
        direction, _ = tree.split_floating(flow)
        _, product = jax.jvp(gradient, (weights,), (direction,))
    scores = tree.non_floating_to_false(
        merge(jax.tree.map(jnp.multiply, weights, product))
    )
    tree.check_finite(
        scores, "check that params and the loss on every batch are finite."
    )
    tree.check_informative(scores, mask)
    return scores
