"""The report of a study: tables, figures and a page; imports no JAX."""

from jaxprune.report.formats import terminal
from jaxprune.report.frame import records
from jaxprune.report.quantities import Quantity, flop_ratio
from jaxprune.report.tables import (
    Comparison,
    Published,
    Table,
    build,
    compare,
    compare_layers,
)
from jaxprune.report.verdict import Leader, Verdict, leaders, verdicts
from jaxprune.report.writing import build_all, write

__all__ = [
    "Comparison",
    "Leader",
    "Published",
    "Quantity",
    "Table",
    "Verdict",
    "build",
    "build_all",
    "compare",
    "compare_layers",
    "flop_ratio",
    "leaders",
    "records",
    "terminal",
    "verdicts",
    "write",
]
