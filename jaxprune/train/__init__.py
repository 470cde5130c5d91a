"""Training and evaluating networks under a mask."""

from jaxprune.train.connectivity import (
    error_barrier,
    errors_between,
)
from jaxprune.train.loop import (
    EvaluationResult,
    FitResult,
    ImageSet,
    evaluate,
    fit,
)
from jaxprune.train.objective import (
    count_correct,
    cross_entropy,
    loss_function,
)
from jaxprune.train.optimizer import (
    learning_rate,
    optimizer,
)
from jaxprune.train.recipe import Training

__all__ = [
    "EvaluationResult",
    "FitResult",
    "ImageSet",
    "Training",
    "count_correct",
    "cross_entropy",
    "error_barrier",
    "errors_between",
    "evaluate",
    "fit",
    "learning_rate",
    "loss_function",
    "optimizer",
]
