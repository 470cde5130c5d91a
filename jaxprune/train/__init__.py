"""Training and evaluating networks under a mask."""

from jaxprune.train.connectivity import (
    error_barrier,
    errors_between,
)
from jaxprune.train.evaluation import EvaluationResult, evaluate
from jaxprune.train.examples import (
    Examples,
    ImageSet,
    Task,
    unpack,
)
from jaxprune.train.loop import FitResult, fit
from jaxprune.train.objective import (
    CLASSIFICATION,
    Objective,
    cross_entropy,
    loss_function,
)
from jaxprune.train.optimizer import (
    learning_rate,
    optimizer,
)
from jaxprune.train.recalibration import recalibrate
from jaxprune.train.recipe import SparseName, SparseTraining, Training

__all__ = [
    "CLASSIFICATION",
    "EvaluationResult",
    "Examples",
    "FitResult",
    "ImageSet",
    "Objective",
    "SparseName",
    "SparseTraining",
    "Task",
    "Training",
    "cross_entropy",
    "error_barrier",
    "errors_between",
    "evaluate",
    "fit",
    "learning_rate",
    "loss_function",
    "optimizer",
    "recalibrate",
    "unpack",
]
