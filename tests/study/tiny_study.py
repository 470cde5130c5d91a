"""A study of small networks on scikit-learn's digits, which the tests of the engine run."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxprune import data, masks
from jaxprune.study import methods, records
from jaxprune.study.config import Cell, Recipe, Study
from jaxprune.train import Training

DIGITS = data.find("digits")
RECIPE = Recipe(
    name="tiny",
    training=Training(epochs=1.0, batch_size=256, learning_rate=0.1),
    rewind_epochs=0.5,
    synflow_rounds=3,
    time=False,
    memory="none",
)
MEASURED = dataclasses.replace(RECIPE, time=True, memory="network")


def cell(
    method: str = "snip",
    c: float = 1.0,
    seed: int = 0,
    recipe: Recipe = RECIPE,
    **changes: Any,
) -> Cell:
    """Return a cell; `c` is its compression."""
    fields = {"width": 0.03, "model": "mlp", "train_examples": 512, **changes}
    return Cell(
        dataset="digits",
        data_version=DIGITS.version,
        input_shape=(8, 8, 1),
        num_classes=10,
        method=methods.get(method),
        compression=c,
        seed=seed,
        recipe=recipe,
        **fields,
    )


def study(*cells: Cell) -> Study:
    """Return the study of these cells."""
    return Study("tiny", cells)


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is the same in every run: records without times, and masks."""
    by_cell = {}
    for record in records.read_all(folder):
        mask = {
            name: leaf.tolist()
            for name, leaf in masks.load(folder / record.id / "mask.npz").items()
        }
        facts = (record.layers, record.metric, record.loss, record.density)
        history = [tuple(epoch.values()) for epoch in record.history]
        by_cell[record.id] = {"mask": mask, "facts": facts, "history": history}
    return by_cell
