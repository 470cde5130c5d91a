"""How time grows with the size of networks and with the cells of a study."""

import _cli

import json  # isort: skip
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from bench.panels import PANELS, PARAMETERS, Panel, Point, measure
from jaxprune.study import provenance

RESULTS = _cli.ROOT / "experiments" / "results" / "scaling"
COLUMNS = 4  # of the figure
# The axes of panels that differ from parameters and seconds.
SIZES = {"cells": "cells", "depth": "operations"}
RATIOS = {
    "wanda": "forward passes",
    "adam": "steps of Adam",
    "sgd": "steps of SGD with momentum",
}


def scaling(
    only: Annotated[tuple[tuple[Panel, ...], ...], tyro.conf.UseAppendAction] = (),
    repeats: int = 3,
    largest: int = PARAMETERS[-1],
    to: Annotated[Path, tyro.conf.arg(name="results-dir")] = RESULTS,
) -> None:
    """Measure how time grows, fit its exponent, and plot it.

    Args:
        only: panels to measure, by default all: tree (select and magnitude on 1 to 300
            million weights), network (SNIP, GraSP and SynFlow on VGG-11 to VGG-19 at widths
            0.25 to 2), cells (a study), width and depth (graph.channels and compact on
            VGG-16 at widths 0.25 to 2, and on transformers of 2 to 48 layers), wanda (beside
            a forward pass), adam and sgd (training steps in each wrapper of sparse training,
            beside those of the optimizer, on 1 to 100 million weights).
        repeats: calls per point, of which the median counts: more of short steps; a study
            and a compaction run once.
        largest: skip trees and networks with more parameters.
        to: folder for scaling.json and scaling.png. Other panels stay in them, each with the
            machine that it was measured on.
    """
    chosen: list[Panel] = [panel for group in only for panel in group]
    panels = chosen if only else list(PANELS)
    if not panels or repeats < 1 or largest < PARAMETERS[1]:
        raise ValueError(
            f"--only must name some of {', '.join(PANELS)}, --repeats must be 1 or more and "
            f"--largest {PARAMETERS[1]} or more; got {' '.join(panels) or 'none'}, {repeats} "
            f"and {largest}."
        )
    _cli.check_installed("matplotlib")
    path = to / "scaling.json"
    stored = _read(path)
    _cli.check_writable(path)
    _cli.check_writable(to / "scaling.png")
    machines, points = stored["machines"], stored["points"]
    for panel in panels:
        points = [point for point in points if point.panel != panel]
        points += measure(panel, repeats, largest)
        machines[panel] = provenance.describe()
        listed = [point._asdict() for point in points]
        result = {"machines": machines, "points": listed}
        _cli.write_text(path, json.dumps(result, indent=1) + "\n")
    for (panel, work), curve in _curves(points).items():
        print(f"{panel:8} {work:18} {_growth(panel, curve)}")
    processors = {panel: machine["processor"] for panel, machine in machines.items()}
    _draw(points, processors, to / "scaling.png")
    print(f"The figure is {to / 'scaling.png'}")


def _read(path: Path) -> dict[str, Any]:
    """Read earlier measurements; none if the file is missing or empty."""
    try:
        text = path.read_text() if path.exists() else ""
        stored = json.loads(text or '{"machines": {}, "points": []}')
        points = [Point(**point) for point in stored["points"]]
        machines = {point.panel: stored["machines"][point.panel] for point in points}
        return {"machines": machines, "points": points}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} was not written by this script. Move it away, or pass another "
            "--results-dir."
        ) from error


def _curves(points: list[Point]) -> dict[tuple[str, str], np.ndarray]:
    """Group the points by panel and work, as rows of size and seconds, or a ratio."""
    grouped: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        curve = grouped.setdefault((point.panel, point.work), [])
        curve.append((point.size, point.seconds / (point.baseline or 1.0)))
    return {name: np.array(sorted(curve)) for name, curve in grouped.items()}


def _growth(panel: str, curve: np.ndarray) -> str:
    """Fit a line through the times of a study, and an exponent to the other times."""
    if panel in RATIOS:
        return f"{curve[:, 1].min():.2f} to {curve[:, 1].max():.2f}"
    if len(curve) == 1:
        return f"{curve[0, 1]:.2g} s (one point)"
    if panel == "cells":
        slope, offset = np.polyfit(curve[:, 0], curve[:, 1], 1)
        return f"{offset:.1f} s + {slope:.2f} s per cell"
    exponent, _ = np.polyfit(np.log(curve[:, 0]), np.log(curve[:, 1]), 1)
    return f"time ~ size^{exponent:.2f}"


def _draw(points: list[Point], processors: dict[str, str], path: Path) -> None:
    from matplotlib.figure import Figure

    curves = _curves(points)
    panels = [panel for panel in PANELS if any(name[0] == panel for name in curves)]
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        own = {work: curve for (name, work), curve in curves.items() if name == panel}
        for work, curve in own.items():
            line = "o" if panel == "network" else "o-"
            axis.plot(*curve.T, line, label=f"{work}: {_growth(panel, curve)}")
        if panel == "cells":
            axis.set(xlim=(0, None), ylim=(0, None))
        elif panel in RATIOS:
            axis.set(xscale="log", ylim=(0, None))
            axis.axhline(1, linestyle=":", color="grey")
        else:
            axis.set(xscale="log", yscale="log")
            sizes = np.array(axis.get_xlim())
            low = min(curve[0, 1] for curve in own.values())
            axis.plot(sizes, low * sizes / sizes[0], ":", color="grey", label="linear")
        axis.set_title(f"{panel} ({processors[panel]})", fontsize="small")
        axis.set_xlabel(SIZES.get(panel, "parameters"))
        axis.set_ylabel(RATIOS.get(panel, "seconds"))
        axis.legend(fontsize="small")
    for axis in list(axes)[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)
