"""The report of a study: tables, figures and a page; imports no JAX."""

from jaxprune.report.figures import FIGURES as FIGURES, draw as draw
from jaxprune.report.page import (
    Published as Published,
    build_all as build_all,
    write as write,
)
from jaxprune.report.tables import (
    TABLES as TABLES,
    Comparison as Comparison,
    Quantity as Quantity,
    Table as Table,
    build as build,
    compare as compare,
    compare_layers as compare_layers,
    flop_ratio as flop_ratio,
    terminal as terminal,
)
