"""Optax wrappers that train sparse networks in any loop; the mask is in their state."""

from jaxprune.sparse_training.hold import (
    HoldPrunedState as HoldPrunedState,
    hold_pruned as hold_pruned,
)
