"""A user's own study: network, data, scoring functions and optimizer, in one Python file.

`python scripts/study.py run path/to/file.py` runs the `STUDY` of a file;
experiments/own_study.py is an example.
"""

import dataclasses
import importlib.util
import linecache
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxprune import scores, train as training, tree
from jaxprune.study import code, config, files, methods, select
from jaxprune.study.config import Cell, Recipe
from jaxprune.study.methods import Method
from jaxprune.train import CLASSIFICATION, Objective


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Examples in memory, of any shape and type; tokens are integers.

    Attributes:
        name: shown in reports.
        train: inputs and targets to train on, arrays of (examples, ...).
        test: inputs and targets to test on.
        objective: loss and metric; by default cross-entropy and accuracy of labels from 0.
        augment: `augment(key, inputs) -> inputs`, in training only.

    Example:
        >>> inputs, labels = np.ones((5, 3), np.float32), np.zeros(5, np.int32)
        >>> Data("ones", train=(inputs, labels), test=(inputs, labels)).shape
        (3,)

        From a file: `with np.load("data.npz") as file: inputs = file["inputs"]`.
    """

    name: str
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    objective: Objective = CLASSIFICATION
    augment: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        """Check the arrays, and turn them into those of JAX's types, on the host."""
        if not isinstance(self.objective, Objective):
            raise ValueError(
                f"objective of the data '{self.name}' is a "
                f"{type(self.objective).__name__}. Pass train.Objective(loss, metric)."
            )
        for split in ("train", "test"):
            object.__setattr__(self, split, self._checked(split, getattr(self, split)))
        shapes = [getattr(self, split)[0].shape[1:] for split in ("train", "test")]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"inputs of '{self.name}' have the shape {shapes[0]} in train and "
                f"{shapes[1]} in test. Pass examples of one shape."
            )

    def _checked(self, split: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
        place = f"{split} of the data '{self.name}'"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{place} is not a pair. Pass (inputs, targets).")
        inputs, targets = (_array(value, place) for value in pair)
        sizes = inputs.shape[:1], targets.shape[:1]
        if sizes[0] != sizes[1] or not all(sizes) or not sizes[0][0]:
            raise ValueError(
                f"{place} has inputs of {inputs.shape} and targets of {targets.shape}. Pass "
                "arrays whose first axis counts the same examples, at least one."
            )
        if self.objective is CLASSIFICATION and targets.dtype.kind in "iu":
            targets = targets.astype(np.int32)
        if self.objective is CLASSIFICATION and (
            targets.ndim != 1 or targets.dtype != np.int32 or targets.min() < 0
        ):
            raise ValueError(
                f"targets in {place} are {targets.dtype}{list(targets.shape)}, where labels "
                "are integers from 0, one for each example. Pass such labels, or an "
                "objective with a loss and a metric."
            )
        return inputs, targets

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one input."""
        return self.train[0].shape[1:]

    def examples(self, split: Literal["train", "test"]) -> training.Examples:
        """Return the examples of a split, on the host."""
        inputs, targets = getattr(self, split)
        return training.Examples(inputs, targets, self.objective, self.augment)


def _array(value: Any, place: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"{place} has an array of {array.dtype}. Pass numbers: floats, integers or "
            "booleans."
        )
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):  # found below
            array = array.astype(np.float32)
    elif array.dtype.kind in "iu" and array.dtype.itemsize >= 4:
        narrow = array.astype(np.int32)
        if (narrow != array).any():
            raise ValueError(f"{place} has integers beyond int32. Pass smaller ones.")
        array = narrow
    if (
        array.dtype.kind not in "biu"
        and not np.isfinite(array.astype(np.float32)).all()
    ):
        raise ValueError(
            f"{place} has numbers that are not finite in {array.dtype}. Remove those "
            "examples, or scale them."
        )
    return array


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of methods on a network and data of the user.

    Ids of stages contain `version` and a hash of the source of each function, so that a
    changed function never returns earlier results.

    Attributes:
        name: of the study and its folder.
        model: `model(key)` returns a Flax NNX module, or `models.Model(params, state, apply)`
            with `apply(params, state, inputs, train=False) -> (outputs, state)`.
        data: what it is trained on.
        methods: names of methods.METHODS; scoring functions `score(loss_fn, params, batches,
            *, mask)`; or `methods.Method`, for a title or another signature.
        densities: shares of the prunable weights to keep, in (0, 1].
        recipe: how networks are trained and pruned, and what is measured. Its training may
            have an optax factory as the optimizer.
        version: changed by the user where the hash of the sources does not show a change,
            such as a new version of a package.

    Example:
        See experiments/own_study.py.
    """

    name: str
    model: Callable[..., Any]
    data: Data
    methods: Sequence[str | Method | Callable[..., Any]]
    densities: Sequence[float]
    recipe: Recipe
    version: str = "1"

    def initializer(self) -> code.Code:
        """Return `model` with a name for ids."""
        return code.of(self.model, self.version, "model")

    def build(self, seeds: int = 1) -> tuple[config.Study, Data]:
        """List the cells of the study, seed by seed.

        Args:
            seeds: number of seeds, from 0.

        Returns:
            The study, and the data to run it with.

        Raises:
            ValueError: if a part of the study is invalid.
        """
        self._check()
        compared, model = self._named_methods(), self.initializer()
        examples, recipe = self._named_data(), self._named_recipe()
        content = (
            *self.data.train,
            *self.data.test,
            examples.objective,
            examples.augment,
        )
        version = f"{self.version}-{code.digest(content, 'data')}"
        cells = [
            Cell(
                dataset=examples.name,
                data_version=version,
                input_shape=examples.shape,
                input_dtype=examples.train[0].dtype.name,
                num_classes=0,
                model=model,
                method=method,
                compression=select.compression(density),
                seed=seed,
                recipe=recipe,
            )
            for seed in range(seeds)
            for method in compared
            for density in (self.densities if method.prunes else (1.0,))
        ]
        return config.Study(self.name, cells), examples

    def _named_data(self) -> Data:
        objective = self.data.objective
        if objective is not CLASSIFICATION:
            objective = dataclasses.replace(
                objective,
                loss=code.of(objective.loss, self.version, "loss"),
                metric=code.of(objective.metric, self.version, "metric"),
            )
        augment = self.data.augment
        augment = augment and code.of(augment, self.version, "augment")
        return dataclasses.replace(self.data, objective=objective, augment=augment)

    def _named_recipe(self) -> Recipe:
        recipe = self.recipe
        if self.data.objective is not CLASSIFICATION:
            # These outputs are not logits, so GraSP must not divide them.
            recipe = dataclasses.replace(recipe, grasp_temperature=1.0)
        if callable(recipe.training.optimizer):
            optimizer = code.of(recipe.training.optimizer, self.version, "optimizer")
            schedule = dataclasses.replace(recipe.training, optimizer=optimizer)
            recipe = dataclasses.replace(recipe, training=schedule)
        return recipe

    def _named_methods(self) -> list[Method]:
        compared = [_method(method, self.version) for method in self.methods]
        names = [method.name for method in compared]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"two methods are named {', '.join(repeated)}. Give each a name of its own: "
                "methods.Method(name, title, score)."
            )
        known = {*scores.SCORERS, *names}
        for name in self.recipe.train_mode_scores:
            tree.check_option("train_mode_scores", name, known)
        return compared

    def _check(self) -> None:
        if not isinstance(self.name, str) or not files.NAME.fullmatch(self.name):
            raise ValueError(
                f"a study is named {self.name!r}; its name becomes a folder. Pass letters, "
                "digits, and _ . + - after the first."
            )
        types = {"data": Data, "recipe": Recipe}
        for name, kind in types.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ValueError(
                    f"{name} of the study is a {type(value).__name__}. Pass a "
                    f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}."
                )
        if not callable(self.model) or hasattr(type(self.model), "train"):
            raise ValueError(
                f"model of the study is a {type(self.model).__name__}. Pass a function of a "
                "key that returns a network, such as lambda key: Network(nnx.Rngs(key))."
            )
        for name, example in (
            ("methods", '("magnitude", "snip")'),
            ("densities", "(0.5, 0.1)"),
        ):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not values:
                raise ValueError(
                    f"{name} of the study is {values!r}. Pass a tuple of some, such as "
                    f"{name}={example}."
                )
        exponents = [select.compression(density) for density in self.densities]
        if len(set(exponents)) < len(exponents):
            raise ValueError(
                f"densities {tuple(self.densities)} has one twice. Pass each once."
            )


def _method(method: Any, version: str) -> Method:
    """Return a method of METHODS, or one of the user with a name for its function."""
    if isinstance(method, str):
        return methods.get(method)
    if isinstance(method, Method):
        if not isinstance(method.score, str):
            score = code.of(method.score, version, "score")
            return dataclasses.replace(method, score=score)
        return method
    if callable(method):
        score = code.of(method, version, "score")
        name = score.title.strip("<>")
        return Method(name, name, score)
    raise ValueError(
        f"methods has a {type(method).__name__}. Pass names of methods, scoring functions, "
        "or methods.Method."
    )


def load(path: Path) -> Study:
    """Load the `STUDY` of a Python file.

    Args:
        path: of the file.

    Returns:
        The study.

    Raises:
        ValueError: if the file can't be run, or has no `STUDY`.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Pass the path of a study's file.")
    name = path.stem
    if name in sys.modules and not code.is_own(sys.modules[name]):
        raise ValueError(f"{path} has the name of the module {name}. Rename the file.")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ValueError(
            f"{path} is not a Python file. Pass one whose name ends in .py."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its classes can be pickled
    folder = str(path.parent.absolute())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python path` does
    # Sources are hashed as they are now, also if the file is edited while it runs.
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    linecache.cache[str(path)] = (len(text), None, lines, str(path))
    run = lambda: exec(compile(text, str(path), "exec"), vars(module))
    code.call(run, str(path))
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        what = (
            "no STUDY" if study is None else f"a STUDY that is a {type(study).__name__}"
        )
        raise ValueError(
            f"{path} has {what}. Define STUDY = user.Study(...), as in "
            "experiments/own_study.py."
        )
    return study
