"""How time grows with the parameters of a network and with the cells of a study."""

import functools
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import _bench_ours
import _cli
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from jaxprune import masks, profiling, scores
from jaxprune.study import provenance

PARAMETERS = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000)
DEPTHS, WIDTHS = ("vgg11", "vgg13", "vgg16", "vgg19"), (0.25, 0.5, 1.0, 2.0)
SEEDS = (1, 2, 4, 8)  # of the 6 cells of Rand in the digits study
PANELS = ("tree", "network", "cells")
RESULTS = _cli.ROOT / "experiments" / "results" / "scaling"


def scaling(
    only: tuple[str, ...] = PANELS,
    repeats: int = 3,
    largest: int = PARAMETERS[-1],
    to: Annotated[Path, tyro.conf.arg(name="results-dir")] = RESULTS,
) -> None:
    """Measure how time grows, fit its exponent, and draw it.

    Args:
        only: of tree (select and magnitude on that many weights), network (SNIP, GraSP
            and SynFlow on VGG-11 to -19 at widths 0.25 to 2) and cells (a study).
        repeats: calls a point, of which the median counts; a study runs once.
        largest: leave out trees and networks with more parameters.
        to: folder for scaling.json and scaling.png; panels left out are kept if this machine
            made them.
    """
    unknown = [panel for panel in only if panel not in PANELS]
    if unknown or not only or repeats < 1 or largest < PARAMETERS[1]:
        raise ValueError(
            f"--only is some of {', '.join(PANELS)}, --repeats 1 or more and --largest "
            f"{PARAMETERS[1]} or more; got {' '.join(only) or 'none'}, {repeats}, {largest}."
        )
    path = to / "scaling.json"
    old = _read(path)
    _cli.check_writable(path)
    _cli.check_writable(to / "scaling.png")
    machine = provenance.describe()
    points = []
    if profiling.describe().items() <= old["machine"].items():
        points = [point for point in old["points"] if point["panel"] not in only]
    measured = {"tree": _trees, "network": _networks}
    for panel in only:
        points += _cells() if panel == "cells" else measured[panel](repeats, largest)
        found = {"machine": machine, "points": points}
        _cli.write_text(path, json.dumps(found, indent=1) + "\n")
    for (panel, work), curve in _curves(points).items():
        print(f"{panel:8} {work:10} {_growth(panel, curve)}")
    _draw(points, to / "scaling.png")
    print(f"The figure is {to / 'scaling.png'}")


def _read(path: Path) -> dict[str, Any]:
    """Read what was measured before; nothing if the file is not there, or empty."""
    try:
        text = path.read_text() if path.exists() else ""
        old = json.loads(text or '{"machine": {}, "points": []}')
        keys = ("panel", "work", "size", "seconds")
        points = [{key: point[key] for key in keys} for point in old["points"]]
        return {"machine": dict(old["machine"]), "points": points}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what this script writes. Move it away or pass another "
            "--results-dir."
        ) from error


def _point(panel: str, work: str, size: int, seconds: float) -> dict[str, Any]:
    return {"panel": panel, "work": work, "size": size, "seconds": seconds}


def _median(call: Callable[[], Any], repeats: int) -> float:
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
        scored = magnitude(params)
        calls = {
            "magnitude": functools.partial(magnitude, params),
            "select": functools.partial(masks.select, scored, 0.1),
        }
        points += [
            _point("tree", work, size, _median(call, repeats))
            for work, call in calls.items()
        ]
        del params, scored, calls
        gc.collect()
    return points


def _networks(repeats: int, largest: int) -> list[dict[str, Any]]:
    points = []
    each = [(depth, width) for width in WIDTHS for depth in DEPTHS]
    for depth, width in _track(each, "SNIP, GraSP, SynFlow"):
        network = _bench_ours.vgg(depth, width)
        size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
        if size > largest:
            continue
        calls = {
            "snip": _bench_ours.snip(network),
            "grasp": _bench_ours.grasp(network),
            "synflow_1": _bench_ours.synflow(network, 1),
        }
        points += [
            _point("network", work, size, _median(call, repeats))
            for work, call in calls.items()
        ]
        jax.clear_caches()
        gc.collect()
    return points


def _cells() -> list[dict[str, Any]]:
    """Time whole studies of Rand on digits, each in a folder of its own."""
    points = []
    script = Path(__file__).with_name("study.py")
    for seeds in _track(SEEDS, "studies"):
        with tempfile.TemporaryDirectory() as runs:
            began = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, script, "run", "digits", "--only", "method=random"),
                    *("--seeds", str(seeds), "--runs-dir", runs),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - began
            cells = len(list(Path(runs).glob("digits/*/record.json")))
        points.append(_point("cells", "study", cells, seconds))
    return points


def _track(points: Sequence[Any], what: str) -> Any:
    return track(points, what, console=Console(stderr=True), transient=True)


def _curves(points: list[dict[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    """Group the points by panel and work, as rows of size and seconds."""
    grouped: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        curve = grouped.setdefault((point["panel"], point["work"]), [])
        curve.append((point["size"], point["seconds"]))
    return {name: np.array(sorted(curve)) for name, curve in grouped.items()}


def _growth(panel: str, curve: np.ndarray) -> str:
    """Fit what the time of a study starts from, of the others the exponent."""
    if panel == "cells":
        slope, start = np.polyfit(curve[:, 0], curve[:, 1], 1)
        return f"{start:.1f} s + {slope:.2f} s a cell"
    exponent, _ = np.polyfit(np.log(curve[:, 0]), np.log(curve[:, 1]), 1)
    return f"time ~ size^{exponent:.2f}"


def _draw(points: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    curves = _curves(points)
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = [panel for panel in PANELS if any(name[0] == panel for name in curves)]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for (kind, work), curve in curves.items():
            if kind == panel:
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
