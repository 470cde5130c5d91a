"""Figures of a study as files, each as PNG and SVG."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # needs no display

import numpy as np
from matplotlib import pyplot as plt, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from jaxprune.report import charts, curves, layers, svg
from jaxprune.report.charts import Figure, HeatMap, Histograms, Plot
from jaxprune.study.records import Record

# Okabe and Ito's color-blind safe palette, and two more colors. Markers distinguish the
# methods in grayscale.
COLORS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#CC79A7",
    "#999933",
    "#8C564B",
)
_MARKERS = "osD^vPX*h"  # the same as those of svg.py


# Figures that some studies have no values for.
NAMES = (
    "cost",
    "layer_density",
    "weight_histograms",
    "effective_density",
    "speed_up",
    "layer_macs",
    "connectivity",
)


def build(
    records: Sequence[Record],
    published_layers: Mapping[str, Sequence[float]] | None = None,
) -> list[Figure]:
    """Build every figure that the records have the values for.

    Args:
        records: records of one study, in the study's order.
        published_layers: by method, the published multiply-accumulates that each layer keeps
            at c = 0.5, as shares of the dense network's total; shown beside ours.

    Returns:
        Figures, in the order of the page.

    Raises:
        ValueError: if there are no records.
    """
    figures = [
        curves.metric_figure(records),
        curves.cost(records),
        layers.layer_density(records),
        layers.histograms(records),
        curves.effective(records),
        curves.speed_up(records),
        layers.layer_macs(records, published_layers or {}),
        curves.connectivity(records),
    ]
    return [figure for figure in figures if figure is not None]


def draw(figures: Sequence[Figure], folder: Path, notes: Sequence[str] = ()) -> None:
    """Draw figures into `<name>.png` and `<name>.svg`.

    Args:
        figures: figures of one study.
        folder: folder for the files.
        notes: notes to write below every figure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        options: dict[Any, Any] = {
            "svg.hashsalt": "jaxprune",  # without it, the ids change from run to run
            "text.parse_math": False,  # a name may contain dollar signs
            "font.size": 9,
        }
        with plt.rc_context(options):
            canvas = _canvas(figure)
            if notes:
                # About 16 characters fit in an inch.
                columns = int(16 * canvas.get_figwidth())
                lines = [
                    line for note in notes for line in textwrap.wrap(note, columns)
                ]
                canvas.supxlabel("\n".join(lines), fontsize=7)
            canvas.draw_without_rendering()
            canvas.set_layout_engine("none")  # do not repeat it for every format
            for suffix in ("png", "svg"):
                metadata = {"Date": None} if suffix == "svg" else None
                path = folder / f"{figure.name}.{suffix}"
                canvas.savefig(path, dpi=150, metadata=metadata)
            plt.close(canvas)


def _canvas(figure: Figure) -> Canvas:
    """Draw all panels of a figure, one beside the other."""
    width, height = _size(figure.panels[0])
    columns = min(len(figure.panels), max(1, int(14 / width)), 3)
    rows = math.ceil(len(figure.panels) / columns)
    canvas, grid = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(figure.panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, figure.panels, strict=False):
        axes.set_title(panel.title, fontsize=9, fontweight="bold")
        if isinstance(panel, Plot):
            _plot(axes, panel)
        elif isinstance(panel, HeatMap):
            _heat_map(axes, panel)
        else:
            _histograms(axes, panel)
    handles = {
        label: handle
        for axes in canvas.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        canvas.legend(
            list(handles.values()),
            list(handles),
            ncols=max(
                1, int(width * columns / (0.55 + 0.085 * max(map(len, handles))))
            ),
            loc="outside upper center",
            frameon=False,
        )
    return canvas


def _size(panel: charts.Panel) -> tuple[float, float]:
    """Return the width and height of a panel, in inches."""
    if isinstance(panel, Plot):
        return (5.0, 3.6)
    longest = max((len(name) for name in panel.rows), default=0)
    if isinstance(panel, HeatMap):
        names = max((len(name) for name in panel.columns), default=0)
        cell = 0.42 if len(panel.columns) <= 24 else 0.2
        return (
            0.7 + 0.08 * min(longest, 22) + cell * len(panel.columns),
            0.7 + 0.06 * min(names, 22) + 0.28 * len(panel.rows),
        )
    return (
        0.6 + 0.08 * min(longest, 22) + 1.1 * len(panel.columns),
        0.4 + 0.6 * len(panel.rows),
    )


def _color(style: int) -> str:
    return COLORS[style % len(COLORS)]


def _plot(axes: Axes, plot: Plot) -> None:
    for series in plot.series:
        color = _color(series.style)
        x, y, error = np.array([p[:3] for p in series.points], float).T
        if series.kind == "front":
            axes.plot(x, y, color=color, alpha=0.18, linewidth=7, label=series.label)
            continue
        if series.kind in ("dashed", "shared"):
            color = color if series.kind == "dashed" else "#777777"
            axes.plot(x, y, color=color, linestyle="--", linewidth=0.8)
            continue
        index = (series.style + series.style // len(COLORS)) % len(_MARKERS)
        axes.errorbar(
            x,
            y,
            yerr=error if error.any() else None,
            label=series.label if series.kind != "hollow" else None,
            color=color,
            marker=_MARKERS[index],
            markersize=5,
            markerfacecolor="none" if series.kind == "hollow" else color,
            linewidth={"line": 1.4, "thin": 0.6, "hollow": 0.0}[series.kind],
            elinewidth=1.0,
            capsize=2,
        )
    if plot.mark is not None:
        axis, value, label = plot.mark
        draw_mark = axes.axvline if axis == "x" else axes.axhline
        style = {"color": "#777777", "linestyle": "--", "linewidth": 0.8, "zorder": 1}
        draw_mark(value, label=label or None, **style)
    for log, axis, ends in (
        ("x" in plot.logs, axes.xaxis, plot.x_range),
        ("y" in plot.logs, axes.yaxis, plot.y_range),
    ):
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)(
            "log" if log else "linear"
        )
        axis.set_major_locator(ticker.FixedLocator(svg.ticks(ends, log)))
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.set_xlim(*plot.x_range)
    axes.set_ylim(*plot.y_range)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _heat_map(axes: Axes, panel: HeatMap) -> None:
    shades = np.array(
        [
            [np.nan if v is None else svg.shade(v, panel.top) for v in row]
            for row in panel.cells
        ]
    )
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    axes.set_xticks(
        range(len(panel.columns)),
        [name[-22:] for name in panel.columns],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        fontsize=8,
    )
    axes.set_yticks(range(len(panel.rows)), [row[-22:] for row in panel.rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(panel.columns) > 24:
        return
    for i, row in enumerate(panel.cells):
        for j, value in enumerate(row):
            if value is not None:
                color = "white" if shades[i, j] > 0.75 else "black"
                text = svg.number(value)
                axes.text(j, i, text, color=color, fontsize=7, ha="center", va="center")


def _histograms(axes: Axes, panel: Histograms) -> None:
    """Draw all histograms on one pair of axes; one pair for each would take minutes."""
    for i, row in enumerate(panel.cells):
        edge = svg.edge(row)
        for j, layer in enumerate(row):
            if layer is None:
                continue
            color = _color(panel.styles[j])
            if layer.counts and edge:
                x = j + 0.45 * np.asarray(layer.edges) / edge
                heights = 0.8 * np.asarray(layer.counts) / max(*layer.counts, 1)
                axes.stairs(heights - i, x, baseline=-i, color=color, fill=True)
            axes.plot([j - 0.45, j + 0.45], [-i, -i], color="#777777", linewidth=0.6)
    names = [
        f"{name[-22:]}\n±{svg.edge(row):.2g}" if svg.edge(row) else name[-22:]
        for name, row in zip(panel.rows, panel.cells, strict=True)
    ]
    axes.set_yticks([0.35 - i for i in range(len(names))], names, fontsize=7)
    axes.set_xticks(range(len(panel.columns)), panel.columns)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.5, len(panel.columns) - 0.5)
    axes.set_ylim(-len(panel.rows) + 0.85, 0.95)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
