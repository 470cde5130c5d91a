"""Controls on Fashion-MNIST: whether a mask matters, or only the density of each layer.

SNIP, GraSP, SynFlow (before training) and Mag (after it) at c = 0.5, 1, 1.5 and 2: each with
its own mask, with the mask shuffled within each layer, with its mask on other initial
weights, and with inverted scores. The networks and recipes are those of fashion.py.

Source: Frankle et al., Pruning Neural Networks at Initialization: Why are We Missing the
Mark?, https://arxiv.org/abs/2009.08576, ICLR 2021, section 5; Su et al., Sanity-Checking
Pruning Methods, https://arxiv.org/abs/2009.11094, NeurIPS 2020. Expected: before training,
shuffling and other weights change little, and inverted scores destroy the network; ours:
results/sanity.
    python scripts/fetch_data.py fashion_mnist                 # once; or --from FOLDER
    python scripts/study.py run sanity --seeds 3       # resumes; finished cells are skipped
    python scripts/study.py run sanity --seeds 3 --recipe conv4
    python experiments/sanity.py runs/sanity-lenet FOLDER    # draws controls.png in FOLDER
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import fashion, methods as every_method
from jaxprune import data
from jaxprune.study import config, methods, records
from jaxprune.study.config import Study
from jaxprune.study.methods import Method

if TYPE_CHECKING:  # running cells needs neither polars nor matplotlib
    from jaxprune.report.charts import Figure

RECIPES = fashion.RECIPES
COMPRESSIONS = (0.5, 1.0, 1.5, 2.0)
TESTED = ("snip", "grasp", "synflow", "magnitude")


def controlled(name: str, control: str) -> Method:
    """Return a method with a control, named after both."""
    method = methods.get(name)
    if control == "none":
        return method
    title = f"{method.title}, {control}"
    return dataclasses.replace(
        method, name=f"{name}_{control}", title=title, control=control
    )


def study(
    dataset_files: data.DatasetFiles, seeds: int = 1, recipe: str | None = None
) -> Study:
    """List the cells of the study, seed by seed."""
    recipe = recipe or "lenet"
    compared = [methods.get("dense")]
    compared += [
        controlled(name, control) for name in TESTED for control in methods.CONTROLS
    ]
    fields = config.dataset_fields(dataset_files) | fashion.NETWORKS[recipe]
    fields["recipe"] = RECIPES[recipe]
    cells = every_method.grid(fields, compared, COMPRESSIONS, seeds)
    return Study(f"sanity-{recipe}", cells, [f"Data: {dataset_files.about}"])


def figure(all_records: Sequence[records.Record]) -> "Figure":
    """Plot the accuracy against density: a panel per method, a line per control.

    Accuracies more than 15 points below the best one are out of range.
    """
    from jaxprune.report import charts, frame

    rows = frame.summarize(all_records, lambda record: record.metric).to_dicts()
    labels = {"none": "own mask and weights"}
    lines = {
        (name, control): [
            charts.Point(10 ** -row["c"], row["mean"], row["std"] or 0.0, "")
            for row in sorted(rows, key=lambda row: row["c"])
            if row["method"] == controlled(name, control).name
            and row["mean"] is not None
        ]
        for name in TESTED
        for control in methods.CONTROLS
    }
    points = [point for line in lines.values() for point in line]
    if not any(lines[key] for key in lines if key[1] != "none"):
        raise ValueError("no method has a control. Pass a folder of the sanity study.")
    left, right = charts.span((point.x for point in points), log=True)
    # Networks that are destroyed would hide the differences between the others.
    limit = max(point.y for point in points) - 15.0
    y_range = charts.span(
        y
        for point in points
        if point.y > limit
        for y in (point.y - point.error, point.y + point.error)
    )
    panels = [
        charts.Plot(
            methods.get(name).title,
            "density (kept / prunable weights)",
            "test accuracy (%)",
            (right, left),
            y_range,
            [
                charts.Series(labels.get(control, control), style, lines[name, control])
                for style, control in enumerate(methods.CONTROLS)
                if lines[name, control]
            ],
            "x",
        )
        for name in TESTED
        if any(lines[name, control] for control in methods.CONTROLS)
    ]
    return charts.Figure("controls", "Controls of masks", "", panels)


if __name__ == "__main__":
    from jaxprune.report import figures

    if len(sys.argv) != 3:
        sys.exit("usage: python experiments/sanity.py RUNS_FOLDER FOLDER")
    try:
        found = records.read_all(Path(sys.argv[1]))
        figures.draw([figure(found)], Path(sys.argv[2]))
    except (records.RunsError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
