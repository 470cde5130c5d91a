"""From a mask to a smaller dense network that computes the same function."""

from jaxprune.compact.gathered import (
    Fastest,
    fastest,
    sparse,
)
from jaxprune.compact.narrower import (
    Compacted,
    Info,
    compact,
)
from jaxprune.compact.store import load, save

__all__ = [
    "Compacted",
    "Fastest",
    "Info",
    "compact",
    "fastest",
    "load",
    "save",
    "sparse",
]
