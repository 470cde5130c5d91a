"""How long a call takes: compiled ahead, warmed up, each repetition waited for."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Latency(NamedTuple):
    """Seconds a call: median, 95th percentile, and over how many calls."""

    p50: float
    p95: float
    calls: int


def latency(
    fn: Callable[..., Any], *args: Any, calls: int = 30, warmup: int = 3
) -> Latency:
    """Time the compiled call `fn(*args)`, its arguments on the device already.

    Args:
        fn: the function; compiled ahead of time, so that no compilation is timed.
        args: arrays or trees of them.
        calls: how many calls to time, one by one.
        warmup: how many calls to leave out first.

    Returns:
        Median and 95th percentile in seconds.

    Raises:
        ValueError: if there is no call to time.

    Example:
        >>> latency(lambda x: x + 1, jax.numpy.ones(3), calls=5).calls
        5
    """
    # A function that is jitted already compiles once for all calls of `latency`.
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    compiled = jitted.lower(*args).compile()
    taken = seconds(lambda: compiled(*args), calls=calls, warmup=warmup)
    return Latency(float(np.median(taken)), float(np.percentile(taken, 95)), calls)


def seconds(
    call: Callable[[], Any], *, calls: int = 30, warmup: int = 3
) -> list[float]:
    """Time calls one by one, each until its result is there.

    Args:
        call: what to time, such as a pass over a test set with its data feed.
        calls: how many calls to time.
        warmup: how many calls to leave out first.

    Returns:
        Seconds of each call, in order.

    Raises:
        ValueError: if there is no call to time.

    Example:
        >>> len(seconds(lambda: jax.numpy.ones(3), calls=2))
        2
    """
    if calls < 1:
        raise ValueError(
            f"calls is how many calls to time; got {calls}. Pass 1 or more."
        )
    for _ in range(warmup):
        jax.block_until_ready(call())
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - began)
    return taken
