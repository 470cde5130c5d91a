"""The report of a study: tables, figures and a page; imports no JAX."""

from jaxprune.report.figures import FIGURES, draw
from jaxprune.report.page import (
    Published,
    build_all,
    write,
)
from jaxprune.report.tables import (
    TABLES,
    Comparison,
    Quantity,
    Table,
    build,
    compare,
    compare_layers,
    flop_ratio,
    records,
    terminal,
)

__all__ = [
    "FIGURES",
    "TABLES",
    "Comparison",
    "Published",
    "Quantity",
    "Table",
    "build",
    "build_all",
    "compare",
    "compare_layers",
    "draw",
    "flop_ratio",
    "records",
    "terminal",
    "write",
]
