"""A traced function as data: what each part of it reads, needs and shares."""

from jaxprune.graph.boundary import between
from jaxprune.graph.channels import Box, Groups, Kind, channels, kept_entries
from jaxprune.graph.liveness import (
    Liveness,
    batch_axes,
    depends_on,
    keep,
    live,
    producers,
    site_of,
)
from jaxprune.graph.relations import Keep, small_shape
from jaxprune.graph.rules import (
    OPAQUE,
    RULES,
    Rule,
    Site,
    Small,
    State,
    bind,
    elementwise,
    rule_of,
    small_padding,
)
from jaxprune.graph.trace import Eqn, Program, Region, open_jaxpr, trace, trace_jaxpr
from jaxprune.graph.uses import Use, cuts, kernels, macs_of, uses

__all__ = [
    "OPAQUE",
    "RULES",
    "Box",
    "Eqn",
    "Groups",
    "Keep",
    "Kind",
    "Liveness",
    "Program",
    "Region",
    "Rule",
    "Site",
    "Small",
    "State",
    "Use",
    "batch_axes",
    "between",
    "bind",
    "channels",
    "cuts",
    "depends_on",
    "elementwise",
    "keep",
    "kept_entries",
    "kernels",
    "live",
    "macs_of",
    "open_jaxpr",
    "producers",
    "rule_of",
    "site_of",
    "small_padding",
    "small_shape",
    "trace",
    "trace_jaxpr",
    "uses",
]
