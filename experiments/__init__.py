"""Studies that ship with jaxprune."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments import digits
from jaxprune.study.config import Study


class Preset(NamedTuple):
    """A study by name: the data set it needs, and the function that lists its cells."""

    dataset: str
    study: Callable[..., Study]


STUDIES: Mapping[str, Preset] = {"digits": Preset("digits", digits.study)}
