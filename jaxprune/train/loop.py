"""The training loop: compiled steps over data that stays on the device.

On a CPU the steps are called from Python, since XLA's convolution gradients inside a
scan are many times slower there; on an accelerator an epoch is one scan.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, PyTree, UInt8

from jaxprune import data, masks, sharding
from jaxprune.data import Preprocessing
from jaxprune.train import objective
from jaxprune.train.optimizer import learning_rate, optimizer
from jaxprune.train.recipe import Training
from jaxprune.types import Mask, Params, RandomKey


class Pictures(NamedTuple):
    """Examples on the device, and how to prepare them."""

    images: UInt8[Array, "examples height width channels"]
    labels: Int32[Array, " examples"]
    how: Preprocessing


class Fitted(NamedTuple):
    """Where training ended.

    params, state: at the end; early: params and state after the iteration asked for, or
    None; history: loss (nats), accuracy (%) and learning rate of each epoch;
    diverged: the loss was not finite, and training
    ended with that epoch, or a weight is not.
    """

    params: Params
    state: PyTree
    early: tuple[Params, PyTree] | None
    history: list[dict[str, float]]
    diverged: bool


class _Carry(NamedTuple):
    params: Params
    state: PyTree
    optimizer: Any
    iteration: Int32[Array, ""]
    totals: "_Totals"


class _Totals(NamedTuple):
    """Sums over the examples of an epoch so far."""

    loss: Float32[Array, ""]
    correct: Int32[Array, ""]
    seen: Int32[Array, ""]


def _no_totals() -> _Totals:
    return _Totals(jnp.float32(0), jnp.int32(0), jnp.int32(0))


def fit(
    apply: Callable[..., Any],
    params: Params,
    state: PyTree,
    mask: Mask,
    pictures: Pictures,
    training: Training,
    key: RandomKey,
    *,
    start: int = 0,
    early: int | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
) -> Fitted:
    """Train from iteration `start` to the end of the schedule, pruned weights at zero.

    The same key gives the same order of data and the same augmentation at an iteration,
    wherever training starts: it continues, with a fresh optimiser.

    Pictures that lie on a mesh (`sharding.copy`) are split into its parts step by step;
    params, state and mask then lie on it too, by `sharding.copy` or `sharding.spread`.

    Args:
        apply: `Model.apply`; the same function object each time, or it compiles again.
        params: weights at `start`; left as they are.
        state: statistics of batch normalisation at `start`.
        mask: which weights to train.
        pictures: the training set.
        training: the recipe.
        key: order of the data and augmentation.
        start: iteration to continue from.
        early: also return the weights after this iteration, if it is reached.
        on_epoch: called with each entry of the history.

    Returns:
        Where training ended.

    Raises:
        ValueError: if `mask` does not mirror `params`, `start` is not an iteration of the
            schedule, the parts of a mesh do not divide a batch, or float64 is asked of a
            JAX that is set to 32 bits.
    """
    examples = pictures.images.shape[0]
    steps = data.steps_per_epoch(examples, training.batch_size)
    total = round(training.epochs * steps)
    if not 0 <= start <= total:
        raise ValueError(
            f"start is iteration {start}, but training has {total}. Pass an iteration "
            "of the schedule."
        )
    order_key, augment_key = jax.random.split(key)
    if training.precision != jax.dtypes.canonicalize_dtype(training.precision):
        raise ValueError(
            'precision="float64" takes jax_enable_x64. Set it, or train in float32.'
        )
    mesh = sharding.mesh_of(pictures.images)

    def place(arrays: Any) -> Any:
        return arrays if mesh is None else sharding.copy(arrays, mesh)

    params = masks.apply(params, mask)  # new buffers, which the steps may donate
    carry = _Carry(
        params,
        jax.tree.map(jnp.copy, state),
        optimizer(training).init(params),
        place(jnp.int32(start)),
        place(_no_totals()),
    )
    augment_key = place(augment_key)
    captured = _copy(carry) if early == start else None
    history: list[dict[str, float]] = []
    now = start
    while now < total:
        epoch = now // steps
        ordered = data.order(order_key, examples, training.batch_size, epoch)
        if mesh is not None:
            ordered = sharding.split(ordered, mesh, axis=1)
        end = min((epoch + 1) * steps, total)
        stops = [end] if early is None or not now < early < end else [early, end]
        for stop in stops:
            carry = _advance(
                carry, mask, pictures, ordered, augment_key, stop - now, apply, training
            )
            now = stop
            if now == early:
                captured = _copy(carry)
        history.append(_summary(carry, epoch, training, steps))
        if on_epoch is not None:
            on_epoch(history[-1])
        if not math.isfinite(history[-1]["loss"]):
            return Fitted(carry.params, carry.state, captured, history, True)
        carry = carry._replace(totals=place(_no_totals()))
    whole = all(
        bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(carry.params)
    )
    return Fitted(carry.params, carry.state, captured, history, not whole)


def _copy(carry: _Carry) -> tuple[Params, PyTree]:
    return jax.tree.map(jnp.copy, (carry.params, carry.state))


def _summary(
    carry: _Carry, epoch: int, training: Training, steps: int
) -> dict[str, float]:
    """Fetch the epoch's sums: the only time the host waits for the device."""
    loss, correct, seen = jax.device_get(carry.totals)
    return {
        "epoch": epoch + 1,
        "loss": float(loss) / int(seen),
        "accuracy": 100.0 * int(correct) / int(seen),
        "learning_rate": float(learning_rate(training, steps)(carry.iteration - 1)),
    }


def _advance(
    carry: _Carry,
    mask: Mask,
    pictures: Pictures,
    ordered: Array,
    key: RandomKey,
    steps: int,
    apply: Callable[..., Any],
    training: Training,
) -> _Carry:
    """Take `steps` steps within one epoch."""
    arrays = (mask, pictures.images, pictures.labels, ordered, key)
    if jax.default_backend() == "cpu":
        for _ in range(steps):
            carry = _step(carry, *arrays, pictures.how, apply, training)
        return carry
    return _scan(carry, *arrays, pictures.how, apply, training, steps)


@functools.partial(
    jax.jit, static_argnames=("how", "apply", "training"), donate_argnames="carry"
)
def _step(
    carry: _Carry,
    mask: Mask,
    images: Array,
    labels: Array,
    ordered: Array,
    key: RandomKey,
    how: Preprocessing,
    apply: Callable[..., Any],
    training: Training,
) -> _Carry:
    steps, batch = ordered.shape
    row = carry.iteration % steps
    indices = ordered[row]
    counts = row * batch + jnp.arange(batch, dtype=jnp.int32) < images.shape[0]
    dtype = jnp.dtype(training.precision)
    inputs = data.preprocess(
        images[indices], how, jax.random.fold_in(key, carry.iteration)
    ).astype(dtype)

    def loss_fn(params: Params) -> tuple[Array, tuple[Array, PyTree]]:
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        logits, state = apply(cast, carry.state, inputs, train=True)
        loss = objective.cross_entropy(
            logits, labels[indices], counts, training.smoothing
        )
        return loss, (logits, state)

    (loss, (logits, state)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        carry.params
    )
    # optax raises a float to an int32 power, which strict promotion (a user's choice)
    # refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, moments = optimizer(training).update(
            gradients, carry.optimizer, carry.params, mask=mask
        )
    rate = learning_rate(training, steps)(carry.iteration)
    params = jax.tree.map(
        lambda w, u: w - rate.astype(u.dtype) * u, carry.params, updates
    )
    seen = counts.sum(dtype=jnp.int32)
    return _Carry(
        params,
        jax.tree.map(lambda new, old: new.astype(old.dtype), state, carry.state),
        moments,
        carry.iteration + 1,
        _Totals(
            carry.totals.loss + loss.astype(jnp.float32) * seen.astype(jnp.float32),
            carry.totals.correct + objective.correct(logits, labels[indices], counts),
            carry.totals.seen + seen,
        ),
    )


@functools.partial(
    jax.jit,
    static_argnames=("how", "apply", "training", "steps"),
    donate_argnames="carry",
)
def _scan(
    carry: _Carry,
    mask: Mask,
    images: Array,
    labels: Array,
    ordered: Array,
    key: RandomKey,
    how: Preprocessing,
    apply: Callable[..., Any],
    training: Training,
    steps: int,
) -> _Carry:
    def body(carry: _Carry, _: None) -> tuple[_Carry, None]:
        stepped = _step(carry, mask, images, labels, ordered, key, how, apply, training)
        return stepped, None

    return jax.lax.scan(body, carry, None, length=steps)[0]


class Evaluation(NamedTuple):
    """Loss in nats per example and accuracy in percent, over all examples."""

    loss: float
    accuracy: float


def evaluate(
    apply: Callable[..., Any],
    params: Params,
    state: PyTree,
    pictures: Pictures,
    batch_size: int = 256,
) -> Evaluation:
    """Evaluate a network on every example, each counted once.

    Args:
        apply: `Model.apply`; the same function object each time, or it compiles again.
        params: weights, masked already.
        state: statistics of batch normalisation.
        pictures: the test set.
        batch_size: examples a call, and as many more as fill the parts of a mesh; the
            last batch is filled up and the filling ignored.

    Returns:
        Mean loss and accuracy.
    """
    examples, mesh = pictures.images.shape[0], sharding.mesh_of(pictures.images)
    batch_size += -batch_size % (mesh.shape["data"] if mesh else 1)
    loss, hits = 0.0, 0
    for first in range(0, examples, batch_size):
        number = min(batch_size, examples - first)
        indices = (jnp.arange(batch_size) + first) % examples
        counts = jnp.arange(batch_size) < number
        if mesh is not None:
            indices, counts = sharding.split((indices, counts), mesh)
        batch_loss, batch_hits = _evaluate(
            params,
            state,
            pictures.images,
            pictures.labels,
            indices,
            counts,
            pictures.how,
            apply,
        )
        loss += float(batch_loss) * number
        hits += int(batch_hits)
    return Evaluation(loss / examples, 100.0 * hits / examples)


@functools.partial(jax.jit, static_argnames=("how", "apply"))
def _evaluate(
    params: Params,
    state: PyTree,
    images: Array,
    labels: Array,
    indices: Array,
    counts: Array,
    how: Preprocessing,
    apply: Callable[..., Any],
) -> tuple[Array, Array]:
    logits = apply(params, state, data.preprocess(images[indices], how))[0]
    return (
        objective.cross_entropy(logits, labels[indices], counts),
        objective.correct(logits, labels[indices], counts),
    )
