"""Masks: bool trees that mirror the parameters; True keeps a weight."""

from jaxprune.masks.apply import (
    apply,
    count,
    density,
    load,
    ones_like,
    save,
    summary,
)
from jaxprune.masks.budgets import check_budget, erk, owl, uniform
from jaxprune.masks.channels import select_channels
from jaxprune.masks.controls import (
    invert,
    reinitialize,
    shuffle,
)
from jaxprune.masks.health import (
    Collapse,
    Health,
    find_collapse,
    health,
)
from jaxprune.masks.schedule import (
    check_density,
    densities,
    num_kept,
)
from jaxprune.masks.select import SCOPES, TIES, highest, select

__all__ = [
    "SCOPES",
    "TIES",
    "Collapse",
    "Health",
    "apply",
    "check_budget",
    "check_density",
    "count",
    "densities",
    "density",
    "erk",
    "find_collapse",
    "health",
    "highest",
    "invert",
    "load",
    "num_kept",
    "ones_like",
    "owl",
    "reinitialize",
    "save",
    "select",
    "select_channels",
    "shuffle",
    "summary",
    "uniform",
]
