"""What a mask does: multiply, count, and hold pruned weights at zero in training."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxprune import tree
from jaxprune.tree import apply_mask as apply
from jaxprune.types import Mask, Params, Prunable

__all__ = ["apply", "count", "density", "freeze", "ones_like"]


def ones_like(params: Params) -> Mask:
    """Make the mask that keeps every weight.

    Args:
        params: parameters.

    Returns:
        A tree of True with the structure and shapes of `params`.

    Example:
        >>> ones_like({"w": jnp.zeros(2)})
        {'w': Array([ True,  True], dtype=bool)}
    """
    return jax.tree.map(lambda leaf: jnp.ones_like(leaf, bool), params)  # where it lies


def count(mask: Mask, prunable: Prunable | None = None) -> int:
    """Count the prunable weights that a mask keeps, exactly, as a Python int.

    Args:
        mask: the mask.
        prunable: which leaves count; by default those with ndim >= 2.

    Example:
        >>> count({"bias": jnp.ones(2, bool), "kernel": jnp.eye(3, dtype=bool)})
        3
    """
    tree.check_bool(mask)
    counted = [
        leaf
        for leaf, may in zip(
            jax.tree.leaves(mask),
            jax.tree.leaves(tree.prunable(mask, prunable)),
            strict=True,
        )
        if may
    ]
    return sum(int(np.asarray(part).sum(dtype=np.int64)) for part in _counts(counted))


@jax.jit
def _counts(leaves: list[Array]) -> list[Array]:
    # Leaves are added as Python ints: float32 is off above 2**24, and one leaf may have
    # more than 32 bits count; its rows have not.
    return [
        jnp.sum(leaf, axis=None if leaf.size < 2**32 else -1, dtype=jnp.uint32)
        for leaf in leaves
    ]


def density(mask: Mask, prunable: Prunable | None = None) -> float:
    """Divide the weights kept by the prunable weights.

    Args:
        mask: the mask.
        prunable: which leaves count; by default those with ndim >= 2.

    Raises:
        ValueError: if no leaf is prunable.

    Example:
        >>> density({"kernel": jnp.eye(4, dtype=bool)})
        0.25
    """
    size = tree.size(mask, prunable)
    if size == 0:
        raise ValueError(
            "the mask has no prunable weight (no leaf with two or more dimensions), so "
            "it has no density. Pass prunable= with True at the leaves that count."
        )
    return count(mask, prunable) / size


def freeze() -> optax.GradientTransformationExtraArgs:
    """Zero the updates of pruned weights; belongs last in the chain.

    Masking the forward pass is not enough: momentum, Adam's moments and weight decay
    would move pruned weights.  The mask is an extra argument of `update`, so a
    new mask compiles nothing anew.

    Returns:
        A transformation whose `update` takes `mask=`.

    Example:
        >>> optimizer = optax.chain(optax.trace(0.9), freeze())
        >>> params = {"w": jnp.ones(2)}
        >>> updates, _ = optimizer.update(
        ...     params, optimizer.init(params), params, mask={"w": jnp.array([True, False])}
        ... )
        >>> updates["w"][1].item()
        0.0
    """

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any, state: Any, params: Any = None, *, mask: Any, **extra: Any
    ) -> tuple[Any, Any]:
        del params, extra
        return apply(updates, mask), state

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
