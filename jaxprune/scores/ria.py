"""RIA: the importance of a weight relative to its row and column, times its input."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import graph
from jaxprune.graph import layers, matrices
from jaxprune.scores.wanda import input_squares, scale_magnitudes, to_leaves
from jaxprune.types import ApplyFn, Batches, Mask, Params, Prunable, Scores


def ria(
    fn: ApplyFn,
    params: Params,
    batches: Batches,
    *,
    mask: Mask | None = None,
    power: float | Any = 0.5,
    prunable: Prunable | None = None,
) -> Scores:
    r"""Score each weight by its relative importance and its input.

    The relative importance of `w_ij` is `|w_ij| / sum_i |w_ij| + |w_ij| / sum_j |w_ij|`: its
    share of the weights of one input, and of those of one output. It is multiplied by the
    norm of the input, `||x_j||_2 ** power`, which is taken as in `wanda`. The authors rank
    the weights of a layer together: `masks.select(scored, 0.5, scope="layer")`.

    Args:
        fn: `fn(params, batch)`, the forward pass, in evaluation mode.
        params: parameters of a trained network.
        batches: a list of batches of inputs.
        mask: if given, the inputs are those of the masked network, and a pruned weight is
            scored by the effect of restoring it. The sums are those of all weights.
        power: of the norm; 0 leaves the inputs out.
        prunable: the leaves that must have a score; by default those of `tree.prunable`.
            Other leaves that no product reads score 0.

    Returns:
        Scores that mirror `params`.

    Raises:
        ValueError: if `power` is not finite; otherwise as `wanda`.
        TypeError: if `params` holds something other than arrays.

    Example:
        >>> fn = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0, -1.0], [3.0, 4.0]])}
        >>> ria(fn, params, [jnp.ones((1, 2))], power=0.0)
        {'w': Array([[0.75     , 0.7      ],
               [1.1785715, 1.3714286]], dtype=float32)}

    References:
        Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large
        Language Models, https://openreview.net/forum?id=Tr0lPx9woF, ICLR 2024, eq. 4.
    """
    if not (isinstance(power, int | float) and math.isfinite(power)):
        raise ValueError(
            f"power is the exponent of the norm of the inputs; got {power}. Pass, for "
            "example, 0.5."
        )
    squares = input_squares(fn, params, batches, mask, prunable, "ria")
    shares = _inverse_sums(fn, params, batches[0])
    factors = {i: shares[i] * s ** (power / 2) for i, s in squares.items()}
    return scale_magnitudes(params, factors, mask)


def _inverse_sums(fn: ApplyFn, params: Params, batch: Any) -> dict[int, Array]:
    """Return `1 / sum_i |w_ij| + 1 / sum_j |w_ij|` of each weight, by number of the leaf.

    A weight that several products read has the mean over these.
    """
    program = graph.trace(fn, params, batch)
    leaves = jax.tree.leaves(params)
    sums: dict[int, Array] = {}
    times: dict[int, Array] = {}
    for layer in layers.find(program):
        kernel = layers.kernel_of(program, layer, [leaves[i] for i in layer.leaves])
        size = matrices.of_kernel(layer, jnp.abs(kernel))
        size = size.astype(jnp.float64 if size.dtype == jnp.float64 else jnp.float32)
        share = _inverse(size.sum(1, keepdims=True)) + _inverse(
            size.sum(2, keepdims=True)
        )
        for total, numbers in (
            (sums, share),
            (times, jnp.ones((1, 1, 1), share.dtype)),
        ):
            for i, part in to_leaves(program, layer, numbers).items():
                total[i] = total[i] + part if i in total else part
    return {i: total / jnp.maximum(times[i], 1.0) for i, total in sums.items()}


def _inverse(total: Array) -> Array:
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
