"""GraSP: what pruning a weight does to the gradient flow, from one Hessian product."""

import jax
import jax.numpy as jnp

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
    r"""Score a weight by `w * (H g)`: how much the gradient norm owes to it.

    `g` is the gradient of the losses summed over `batches` and `H` their Hessian, both
    restricted to the living prunable weights. `H g` is one forward-mode derivative
    of the gradient: no Hessian is built. The paper divides the logits by a temperature
    of 200; that belongs in `loss_fn`.

    Args:
        loss_fn: `loss_fn(params, batch)`, mean loss in nats per example.
        params: parameters.
        batches: batches whose losses are summed.
        mask: where given, derivatives are taken at and along the masked weights, and
            a pruned weight scores 0.
        prunable: the leaves along which the gradient flows; by default those
            with ndim >= 2.

    Returns:
        Scores that mirror `params`; a low score marks a weight whose removal leaves the
        gradient flow highest. Not normalised.

    Raises:
        ValueError: if `batches` is empty, `mask` or `prunable` does not mirror
            `params`, or a score is not finite.

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
    chosen = tree.prunable(params, prunable)
    masked = tree.apply_mask(params, mask)

    def gradient(weights: Params) -> Params:
        gradients = [jax.grad(loss_fn)(weights, batch) for batch in batches]
        return jax.tree.map(lambda *g: sum(g), *gradients)

    with jax.default_matmul_precision("highest"):
        flow = tree.apply_mask(gradient(masked), mask)
        flow = jax.tree.map(lambda g, may: jnp.where(may, g, 0 * g), flow, chosen)
        _, product = jax.jvp(gradient, (masked,), (flow,))
    scores = jax.tree.map(jnp.multiply, masked, product)
    tree.check_finite(
        scores, "check the loss on this batch, and that params are finite."
    )
    return scores
