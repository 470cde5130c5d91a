"""Optax wrappers that train sparse networks in any loop; the mask is in their state."""

from jaxprune.sparse_training.acdc import acdc
from jaxprune.sparse_training.changing import SparseState, Steps
from jaxprune.sparse_training.gradual import gradual
from jaxprune.sparse_training.hold import (
    HoldPrunedState,
    hold_pruned,
)
from jaxprune.sparse_training.rigl import rigl
from jaxprune.sparse_training.set import set
from jaxprune.sparse_training.static import static

__all__ = [
    "HoldPrunedState",
    "SparseState",
    "Steps",
    "acdc",
    "gradual",
    "hold_pruned",
    "rigl",
    "set",
    "static",
]
