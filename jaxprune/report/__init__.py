"""Tables, figures and a page from the records of a study; imports no JAX."""

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
    beside as beside,
    build as build,
    by_layer as by_layer,
    flop_ratio as flop_ratio,
    terminal as terminal,
)
