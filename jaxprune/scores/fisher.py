"""Fisher: by how much the loss grows if a weight is removed, to second order."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import tree
from jaxprune.types import Batch, Batches, LossFn, Mask, Params, Scores

_CHUNK = 32  # examples whose gradients are in memory at the same time


def fisher(
    loss_fn: LossFn, params: Params, batches: Batches, *, mask: Mask | None = None
) -> Scores:
    r"""Score each weight by `w^2 E[g^2] / 2`, where `g` is the gradient of one example.

    In Optimal Brain Damage, removing a weight from a trained network raises the loss by half
    the product of its square and the diagonal of the Hessian. The mean of squared gradients,
    the diagonal of the empirical Fisher matrix, stands for that diagonal. It costs a gradient
    of each example. Matrix products run at the highest precision.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss in nats per example. It is called
            with batches of one example, so BatchNorm must be in evaluation mode.
        params: parameters of a trained network; leaves that are not floating get the score
            False.
        batches: a list of batches; the first axis of each of their arrays counts examples.
        mask: if given, gradients are taken at the masked weights, and a pruned weight is
            scored by the effect of restoring it.

    Returns:
        Scores that mirror `params`, in the unit of the loss.

    Raises:
        ValueError: if `batches` is empty or a single batch, the arrays of a batch have
            different numbers of examples, `params` holds BatchNorm statistics, `mask` does
            not mirror `params`, a score is not finite, or all scores are 0.
        TypeError: if `params` holds something other than arrays, or `loss_fn` returns a
            tuple.

    Example:
        >>> loss = lambda params, x: ((x @ params["w"]) ** 2).mean()
        >>> fisher(loss, {"w": jnp.array([1.0, -2.0])}, [jnp.eye(2)])
        {'w': Array([ 1., 16.], dtype=float32)}

    References:
        LeCun et al., Optimal Brain Damage, NeurIPS 1989, eq. 5. Singh and Alistarh,
        WoodFisher, https://arxiv.org/abs/2004.14340, NeurIPS 2020, section 3 (diagonal).
    """
    tree.check_batches(batches)
    tree.check_trainable(params)
    number = sum(_count_examples(batch) for batch in batches)
    weights, merge = tree.split_floating(params)
    masked, merge_masked = tree.split_floating(tree.apply_mask(params, mask))

    def squared_gradient(example: Any) -> list[Array]:
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        loss = lambda w, batch: loss_fn(merge_masked(w), batch)
        return [jnp.square(g) for g in tree.gradient(loss, masked, [batch])]

    with jax.default_matmul_precision("highest"):
        sums = [_sum_over(squared_gradient, batch) for batch in batches]
    squares = jax.tree.map(lambda *parts: sum(parts), *sums)
    scored = [0.5 * w * w * s / number for w, s in zip(weights, squares, strict=True)]
    scores = tree.non_floating_to_false(merge(scored))
    tree.check_finite(
        scores, "check that params and the loss on every batch are finite."
    )
    tree.check_informative(scores, mask)
    return scores


def _count_examples(batch: Batch) -> int:
    """Return the number of examples of a batch."""
    numbers = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(numbers) != 1 or numbers <= {(), (0,)}:
        shapes = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            "fisher takes the gradient of each example, but the arrays of a batch have the "
            f"shapes {shapes}. Pass arrays whose first axis counts the examples."
        )
    ((number,),) = numbers
    return number


def _sum_over(fn: Callable[[Any], list[Array]], batch: Batch) -> list[Array]:
    """Sum `fn(example)` over the examples of a batch, a chunk at a time."""
    batch = jax.tree.map(jnp.asarray, batch)
    number = _count_examples(batch)
    whole = number - number % _CHUNK

    def sum_chunk(chunk: Batch) -> list[Array]:
        return [leaf.sum(0) for leaf in jax.vmap(fn)(chunk)]

    parts = []
    if whole:
        chunks = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, _CHUNK, *leaf.shape[1:]), batch
        )
        start = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(sum_chunk, jax.tree.map(lambda leaf: leaf[0], chunks)),
        )
        add = lambda total, chunk: (
            [a + b for a, b in zip(total, sum_chunk(chunk), strict=True)],
            None,
        )
        parts.append(jax.lax.scan(add, start, chunks)[0])
    if whole < number:
        parts.append(sum_chunk(jax.tree.map(lambda leaf: leaf[whole:], batch)))
    return [functools.reduce(jnp.add, leaves) for leaves in zip(*parts, strict=True)]
