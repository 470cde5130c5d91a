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
    return interleaved(lambda: compiled(*args), calls=calls, warmup=warmup)[0]


def interleaved(
    *runs: Callable[[], Any], calls: int = 30, warmup: int = 3
) -> list[Latency]:
    """Time several things beside each other, one call of each after another.

    A machine that slows down meanwhile slows all of them, so that their ratios hold. The
    second of two calls is timed: the first finds the caches full of what ran before it.

    Args:
        runs: what to time; compile it before.
        calls: how many calls of each to time.
        warmup: how many calls of each to leave out first.

    Returns:
        Median and 95th percentile in seconds, of each.

    Raises:
        ValueError: if there is no call to time.

    Example:
        >>> quick, slow = interleaved(lambda: None, lambda: time.sleep(0.01), calls=3)
        >>> quick.p50 < slow.p50
        True
    """

    def turn(run: Callable[[], Any]) -> float:
        if len(runs) > 1:
            _second(run)
        return _second(run)

    taken = np.array(
        [[turn(run) for run in runs] for _ in range(warmup + _some(calls))]
    )
    return [
        Latency(float(np.median(one)), float(np.percentile(one, 95)), calls)
        for one in taken[warmup:].T
    ]


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
    return [_second(call) for _ in range(warmup + _some(calls))][warmup:]


def _some(calls: int) -> int:
    if calls < 1:
        raise ValueError(
            f"calls is how many calls to time; got {calls}. Pass 1 or more."
        )
    return calls


def _second(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
