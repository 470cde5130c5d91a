"""A training recipe as data."""

import dataclasses
import math

OPTIMIZERS = ("adam", "sgd")
RATES = ("constant", "steps", "cosine")
DECAYS = ("all", "kernels")
PRECISIONS = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Training:
    """A recipe for training; hashable, so that it may be a static argument.

    optimizer: "adam" (beta 0.9, 0.999) or "sgd" (Nesterov); learning_rate: its peak;
    rate: "constant", "steps" (times `drop` at each of `drop_epochs`) or "cosine" (to 0
    at the end); warmup_epochs: linear from 0; weight_decay: added to the gradient,
    times the weight; decay: "all" weights or "kernels" only (ndim >= 2); batch_size:
    examples a step; epochs: length of the whole schedule; smoothing: of labels;
    precision: dtype of the forward and backward pass, "float32", "bfloat16" or, with
    jax_enable_x64, "float64".
    """

    epochs: float
    batch_size: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    rate: str = "constant"
    drop: float = 0.1
    drop_epochs: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    decay: str = "all"
    smoothing: float = 0.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what can't be trained with."""
        for what, known in (
            ("optimizer", OPTIMIZERS),
            ("rate", RATES),
            ("decay", DECAYS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, what) not in known:
                raise ValueError(
                    f"{what} '{getattr(self, what)}' is not known. Pass one of "
                    f"{', '.join(known)}."
                )
        positive = (self.epochs, self.batch_size, self.learning_rate)
        if not all(0 < value < math.inf for value in positive):
            raise ValueError(
                f"epochs {self.epochs}, batch_size {self.batch_size} and learning_rate "
                f"{self.learning_rate} must be positive and finite. Mend the recipe."
            )
        others = (self.momentum, self.weight_decay, self.warmup_epochs, self.smoothing)
        if not all(0 <= value < math.inf for value in (*others, *self.drop_epochs)):
            raise ValueError(
                f"momentum {self.momentum}, weight_decay {self.weight_decay}, "
                f"warmup_epochs {self.warmup_epochs}, smoothing {self.smoothing} and "
                f"drop_epochs {self.drop_epochs} must be finite and not negative. Mend "
                "the recipe."
            )
