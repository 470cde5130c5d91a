"""From a mask to a smaller function that computes the same."""

from jaxprune.compact.compaction import Compacted, Info, compact
from jaxprune.compact.sparse import Fastest, fastest, sparse
from jaxprune.compact.store import Exported, load, save

__all__ = [
    "Compacted",
    "Exported",
    "Fastest",
    "Info",
    "compact",
    "fastest",
    "load",
    "save",
    "sparse",
]
