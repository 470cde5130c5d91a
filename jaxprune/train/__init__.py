"""Training and evaluating networks under a mask."""

from jaxprune.train.connectivity import (
    error_barrier as error_barrier,
    errors_between as errors_between,
)
from jaxprune.train.loop import (
    EvaluationResult as EvaluationResult,
    FitResult as FitResult,
    ImageSet as ImageSet,
    evaluate as evaluate,
    fit as fit,
)
from jaxprune.train.objective import (
    correct as correct,
    cross_entropy as cross_entropy,
    loss_function as loss_function,
)
from jaxprune.train.optimizer import (
    learning_rate as learning_rate,
    optimizer as optimizer,
)
from jaxprune.train.recipe import Training as Training
