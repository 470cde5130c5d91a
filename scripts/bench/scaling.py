"""How time grows with the parameters of a network and with the cells of a study."""

import _cli

import functools  # isort: skip
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from bench import ours
from jaxprune import masks, profiling, scores
from jaxprune.study import provenance

PARAMETERS = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000)
DEPTHS, WIDTHS = ("vgg11", "vgg13", "vgg16", "vgg19"), (0.25, 0.5, 1.0, 2.0)
SEEDS = (1, 2, 4, 8)  # each with the 6 cells of random pruning in the digits study
Panel = Literal["tree", "network", "cells"]
PANELS: tuple[Panel, ...] = get_args(Panel)
RESULTS = _cli.ROOT / "experiments" / "results" / "scaling"


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
            0.25 to 2) and cells (a study).
        repeats: calls per point, of which the median counts; a study runs once.
        largest: skip trees and networks with more parameters.
        to: folder for scaling.json and scaling.png. Other panels that were measured on this
            machine stay in them.
    """
    panels = [panel for group in only for panel in group] if only else list(PANELS)
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
    machine = provenance.describe()
    points = []
    if profiling.describe().items() <= stored["machine"].items():
        points = [point for point in stored["points"] if point["panel"] not in panels]
    measure = {"tree": _trees, "network": _networks}
    for panel in panels:
        points += _cells() if panel == "cells" else measure[panel](repeats, largest)
        result = {"machine": machine, "points": points}
        _cli.write_text(path, json.dumps(result, indent=1) + "\n")
    for (panel, work), curve in _curves(points).items():
        print(f"{panel:8} {work:10} {_growth(panel, curve)}")
    _draw(points, to / "scaling.png")
    print(f"The figure is {to / 'scaling.png'}")


def _read(path: Path) -> dict[str, Any]:
    """Read earlier measurements; none if the file is missing or empty."""
    try:
        text = path.read_text() if path.exists() else ""
        stored = json.loads(text or '{"machine": {}, "points": []}')
        keys = ("panel", "work", "size", "seconds")
        points = [{key: point[key] for key in keys} for point in stored["points"]]
        return {"machine": dict(stored["machine"]), "points": points}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} was not written by this script. Move it away, or pass another "
            "--results-dir."
        ) from error


def _point(panel: str, work: str, size: int, seconds: float) -> dict[str, Any]:
    return {"panel": panel, "work": work, "size": size, "seconds": seconds}


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    return statistics.median(profiling.seconds(call, calls=repeats, warmup=1))


def _trees(repeats: int, largest: int) -> list[dict[str, Any]]:
    """Time magnitude and select on ten equal kernels."""
    points = []
    for size in _track([n for n in PARAMETERS if n <= largest], "select, magnitude"):
        keys = jax.random.split(jax.random.key(0), 10)
        params = {
            f"layer{i}": jax.random.normal(key, (size // 10_000, 1000))
            for i, key in enumerate(keys)
        }
        magnitude = jax.jit(lambda params: scores.magnitude(params))
        magnitudes = magnitude(params)
        calls = {
            "magnitude": functools.partial(magnitude, params),
            "select": functools.partial(masks.select, magnitudes, 0.1),
        }
        points += [
            _point("tree", work, size, _median_seconds(call, repeats))
            for work, call in calls.items()
        ]
        del params, magnitudes, calls
        gc.collect()
    return points


def _networks(repeats: int, largest: int) -> list[dict[str, Any]]:
    points = []
    shapes = [(depth, width) for width in WIDTHS for depth in DEPTHS]
    for depth, width in _track(shapes, "SNIP, GraSP, SynFlow"):
        network = ours.vgg(depth, width)
        size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
        if size > largest:
            continue
        calls = {
            "snip": ours.snip(network),
            "grasp": ours.grasp(network),
            "synflow_1": ours.synflow(network, 1),
        }
        points += [
            _point("network", work, size, _median_seconds(call, repeats))
            for work, call in calls.items()
        ]
        jax.clear_caches()
        gc.collect()
    return points


def _cells() -> list[dict[str, Any]]:
    """Time whole studies of random pruning on digits, each in its own folder."""
    points = []
    script = Path(__file__).parents[1] / "study.py"
    for seeds in _track(SEEDS, "studies"):
        with tempfile.TemporaryDirectory() as runs:
            start = time.perf_counter()
            subprocess.run(
                [
                    *(
                        sys.executable,
                        script,
                        "run",
                        "digits",
                        "--only",
                        "method=random",
                    ),
                    *("--seeds", str(seeds), "--runs-dir", runs),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - start
            cells = len(list(Path(runs).glob("digits/*/record.json")))
        points.append(_point("cells", "study", cells, seconds))
    return points


def _track(sequence: Sequence[Any], description: str) -> Any:
    console = Console(stderr=True)
    return track(sequence, description, console=console, transient=True)


def _curves(points: list[dict[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    """Group the points by panel and work, as rows of size and seconds."""
    grouped: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        curve = grouped.setdefault((point["panel"], point["work"]), [])
        curve.append((point["size"], point["seconds"]))
    return {name: np.array(sorted(curve)) for name, curve in grouped.items()}


def _growth(panel: str, curve: np.ndarray) -> str:
    """Fit a line through the times of a study, and an exponent to the other times."""
    if panel == "cells":
        slope, offset = np.polyfit(curve[:, 0], curve[:, 1], 1)
        return f"{offset:.1f} s + {slope:.2f} s per cell"
    exponent, _ = np.polyfit(np.log(curve[:, 0]), np.log(curve[:, 1]), 1)
    return f"time ~ size^{exponent:.2f}"


def _draw(points: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    curves = _curves(points)
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = [panel for panel in PANELS if any(name[0] == panel for name in curves)]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for (curve_panel, work), curve in curves.items():
            if curve_panel == panel:
                line = "o" if panel == "network" else "o-"
                label = f"{work}: {_growth(panel, curve)}"
                axis.plot(*curve.T, line, label=label)
        if panel == "cells":
            axis.set(xlim=(0, None), ylim=(0, None))
        else:
            axis.set(xscale="log", yscale="log")
            sizes = np.array(axis.get_xlim())
            low = min(curve[0, 1] for name, curve in curves.items() if name[0] == panel)
            axis.plot(sizes, low * sizes / sizes[0], ":", color="grey", label="linear")
        axis.set_xlabel("cells" if panel == "cells" else "parameters")
        axis.set_ylabel("seconds")
        axis.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)
