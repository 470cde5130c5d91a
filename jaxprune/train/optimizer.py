"""The optimizer of a `Training`, and its learning-rate schedule."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from jaxprune import sparse_training, tree
from jaxprune.train.recipe import OptimizerFactory, SparseTraining, Training
from jaxprune.types import RandomKey


def optimizer(
    training: Training, iterations: int = 1, key: RandomKey | None = None
) -> optax.GradientTransformationExtraArgs:
    """Make the optimizer, which holds pruned weights at zero.

    Its `update` takes `learning_rate=`, because a fresh optimizer at iteration k does not
    know k.

    Args:
        training: the recipe.
        iterations: length of the training, for a mask that changes.
        key: of sparse training with random masks.

    Returns:
        An optax transformation whose state has a field `mask`, as that of
        `sparse_training.hold_pruned`.

    Example:
        >>> recipe = Training(epochs=1, batch_size=1, learning_rate=0.1)
        >>> state = optimizer(recipe).init({"w": jnp.ones(2)})

        Another optimizer of optax, with its own weight decay:

        >>> adamw = lambda rate: optax.adamw(rate, weight_decay=0.1)
        >>> recipe = Training(epochs=1, batch_size=1, learning_rate=0.1, optimizer=adamw)
        >>> state = optimizer(recipe).init({"w": jnp.ones(2)})
    """
    decayed = tree.prunable if training.decay_mask == "kernels" else None
    decay = optax.add_decayed_weights(training.weight_decay, decayed)
    if callable(training.optimizer):
        rules = [_from_factory(training.optimizer)]
    else:
        rule = (
            optax.scale_by_adam()
            if training.optimizer == "adam"
            else optax.trace(training.momentum, nesterov=training.momentum > 0)
        )
        scale = optax.GradientTransformationExtraArgs(
            optax.init_empty_state, cast(Any, _scale_by_learning_rate)
        )
        rules = [rule, scale]
    return _sparse(optax.chain(decay, *rules), training.sparse, iterations, key)


def _sparse(
    inner: Any, sparse: SparseTraining | None, iterations: int, key: RandomKey | None
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer with a mask: a given one, or that of sparse training."""
    if sparse is None:
        return sparse_training.hold_pruned(inner)
    density, changes = sparse.density, sparse.changes or 1
    stop = max(1, round(sparse.until * iterations))
    steps = sparse_training.Steps(stop, every=-(-stop // changes))
    make: Mapping[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
        "static": lambda: sparse_training.static(key, inner, density),
        "set": lambda: sparse_training.set(key, inner, density, steps),
        "rigl": lambda: sparse_training.rigl(key, inner, density, steps),
        "gradual": lambda: sparse_training.gradual(inner, density, steps),
        "acdc": lambda: sparse_training.acdc(inner, density, steps),
    }
    return make[sparse.method]()


def _from_factory(factory: OptimizerFactory) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer whose learning rate is an argument of each update."""

    def with_rate(learning_rate: Any) -> optax.GradientTransformationExtraArgs:
        rule = factory(learning_rate)
        if not (hasattr(rule, "init") and hasattr(rule, "update")):
            raise TypeError(
                f"the optimizer factory returned a {type(rule).__name__}. Return an optax "
                "transformation, such as optax.adamw(learning_rate)."
            )
        return optax.with_extra_args_support(rule)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        learning_rate: Array,
        **extra: Any,
    ) -> tuple[Any, Any]:
        return with_rate(learning_rate).update(updates, state, params, **extra)

    init = lambda params: with_rate(jnp.float32(0)).init(params)
    _check_state(with_rate)
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _check_state(with_rate: Callable[[Any], optax.GradientTransformation]) -> None:
    """Check that a state does not hold the learning rate, which later steps would use."""
    with jax.ensure_compile_time_eval():
        probe = {"kernel": jnp.zeros((1, 1))}
        low, high = (with_rate(jnp.float32(rate)).init(probe) for rate in (0, 1))
        holds_rate = any(
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True)
        )
    if holds_rate:
        raise TypeError(
            "the state of this optimizer holds its learning rate, so that the schedule would "
            "have no effect. Pass a factory without optax.inject_hyperparams, such as "
            "optax.adam."
        )


def _scale_by_learning_rate(
    updates: Any, state: Any, params: Any = None, *, learning_rate: Array, **extra: Any
) -> tuple[Any, Any]:
    del params, extra
    scaled = jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates)
    return scaled, state


def learning_rate(
    training: Training, steps_per_epoch: int
) -> Callable[[Int32[Array, ""]], Float32[Array, ""]]:
    """Make the learning rate of an iteration, counted from the start of training.

    Args:
        training: the recipe.
        steps_per_epoch: iterations per epoch.

    Returns:
        A function of the iteration that may be traced.

    Example:
        >>> recipe = Training(
        ...     epochs=9, batch_size=1, learning_rate=1.0, schedule="steps", drop_epochs=(5,)
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
        if training.schedule == "steps":
            value = value * jnp.float32(training.drop_factor) ** (now >= drops).sum(
                dtype=jnp.float32
            )
        elif training.schedule == "cosine":
            done = jnp.clip((now - warmup) / max(total - warmup, 1), 0, 1)
            value = value * 0.5 * (1 + jnp.cos(jnp.pi * done))
        if warmup:
            value = value * jnp.minimum(1.0, (now + 1) / warmup)
        return value

    return jax.named_call(rate, name="learning_rate")
