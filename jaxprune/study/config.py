"""The parts of a study: frozen, hashable, and named by their content."""

import dataclasses
import decimal
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxprune import data, tree
from jaxprune.study import methods
from jaxprune.study.code import Code
from jaxprune.study.methods import Method
from jaxprune.train import Training


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the networks of a study are trained and pruned.

    Attributes:
        name: shown in reports.
        training: the schedule of every network, dense or pruned.
        rewind: of IMP, a key of methods.REWINDS.
        rewind_epochs: the epoch of the rewind point.
        ties: as in masks.select.
        regrow: as in prune.prune.
        synflow_rounds: rounds of scoring of SynFlow.
        synflow_rescale: as `rescale` in scores.synflow.
        score_examples: examples that SNIP, GraSP and other scores of the loss use, in one
            batch; and examples of noise that NTK-SAP uses.
        train_mode_scores: names of the scores or methods that run the network in training
            mode, where BatchNorm uses the statistics of the batch. GraSP's authors score so.
            ProsPr always runs in training mode.
        grasp_temperature: divides the logits of GraSP.
        norm_flow: BatchNorm in SynFlow, as in models.flow.
        dense_epochs: length of the training before magnitude pruning.
        level_epochs: length of each level of IMP.
        grasp_epochs: length of the training after GraSP. All three are those of
            `training` where they are None.
        time: whether the masked and the compacted network are timed.
        memory: "cell" measures the memory of every masked and compacted network in fresh
            processes, "network" only that of the dense network, as masks do not change it,
            and "none" does not measure it.
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
    time: bool = True
    memory: Literal["cell", "network", "none"] = "cell"
    epochs_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a study, which keeps 10 ** -compression of the prunable weights.

    Attributes:
        dataset: name of the data set.
        data_version: identifies its exact examples, and its loss and metric.
        input_shape: of one example, such as height, width and channels of an image.
        num_classes: number of labels; not used for a network of the user.
        model: a name in models.MODELS; or a function of the user, `init(key) -> Model`.
        method: how it is pruned.
        compression: c; the density is 10 ** -c.
        seed: of the weights, the order of the data and the scores.
        recipe: how the network is trained and pruned.
        width: factor on the number of channels of a network of models.MODELS.
        batch_norm: whether that network has BatchNorm.
        train_examples: number of training examples, None for all.
        input_dtype: of the inputs of the network.
    """

    dataset: str
    data_version: str
    input_shape: tuple[int, ...]
    num_classes: int
    model: str | Code
    method: Method
    compression: float
    seed: int
    recipe: Recipe
    width: float = 1.0
    batch_norm: bool = True
    train_examples: int | None = None
    input_dtype: str = "float32"

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
        tree.check_option("rewind", rewind_of(self), methods.REWINDS)
        tree.check_option("memory", recipe.memory, ("cell", "network", "none"))
        if recipe.memory == "cell" and not recipe.time:
            raise ValueError(
                'memory="cell" is measured with the compacted network, which time=False '
                'leaves out. Pass memory="network" or "none".'
            )
        method, rewind = self.method, methods.REWINDS[rewind_of(self)]
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
        if recipe.score_examples < 1:
            raise ValueError(
                f"score_examples is the number of examples to score with; got "
                f"{recipe.score_examples}. Pass 1 or more."
            )
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(
                f"train_examples is the number of examples to train on; got "
                f"{self.train_examples}. Pass 1 or more, or leave it out for all."
            )
        is_float = jnp.issubdtype(jnp.dtype(self.input_dtype), jnp.floating)
        if method.needs == "key_inputs" and not is_float:
            raise ValueError(
                f"{method.title} scores with Gaussian noise, but the inputs of the network "
                f"are {self.input_dtype}. Leave it out, or call the scoring function "
                "yourself with inputs of that dtype."
            )
        uses_data = method.reconstructs or (
            bool(method.score) and method.needs in ("batches", "activations")
        )
        needed = recipe.score_examples if uses_data else 0
        if self.train_examples is not None and self.train_examples < needed:
            raise ValueError(
                f"{method.title} scores with {needed} examples, but train_examples is "
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
    """Return the requested density of a cell, in (0, 1], to 12 digits."""
    return _density(cell.compression)


# Rounded up, 2/3 would keep one weight more than two thirds of a multiple of 3.
_DIGITS = decimal.Context(prec=12, rounding=decimal.ROUND_DOWN)


def _density(compression: float) -> float:
    exact = 10.0**-compression * (1 + 4e-15)  # 0.3 for c = -log10(0.3), and not less
    return float(_DIGITS.create_decimal_from_float(exact))


def rewind_of(cell: Cell) -> str:
    """Return what the levels of a cell restart from, a key of methods.REWINDS."""
    return cell.method.rewind or cell.recipe.rewind


def is_iterative(cell: Cell) -> bool:
    """Return whether a cell prunes in levels, with training between them."""
    method = cell.method
    steps = (method.keep_fraction, method.level_step)
    return method.levels > 0 or any(step is not None for step in steps)


def level_densities(cell: Cell) -> list[float]:
    """Return the density after each level of IMP; none for methods that prune once.

    Chains with a common beginning share its densities to the last bit.
    """
    method = cell.method
    if method.level_step is not None:
        whole = math.ceil(round((1.0 - density(cell)) / method.level_step, 6))
        steps = [-math.log10(1.0 - k * method.level_step) for k in range(1, whole)]
        steps.append(cell.compression)
    elif method.keep_fraction is None:
        steps = [
            cell.compression * (k + 1) / method.levels for k in range(method.levels)
        ]
    else:
        each = -math.log10(method.keep_fraction)
        whole = math.ceil(round(cell.compression / each, 6))
        steps = [*(each * (k + 1) for k in range(whole - 1)), cell.compression]
    return list(map(_density, steps))


def _lengths(recipe: Recipe) -> list[float | None]:
    """Return the lengths of all trainings, in epochs."""
    others = [recipe.dense_epochs, recipe.level_epochs, recipe.grasp_epochs]
    return [recipe.training.epochs, *others]


def as_json(value: Any) -> Any:
    """Turn a config into JSON values, including defaults: a new default is a new id."""
    if isinstance(value, Code):
        return value.name
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: as_json(getattr(value, field.name)) for field in fields}
    if callable(value):
        raise TypeError(
            f"{value!r} is a function without a name for ids. Pass it through user.Study."
        )
    return [as_json(item) for item in value] if isinstance(value, tuple) else value


def canonical(value: Any) -> str:
    """Write JSON in the canonical form that ids are computed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(value: Any) -> str:
    """Return the content hash of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def cell_id(cell: Cell) -> str:
    """Return the id of a cell: readable at the front, then a content hash; a folder name."""
    digest = content_id(as_json(cell))[:8]
    return f"{cell.method.name}-c{cell.compression:g}-s{cell.seed}-{digest}"
