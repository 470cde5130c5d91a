"""What a study is made of: frozen, hashable, and named by its content."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune.train import Training


class Method(NamedTuple):
    """A column of the study's tables.

    score: name in scores.SCORERS; levels: of iterative magnitude pruning, 0 for methods
    that prune once; pretrained: whether the dense network is trained before scoring.
    """

    title: str
    score: str
    levels: int = 0
    pretrained: bool = False


METHODS: Mapping[str, Method] = {
    "rand": Method("Rand", "random"),
    "mag": Method("Mag", "magnitude", pretrained=True),
    "snip": Method("SNIP", "snip"),
    "grasp": Method("GraSP", "grasp"),
    "synflow": Method("SynFlow", "synflow"),
    "imp2": Method("IMP-2", "magnitude", levels=2, pretrained=True),
    "imp3": Method("IMP-3", "magnitude", levels=3, pretrained=True),
    "imp4": Method("IMP-4", "magnitude", levels=4, pretrained=True),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the networks of a study are trained and pruned.

    name: for people; training: the schedule of every network, dense or pruned;
    rewind: of IMP, "init", "early" or "weights_kept"; rewind_epochs: where the early
    iteration lies; ties, regrow: as in masks.select and prune; synflow_rounds,
    synflow_rescale: its rounds of scoring, and whether kernels are scaled against
    overflow; score_examples: pictures that SNIP and GraSP see, in one batch;
    grasp_temperature: divides its logits; norm_flow: what batch normalisation is for
    SynFlow, "identity" or "absolute".
    """

    name: str
    training: Training
    rewind: str = "early"
    rewind_epochs: float = 1.0
    ties: str = "exact"
    regrow: bool = False
    synflow_rounds: int = 100
    synflow_rescale: bool = False
    score_examples: int = 100
    grasp_temperature: float = 200.0
    norm_flow: str = "identity"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a study. density = 10 ** -compression of the prunable weights are kept.

    data_version: names the exact pictures; train_examples: how many of them, None for
    all; seed: of the weights, the order of the data and the scores.
    """

    dataset: str
    data_version: str
    input_shape: tuple[int, int, int]
    num_classes: int
    model: str
    method: str
    compression: float
    seed: int
    recipe: Recipe
    width: float = 1.0
    batch_norm: bool = True
    train_examples: int | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown method and a compression that is no number."""
        if self.method not in METHODS:
            raise ValueError(
                f"method '{self.method}' is not known. Pass one of {', '.join(METHODS)}."
            )
        if not 0.0 <= self.compression < 300.0:
            raise ValueError(
                "compression c keeps 10**-c of the weights and lies in [0, 300); got "
                f"{self.compression}. For a density of d, pass -log10(d)."
            )
        if not 0 < self.width < math.inf or not 0 <= self.seed < 2**32:
            raise ValueError(
                f"width {self.width} must be positive and finite, and seed {self.seed} a "
                "whole number from 0 to 2**32 - 1. Mend the one that is not."
            )
        recipe = self.recipe
        late = METHODS[self.method].pretrained and recipe.rewind == "early"
        if late and not 0 <= recipe.rewind_epochs < recipe.training.epochs:
            raise ValueError(
                f"rewind_epochs is the early iteration, before the end of training at "
                f"{recipe.training.epochs}; got {recipe.rewind_epochs}. Pass less."
            )
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(
                f"train_examples is how many pictures to train on; got "
                f"{self.train_examples}. Pass 1 or more, or leave it out for all."
            )


class Study(NamedTuple):
    """A named set of cells; notes are printed above every table."""

    name: str
    cells: Sequence[Cell]
    notes: Sequence[str] = ()


def density(cell: Cell) -> float:
    """Return the density a cell asks for, in (0, 1]."""
    return 10.0**-cell.compression


def as_json(config: Any) -> dict[str, Any]:
    """Turn a config into JSON values, defaults included: a new default is a new id."""
    return json.loads(canonical(dataclasses.asdict(config)))


def canonical(value: Any) -> str:
    """Write JSON in the one way that ids are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(value: Any) -> str:
    """Name a JSON value by its content."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def cell_id(cell: Cell) -> str:
    """Name a cell by its content, readable at the front; safe as a folder name."""
    return f"{cell.method}-c{cell.compression:g}-s{cell.seed}-{content_id(as_json(cell))[:8]}"


def select_cells(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Keep the cells that match every condition.

    Args:
        cells: all cells.
        only: conditions such as "method=snip,synflow", "c=1" or "seed=0".

    Raises:
        ValueError: if a condition is not understood or matches no cell.

    Example:
        >>> select_cells([], [])
        []
    """
    fields = {"method": "method", "c": "compression", "seed": "seed", "model": "model"}
    chosen = list(cells)
    for condition in only:
        name, found, values = condition.partition("=")
        if name not in fields or not found or not values:
            raise ValueError(
                f"--only '{condition}' is not understood. Write conditions such as "
                f"method=snip,synflow or c=1; known names are {', '.join(fields)}."
            )
        there = sorted({getattr(cell, fields[name]) for cell in cells})
        for value in values.split(","):
            if not any(_equal(value, have) for have in there):
                raise ValueError(
                    f"--only '{condition}' matches no cell: there is no {name} {value}. "
                    f"Pass some of {', '.join(f'{have}' for have in there)}."
                )
        chosen = [
            cell
            for cell in chosen
            if any(_equal(v, getattr(cell, fields[name])) for v in values.split(","))
        ]
    if only and not chosen:
        raise ValueError(
            f"--only {' '.join(only)} matches no cell. Drop one of the conditions."
        )
    return chosen


def _equal(text: str, value: Any) -> bool:
    try:
        return text == value if isinstance(value, str) else float(text) == value
    except ValueError:
        return False
