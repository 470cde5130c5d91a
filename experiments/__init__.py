"""The studies that ship with jaxprune."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments import digits, fashion, imp_curve, methods, poster, sanity
from jaxprune.study.config import Recipe, Study

if TYPE_CHECKING:  # running cells needs neither the report nor matplotlib
    from experiments.fidelity import Finding
    from jaxprune.report import Published
    from jaxprune.study.records import Record


class Preset(NamedTuple):
    """A study that can be run by name.

    Attributes:
        dataset: name of its data set.
        study: `study(dataset_files, seeds, recipe)` lists its cells.
        recipes: by name; `study` uses the first if it gets none.
        published: reads the published numbers for the report, or returns None.
        check: compares masks and records with published numbers; None if there are none.
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
    "methods": Preset("digits", methods.study, methods.RECIPES),
    "fashion": Preset("fashion_mnist", fashion.study, fashion.RECIPES),
    "sanity": Preset("fashion_mnist", sanity.study, sanity.RECIPES),
}
