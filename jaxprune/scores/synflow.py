"""SynFlow: synaptic flow, a score without data that conserves its total in each layer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune import tree
from jaxprune.types import ApplyFn, Mask, Params, Scores


def synflow(
    apply_fn: ApplyFn,
    params: Params,
    inputs: Float[Array, "..."],
    *,
    mask: Mask | None = None,
    rescale: bool = False,
) -> Scores:
    r"""Score a weight by its synaptic flow, `|w * dR/dw|`, R the sum of the outputs.

    R is taken of the network whose every parameter is replaced by its absolute value.
    Keep nonlinear normalisation out of `apply_fn`: a batch normalisation with
    statistics of real data stops the flow (`models.flow` makes it the identity).

    Args:
        apply_fn: `apply_fn(params, inputs) -> outputs`.
        params: parameters.
        inputs: one example of ones, with its batch dimension.
        mask: weights still alive; a pruned weight scores 0.
        rescale: divide each kernel by its mean gain, since R grows by the gain of every
            layer and overflows float32 in deep networks. In a chain of layers without
            biases this multiplies all scores by one factor and so changes
            no mask; across a residual connection it weighs long paths less.

    Returns:
        Scores that mirror `params`.

    Raises:
        ValueError: if `mask` does not mirror `params`, or a score is not finite.

    Example:
        >>> apply_fn = lambda params, x: x @ params["w"]
        >>> synflow(apply_fn, {"w": jnp.array([[1.0], [-2.0]])}, jnp.ones((1, 2)))
        {'w': Array([[1.],
               [2.]], dtype=float32)}

    References:
        Tanaka et al., Pruning neural networks without any data by iteratively
        conserving synaptic flow, https://arxiv.org/abs/2006.05467, NeurIPS 2020,
        algorithm 1.
    """
    weights = jax.tree.map(jnp.abs, tree.apply_mask(params, mask))
    if rescale:
        weights = jax.tree.map(_unit_gain, weights)
    with jax.default_matmul_precision("highest"):
        flow = jax.grad(lambda w: jnp.sum(apply_fn(w, inputs)))(weights)
    scores = jax.tree.map(lambda w, g: jnp.abs(w * g), weights, flow)
    repair = "rescaled weights still overflow; score in float64."
    tree.check_finite(
        scores,
        repair if rescale else f"synflow overflowed {inputs.dtype}; pass rescale=True.",
    )
    return scores


def _unit_gain(weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """Divide a kernel by the mean of its outputs for an input of ones."""
    if weight.ndim < 2:
        return weight
    gain = jnp.sum(weight) / weight.shape[-1]
    return weight / jnp.where(gain > 0, gain, jnp.ones_like(gain))
