"""Studies that ship with jaxprune."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from experiments import digits, poster
from jaxprune.study.config import Recipe, Study

if TYPE_CHECKING:  # running cells needs no report, nor what draws it
    from jaxprune.report import Published


class Preset(NamedTuple):
    """A study by name.

    dataset: that it needs; study: `study(found, seeds, recipe)` lists its cells; recipes: by
    name, the first being what `study` takes without one; published: reads what its report is
    set beside, or None.
    """

    dataset: str
    study: Callable[..., Study]
    recipes: Mapping[str, Recipe]
    published: Callable[[], "Published | None"] = lambda: None


STUDIES: Mapping[str, Preset] = {
    "digits": Preset("digits", digits.study, digits.RECIPES),
    "poster": Preset("cifar10", poster.study, poster.RECIPES, poster.published),
}
