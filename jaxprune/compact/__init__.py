"""From a mask to a smaller dense network that computes the same function."""

from jaxprune.compact.gathered import (
    Fastest as Fastest,
    fastest as fastest,
    sparse as sparse,
)
from jaxprune.compact.narrower import (
    Compacted as Compacted,
    Info as Info,
    compact as compact,
)
from jaxprune.compact.store import load as load, save as save
