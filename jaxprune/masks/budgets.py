"""Budgets: a density for each prunable leaf, by its name, which `masks.select` takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune import tree
from jaxprune.masks.schedule import check_density
from jaxprune.tree.prunable import matching
from jaxprune.types import Fraction, Params, Prunable, Scores


def uniform(
    params: Params,
    density: Fraction,
    *,
    dense: str | Sequence[str] = (),
    at_least: Mapping[str, float] | None = None,
    prunable: Prunable | None = None,
) -> dict[str, float]:
    """Give every prunable leaf the same density, apart from named exceptions.

    The exceptions count: what they keep more, the other leaves keep less, so that the whole
    has `density`. *Uniform+* of Gale et al. keeps the first convolution dense and a fifth
    of the last layer: `uniform(params, 0.1, dense="conv1/kernel", at_least={"fc/kernel":
    0.2})`.

    Args:
        params: parameters or their shapes.
        density: kept / prunable weights of all leaves together, in (0, 1].
        dense: name patterns of leaves to leave dense, as in `tree.prunable`.
        at_least: the lowest density of a leaf, by name pattern.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        Leaf name -> density.

    Raises:
        ValueError: if a density is out of range, a pattern matches no prunable leaf, or
            the exceptions alone keep more than `density`.

    Example:
        >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((4, 4))}
        >>> uniform(params, 0.5)
        {'a': 0.5, 'b': 0.5}
        >>> uniform(params, 0.5, dense="a")
        {'a': 1.0, 'b': 0.375}

    References:
        Gale et al., The State of Sparsity in Deep Neural Networks,
        https://arxiv.org/abs/1902.09574, 2019, section 5.2 (Uniform+).
    """
    shapes = _shapes(params, prunable)
    least = dict.fromkeys(shapes, 0.0)
    for pattern, lowest in (at_least or {}).items():
        for name in matching(pattern, list(shapes), "at_least"):
            least[name] = max(least[name], check_density(lowest))
    for name in matching(dense, list(shapes), "dense"):
        least[name] = 1.0
    return _scale(dict.fromkeys(shapes, 1.0), shapes, density, least)


def erk(
    params: Params, density: Fraction, *, prunable: Prunable | None = None
) -> dict[str, float]:
    """Keep more of small layers: the Erdős-Rényi-Kernel budget.

    The density of a leaf is proportional to the sum of its dimensions divided by their
    product; for a convolution, (n_in + n_out + height + width) / (n_in n_out height width).
    Leaves that would exceed 1 stay dense, and the others are scaled again. An axis of
    stacked layers counts like any other.

    Args:
        params: parameters or their shapes.
        density: kept / prunable weights of all leaves together, in (0, 1].
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        Leaf name -> density.

    Raises:
        ValueError: if the density is out of range, or no leaf is prunable.

    Example:
        >>> params = {"large": jnp.ones((8, 8)), "small": jnp.ones((4, 4))}
        >>> erk(params, 0.5)
        {'large': 0.4166666666666667, 'small': 0.8333333333333334}

    References:
        Evci et al., Rigging the Lottery, https://arxiv.org/abs/1911.11134, ICML 2020,
        section 3; for dense layers, Mocanu et al., https://arxiv.org/abs/1707.04780, 2018.
    """
    shapes = _shapes(params, prunable)
    relative = {
        name: sum(shape) / math.prod(shape)
        for name, shape in shapes.items()
        if math.prod(shape)
    }
    return _scale(relative, shapes, density, dict.fromkeys(shapes, 0.0))


def owl(
    scores: Scores,
    density: Fraction,
    *,
    outlier: float = 5.0,
    spread: float = 0.08,
    prunable: Prunable | None = None,
) -> dict[str, float]:
    """Keep more of leaves with many outliers: outlier-weighed layerwise sparsity.

    An outlier is a score above `outlier` times the mean of its leaf. The fractions of
    outliers are mapped linearly onto a range of width `2 * spread`, then shifted such that
    the whole has `density`.

    Args:
        scores: scores such as those of Wanda; not negative.
        density: kept / prunable weights of all leaves together, in (0, 1].
        outlier: how many times the mean of its leaf an outlier exceeds.
        spread: half the difference between the highest and the lowest density.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        Leaf name -> density.

    Raises:
        ValueError: if the density is out of range, a score is not finite, or a leaf would
            get a density of 0 or less, or above 1.

    Example:
        >>> peak = jnp.ones((4, 4)).at[0, 0].set(100.0)
        >>> owl({"flat": jnp.ones((4, 4)), "peak": peak}, 0.5)
        {'flat': 0.42, 'peak': 0.58}

    References:
        Yin et al., Outlier Weighed Layerwise Sparsity, https://arxiv.org/abs/2310.05175,
        ICML 2024, section 3.2. Leaves are weighed by size here, where the authors average
        over transformer blocks of one size.
    """
    shapes = _shapes(scores, prunable)
    target = check_density(density)
    tree.check_finite(
        scores, "check params and batches.", tree.check_prunable(scores, prunable)
    )
    leaves = {
        name: leaf for name, leaf in tree.by_name(scores).items() if name in shapes
    }
    found = jax.device_get(_fraction_of_outliers(leaves, outlier))
    ratios = {name: float(found[name]) for name in shapes}
    lowest, highest = min(ratios.values()), max(ratios.values())
    span = highest - lowest or 1.0
    offsets = {n: 2 * spread * (ratio - lowest) / span for n, ratio in ratios.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    mean = sum(offsets[n] * sizes[n] for n in sizes) / sum(sizes.values())
    budget = {name: target + (offsets[name] - mean) for name in shapes}
    for name, value in budget.items():
        if not 0 < value <= 1:
            raise ValueError(
                f"'{name}' would get a density of {value:.3g}. Pass a spread below {spread}, "
                f"or a density farther from {0 if value <= 0 else 1}."
            )
    return budget


@jax.jit
def _fraction_of_outliers(
    leaves: dict[str, Array], outlier: Any
) -> dict[str, Float[Array, ""]]:
    return {
        name: (leaf > jnp.asarray(outlier, leaf.dtype) * leaf.mean())
        .astype(jnp.float32)
        .mean()
        for name, leaf in leaves.items()
    }


def _shapes(params: Params, prunable: Prunable | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the prunable leaves that hold weights, by name."""
    tree.check_arrays(params)
    chosen = jax.tree.leaves(tree.check_prunable(params, prunable))
    rows = zip(tree.names(params), jax.tree.leaves(params), chosen, strict=True)
    shapes = {name: leaf.shape for name, leaf, is_prunable in rows if is_prunable}
    if not any(math.prod(shape) for shape in shapes.values()):
        raise ValueError(
            "no leaf of params is prunable. Choose leaves by name: "
            'prunable=tree.prunable(params, include="*").'
        )
    return shapes


def _scale(
    relative: Mapping[str, float],
    shapes: Mapping[str, tuple[int, ...]],
    density: Fraction,
    least: Mapping[str, float],
) -> dict[str, float]:
    """Scale densities to a total, each between its least and 1.

    Leaves that leave this range are fixed at its end, those above or those below first,
    whichever exceed by more; the others are scaled again.
    """
    target = check_density(density)
    sizes = {name: math.prod(shapes[name]) for name in relative}
    total = target * sum(sizes.values())
    needed = sum(least[name] * size for name, size in sizes.items())
    if needed > total:
        raise ValueError(
            f"dense and at_least alone keep {needed / sum(sizes.values()):.4g} of the "
            f"prunable weights; the density is {target:.4g}. Pass a higher density, or "
            "fewer exceptions."
        )
    fixed: dict[str, float] = {}
    while free := [name for name in relative if name not in fixed]:
        left = total - sum(fixed[name] * sizes[name] for name in fixed)
        scale = left / sum(relative[name] * sizes[name] for name in free)
        wanted = {name: scale * relative[name] for name in free}
        bounded = {name: min(max(wanted[name], least[name]), 1.0) for name in free}
        excess = sum((bounded[name] - wanted[name]) * sizes[name] for name in free)
        outside = {
            name: value
            for name, value in bounded.items()
            if (value - wanted[name]) * excess > 0
        }
        fixed |= outside or bounded
    return {name: fixed.get(name, target) for name in shapes}


def check_budget(budget: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that a budget names exactly the prunable leaves.

    Args:
        budget: leaf name -> density, or number.
        names: of the prunable leaves.

    Raises:
        ValueError: naming a leaf that it lacks, or has besides.

    Example:
        >>> check_budget({"a": 0.5}, ["a", "b"])
        Traceback (most recent call last):
        ValueError: the budget has nothing for 'b'. ...
    """
    remedy = (
        "Make it for the same params and prunable, such as masks.erk(params, 0.1, "
        "prunable=prunable)."
    )
    for name in sorted(set(names) - set(budget)):
        raise ValueError(f"the budget has nothing for '{name}'. {remedy}")
    for name in sorted(set(budget) - set(names)):
        raise ValueError(
            f"the budget names '{name}', which is not a prunable leaf. {remedy}"
        )
