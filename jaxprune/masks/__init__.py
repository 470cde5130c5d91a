"""Masks: bool trees that mirror the parameters; True keeps a weight."""

from jaxprune.masks.apply import (
    apply as apply,
    count as count,
    density as density,
    load as load,
    ones_like as ones_like,
    save as save,
    summary as summary,
)
from jaxprune.masks.controls import (
    invert as invert,
    reinitialize as reinitialize,
    shuffle as shuffle,
)
from jaxprune.masks.health import (
    Collapse as Collapse,
    Health as Health,
    health as health,
)
from jaxprune.masks.schedule import (
    check_density as check_density,
    densities as densities,
    num_kept as num_kept,
)
from jaxprune.masks.select import select as select
