"""Optax wrappers that train sparse networks in any loop; the mask is in their state."""

from jaxprune.sparse_training.hold import (
    HoldPrunedState,
    hold_pruned,
)

__all__ = [
    "HoldPrunedState",
    "hold_pruned",
]
