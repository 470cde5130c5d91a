"""Densities as whole numbers of weights, and the densities of successive rounds."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from jaxprune import tree
from jaxprune.types import Budget, Fraction, Schedule

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
    density: Fraction | Budget,
    rounds: Any,
    schedule: Schedule | str | Sequence[Fraction] = "exponential",
) -> list[Any]:
    """List the density to reach in each round; the last one is `density`.

    With density d and n rounds, round k reaches d^(k/n) for "exponential",
    1 - (1 - d) k/n for "linear", and 1 - (1 - d) (1 - (1 - k/n)^3) for "cubic", which prunes
    most at the start. Each is relative to all prunable weights.

    Args:
        density: in (0, 1]; or a budget, whose leaves follow the schedule each by itself.
        rounds: at least 1.
        schedule: "exponential", "linear" or "cubic", or the densities themselves.

    Returns:
        A float for each round; for a budget, a dict of leaf name -> float.

    Raises:
        ValueError: if the density, the rounds or the schedule is out of range, or the
            densities are not one for each round or do not end with `density`.

    Example:
        >>> densities(0.25, 2)
        [0.5, 0.25]
        >>> densities(0.5, 2, "linear")
        [0.75, 0.5]
        >>> densities(0.5, 2, "cubic")
        [0.5625, 0.5]
        >>> densities(0.1, 3, [0.5, 0.2, 0.1])
        [0.5, 0.2, 0.1]

    References:
        Zhu and Gupta, To prune, or not to prune, https://arxiv.org/abs/1710.01878, 2017,
        eq. 1 (cubic).
    """
    if isinstance(density, Mapping):
        if not density:
            raise ValueError(
                "the budget is empty. Pass one such as masks.erk(params, 0.1)."
            )
        steps = {
            name: densities(each, rounds, schedule) for name, each in density.items()
        }
        columns = zip(*steps.values(), strict=True)
        return [dict(zip(steps, column, strict=True)) for column in columns]
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
    if not isinstance(schedule, str):
        if not isinstance(schedule, Sequence):
            raise ValueError(
                f"schedule is {schedule}. Pass one of {', '.join(SCHEDULES)}, or a list of "
                "densities."
            )
        listed = [check_density(one) for one in schedule]
        if len(listed) != rounds or listed[-1] != target:
            raise ValueError(
                f"schedule lists the densities {listed}, for {rounds} rounds that end at "
                f"{target}. Pass one for each round, the last of them the density."
            )
        return listed
    tree.check_option("schedule", schedule, SCHEDULES)
    formulas = {
        "exponential": lambda k: target ** (k / rounds),
        "linear": lambda k: 1.0 - (1.0 - target) * k / rounds,
        "cubic": lambda k: 1.0 - (1.0 - target) * (1.0 - (1.0 - k / rounds) ** 3),
    }
    return [formulas[schedule](k) for k in range(1, rounds)] + [target]
