"""Figures of a study, each as PNG and SVG."""

import functools
import itertools
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # needs no display

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report import gain
from jaxprune.report.tables import compressions
from jaxprune.study.records import Layer, Record

# Okabe and Ito's color-blind safe palette, and two more colors. Markers distinguish the
# methods in grayscale.
_COLORS = (
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
    """Draw every figure that the records have the values for.

    Args:
        records: records of one study, in the study's order.
        folder: folder for the files, `<figure>.png` and `<figure>.svg`.
        notes: notes to write below every figure.
        published_layers: by method, the published multiply-accumulates that each layer keeps,
            as shares of the dense network's total; drawn with ours.

    Returns:
        Paths of the PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    layer_macs = functools.partial(_layer_macs, published=published_layers or {})
    drawers = {**FIGURES, "layer_macs": layer_macs}
    if any(record.connectivity for record in records):
        drawers["connectivity"] = _connectivity
    if any(record.compaction for record in records):
        drawers["speed_up"] = _speed_up
    for name, draw_figure in drawers.items():
        # Without a fixed salt, the ids in an SVG change from run to run.
        with plt.rc_context({"svg.hashsalt": "jaxprune", "font.size": 9}):
            figure = draw_figure(records)
            if notes:
                columns = int(
                    16 * figure.get_figwidth()
                )  # characters that fit in a line
                lines = [
                    line for note in notes for line in textwrap.wrap(note, columns)
                ]
                figure.supxlabel("\n".join(lines), fontsize=7)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # do not repeat it for every format
            for suffix in ("png", "svg"):
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=metadata)
            plt.close(figure)
        paths.append(folder / f"{name}.png")
    return paths


# In the order of the colors, so that a method has the same color in every study.
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
    """Return the color and marker of each method; unknown methods take free ones."""
    titles = list(dict.fromkeys(record.title for record in records))
    free = [i for i, title in enumerate(_TITLES) if title not in titles]
    unknown = [title for title in titles if title not in _TITLES]
    indices = dict(zip(unknown, itertools.cycle(free or [0]), strict=False))
    indices |= {title: i for i, title in enumerate(_TITLES) if title in titles}
    return {
        title: {"color": _COLORS[indices[title]], "marker": _MARKERS[indices[title]]}
        for title in titles
    }


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    titles = dict.fromkeys(record.title for record in records)
    return {t: [r for r in records if r.title == t] for t in titles}


def _curves(
    records: Sequence[Record], get_value: Callable[[Record], float | None], label: str
) -> Figure:
    """Draw a quantity against the requested density: one line per method.

    Error bars show one standard deviation over the seeds.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    styles = _styles(records)
    for title, group in _by_method(records).items():
        points: dict[float, list[float]] = {}
        for record in group:
            value = get_value(record)
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
    axes.set_ylim(bottom=0)  # the quantities are percentages
    axes.grid(alpha=0.25)
    axes.legend(ncols=2, fontsize=8)
    return figure


def _accuracy(records: Sequence[Record]) -> Figure:
    return _curves(records, lambda record: record.metric, "test accuracy (%)")


def _effective(records: Sequence[Record]) -> Figure:
    def share(record: Record) -> float | None:
        if record.effective_density is None or not record.density:
            return None
        return 100 * record.effective_density / record.density

    return _curves(records, share, "kept weights on a live path (%)")


def _nearest(records: Sequence[Record], compression: float) -> float:
    return min(compressions(records), key=lambda c: abs(c - compression))


def _first_seeds(records: Sequence[Record], compression: float) -> dict[str, Record]:
    """Return the first seed of each method at a compression, if it has a mask."""
    first_seeds: dict[str, Record] = {}
    for record in records:
        if record.cell["compression"] == compression and record.layers:
            first_seeds.setdefault(record.title, record)
    return first_seeds


def _layers(records: Sequence[Record]) -> Figure:
    """Draw the density of each layer: one panel per compression."""
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
        for title, record in _first_seeds(records, compression).items():
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
        lowest = min((np.min(line.get_ydata()) for line in panel.lines), default=100)
        if lowest < 1:  # like a logarithmic scale, but it can show empty layers
            panel.set_yscale("symlog", linthresh=0.1)
            panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(0, 120 if lowest < 1 else 105)
        panel.grid(alpha=0.25)
    grid[0, 0].set_ylabel("weights kept in the layer (%)")
    legends = [panel.get_legend_handles_labels() for panel in grid.flat]
    handles = {
        label: handle
        for legend in legends
        for handle, label in zip(*legend, strict=True)
    }
    titles = [title for title in styles if title in handles]
    figure.legend(
        [handles[title] for title in titles],
        titles,
        ncols=max(1, len(titles)),
        loc="outside upper center",
        fontsize=8,
    )
    return figure


def _histograms(records: Sequence[Record]) -> Figure:
    """Draw histograms of the kept weights of each layer, at the c nearest to 0.5."""
    compression = _nearest(records, 0.5)
    first_seeds = _first_seeds(records, compression)
    if not first_seeds:
        return plt.subplots(figsize=(4, 1))[0]
    layers = next(iter(first_seeds.values())).layers
    figure, grid = plt.subplots(
        len(layers),
        len(first_seeds),
        figsize=(1.7 * len(first_seeds) + 0.6, 1.15 * len(layers) + 0.9),
        layout="constrained",
        squeeze=False,
        sharex="row",
    )
    styles = _styles(records)
    for column, (title, record) in enumerate(first_seeds.items()):
        for row, layer in enumerate(record.layers):
            panel = grid[row, column]
            _histogram(panel, layer, styles[title]["color"])
            if row == 0:
                panel.set_title(title, fontsize=9)
            if column == 0:
                panel.set_ylabel(layer.name.removesuffix("/kernel"), fontsize=7)
    figure.suptitle(
        f"Kept weights after training, c = {compression:g} "
        f"(density {10.0**-compression:.3g}); pruned weights are only counted",
        fontsize=9,
    )
    return figure


def _layer_macs(
    records: Sequence[Record], published: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw the kept multiply-accumulates of each layer: one panel per method.

    The compression is the one nearest to c = 0.5.
    """
    compression = _nearest(records, 0.5)
    first_seeds = list(_first_seeds(records, compression).items())
    columns = min(4, max(1, len(first_seeds)))
    rows = -(-max(1, len(first_seeds)) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.9 * columns, 2.4 * rows + 0.8),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for panel in grid.flat[len(first_seeds) :]:
        panel.set_axis_off()
    styles = _styles(records)
    for panel, (title, record) in zip(grid.flat, first_seeds, strict=False):
        names = [layer.name.removesuffix("/kernel") for layer in record.layers]
        total = sum(layer.macs for layer in record.layers)
        ours = [
            100 * layer.macs * layer.kept / layer.size / total
            for layer in record.layers
        ]
        dense = [100 * layer.macs / total for layer in record.layers]
        panel.step(
            range(len(names)), dense, where="mid", color="#999999", linewidth=0.8
        )
        panel.plot(ours, "o-", markersize=3, linewidth=1, color=styles[title]["color"])
        shares = published.get(record.method, ())
        if compression == 0.5 and len(shares) == len(names):
            percentages = [100 * share for share in shares]
            panel.plot(percentages, "x", markersize=5, color="#000000")
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=6)
        panel.grid(alpha=0.25)
    for row in grid:
        row[0].set_ylabel("% of the dense network's total", fontsize=7)
        row[0].set_ylim(bottom=0)
    has_crosses = published and compression == 0.5
    crosses = ", published where available (crosses)" if has_crosses else ""
    figure.suptitle(
        f"Kept multiply-accumulates per layer, c = {compression:g} (density "
        f"{10.0**-compression:.3g}): ours (dots){crosses}, dense network (gray)",
        fontsize=9,
    )
    return figure


def _speed_up(records: Sequence[Record]) -> Figure:
    """Draw the speed-up by compaction, and its bound, against density.

    There is one panel per batch size.
    """
    compacted = [record for record in records if record.compaction]
    sizes = gain.batch_sizes(compacted)
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
        for title, group in _by_method(compacted).items():
            seeds: dict[float, list[Record]] = {}
            for record in group:
                density = 10.0 ** -record.cell["compression"]
                seeds.setdefault(density, []).append(record)
            density = sorted(seeds)
            points = np.array([_speed_ups(seeds[d], batch) for d in density])
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
        panel.set_title(f"{batch} image{'s' if batch > 1 else ''} per call", fontsize=9)
        panel.set_xlabel("density (kept / prunable weights)")
        panel.grid(alpha=0.25)
    grid[0, 0].set_ylabel(
        "times faster than the masked network\n(hollow: sparse layers; dashed: bound)"
    )
    grid[0, 0].legend(ncols=2, fontsize=7)
    return figure


def _speed_ups(records: Sequence[Record], batch: int) -> tuple[float, float, float]:
    """Return the speed-up by compaction, its bound, and with sparse layers; nan for none."""
    dense, kept = (
        sum(record.compaction[f"macs_{part}"] or 0 for record in records)
        for part in ("dense", "kept")
    )
    compacted = gain.speed_up(records, batch, "compacted") or np.nan
    sparse = gain.speed_up(records, batch, "sparse") or np.nan
    return compacted, dense / max(kept, 1), sparse


def _connectivity(records: Sequence[Record]) -> Figure:
    """Draw the error between two trained networks: one line per record."""
    connected = [record for record in records if record.connectivity]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, record in enumerate(connected):
        errors = record.connectivity["errors"]
        density = 10.0 ** -record.cell["compression"]
        barrier = record.connectivity["barrier"]
        axes.plot(
            np.linspace(0, 1, len(errors)),
            errors,
            label=f"density {density:.3g}, seed {record.cell['seed']}: barrier {barrier:.2f}",
            color=_COLORS[i % len(_COLORS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=3,
            linewidth=1,
        )
    axes.set_xlabel("position on the line from one network (0) to the other (1)")
    axes.set_ylabel("test error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    return figure


def _histogram(panel: Axes, layer: Layer, color: str) -> None:
    panel.set_yticks([])
    panel.tick_params(labelsize=6)
    if layer.counts:
        edges = np.asarray(layer.edges)
        panel.bar(edges[:-1], layer.counts, np.diff(edges), align="edge", color=color)
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
