"""NTK-SAP: the effect of a weight on the spectrum of the neural tangent kernel."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import tree
from jaxprune.types import ApplyFn, Mask, Params, RandomKey, Scores


def ntk_sap(
    key: RandomKey | Any,
    apply_fn: ApplyFn,
    params: Params,
    inputs: Any,
    *,
    mask: Mask | None = None,
    epsilon: float | Any = 0.01,
) -> Scores:
    r"""Score each weight by `|m * dS/dm|`, S the change of the outputs when weights change.

    `S` is the sum of `(f(m * (w + epsilon * d)) - f(m * w))^2 / epsilon^2` over all examples
    and outputs, `d` one draw of N(0, 1) for each weight. Its mean over `d` approximates the
    trace of the neural tangent kernel, the sum of its eigenvalues. The method uses no data:
    pass Gaussian noise as `inputs`. The authors draw the noise, `d` and the weights again in
    each of their 20 rounds. To do the same, call this function with another key, other
    inputs and newly initialized `params` in each round.

    Args:
        key: of `d`. One key gives one `d`, at every mask.
        apply_fn: `apply_fn(params, inputs) -> outputs`, with BatchNorm in evaluation mode.
            The authors first set the statistics to those of the noise.
        params: parameters at initialization; leaves that are not floating get the score
            False. In half precision, rounding hides the change of the outputs.
        inputs: examples of N(0, 1), with their batch dimension; an array, or a tree of them.
        mask: weights that are kept, `m`; a pruned weight scores 0, so it can't regrow.
        epsilon: size of the change.

    Returns:
        Scores that mirror `params`, in the unit of the squared outputs.

    Raises:
        ValueError: if `epsilon` is not positive and finite, `params` holds BatchNorm
            statistics, `mask` does not mirror `params`, a score is not finite, or all
            scores are 0.
        TypeError: if `key` is not a key, `params` holds something other than arrays, or
            `apply_fn` does not return an array.

    Example:
        >>> apply_fn = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0], [2.0]])}
        >>> scored = ntk_sap(jax.random.key(0), apply_fn, params, jnp.eye(2))
        >>> scored["w"].shape
        (2, 1)

    References:
        Wang et al., NTK-SAP: Improving Neural Network Pruning by Aligning Training Dynamics,
        https://arxiv.org/abs/2304.02840, ICLR 2023, algorithm 1. The division by `epsilon^2`
        is ours; it does not change the ranking. All floating leaves change here; in the
        authors' code, only those that are pruned.
    """
    tree.check_key(key)
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"epsilon is the size of the change of the weights, a positive number; got "
            f"{epsilon}. Pass 0.01, as the authors do."
        )
    tree.check_trainable(params)
    weights, merge = tree.split_floating(params)
    ones = tree.map_floating(jnp.ones_like, params)
    kept, _ = tree.split_floating(tree.apply_mask(ones, mask))
    # A clone, since the rounds of prune.prune use one key on purpose.
    keys = jax.random.split(jax.random.clone(key), len(weights))
    changed = [
        w + epsilon * jax.random.normal(leaf_key, w.shape, w.dtype)
        for w, leaf_key in zip(weights, keys, strict=True)
    ]

    def output(kept: Sequence[Array], weights: Sequence[Array]) -> Array:
        result = apply_fn(merge(list(map(jnp.multiply, kept, weights))), inputs)
        if not hasattr(result, "shape"):
            raise TypeError(
                f"apply_fn returned a {type(result).__name__}, where an array is expected. "
                "Pass lambda params, inputs: apply_fn(params, inputs)[0]."
            )
        return result

    def change(kept: Sequence[Array]) -> Array:
        difference = output(kept, changed) - output(kept, weights)
        return jnp.sum(jnp.square(difference / epsilon))

    with jax.default_matmul_precision("highest"):
        gradients = jax.grad(change)(kept)
    scored = [jnp.abs(m * g) for m, g in zip(kept, gradients, strict=True)]
    scores = tree.non_floating_to_false(merge(scored))
    tree.check_finite(scores, "check that params and the outputs are finite.")
    tree.check_informative(scores, mask)
    return scores
