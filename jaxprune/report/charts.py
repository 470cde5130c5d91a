"""The parts of a figure as data; svg.py draws them on the page, figures.py in files."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxprune.report import frame
from jaxprune.study.records import Layer, Record

# thin: markers joined by a fine line; hollow: markers only; dashed: a line without
# markers; shared: a gray dashed line, for all methods; front: a broad line behind the others.
Kind: TypeAlias = Literal["line", "thin", "hollow", "dashed", "shared", "front"]


class Point(NamedTuple):
    """A point of a series.

    Attributes:
        x: horizontal position.
        y: vertical position.
        error: half the length of the error bar; 0 for none.
        hover: the values in words.
    """

    x: float
    y: float
    error: float
    hover: str


class Series(NamedTuple):
    """Points that belong together.

    Attributes:
        label: name in the legend.
        style: index of the color and the marker.
        points: in the order in which a line joins them.
        kind: how they are drawn.
    """

    label: str
    style: int
    points: Sequence[Point]
    kind: Kind = "line"


class Plot(NamedTuple):
    """Series on two axes. Points outside the ranges are not drawn.

    Attributes:
        title: title of the panel; may be empty.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        x_range: left and right end; left may be the greater.
        y_range: lower and upper end.
        series: in the order in which they are drawn.
        logs: which axes are logarithmic: "", "x" or "xy".
        mark: a vertical or horizontal line, such as ("x", 1.5, "masked network").
    """

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    series: Sequence[Series]
    logs: str = ""
    mark: tuple[str, float, str] | None = None


class HeatMap(NamedTuple):
    """A table of colored cells; the color is that of the square root of the value.

    Attributes:
        title: title of the panel.
        rows: titles of the rows.
        columns: titles of the columns.
        cells: rows of a value per column; None where there is none.
        unit: what the values are, in words, for the hover text.
        top: the value that has the darkest color.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    unit: str
    top: float


class Histograms(NamedTuple):
    """A grid of small histograms, one row per layer and one column per method.

    Attributes:
        title: title of the panel.
        rows: names of the layers.
        columns: titles of the methods.
        styles: index of the color of each column.
        cells: rows of a layer per column; None where there is none.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    styles: Sequence[int]
    cells: Sequence[Sequence[Layer | None]]


Panel: TypeAlias = Plot | HeatMap | Histograms


class Figure(NamedTuple):
    """A figure: one panel or more that share a legend and a caption.

    Attributes:
        name: name of its files, without suffix.
        title: title on the page.
        caption: what it shows, in plain words.
        panels: the most informative first.
        shown: number of panels that are always visible.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    shown: int = 9

    @property
    def legend(self) -> dict[str, int]:
        """Return the styles of the series that need a legend, by label."""
        return {
            series.label: series.style
            for panel in self.panels
            if isinstance(panel, Plot)
            for series in panel.series
            if series.kind in ("line", "thin")
        }


# Methods with a fixed style, so that they look the same in every study. Others take the
# styles that these leave free.
_TITLES = (
    "Dense",
    "Rand",
    "Mag",
    "SNIP",
    "GraSP",
    "SynFlow",
    "IMP-2",
    "IMP-3",
    "IMP-4",
)

# Methods that are drawn in one panel, each in its own color; Dense has the first color.
GROUP = 8


def styles(records: Sequence[Record]) -> dict[str, int]:
    """Return the index of the color and the marker of each method.

    Args:
        records: records of one study.
    """
    titles = frame.titles(records)
    if len(titles) > GROUP + 1:  # no color twice in a group of methods
        pruned = [method for method, title in titles.items() if title != "Dense"]
        indices = {
            m: 1 + i % GROUP + (GROUP + 1) * (i // GROUP) for i, m in enumerate(pruned)
        }
        return {method: indices.get(method, 0) for method in titles}
    fixed = {m: _TITLES.index(t) for m, t in titles.items() if t in _TITLES}
    free = (i for i in itertools.count(1) if i not in fixed.values())
    return {m: fixed[m] if m in fixed else next(free) for m in titles}


def span(values: Iterable[float], *, log: bool = False) -> tuple[float, float]:
    """Return the range of some values, with a margin.

    Args:
        values: at least one value.
        log: whether the axis is logarithmic; the values are then positive.
    """
    numbers = [math.log10(value) if log else value for value in values]
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or (0.1 if log else 0.1 * abs(high) or 1.0)
    low, high = low - margin, high + margin
    return (10.0**low, 10.0**high) if log else (low, high)
