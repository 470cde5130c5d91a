"""Saving and resuming: trees of arrays, and levels of iterative magnitude pruning."""

from jaxprune.checkpoint.fingerprint import fingerprint as fingerprint
from jaxprune.checkpoint.levels import levels as levels
from jaxprune.checkpoint.store import (
    exists as exists,
    load as load,
    quarantine as quarantine,
    remove as remove,
    save as save,
)
from jaxprune.disk import CorruptFileError as CorruptFileError
