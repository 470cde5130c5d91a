"""How weights are updated: the optimiser without its learning rate, and the rate."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from jaxprune import masks, tree

OPTIMIZERS = ("adam", "sgd")
RATES = ("constant", "steps", "cosine")
DECAYS = ("all", "kernels")
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Training:
    """A recipe for training; hashable, so that it may be a static argument.

    optimizer: "adam" (beta 0.9, 0.999) or "sgd" (Nesterov); learning_rate: its peak;
    rate: "constant", "steps" (times `drop` at each of `drop_epochs`) or "cosine" (to 0 at
    the end); warmup_epochs: linear from 0; weight_decay: added to the gradient, times the
    weight; decay: "all" weights or "kernels" only (ndim >= 2); batch_size: examples a
    step; epochs: length of the whole schedule; smoothing: of labels;
    precision: dtype of the forward and backward pass, "float32" or "bfloat16".
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
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"epochs {self.epochs}, batch_size {self.batch_size} and learning_rate "
                f"{self.learning_rate} must be positive. Mend the training recipe."
            )


def optimizer(training: Training) -> optax.GradientTransformationExtraArgs:
    """Make the update without its learning rate; it takes `mask=` and freezes by it.

    The rate is left to `learning_rate`, a function of the iteration, so that training
    continues from iteration k with a fresh optimiser.

    Args:
        training: the recipe.

    Returns:
        A transformation; subtract the rate times its updates.

    Example:
        >>> update = optimizer(Training(epochs=1, batch_size=1, learning_rate=0.1)).update
    """
    decayed = tree.prunable if training.decay == "kernels" else None
    rule = (
        optax.scale_by_adam()
        if training.optimizer == "adam"
        else optax.trace(training.momentum, nesterov=training.momentum > 0)
    )
    return optax.chain(
        optax.add_decayed_weights(training.weight_decay, decayed), rule, masks.freeze()
    )


def learning_rate(
    training: Training, steps_per_epoch: int
) -> Callable[[Int32[Array, ""]], Float32[Array, ""]]:
    """Make the learning rate of an iteration, counted from the start of training.

    Args:
        training: the recipe.
        steps_per_epoch: iterations an epoch.

    Returns:
        A function of the iteration that may be traced.

    Example:
        >>> recipe = Training(
        ...     epochs=9, batch_size=1, learning_rate=1.0, rate="steps", drop_epochs=(5,)
        ... )
        >>> learning_rate(recipe, 10)(jnp.int32(49)).item()
        1.0
        >>> round(learning_rate(recipe, 10)(jnp.int32(50)).item(), 4)
        0.1
    """
    peak = training.learning_rate
    total = training.epochs * steps_per_epoch
    warmup = training.warmup_epochs * steps_per_epoch
    drops = jnp.asarray(
        [e * steps_per_epoch for e in training.drop_epochs], jnp.float32
    )

    def rate(iteration: Array) -> Array:
        now = jnp.asarray(iteration, jnp.float32)
        value = jnp.full((), peak, jnp.float32)
        if training.rate == "steps":
            value = value * jnp.float32(training.drop) ** (now >= drops).sum(
                dtype=jnp.float32
            )
        elif training.rate == "cosine":
            done = jnp.clip((now - warmup) / max(total - warmup, 1), 0, 1)
            value = value * 0.5 * (1 + jnp.cos(jnp.pi * done))
        if warmup:
            value = value * jnp.minimum(1.0, (now + 1) / warmup)
        return value

    return jax.named_call(rate, name="learning_rate")
