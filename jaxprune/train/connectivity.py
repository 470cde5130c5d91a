"""Linear mode connectivity: whether two trained networks lie in one basin of the loss."""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxprune import tree
from jaxprune.models import Model
from jaxprune.train.evaluation import evaluate
from jaxprune.train.examples import ImageSet


def errors_between(
    first: Model, second: Model, image_set: ImageSet, *, points: int = 30
) -> list[float]:
    """Measure the error at evenly spaced points on the line between two networks.

    Weights and BatchNorm statistics are interpolated alike.

    Args:
        first: one end, its parameters masked already.
        second: the other end, a network of the same tree.
        image_set: the images that the error is measured on.
        points: number of points, both ends included.

    Returns:
        Top-1 error in percent at each point.

    Raises:
        ValueError: if there are fewer than 2 points.

    Example:
        >>> from jaxprune.data import Preprocessing
        >>> white = jnp.full((1, 1, 1, 1), 255, jnp.uint8)
        >>> preprocessing = Preprocessing(mean=(0.0,), std=(1.0,))
        >>> image_set = ImageSet(white, jnp.zeros(1, jnp.int32), preprocessing)
        >>> apply = lambda params, state, x: (x[:, 0, 0] * params["w"], state)
        >>> right = Model({"w": jnp.array([[1.0, 0.0]])}, {}, apply)
        >>> wrong = Model({"w": jnp.array([[0.0, 1.0]])}, {}, apply)
        >>> errors_between(right, wrong, image_set, points=4)
        [0.0, 0.0, 100.0, 100.0]

    References:
        Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis,
        https://arxiv.org/abs/1912.05671, ICML 2020, section 2.
    """
    if points < 2:
        raise ValueError(
            f"points is the number of points to measure, both ends included; got {points}. "
            "Pass 2 or more."
        )
    errors = []
    for share in jnp.linspace(0.0, 1.0, points, dtype=jnp.float32):
        between = tree.map_floating(
            lambda a, b, share=share: a + share.astype(a.dtype) * (b - a), first, second
        )
        errors.append(100.0 - evaluate(between, image_set).metric)
    return errors


def error_barrier(errors: Sequence[float]) -> float:
    """Return the height of the error barrier: the highest error above the mean of both ends.

    Args:
        errors: the result of `errors_between`.

    Returns:
        Percentage points; below 2 the two networks count as connected.

    Example:
        >>> error_barrier([8.0, 20.0, 10.0])
        11.0
    """
    return max(errors) - (errors[0] + errors[-1]) / 2
