"""The studies that ship with jaxprune."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import digits, fashion, imp_curve, methods, poster, sanity
from jaxprune.study.config import Recipe

if TYPE_CHECKING:  # running cells needs neither the report nor matplotlib
    from experiments.fidelity import Finding
    from jaxprune.report import Published
    from jaxprune.study.records import Record


class Preset(NamedTuple):
    """A study that can be run by name.

    Attributes:
        dataset: name of its data set; None if it has its own data.
        study: `study(dataset_files, seeds, recipe)` lists its cells. With its own data,
            `study(seeds)` returns the cells and the data.
        recipes: by name; `study` uses the first if it gets none. Empty with its own data.
        published: reads the published numbers for the report, or returns None.
        check: compares masks and records with published numbers; None if there are none.
    """

    dataset: str | None
    study: Callable[..., Any]
    recipes: Mapping[str, Recipe]
    published: Callable[[], "Published | None"] = lambda: None
    check: "Callable[[Sequence[Record]], Iterator[Finding]] | None" = None


def _own(name: str) -> Preset:
    """Return a study of a file in this folder; importing it may generate data."""
    module: Callable[[], Any] = lambda: importlib.import_module(f"{__name__}.{name}")
    return Preset(None, lambda seeds: module().STUDY.build(seeds), {})


def _check_mnist1d(records: "Sequence[Record]") -> "Iterator[Finding]":
    from experiments import mnist1d

    return mnist1d.check(records)


STUDIES: Mapping[str, Preset] = {
    "digits": Preset("digits", digits.study, digits.RECIPES),
    "poster": Preset(
        "cifar10", poster.study, poster.RECIPES, poster.published, poster.check
    ),
    "imp_curve": Preset("cifar10", imp_curve.study, imp_curve.RECIPES),
    "methods": Preset("digits", methods.study, methods.RECIPES),
    "fashion": Preset("fashion_mnist", fashion.study, fashion.RECIPES),
    "sanity": Preset("fashion_mnist", sanity.study, sanity.RECIPES),
    "gpt": _own("gpt"),
    "mnist1d": _own("mnist1d")._replace(check=_check_mnist1d),
}
