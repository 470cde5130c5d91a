"""Densities as whole numbers of weights, and the densities of successive rounds."""

import math
import operator
from typing import Any, get_args

from jaxprune import tree
from jaxprune.types import Fraction, Schedule

SCHEDULES = get_args(Schedule)


def check_density(density: Fraction) -> float:
    """Check that a density lies in (0, 1] and return it as a Python float.

    Args:
        density: a Python, NumPy or JAX number.

    Raises:
        ValueError: if it does not, or is not a number.

    Example:
        >>> check_density(1)
        1.0
    """
    try:
        if isinstance(density, str | bool):
            raise TypeError
        # The shortest decimal of a float32: 0.1, not 0.10000000149.
        narrow = getattr(density, "dtype", None) == "float32"
        value = float(str(density) if narrow else density)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise ValueError(
            "density is the fraction of prunable weights to keep, in (0, 1]; got "
            f"{density!r}. For a sparsity of s, pass 1 - s; for p percent, p / 100."
        )
    return value


def num_kept(density: Fraction, size: int) -> int:
    """Turn a density into a number of weights, `size - int((1 - density) * size)`.

    This uses Python floats on the host, because float32 is off by one for networks of
    millions of weights. The formula is that of the SynFlow authors' code, including how it
    rounds 1 - density: a density of 0.9 keeps 10 of 10 weights.

    Args:
        density: in (0, 1].
        size: number of prunable weights.

    Raises:
        ValueError: if the density is out of range, or so low that nothing is kept.

    Example:
        >>> num_kept(10**-0.05, 14_715_584)
        13115279
    """
    keep = size - int((1.0 - check_density(density)) * size)
    if keep < 1:
        raise ValueError(
            f"density {density} keeps none of {size} weights. Pass at least {1 / size:.3g}."
        )
    return keep


def densities(
    density: Fraction, rounds: Any, schedule: Schedule | str = "exponential"
) -> list[float]:
    """List the density to reach in each round; the last one is `density`.

    With density d and n rounds, round k reaches d^(k/n) for "exponential" and
    1 - (1 - d) k/n for "linear". Each is relative to all prunable weights.

    Args:
        density: in (0, 1].
        rounds: at least 1.
        schedule: "exponential" or "linear".

    Raises:
        ValueError: if the density, the rounds or the schedule is out of range.

    Example:
        >>> densities(0.25, 2)
        [0.5, 0.25]
        >>> densities(0.5, 2, "linear")
        [0.75, 0.5]
    """
    target, num_rounds = check_density(density), rounds
    try:
        rounds = operator.index(rounds)
    except TypeError:
        rounds = 0
    if rounds < 1:
        raise ValueError(
            f"rounds is the number of times to score and select; got {num_rounds}. Pass "
            "an integer of 1 or more."
        )
    tree.check_option("schedule", schedule, SCHEDULES)
    if schedule == "linear":
        return [1.0 - (1.0 - target) * k / rounds for k in range(1, rounds)] + [target]
    return [target ** (k / rounds) for k in range(1, rounds)] + [target]
