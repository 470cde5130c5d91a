"""ProsPr: connection sensitivity of the loss after a few steps of training."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import tree
from jaxprune.types import Batches, LossFn, Mask, Params, Scores

_MOMENTUM = 0.9


def prospr(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    *,
    mask: Mask | None = None,
    steps: int | Any = 3,
    learning_rate: float | Any = 0.5,
) -> Scores:
    r"""Score each weight by `|w * dL/dw|`, L the loss after a few steps of training.

    The velocity of a step is `0.9 * velocity + gradient`, with the momentum of the authors.
    The loss is differentiated through the steps of SGD with momentum, so every step adds to
    the memory and to the time to compile. With 0 steps, the score is that of `scores.snip`.
    The authors run BatchNorm in training mode: do so in `loss_fn`, or use
    `train.loss_function(model, train=True)`. Matrix products run at the highest precision.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss in nats per example.
        params: parameters before training; leaves that are not floating get the score
            False. All floating leaves are trained.
        batches: a list of batches. Step k trains on batch k, starting again after the last
            one. The losses of all batches after the last step are summed.
        mask: if given, training starts at the masked weights and pruned weights stay 0. A
            pruned weight is scored by the effect of restoring it, without training it.
        steps: number of steps, M in the paper.
        learning_rate: of the steps. If it is too large, the steps diverge, or leave all
            ReLU units inactive and all scores 0.

    Returns:
        Scores that mirror `params`, in the unit of the loss.

    Raises:
        ValueError: if `steps` is not an int of at least 0, `learning_rate` is not finite,
            `batches` is empty or a single batch, `params` holds BatchNorm statistics,
            `mask` does not mirror `params`, a score is not finite, or all scores are 0.
        TypeError: if `params` holds something other than arrays, or `loss_fn` returns a
            tuple.

    Example:
        >>> loss = lambda params, x: 0.5 * ((x * params["w"]) ** 2).sum()
        >>> prospr(loss, {"w": jnp.array([1.0, -2.0])}, [jnp.ones(2)], steps=1)
        {'w': Array([0.25, 1.  ], dtype=float32)}

    References:
        Alizadeh et al., Prospect Pruning: Finding Trainable Weights at Initialization using
        Meta-Gradients, https://arxiv.org/abs/2202.08132, ICLR 2022, section 3. The number of
        steps, the learning rate and the momentum are those of the authors. Their code
        takes the loss after the steps on one more batch, instead of on all batches.
    """
    if not hasattr(steps, "__index__") or operator.index(steps) < 0:
        raise ValueError(
            f"steps is the number of training steps, an int of at least 0; got {steps}. Pass "
            "3, as the authors do."
        )
    if not math.isfinite(learning_rate):
        raise ValueError(
            f"learning_rate is that of the training steps, a finite number; got "
            f"{learning_rate}. Pass 0.5, as the authors do."
        )
    tree.check_batches(batches)
    tree.check_trainable(params)
    weights, merge = tree.split_floating(params)
    masked, merge_masked = tree.split_floating(tree.apply_mask(params, mask))

    def gradient(weights: Sequence[Array], batches: Batches) -> list[Array]:
        loss = lambda weights, batch: loss_fn(merge_masked(weights), batch)
        return tree.gradient(loss, weights, batches)

    def train(weights: list[Array]) -> list[Array]:
        velocities = [jnp.zeros_like(w) for w in weights]
        for step in range(operator.index(steps)):
            gradients = gradient(weights, [batches[step % len(batches)]])
            kept, _ = tree.split_floating(
                tree.apply_mask(merge_masked(gradients), mask)
            )
            velocities = [
                _MOMENTUM * v + g for v, g in zip(velocities, kept, strict=True)
            ]
            weights = [
                w - learning_rate * v for w, v in zip(weights, velocities, strict=True)
            ]
        return weights

    with jax.default_matmul_precision("highest"):
        trained, pull_back = jax.vjp(train, masked)
        (gradients,) = pull_back(gradient(trained, batches))
    scored = [jnp.abs(w * g) for w, g in zip(weights, gradients, strict=True)]
    scores = tree.non_floating_to_false(merge(scored))
    tree.check_finite(
        scores,
        "check that params and the loss on every batch are finite, or pass a smaller "
        "learning_rate.",
    )
    tree.check_informative(scores, mask)
    return scores
