"""The parts of a study: frozen, hashable, and named by their content."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxprune import data, tree
from jaxprune.train import Training


@dataclasses.dataclass(frozen=True)
class Method:
    """A column of the study's tables.

    Attributes:
        name: in ids, files and conditions.
        title: its name in tables and figures.
        score: a name in scores.SCORERS; empty for the dense network itself.
        levels: levels of iterative magnitude pruning; 0 for methods that prune once.
        keep_fraction: instead of a number of levels, the fraction of the remaining
            weights that each level keeps.
        rewind: a key of REWINDS, where the method decides it and not the recipe.
        pretrained: whether the dense network is trained before scoring.
        points: if not 0, the network is trained a second time from the rewind point
            with other noise, and the error is measured at this many points between the
            two.
    """

    name: str
    title: str
    score: str
    levels: int = 0
    keep_fraction: float | None = None
    rewind: str | None = None
    pretrained: bool = False
    points: int = 0


def _imp(name: str, title: str, **options: Any) -> Method:
    return Method(name, title, "magnitude", pretrained=True, **options)


_METHODS = (
    Method("dense", "Dense", "", pretrained=True),
    Method("random", "Rand", "random"),
    Method("magnitude", "Mag", "magnitude", pretrained=True),
    Method("snip", "SNIP", "snip"),
    Method("grasp", "GraSP", "grasp"),
    Method("synflow", "SynFlow", "synflow"),
    _imp("imp2", "IMP-2", levels=2),
    _imp("imp3", "IMP-3", levels=3),
    _imp("imp4", "IMP-4", levels=4),
    _imp("imp_late", "IMP-late", keep_fraction=0.8, rewind="early"),
    _imp("imp_rate", "IMP-rate", keep_fraction=0.8, rewind="learning_rate"),
    _imp("imp_finetune", "IMP-tune", keep_fraction=0.8, rewind="finetune"),
    _imp("imp_connect", "IMP-twice", keep_fraction=0.8, rewind="early", points=30),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}


def method(name: str) -> Method:
    """Return a method by its name.

    Args:
        name: a key of METHODS.

    Raises:
        ValueError: if it is unknown.

    Example:
        >>> method("snip").title
        'SNIP'
    """
    tree.check_option("method", name, METHODS)
    return METHODS[name]


# The columns of the published tables.
COMPARED = ("random", "magnitude", "snip", "grasp", "synflow", "imp2", "imp3", "imp4")


class Rewind(NamedTuple):
    """What a level of IMP restarts from.

    Attributes:
        weights: the `rewind` option of imp.step.
        continues: whether training continues at the rewind point instead of iteration 0.
        constant: whether it continues at the last learning rate of the schedule.
    """

    weights: str
    continues: bool = False
    constant: bool = False


# The last three are compared by Renda et al., https://arxiv.org/abs/2003.02389, ICLR 2020.
REWINDS: Mapping[str, Rewind] = {
    "init": Rewind("init"),
    "weights_kept": Rewind("weights_kept"),
    "early": Rewind("early", continues=True),
    "learning_rate": Rewind("weights_kept", continues=True),
    "finetune": Rewind("weights_kept", continues=True, constant=True),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the networks of a study are trained and pruned.

    Attributes:
        name: shown in reports.
        training: the schedule of every network, dense or pruned.
        rewind: of IMP, a key of REWINDS.
        rewind_epochs: the epoch of the rewind point.
        ties: as in masks.select.
        regrow: as in prune.prune.
        synflow_rounds: rounds of scoring of SynFlow.
        synflow_rescale: as `rescale` in scores.synflow.
        score_examples: images that SNIP and GraSP score with, in one batch.
        train_mode_scores: names of the scores that run the network in training mode, where
            BatchNorm uses the statistics of the batch. GraSP's authors score so.
        grasp_temperature: divides the logits of GraSP.
        norm_flow: BatchNorm in SynFlow, as in models.flow.
        dense_epochs: length of the training before magnitude pruning.
        level_epochs: length of each level of IMP.
        grasp_epochs: length of the training after GraSP. All three are those of
            `training` where they are None.
        memory: "cell" measures the memory of every masked and compacted network in fresh
            processes, "network" only that of the dense network: masks do not change it.
        epochs_scale: the factor that `reduced` applied to all epochs.
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
    train_mode_scores: tuple[str, ...] = ("grasp",)
    grasp_temperature: float = 200.0
    norm_flow: str = "identity"
    dense_epochs: float | None = None
    level_epochs: float | None = None
    grasp_epochs: float | None = None
    memory: Literal["cell", "network"] = "cell"
    epochs_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a study, which keeps 10 ** -compression of the prunable weights.

    Attributes:
        dataset: a name in data.DATASETS.
        data_version: identifies the exact images.
        input_shape: height, width and channels of an image.
        num_classes: number of labels.
        model: a name in models.MODELS.
        method: how it is pruned.
        compression: c; the density is 10 ** -c.
        seed: of the weights, the order of the data and the scores.
        recipe: how the network is trained and pruned.
        width: factor on the number of channels.
        batch_norm: whether the network has BatchNorm.
        train_examples: number of training images, None for all.
    """

    dataset: str
    data_version: str
    input_shape: tuple[int, int, int]
    num_classes: int
    model: str
    method: Method
    compression: float
    seed: int
    recipe: Recipe
    width: float = 1.0
    batch_norm: bool = True
    train_examples: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0.0 <= self.compression < 300.0:
            raise ValueError(
                "compression c keeps 10**-c of the weights and lies in [0, 300); got "
                f"{self.compression}. For a density of d, pass -log10(d)."
            )
        if not 0 < self.width < math.inf:
            raise ValueError(
                f"width must be positive and finite; got {self.width}. Pass a factor on the "
                "number of channels, such as 0.25."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(
                f"seed must be a whole number from 0 to 2**32 - 1; got {self.seed}. Pass one."
            )
        recipe = self.recipe
        tree.check_option("rewind", rewind_of(self), REWINDS)
        tree.check_option("memory", recipe.memory, ("cell", "network"))
        method, rewind = self.method, REWINDS[rewind_of(self)]
        least = min(e for e in _lengths(recipe) if e is not None)
        if (
            method.pretrained
            and rewind.continues
            and not 0 <= recipe.rewind_epochs < least
        ):
            raise ValueError(
                f"rewind_epochs must be less than the length of training, {least}; got "
                f"{recipe.rewind_epochs}. Pass less."
            )
        if rewind.constant and recipe.training.schedule == "cosine":
            raise ValueError(
                "fine-tuning continues at the last learning rate, which is 0 with "
                'schedule="cosine". Pass schedule="steps" or "constant".'
            )
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(
                f"train_examples is the number of images to train on; got "
                f"{self.train_examples}. Pass 1 or more, or leave it out for all."
            )
        needed = recipe.score_examples if method.score in ("snip", "grasp") else 0
        if self.train_examples is not None and self.train_examples < needed:
            raise ValueError(
                f"{method.title} scores with {needed} images, but train_examples is "
                f"{self.train_examples}. Train on {needed} or more."
            )


class Study(NamedTuple):
    """A named set of cells.

    Attributes:
        name: of the study.
        cells: in the order in which they run.
        notes: printed above every table.
    """

    name: str
    cells: Sequence[Cell]
    notes: Sequence[str] = ()


def dataset_fields(files: data.DatasetFiles) -> dict[str, Any]:
    """Return the fields of a cell that a data set determines."""
    spec = data.DATASETS[files.name]
    return {
        "dataset": files.name,
        "data_version": files.version,
        "input_shape": spec.shape,
        "num_classes": spec.num_classes,
    }


def density(cell: Cell) -> float:
    """Return the requested density of a cell, in (0, 1]."""
    return 10.0**-cell.compression


def rewind_of(cell: Cell) -> str:
    """Return what the levels of a cell restart from, a key of REWINDS."""
    return cell.method.rewind or cell.recipe.rewind


def is_iterative(cell: Cell) -> bool:
    """Return whether a cell prunes in levels, with training between them."""
    method = cell.method
    return method.levels > 0 or method.keep_fraction is not None


def level_densities(cell: Cell) -> list[float]:
    """Return the density after each level of IMP; none for methods that prune once.

    Chains with a common beginning share its densities to the last bit.
    """
    method = cell.method
    if method.keep_fraction is None:
        steps = [
            cell.compression * (k + 1) / method.levels for k in range(method.levels)
        ]
    else:
        each = -math.log10(method.keep_fraction)
        whole = math.ceil(round(cell.compression / each, 6))
        steps = [*(each * (k + 1) for k in range(whole - 1)), cell.compression]
    return [10.0 ** -round(step, 12) for step in steps]


def _lengths(recipe: Recipe) -> list[float | None]:
    """Return the lengths of all trainings, in epochs."""
    others = [recipe.dense_epochs, recipe.level_epochs, recipe.grasp_epochs]
    return [recipe.training.epochs, *others]


def reduced(
    study: Study,
    *,
    epochs_scale: float = 1.0,
    width: float | None = None,
    train_examples: int | None = None,
) -> Study:
    """Change the size of a study; every cell and a note above every table record it.

    Args:
        study: at full size.
        epochs_scale: factor on every number of epochs, including those of the schedule.
        width: factor on the number of channels, instead of the study's own.
        train_examples: number of training images; None for the study's own.

    Returns:
        The same cells at that size.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> len(reduced(Study("empty", []), epochs_scale=0.1).notes)
        1
    """
    for what, factor in (("epochs_scale", epochs_scale), ("width", width)):
        if factor is not None and not 1e-4 <= factor <= 100:
            raise ValueError(
                f"{what} multiplies all {'epochs' if what != 'width' else 'channels'}; got "
                f"{factor}. Pass a number from 0.0001 to 100, such as 0.25."
            )
    changed = [] if epochs_scale == 1.0 else [f"epochs x {epochs_scale:g}"]
    changes: dict[str, Any] = {}
    if width is not None and any(cell.width != width for cell in study.cells):
        changes["width"] = width
        changed.append(f"width {width:g}")
    if train_examples is not None:
        changes["train_examples"] = train_examples
        changed.append(f"{train_examples} training images")
    if not changed:
        return study
    cells = [
        dataclasses.replace(cell, recipe=_scaled(cell.recipe, epochs_scale), **changes)
        for cell in study.cells
    ]
    note = (
        f"Reduced study: {', '.join(changed)}. These are not results of the full study."
    )
    return study._replace(cells=cells, notes=(*study.notes, note))


def _scaled(recipe: Recipe, by: float) -> Recipe:
    def scale(epochs: Any) -> Any:
        return None if epochs is None else round(epochs * by, 9)

    training = dataclasses.replace(
        recipe.training,
        epochs=scale(recipe.training.epochs),
        drop_epochs=tuple(scale(e) for e in recipe.training.drop_epochs),
        warmup_epochs=scale(recipe.training.warmup_epochs),
    )
    names = ("rewind_epochs", "dense_epochs", "level_epochs", "grasp_epochs")
    lengths = {name: scale(getattr(recipe, name)) for name in names}
    whole = recipe.epochs_scale * by
    return dataclasses.replace(recipe, training=training, epochs_scale=whole, **lengths)


def as_json(config: Any) -> dict[str, Any]:
    """Turn a config into JSON values, including defaults: a new default is a new id."""
    return json.loads(canonical(dataclasses.asdict(config)))


def canonical(value: Any) -> str:
    """Write JSON in the canonical form that ids are computed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(value: Any) -> str:
    """Return the content hash of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def cell_id(cell: Cell) -> str:
    """Return the id of a cell: readable at the front, then a content hash; a folder name."""
    return f"{cell.method.name}-c{cell.compression:g}-s{cell.seed}-{content_id(as_json(cell))[:8]}"


def select_cells(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Keep the cells that match every condition.

    Args:
        cells: all cells.
        only: conditions such as "method=snip,synflow", "c=1", "density=0.1" or "seed=0".

    Raises:
        ValueError: if a condition is invalid or matches no cell.

    Example:
        >>> select_cells([], [])
        []
    """
    fields: Mapping[str, Callable[[Cell], Any]] = {
        "method": lambda cell: cell.method,
        "c": lambda cell: cell.compression,
        "density": density,
        "seed": lambda cell: cell.seed,
        "model": lambda cell: cell.model,
    }
    chosen = list(cells)
    for condition in only:
        name, equals, values = condition.partition("=")
        if name not in fields or not equals or not values:
            raise ValueError(
                f"--only '{condition}' is invalid. Write conditions such as "
                f"method=snip,synflow or c=1; known names are {', '.join(fields)}."
            )
        field = fields[name]
        there = sorted({field(cell) for cell in cells}, key=_sort_key)
        for value in values.split(","):
            if not any(_equal(value, have) for have in there):
                more = ", or more --seeds" if name == "seed" else ""
                raise ValueError(
                    f"--only '{condition}' matches no cell: there is no {name} {value}. "
                    f"Pass some of {', '.join(map(_text, there))}{more}."
                )
        chosen = [
            cell
            for cell in chosen
            if any(_equal(value, field(cell)) for value in values.split(","))
        ]
    if only and not chosen:
        raise ValueError(
            f"--only {' '.join(only)} matches no cell. Drop one of the conditions."
        )
    return chosen


def _text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, Method):
        return value.name
    return value if isinstance(value, str) else f"{value:g}"


def _sort_key(value: Any) -> Any:
    return value if isinstance(value, int | float) else _text(value)


def _equal(text: str, value: Any) -> bool:
    """Compare a command-line value; a method matches by its title in tables too."""
    if isinstance(value, str | Method):
        names = [value.title, value.name] if isinstance(value, Method) else [value]
        return text.casefold() in [name.casefold() for name in names]
    try:
        return math.isclose(float(text), value, rel_tol=1e-3)  # 0.316 for 10**-0.5
    except ValueError:
        return False
