"""A training recipe as data."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

from jaxprune import tree

OptimizerName: TypeAlias = Literal["adam", "sgd"]
OptimizerFactory: TypeAlias = Callable[[Any], Any]
SparseName: TypeAlias = Literal["static", "set", "rigl", "gradual", "acdc"]


@dataclasses.dataclass(frozen=True)
class SparseTraining:
    """A mask that training itself chooses, by a method of `jaxprune.sparse_training`.

    Attributes:
        method: the name of the method.
        density: kept / prunable at the end of training, in (0, 1].
        changes: how many times the mask changes at most; None for 6 of "acdc", so that its
            phases are long, and 20 of the others. That of "static" never does.
        until: share of the training after which it no longer changes, in (0, 1].
    """

    method: SparseName
    density: float
    changes: int | None = None
    until: float = 0.75

    def __post_init__(self) -> None:
        """Check the values."""
        tree.check_option("method", self.method, get_args(SparseName))
        if self.changes is None:
            object.__setattr__(self, "changes", 6 if self.method == "acdc" else 20)
        is_valid = 0 < self.density <= 1 and 0 < self.until <= 1
        if not (is_valid and isinstance(self.changes, int) and self.changes >= 1):
            raise ValueError(
                "sparse training needs a density and a share `until` in (0, 1], and a whole "
                f"number of changes; got density={self.density}, until={self.until}, "
                f"changes={self.changes}. Pass other values."
            )


@dataclasses.dataclass(frozen=True)
class Training:
    """A recipe for training; hashable, so that it can be a static argument.

    Attributes:
        epochs: length of the whole schedule.
        batch_size: examples per step.
        learning_rate: the peak of the learning rate.
        optimizer: "adam" (beta 0.9, 0.999), "sgd" (Nesterov), or a factory of an optax
            transformation, such as `optax.lion`: it is called with the learning rate of each
            step, a traced scalar, and its state must not depend on that.
        momentum: momentum of "sgd".
        schedule: "constant"; "steps", times `drop_factor` at each of `drop_epochs`; or
            "cosine", to 0 at the end: with `warmup_epochs`, one cycle.
        drop_factor: factor applied at each of `drop_epochs`.
        drop_epochs: epochs at which "steps" lowers the learning rate.
        warmup_epochs: epochs over which the learning rate rises linearly to its peak.
        weight_decay: L2 coefficient: `weight_decay * w` is added to the gradient before the
            optimizer, so "adam" is not AdamW.
        decay_mask: "all" weights decay, or "kernels" only (`tree.prunable`).
        label_smoothing: share of the target that is spread evenly over the classes.
        precision: dtype of the forward and backward pass; "float64" needs jax_enable_x64.
        sparse: how the mask changes during training; None to train under a given mask.
        shuffle: whether each epoch has another order of the examples; False for the order
            of the data in every epoch.
        loop: how the steps of an epoch run: "scan", as one program, which saves the time to
            launch each step; "python", one call for each; or "auto", which is "scan" except
            on a CPU, where XLA's gradients of convolutions are up to 64 times slower inside a
            scan. Without convolutions it may pay there: a small MLP trains 1.6 times as fast.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    optimizer: OptimizerName | OptimizerFactory = "sgd"
    momentum: float = 0.9
    schedule: Literal["constant", "steps", "cosine"] = "constant"
    drop_factor: float = 0.1
    drop_epochs: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    decay_mask: Literal["all", "kernels"] = "all"
    label_smoothing: float = 0.0
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    sparse: SparseTraining | None = None
    shuffle: bool = True
    loop: Literal["auto", "python", "scan"] = "auto"

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "drop_epochs", tuple(self.drop_epochs))
        names = get_args(OptimizerName)
        if not callable(self.optimizer) and self.optimizer not in names:
            shown = self.optimizer
            if not isinstance(shown, str):  # such as optax.adam(1e-3)
                shown = f"a {type(shown).__name__}"
            raise ValueError(
                f"optimizer is {shown!r}. Pass one of {', '.join(names)}, or a function of "
                "the learning rate, such as optax.adamw."
            )
        if not isinstance(self.batch_size, int):
            raise ValueError(
                f"batch_size must be a whole number; got {self.batch_size}. Pass one."
            )
        if not isinstance(self.shuffle, bool):
            raise ValueError(
                f"shuffle is {self.shuffle!r}. Pass True, or False for the order of the data."
            )
        for name, hint in get_type_hints(type(self)).items():
            known = [choice for choice in get_args(hint) if isinstance(choice, str)]
            if known:
                tree.check_option(name, getattr(self, name), known)
        positive = (self.epochs, self.batch_size, self.learning_rate)
        if not all(0 < value < math.inf for value in positive):
            raise ValueError(
                f"epochs {self.epochs}, batch_size {self.batch_size} and learning_rate "
                f"{self.learning_rate} must be positive and finite. Pass other values."
            )
        if self.label_smoothing > 1:
            raise ValueError(
                f"label_smoothing is a share of the target, from 0 to 1; got "
                f"{self.label_smoothing}. Pass other values."
            )
        others = (
            self.momentum,
            self.weight_decay,
            self.warmup_epochs,
            self.label_smoothing,
        )
        if not all(0 <= value < math.inf for value in (*others, *self.drop_epochs)):
            raise ValueError(
                f"momentum {self.momentum}, weight_decay {self.weight_decay}, "
                f"warmup_epochs {self.warmup_epochs}, label_smoothing "
                f"{self.label_smoothing} and drop_epochs {self.drop_epochs} must be finite "
                "and not negative. Pass other values."
            )
