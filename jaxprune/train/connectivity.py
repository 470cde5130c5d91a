"""Linear mode connectivity: whether two trained networks lie in one valley."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune.train.loop import Pictures, evaluate
from jaxprune.types import Params


def errors_between(
    apply: Callable[..., Any],
    first: tuple[Params, PyTree],
    second: tuple[Params, PyTree],
    pictures: Pictures,
    points: int = 30,
) -> list[float]:
    """Measure the error at evenly spaced points on the line between two networks.

    Weights and statistics of batch normalisation are interpolated alike.

    Args:
        apply: `Model.apply`; the same function object each time, or it compiles again.
        first: params, masked already, and state at one end.
        second: params and state at the other.
        pictures: what the error is measured on.
        points: how many, both ends among them.

    Returns:
        Top-1 error in percent at each point.

    Raises:
        ValueError: if there are fewer than 2 points.

    Example:
        >>> from jaxprune.data import Preprocessing
        >>> how = Preprocessing(mean=(0.0,), std=(1.0,))
        >>> white = jnp.full((1, 1, 1, 1), 255, jnp.uint8)
        >>> pictures = Pictures(white, jnp.zeros(1, jnp.int32), how)
        >>> apply = lambda params, state, x: (x[:, 0, 0] * params["w"], state)
        >>> right = {"w": jnp.array([[1.0, 0.0]])}, {}
        >>> wrong = {"w": jnp.array([[0.0, 1.0]])}, {}
        >>> errors_between(apply, right, wrong, pictures, points=4)
        [0.0, 0.0, 100.0, 100.0]

    References:
        Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis,
        https://arxiv.org/abs/1912.05671, ICML 2020, section 2.
    """
    if points < 2:
        raise ValueError(
            f"points is how many points to measure, both ends among them; got {points}. "
            "Pass 2 or more."
        )
    errors = []
    for share in jnp.linspace(0.0, 1.0, points, dtype=jnp.float32):
        params, state = jax.tree.map(
            lambda a, b, share=share: a + share.astype(a.dtype) * (b - a), first, second
        )
        errors.append(100.0 - evaluate(apply, params, state, pictures).accuracy)
    return errors


def barrier(errors: Sequence[float]) -> float:
    """Return the height of the error barrier: the highest error above the mean of both ends.

    Args:
        errors: what `errors_between` returns.

    Returns:
        Percentage points; below 2 the two networks count as connected.

    Example:
        >>> barrier([8.0, 20.0, 10.0])
        11.0
    """
    return max(errors) - (errors[0] + errors[-1]) / 2
