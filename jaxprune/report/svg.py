"""Draws panels as inline SVG: colors follow the page, and pointers show values.

No element has an id, so that any number of panels can be in one page.
"""

import html
import math
from collections.abc import Sequence

from jaxprune.report.charts import HeatMap, Histograms, Panel, Plot, Series
from jaxprune.study.records import Layer

COLORS = 9  # colors and markers; the page defines the variables --m0 to --m8


def draw(panel: Panel) -> str:
    """Draw a panel as an `<svg>` element.

    Args:
        panel: what to draw.

    Returns:
        HTML. A plot scales with the page; the others have a fixed size.
    """
    if isinstance(panel, Plot):
        return _plot(panel)
    return _heat_map(panel) if isinstance(panel, HeatMap) else _histograms(panel)


def key(label: str, style: int | None) -> str:
    """Draw an entry of a legend.

    Args:
        label: name of the series.
        style: index of its color and marker; None for the broad line of a Pareto front.
    """
    if style is None:
        return (
            "<span class='key'><svg viewBox='0 0 26 14' width='26' height='14'>"
            f"<path class='front' d='M4,7H22'/></svg>{html.escape(label)}</span>"
        )
    return (
        f"<span class='key'><svg viewBox='0 0 26 14' width='26' height='14'>"
        f"<g style='color:{_color(style)}'><path class='line' d='M0,7H26'/>"
        f"{_marker(style, 13, 7)}</g></svg>{html.escape(label)}</span>"
    )


def _color(style: int) -> str:
    return f"var(--m{style % COLORS})"


def _polygon(*radii: float, corners: int, turn: float = 0.0) -> str:
    """Return the path of a regular shape around a point; several radii make a star."""
    count = corners * len(radii)
    points = [
        (
            radii[i % len(radii)] * math.sin(2 * math.pi * i / count + turn),
            -radii[i % len(radii)] * math.cos(2 * math.pi * i / count + turn),
        )
        for i in range(count)
    ]
    steps = [
        (x - px, y - py)
        for (px, py), (x, y) in zip([(0.0, 0.0), *points], points, strict=False)
    ]
    return "m" + "l".join(f"{x:.1f},{y:.1f}" for x, y in steps) + "z"


# In the order of the colors: circle, square, diamond, triangles, plus, cross, star, hexagon.
_MARKERS = (
    "m-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    _polygon(5.2, corners=4, turn=math.pi / 4),
    _polygon(5.4, corners=4),
    _polygon(5.2, corners=3),
    _polygon(5.2, corners=3, turn=math.pi),
    "m-1.7,-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "m-4.6,-2.3l2.3,-2.3l2.3,2.3l2.3,-2.3l2.3,2.3l-2.3,2.3l2.3,2.3l-2.3,2.3l-2.3,-2.3"
    "l-2.3,2.3l-2.3,-2.3l2.3,-2.3z",
    _polygon(6.0, 2.6, corners=5),
    _polygon(4.8, corners=6),
)


def _marker(style: int, x: float, y: float, kind: str = "marker") -> str:
    shape = _MARKERS[(style + style // COLORS) % COLORS]
    return f"<path class='{kind}' d='M{x:.1f},{y:.1f}{shape}'/>"


_WIDTH, _HEIGHT = 400, 290
_TOP, _RIGHT, _BOTTOM = 24, 8, 42  # margins around the axes


def _plot(plot: Plot) -> str:
    x_ticks, y_ticks = (
        ticks(plot.x_range, "x" in plot.logs),
        ticks(plot.y_range, "y" in plot.logs),
    )
    left = 14 + 7 * max(len(f"{value:g}") for value in y_ticks)
    width, height = _WIDTH - left - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    x_of = lambda x: width * _position(x, plot.x_range, "x" in plot.logs)
    y_of = lambda y: height * (1 - _position(y, plot.y_range, "y" in plot.logs))
    label = html.escape(f"{plot.y_label} against {plot.x_label}")
    parts = [
        f"<svg class='plot' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' "
        f"aria-label='{label}'>"
        f"<text x='{left + width / 2}' y='{_HEIGHT - 6}' class='middle'>"
        f"{_short(plot.x_label, 56)}</text>"
    ]
    mark = f"dashed: {plot.mark[2]}" if plot.mark and plot.mark[2] else ""
    parts.append(f"<text x='2' y='13'>{_short(plot.y_label, 54 - len(mark))}</text>")
    if mark:
        parts.append(
            f"<text x='{_WIDTH - 8}' y='13' class='end'>{html.escape(mark)}</text>"
        )
    for value in x_ticks:
        x = left + x_of(value)
        parts.append(
            f"<path class='grid' d='M{x:.1f},{_TOP}v{height}'/>"
            f"<text x='{x:.1f}' y='{_TOP + height + 15}' class='middle'>{value:g}</text>"
        )
    for value in y_ticks:
        y = _TOP + y_of(value)
        parts.append(
            f"<path class='grid' d='M{left},{y:.1f}h{width}'/>"
            f"<text x='{left - 6}' y='{y + 4:.1f}' class='end'>{value:g}</text>"
        )
    # An inner svg clips what lies outside the axes.
    parts.append(f"<svg x='{left}' y='{_TOP}' width='{width}' height='{height}'>")
    if plot.mark is not None:
        axis, value, _ = plot.mark
        if axis == "x":
            path = f"M{x_of(value):.1f},0v{height}"
        else:
            path = f"M0,{y_of(value):.1f}h{width}"
        parts.append(f"<path class='mark' d='{path}'/>")
    for series in plot.series:
        points = [(x_of(point.x), y_of(point.y)) for point in series.points]
        errors = [
            y_of(p.y) - y_of(p.y + p.error) if p.error else 0 for p in series.points
        ]
        parts.append(_series(series, points, errors))
    x_end, y_end = left + width, _TOP + height
    return "".join(parts) + (
        f"</svg><path class='axis' d='M{left},{_TOP}V{y_end}H{x_end}'/></svg>"
    )


def _series(
    series: Series, points: Sequence[tuple[float, float]], errors: Sequence[float]
) -> str:
    """Draw a series, given its points and its error bars in the units of the SVG."""
    parts = [f"<g style='color:{_color(series.style)}'>"]
    if series.kind != "hollow":
        path = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f"<path class='{series.kind}' d='M{path}'/>")
    if series.kind in ("line", "thin", "hollow"):
        marker = "hollow" if series.kind == "hollow" else "marker"
        for (x, y), error, point in zip(points, errors, series.points, strict=True):
            bar = (
                f"<path class='bar' d='M{x - 3:.1f},{y - error:.1f}h6m-3,0v{2 * error:.1f}"
                "m-3,0h6'/>"
                if error
                else ""
            )
            parts.append(
                f"<g class='point'><title>{html.escape(point.hover)}</title>{bar}"
                f"<circle class='hit' cx='{x:.1f}' cy='{y:.1f}' r='10'/>"
                f"{_marker(series.style, x, y, marker)}</g>"
            )
    return "".join([*parts, "</g>"])


def _position(value: float, ends: tuple[float, float], log: bool) -> float:
    """Return where a value lies between two ends, as a share of their distance."""
    if log:
        value, ends = math.log10(value), (math.log10(ends[0]), math.log10(ends[1]))
    return (value - ends[0]) / (ends[1] - ends[0])


def ticks(ends: tuple[float, float], log: bool) -> list[float]:
    """Return round numbers between two ends.

    Args:
        ends: ends of the axis, in any order.
        log: whether the axis is logarithmic.

    Example:
        >>> ticks((0.9, 0.01), True)
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    """
    low, high = sorted(ends)
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1,)):
            values = [digit * 10.0**power for power in powers for digit in digits]
            values = [float(f"{v:.3g}") for v in values if low <= v <= high]
            if len(values) <= 8:
                break
        if len(values) > 2:
            return values[:: -(-len(values) // 8)]
    size = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(s * size for s in (1, 2, 5, 10) if (high - low) / (s * size) <= 6)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


_ROW = 26  # height of a row of a heat map


def _labels(rows: Sequence[str], y_of_row: Sequence[float], left: float) -> str:
    return "".join(
        f"<text class='end' x='{left - 6:.0f}' y='{y:.0f}'>{_short(row)}</text>"
        for row, y in zip(rows, y_of_row, strict=True)
    )


def _open(panel: HeatMap | Histograms, width: float, height: float) -> str:
    label = html.escape(panel.title or "layers")
    size = f"width='{width:.0f}' height='{height:.0f}'"
    return f"<svg class='map' role='img' aria-label='{label}' {size}>"


def _short(name: str, most: int = 22) -> str:
    """Shorten a name at its beginning; the ends of layer names differ."""
    text = name if len(name) <= most else "…" + name[1 - most :]
    return html.escape(text)


def _left(rows: Sequence[str]) -> float:
    """Return the width that the labels of rows need."""
    return 12 + 6.8 * max(min(len(row), 22) for row in rows)


def _heat_map(panel: HeatMap) -> str:
    cell = 42 if len(panel.columns) <= 24 else 18  # narrow ones have no number
    longest = max((min(len(name), 22) for name in panel.columns), default=0)
    turned = 6.8 * longest > cell
    left, top = _left(panel.rows), (14 + 4.9 * longest if turned else 20)
    slant = 4.9 * longest if turned else 0  # labels of columns lean to the right
    width = left + cell * len(panel.columns) + slant
    height = top + _ROW * len(panel.rows) + 2
    parts = [_open(panel, width, height)]
    for i, name in enumerate(panel.columns):
        x = left + cell * (i + 0.5)
        place = f"transform='translate({x + 4:.0f},{top - 7:.0f})rotate(-45)'"
        if not turned:
            place = f"class='middle' x='{x:.0f}' y='{top - 7:.0f}'"
        parts.append(
            f"<text {place}><title>{html.escape(name)}</title>{_short(name)}</text>"
        )
    middles = [top + _ROW * (i + 0.65) for i in range(len(panel.rows))]
    parts.append(_labels(panel.rows, middles, left))
    for i, (row, values) in enumerate(zip(panel.rows, panel.cells, strict=True)):
        for j, (column, value) in enumerate(zip(panel.columns, values, strict=True)):
            if value is None:
                continue
            x, y = left + cell * j, top + _ROW * i
            text = html.escape(f"{row}, {column}: {value:.3g} {panel.unit}")
            label = (
                f"<text class='middle' x='{x + cell / 2:.0f}' y='{middles[i]:.0f}'>"
                f"{number(value)}</text>"
                if cell > 30
                else ""
            )
            parts.append(
                f"<g class='point'><title>{text}</title><rect x='{x:.0f}' y='{y:.0f}' "
                f"width='{cell - 2}' height='{_ROW - 2}' rx='3' "
                f"class='{'cell' if value else 'empty'}' "
                f"fill-opacity='{shade(value, panel.top):.2f}'/>{label}</g>"
            )
    return "".join([*parts, "</svg>"])


def number(value: float) -> str:
    """Format a percentage in at most 4 characters.

    Args:
        value: the percentage.
    """
    if value and value < 0.01:
        return "~0"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def shade(value: float, top: float) -> float:
    """Return how dark a cell of a heat map is, from 0.04 to 1.

    Args:
        value: value of the cell.
        top: value of the darkest cell.
    """
    return 0.04 + 0.96 * math.sqrt(min(max(value / top, 0.0), 1.0))


_CELL = (92, 50)  # size of a histogram


def _histograms(panel: Histograms) -> str:
    (cell, row_height), top = _CELL, 20
    limits = [edge(row) for row in panel.cells]
    left = max(_left(panel.rows), 60)
    width = left + cell * len(panel.columns)
    height = top + row_height * len(panel.rows)
    parts = [_open(panel, width, height)]
    for i, title in enumerate(panel.columns):
        x = left + cell * (i + 0.5) - 3
        parts.append(
            f"<text class='middle' x='{x:.0f}' y='13'>{_short(title, 13)}</text>"
        )
    middles = [top + row_height * (i + 0.45) for i in range(len(panel.rows))]
    parts.append(_labels(panel.rows, middles, left))
    parts.append(
        _labels(
            [f"±{e:.2g}" if e else "" for e in limits], [m + 15 for m in middles], left
        )
    )
    for i, row in enumerate(panel.cells):
        for j, layer in enumerate(row):
            if layer is None:
                continue
            x, y = left + cell * j, top + row_height * i
            name = f"{panel.columns[j]}, {panel.rows[i]}"
            parts.append(
                f"<g class='point' style='color:{_color(panel.styles[j])}' "
                f"transform='translate({x:.0f},{y:.0f})'>"
                f"<title>{html.escape(name)}: {describe(layer)}</title>"
                f"<rect class='hit' width='{cell - 6}' height='{row_height - 6}'/>"
                f"<path class='shape' d='{_shape(layer, limits[i])}'/>"
                f"<path class='axis' d='M0,{row_height - 6}h{cell - 6}'/></g>"
            )
    return "".join([*parts, "</svg>"])


def edge(row: Sequence[Layer | None]) -> float:
    """Return the largest absolute weight of a row of histograms.

    Args:
        row: layers; None where there is none.
    """
    ends = [
        abs(e) for layer in row if layer for e in (*layer.edges[:1], *layer.edges[-1:])
    ]
    return max(ends, default=0.0)


def describe(layer: Layer) -> str:
    """Describe how many weights of a layer are kept.

    Args:
        layer: the layer.
    """
    pruned = 100 * (1 - layer.kept / layer.size) if layer.size else 0
    return f"{layer.kept:,} of {layer.size:,} weights kept, {pruned:.1f} % pruned"


def _shape(layer: Layer, edge: float) -> str:
    """Return the outline of a histogram."""
    width, height = _CELL[0] - 6, _CELL[1] - 6
    highest = max(layer.counts, default=0)
    if not highest or not edge:
        return f"M0,{height}"
    x_of = lambda x: width * (x + edge) / (2 * edge)
    path = [f"M{x_of(layer.edges[0]):.1f},{height}"]
    for count, right in zip(layer.counts, layer.edges[1:], strict=False):
        path.append(f"V{height - (height - 2) * count / highest:.1f}H{x_of(right):.1f}")
    return "".join([*path, f"V{height}z"])
