"""Studies that ship with jaxprune."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments import digits, imp_curve, poster
from jaxprune.study.config import Recipe, Study

if TYPE_CHECKING:  # running cells needs no report, nor what draws it
    from experiments.fidelity import Finding
    from jaxprune.report import Published
    from jaxprune.study.records import Record


class Preset(NamedTuple):
    """A study by name.

    dataset: that it needs; study: `study(found, seeds, recipe)` lists its cells; recipes: by
    name, the first being what `study` takes without one; published: reads what its report is
    set beside, or None; check: compares what needs no data, and records, with what was
    published, None where nothing was.
    """

    dataset: str
    study: Callable[..., Study]
    recipes: Mapping[str, Recipe]
    published: Callable[[], "Published | None"] = lambda: None
    check: "Callable[[Sequence[Record]], Iterator[Finding]] | None" = None


STUDIES: Mapping[str, Preset] = {
    "digits": Preset("digits", digits.study, digits.RECIPES),
    "poster": Preset(
        "cifar10", poster.study, poster.RECIPES, poster.published, poster.check
    ),
    "imp_curve": Preset("cifar10", imp_curve.study, imp_curve.RECIPES),
}
