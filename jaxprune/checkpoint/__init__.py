"""Saving and resuming: trees of arrays, and levels of iterative magnitude pruning."""

from jaxprune.checkpoint.fingerprint import fingerprint
from jaxprune.checkpoint.levels import levels
from jaxprune.checkpoint.store import (
    exists,
    load,
    quarantine,
    remove,
    save,
)
from jaxprune.disk import CorruptFileError

__all__ = [
    "CorruptFileError",
    "exists",
    "fingerprint",
    "levels",
    "load",
    "quarantine",
    "remove",
    "save",
]
