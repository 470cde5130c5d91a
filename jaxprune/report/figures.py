"""Figures of a study, each as PNG and SVG."""

import functools
import itertools
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # no display is there, and none is needed

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report import gain
from jaxprune.report.tables import compressions
from jaxprune.study.records import Layer, Record

# Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in
# grey.
_COLOURS = (
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
_MARKERS = "osD^vPX*h"


def draw(
    records: Sequence[Record],
    folder: Path,
    notes: Sequence[str] = (),
    published_layers: Mapping[str, Sequence[float]] | None = None,
) -> list[Path]:
    """Draw every figure that the records allow.

    Args:
        records: of one study, in its order.
        folder: where the files go, `<figure>.png` and `<figure>.svg`.
        notes: written below every figure.
        published_layers: by method, the share of the dense network's multiply-accumulates
            that each layer kept in a published study, set beside ours.

    Returns:
        The PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    beside = functools.partial(_layer_macs, published=published_layers or {})
    makers = {**FIGURES, "layer_macs": beside}
    if any(record.connectivity for record in records):
        makers["connectivity"] = _connectivity
    if any(record.compaction for record in records):
        makers["speed_up"] = _speed_up
    for name, make in makers.items():
        # The order of ids in an SVG would else change from run to run.
        with plt.rc_context({"svg.hashsalt": "jaxprune", "font.size": 9}):
            figure = make(records)
            if notes:
                columns = int(16 * figure.get_figwidth())  # what fits at this size
                lines = [
                    line for note in notes for line in textwrap.wrap(note, columns)
                ]
                figure.supxlabel("\n".join(lines), fontsize=7)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not for every format
            for suffix in ("png", "svg"):
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=metadata)
            plt.close(figure)
        drawn.append(folder / f"{name}.png")
    return drawn


# In the order of the colours, so that a method looks alike in every study.
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


def _styles(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Give each method its colour and marker; others take those that are free."""
    titles = list(dict.fromkeys(record.title for record in records))
    free = [i for i, title in enumerate(_TITLES) if title not in titles]
    others = [title for title in titles if title not in _TITLES]
    places = dict(zip(others, itertools.cycle(free or [0]), strict=False))
    places |= {title: i for i, title in enumerate(_TITLES) if title in titles}
    return {
        title: {"color": _COLOURS[places[title]], "marker": _MARKERS[places[title]]}
        for title in titles
    }


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    titles = dict.fromkeys(record.title for record in records)
    return {t: [r for r in records if r.title == t] for t in titles}


def _curves(
    records: Sequence[Record], reads: Callable[[Record], float | None], label: str
) -> Figure:
    """Draw a quantity against the density asked for, a line a method, bars over seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    styles = _styles(records)
    for title, group in _by_method(records).items():
        points: dict[float, list[float]] = {}
        for record in group:
            value = reads(record)
            if value is not None:
                points.setdefault(10.0 ** -record.cell["compression"], []).append(value)
        density = sorted(points)
        means = [statistics.fmean(points[d]) for d in density]
        bars = [
            statistics.stdev(points[d]) if len(points[d]) > 1 else 0 for d in density
        ]
        axes.errorbar(
            density,
            means,
            yerr=bars if any(bars) else None,
            label=title,
            **styles[title],
            markersize=5,
            linewidth=1.2,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("density (kept / prunable weights), denser to the left")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)  # both quantities are percentages
    axes.grid(alpha=0.25)
    axes.legend(ncols=2, fontsize=8)
    return figure


def _accuracy(records: Sequence[Record]) -> Figure:
    return _curves(records, lambda record: record.accuracy, "test accuracy (%)")


def _effective(records: Sequence[Record]) -> Figure:
    def share(record: Record) -> float | None:
        if record.effective_density is None or not record.density:
            return None
        return 100 * record.effective_density / record.density

    return _curves(records, share, "kept weights on a live path (%)")


def _nearest(records: Sequence[Record], compression: float) -> float:
    return min(compressions(records), key=lambda c: abs(c - compression))


def _first(records: Sequence[Record], compression: float) -> dict[str, Record]:
    """Take the first seed of each method at a compression, where there is a mask."""
    found: dict[str, Record] = {}
    for record in records:
        if record.cell["compression"] == compression and record.layers:
            found.setdefault(record.title, record)
    return found


def _layers(records: Sequence[Record]) -> Figure:
    """Draw the density of each layer, a panel a compression."""
    pruned = [c for c in compressions(records) if c > 0] or compressions(records)
    rows = -(-len(pruned) // 3)
    figure, grid = plt.subplots(
        rows,
        min(3, len(pruned)),
        figsize=(3.4 * min(3, len(pruned)), 2.9 * rows + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for panel in grid.flat[len(pruned) :]:
        panel.set_axis_off()
    styles = _styles(records)
    for panel, compression in zip(grid.flat, pruned, strict=False):
        names: list[str] = []
        for title, record in _first(records, compression).items():
            names = [layer.name.removesuffix("/kernel") for layer in record.layers]
            panel.plot(
                [100 * layer.kept / layer.size for layer in record.layers],
                label=title,
                **styles[title],
                markersize=4,
                linewidth=1,
            )
        panel.set_title(
            f"c = {compression:g} (density {10.0**-compression:.3g})", fontsize=9
        )
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
        kept = [np.min(line.get_ydata()) for line in panel.lines]
        lowest = min(kept, default=100)
        if lowest < 1:  # logarithmic, but what lost everything still has its place
            panel.set_yscale("symlog", linthresh=0.1)
            panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(0, 120 if lowest < 1 else 105)
        panel.grid(alpha=0.25)
    grid[0, 0].set_ylabel("kept in the layer (%)")
    drawn = [panel.get_legend_handles_labels() for panel in grid.flat]
    named = {
        label: handle for panel in drawn for handle, label in zip(*panel, strict=True)
    }
    shown = {title: named[title] for title in styles if title in named}
    figure.legend(
        list(shown.values()),
        list(shown),
        ncols=max(1, len(shown)),
        loc="outside upper center",
        fontsize=8,
    )
    return figure


def _histograms(records: Sequence[Record]) -> Figure:
    """Draw the kept weights of each layer at c = 0.5 or nearest; zeros are only counted."""
    compression = _nearest(records, 0.5)
    found = _first(records, compression)
    if not found:
        return plt.subplots(figsize=(4, 1))[0]
    layers = next(iter(found.values())).layers
    figure, grid = plt.subplots(
        len(layers),
        len(found),
        figsize=(1.7 * len(found) + 0.6, 1.15 * len(layers) + 0.9),
        layout="constrained",
        squeeze=False,
        sharex="row",
    )
    styles = _styles(records)
    for column, (title, record) in enumerate(found.items()):
        for row, layer in enumerate(record.layers):
            panel = grid[row, column]
            _histogram(panel, layer, styles[title]["color"])
            if row == 0:
                panel.set_title(title, fontsize=9)
            if column == 0:
                panel.set_ylabel(layer.name.removesuffix("/kernel"), fontsize=7)
    figure.suptitle(
        f"Kept weights after training, c = {compression:g} "
        f"(density {10.0**-compression:.3g}); pruned weights are counted, not drawn",
        fontsize=9,
    )
    return figure


def _layer_macs(
    records: Sequence[Record], published: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw what each layer's kept weights compute at c = 0.5 or nearest, a panel a method."""
    compression = _nearest(records, 0.5)
    found = list(_first(records, compression).items())
    columns = min(4, max(1, len(found)))
    rows = -(-max(1, len(found)) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.9 * columns, 2.4 * rows + 0.8),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for panel in grid.flat[len(found) :]:
        panel.set_axis_off()
    styles = _styles(records)
    for panel, (title, record) in zip(grid.flat, found, strict=False):
        names = [layer.name.removesuffix("/kernel") for layer in record.layers]
        whole = sum(layer.macs for layer in record.layers)
        ours = [100 * x.macs * x.kept / x.size / whole for x in record.layers]
        dense = [100 * layer.macs / whole for layer in record.layers]
        panel.step(
            range(len(names)), dense, where="mid", color="#999999", linewidth=0.8
        )
        panel.plot(ours, "o-", markersize=3, linewidth=1, color=styles[title]["color"])
        theirs = published.get(record.cell["method"], ())
        if compression == 0.5 and len(theirs) == len(names):
            marks = [100 * share for share in theirs]
            panel.plot(marks, "x", markersize=5, color="#000000")
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=6)
        panel.grid(alpha=0.25)
    for row in grid:
        row[0].set_ylabel("% of the dense network's MACs", fontsize=7)
        row[0].set_ylim(bottom=0)
    beside = published and compression == 0.5
    crosses = ", published where there is one (crosses)" if beside else ""
    figure.suptitle(
        f"Kept multiply-accumulates of each layer, c = {compression:g} (density "
        f"{10.0**-compression:.3g}): ours (dots){crosses}, dense (grey)",
        fontsize=9,
    )
    return figure


def _speed_up(records: Sequence[Record]) -> Figure:
    """Draw what is gained, and its bound, against density, a panel a batch size."""
    held = [record for record in records if record.compaction]
    sizes = gain.batches(held)
    figure, grid = plt.subplots(
        1,
        len(sizes),
        figsize=(3.4 * len(sizes), 3.8),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    styles = _styles(records)
    for panel, batch in zip(grid[0], sizes, strict=True):
        for title, group in _by_method(held).items():
            seeds: dict[float, list[Record]] = {}
            for record in group:
                density = 10.0 ** -record.cell["compression"]
                seeds.setdefault(density, []).append(record)
            density = sorted(seeds)
            points = np.array([_gains(seeds[d], batch) for d in density])
            style = {**styles[title], "linewidth": 1.2, "markersize": 4}
            panel.plot(density, points[:, 0], label=title, **style)
            bound = {"color": style["color"], "linestyle": "--", "linewidth": 0.8}
            panel.plot(density, points[:, 1], **bound)
            hollow = {**style, "linewidth": 0, "markerfacecolor": "none"}
            panel.plot(density, points[:, 2], **hollow)
        panel.axhline(1, color="#999999", linewidth=0.8)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.invert_xaxis()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_title(f"{batch} picture{'s' if batch > 1 else ''} a call", fontsize=9)
        panel.set_xlabel("density (kept / prunable weights)")
        panel.grid(alpha=0.25)
    grid[0, 0].set_ylabel(
        "times faster than masked\n(hollow: sparse layers; dashed: bound)"
    )
    grid[0, 0].legend(ncols=2, fontsize=7)
    return figure


def _gains(records: Sequence[Record], batch: int) -> tuple[float, float, float]:
    """Return what compaction gains, the bound, and what sparse layers gain, or nan."""
    dense, kept = (
        sum(record.compaction[f"macs_{part}"] or 0 for record in records)
        for part in ("dense", "kept")
    )
    gained, sparse = (
        gain.speed_up(records, batch, side) or np.nan
        for side in ("compacted", "sparse")
    )
    return gained, dense / max(kept, 1), sparse


def _connectivity(records: Sequence[Record]) -> Figure:
    """Draw the error on the line between two trainings, a line a density."""
    found = [record for record in records if record.connectivity]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, record in enumerate(found):
        errors = record.connectivity["errors"]
        density = 10.0 ** -record.cell["compression"]
        barrier = record.connectivity["barrier"]
        axes.plot(
            np.linspace(0, 1, len(errors)),
            errors,
            label=f"density {density:.3g}, seed {record.cell['seed']}: barrier {barrier:.2f}",
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=3,
            linewidth=1,
        )
    axes.set_xlabel("share of the way from one training to the other")
    axes.set_ylabel("test error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    return figure


def _histogram(panel: Axes, layer: Layer, colour: str) -> None:
    panel.set_yticks([])
    panel.tick_params(labelsize=6)
    if layer.counts:
        edges = np.asarray(layer.edges)
        panel.bar(edges[:-1], layer.counts, np.diff(edges), align="edge", color=colour)
    pruned = 100 * (1 - layer.kept / layer.size)
    panel.text(
        0.97,
        0.93,
        f"{pruned:.0f} % pruned",
        transform=panel.transAxes,
        fontsize=6,
        ha="right",
        va="top",
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )


FIGURES: Mapping[str, Callable[[Sequence[Record]], Figure]] = {
    "accuracy": _accuracy,
    "layer_density": _layers,
    "effective_density": _effective,
    "weight_histograms": _histograms,
}
