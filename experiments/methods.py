"""Every method of the registry on scikit-learn's digits, at 10, 5 and 2 % of the weights.

Two recipes: LeNet-300-100 without BatchNorm (24 epochs), and the network and schedule of
digits.py, which has BatchNorm (8 epochs). Nothing is timed. What each method needs and when
to use it: methods.md.

Source: scikit-learn's load_digits. 3 seeds of a recipe took 6 minutes on 2 CPU cores, with
other programs running; ours: results/methods/README.md.
    python scripts/study.py run methods --seeds 3      # resumes; finished cells are skipped
    python scripts/study.py run methods --seeds 3 --recipe conv2
    python experiments/methods.py runs/methods-lenet   # prints a table of that page
"""

import dataclasses
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import digits
from jaxprune import data
from jaxprune.study import config, methods, records, select
from jaxprune.study.config import Cell, Study
from jaxprune.study.methods import Method

DENSITIES = (0.1, 0.05, 0.02)
# Variants of IMP that differ in what they rewind to; imp_curve.py compares them.
_REWINDS = ("imp_late", "imp_rate", "imp_finetune", "imp_connect")
METHODS = tuple(name for name in methods.METHODS if name not in _REWINDS)
_CONV2 = dataclasses.replace(
    digits.RECIPES["digits"], name="conv2", time=False, memory="none"
)
RECIPES = {
    "lenet": dataclasses.replace(
        _CONV2,
        name="lenet",
        training=dataclasses.replace(_CONV2.training, epochs=24, learning_rate=0.05),
    ),
    "conv2": _CONV2,
}
# Of the cells of each recipe.
_NETWORKS = {
    "lenet": {"model": "lenet-300-100", "batch_norm": False},
    "conv2": {"model": "conv2", "width": 0.25},
}


def study(
    dataset_files: data.DatasetFiles, seeds: int = 1, recipe: str | None = None
) -> Study:
    """List the cells of the study, seed by seed."""
    recipe = recipe or "lenet"
    fields = config.dataset_fields(dataset_files) | _NETWORKS[recipe]
    fields["recipe"] = RECIPES[recipe]
    compressions = [select.compression(density) for density in DENSITIES]
    cells = grid(fields, map(methods.get, METHODS), compressions, seeds)
    return Study(f"methods-{recipe}", cells)


def grid(
    fields: Mapping[str, Any],
    compared: Iterable[Method],
    compressions: Sequence[float],
    seeds: int,
) -> list[Cell]:
    """List every method at every compression, seed by seed; the dense network once a seed.

    Args:
        fields: of all cells: data set, network and recipe.
        compared: the methods.
        compressions: exponents c of the methods that prune.
        seeds: number of seeds, from 0.
    """
    points = [
        (method, exponent)
        for method in compared
        for exponent in (compressions if method.prunes else (0.0,))
    ]
    return [
        Cell(**fields, method=method, compression=exponent, seed=seed)
        for seed in range(seeds)
        for method, exponent in points
    ]


def table(all_records: Sequence[records.Record]) -> str:
    """Write the accuracies, epochs and seconds of each method as a Markdown table."""
    exponents = sorted({r.cell["compression"] for r in all_records} - {0.0})
    shown = " | ".join(f"{10**-exponent:.3g}" for exponent in exponents)
    lines = [
        f"| method | {shown} | epochs | seconds |",
        "| :--- " + "| ---: " * (len(exponents) + 2) + "|",
    ]
    for name in dict.fromkeys(record.method for record in all_records):
        own = [record for record in all_records if record.method == name]
        cells = []
        for exponent in exponents:
            here = [
                record.metric
                for record in own
                if record.metric is not None and record.cell["compression"] == exponent
            ]
            cells.append(_spread(here))
        if not any(cells):
            dense = _spread([r.metric for r in own if r.metric is not None])
            cells = [f"{dense} at density 1", *[""] * (len(exponents) - 1)]
        epochs = statistics.median(record.epochs for record in own)
        seconds = statistics.median(record.seconds for record in own)
        row = [own[0].title, *cells, f"{epochs:g}", f"{seconds:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/methods.py RUNS_FOLDER")
    try:
        print(table(records.read_all(Path(sys.argv[1]))))
    except records.RunsError as error:
        sys.exit(f"error: {error}")
