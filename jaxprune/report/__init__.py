"""Tables, figures and a page from the records of a study; imports no JAX."""

from jaxprune.report.figures import FIGURES as FIGURES, draw as draw
from jaxprune.report.page import write as write
from jaxprune.report.tables import TABLES as TABLES, Table as Table, build as build
