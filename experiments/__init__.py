"""Studies that ship with jaxprune."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments import digits, poster
from jaxprune.study.config import Recipe, Study


class Preset(NamedTuple):
    """A study by name.

    dataset: that it needs; study: `study(found, seeds, recipe)` lists its cells; recipes: by
    name, the first being what `study` takes without one.
    """

    dataset: str
    study: Callable[..., Study]
    recipes: Mapping[str, Recipe]


STUDIES: Mapping[str, Preset] = {
    "digits": Preset("digits", digits.study, digits.RECIPES),
    "poster": Preset("cifar10", poster.study, poster.RECIPES),
}
