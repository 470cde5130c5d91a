"""Time calls: compiled ahead, warmed up, and waiting for the result of every call."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Latency(NamedTuple):
    """The time of a call.

    Attributes:
        p50: median, in seconds.
        p95: 95th percentile, in seconds.
        calls: number of calls that were timed.
    """

    p50: float
    p95: float
    calls: int


def latency(
    fn: Callable[..., Any], *args: Any, calls: int = 30, warmup: int = 3
) -> Latency:
    """Time the compiled call `fn(*args)`.

    Put the arguments on the device first; NumPy arrays are copied in every timed call.

    Args:
        fn: the function. It is compiled before the first call, so that compilation is not
            timed.
        args: arrays or trees of arrays.
        calls: number of calls to time, one by one.
        warmup: number of calls before those, which are not timed.

    Returns:
        Median and 95th percentile, in seconds.

    Raises:
        ValueError: if `calls` is less than 1.

    Example:
        >>> latency(lambda x: x + 1, jax.numpy.ones(3), calls=5).calls
        5
    """
    # A function that is already jitted compiles once for all calls of `latency`.
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    compiled = jitted.lower(*args).compile()
    return interleaved(lambda: compiled(*args), calls=calls, warmup=warmup)[0]


def interleaved(
    *runs: Callable[[], Any], calls: int = 30, warmup: int = 3
) -> list[Latency]:
    """Time several functions with interleaved calls, so that their ratios are comparable.

    If the machine slows down meanwhile, it slows all of them, so their ratios stay valid.
    Each function is called twice in a row and the second call is timed, because the first
    one finds the caches full of the previous function's data.

    Args:
        runs: functions without arguments; compile them before.
        calls: number of calls of each function to time.
        warmup: number of rounds before those, which are not timed.

    Returns:
        Median and 95th percentile of each function, in seconds.

    Raises:
        ValueError: if `calls` is less than 1.

    Example:
        >>> quick, slow = interleaved(lambda: None, lambda: time.sleep(0.01), calls=3)
        >>> quick.p50 < slow.p50
        True
    """
    _check_calls(calls)

    def time_warm(run: Callable[[], Any]) -> float:
        if len(runs) > 1:
            _time_call(run)
        return _time_call(run)

    times = np.array([[time_warm(run) for run in runs] for _ in range(warmup + calls)])
    return [
        Latency(float(np.median(column)), float(np.percentile(column, 95)), calls)
        for column in times[warmup:].T
    ]


def seconds(
    call: Callable[[], Any], *, calls: int = 30, warmup: int = 3
) -> list[float]:
    """Time calls one by one, each until its result is ready.

    Args:
        call: a function without arguments, such as a pass over a test set that also copies
            the images to the device.
        calls: number of calls to time.
        warmup: number of calls before those, which are not timed.

    Returns:
        Time of each call in seconds, in order.

    Raises:
        ValueError: if `calls` is less than 1.

    Example:
        >>> len(seconds(lambda: jax.numpy.ones(3), calls=2))
        2
    """
    _check_calls(calls)
    return [_time_call(call) for _ in range(warmup + calls)][warmup:]


def _check_calls(calls: int) -> None:
    if calls < 1:
        raise ValueError(
            f"calls is the number of calls to time; got {calls}. Pass 1 or more."
        )


def _time_call(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
