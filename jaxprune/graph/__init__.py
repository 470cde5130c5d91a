"""A traced function as data: what each part of it reads, needs and shares."""

from jaxprune.graph.boundary import between
from jaxprune.graph.channels import Groups, Kind, channels, kept_entries, kept_mask
from jaxprune.graph.liveness import Liveness, batch_axes, keep, live, site_of
from jaxprune.graph.outputs import outputs
from jaxprune.graph.precision import precise, precise_jaxpr
from jaxprune.graph.program import (
    PRODUCTS,
    Eqn,
    Program,
    Region,
    depends_on,
    producers,
    readers,
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
from jaxprune.graph.trace import open_jaxpr, trace, trace_jaxpr
from jaxprune.graph.uses import Use, cuts, kernels, macs_of, uses

__all__ = [
    "OPAQUE",
    "PRODUCTS",
    "RULES",
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
    "kept_mask",
    "kernels",
    "live",
    "macs_of",
    "open_jaxpr",
    "outputs",
    "precise",
    "precise_jaxpr",
    "producers",
    "readers",
    "rule_of",
    "site_of",
    "small_padding",
    "small_shape",
    "trace",
    "trace_jaxpr",
    "uses",
]
