"""The training loop: compiled steps over data that stays on the device.

On a CPU the steps are called from Python, since XLA's convolution gradients inside a
scan are many times slower there; on an accelerator an epoch is one scan. A recipe can
choose with `Training.loop`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, PyTree

from jaxprune import data, masks, sharding, tree
from jaxprune.models import Model, check_model
from jaxprune.train import objective
from jaxprune.train.examples import Examples, ImageSet, Task, sharded, unpack
from jaxprune.train.objective import CLASSIFICATION
from jaxprune.train.optimizer import learning_rate, optimizer
from jaxprune.train.recipe import Training
from jaxprune.types import Mask, Params, RandomKey


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
        model: the trained network.
        rewind_point: the network after `rewind_iteration`, or None. In a `train_fn`, return
            `imp.TrainResult(result.model, rewind_point=result.rewind_point)`.
        history: one dict per epoch: `epoch` (from 1), `loss`, the metric by its name, such as
            `accuracy` (%), and `learning_rate` (of its last iteration).
        diverged: whether a loss or a weight is not finite; training then ended with
            that epoch.
        mask: that of the end of training, which sparse training has chosen.
    """

    model: Model
    rewind_point: Model | None
    history: list[dict[str, float]]
    diverged: bool
    mask: Mask


class _Carry(NamedTuple):
    params: Params
    state: PyTree
    optimizer: Any
    iteration: Int32[Array, ""]
    totals: "_Totals"


class _Totals(NamedTuple):
    """Sums over the examples of an epoch so far, and the last learning rate."""

    loss: Float32[Array, ""]
    metric: Float32[Array, ""]
    seen: Int32[Array, ""]
    learning_rate: Float32[Array, ""]


class _Job(NamedTuple):
    """What a compiled step depends on."""

    apply: Any
    task: Task
    training: Training
    steps_per_epoch: int
    iterations: int
    mesh: Mesh | None


def _no_totals() -> _Totals:
    return _Totals(jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0))


def fit(
    model: Model,
    mask: Mask,
    examples: ImageSet | Examples,
    training: Training,
    key: RandomKey,
    *,
    start: int = 0,
    rewind_iteration: int | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
) -> FitResult:
    """Train from iteration `start` to the end of the schedule, pruned weights at zero.

    The order of the data and the augmentation depend only on `key` and the iteration.
    Training from `start` therefore sees the same batches as training from 0, but with a
    fresh optimizer. The last batch of an epoch may be short. BatchNorm keeps the biased
    running variance, as Flax does (PyTorch's is unbiased).

    If the images are on a mesh (`sharding.replicate`), each batch is sharded over it. Place
    the model and the mask on the same mesh, with `sharding.replicate` or
    `sharding.shard_params`.

    Args:
        model: the network at iteration `start`; it is not changed.
        mask: True keeps; a mask of `model.params`. Not used where `training.sparse` chooses
            the mask.
        examples: the training set.
        training: the recipe.
        key: order of the data and augmentation.
        start: iteration to continue from.
        rewind_iteration: also return the network after this iteration, if it is reached.
        on_epoch: called with each entry of the history.

    Returns:
        The trained network and the history.

    Raises:
        TypeError: if `model` is not a `Model` whose `apply` returns (outputs, state),
            `training` not a `Training`, `key` not a random key, `examples` neither an
            `ImageSet` nor `Examples`, its images not uint8 or its labels not int32.
        ValueError: if its sizes do not fit, its loss or metric is not one value for each
            example, `mask` does not mirror the parameters, `start` is not an iteration of
            the schedule, the batch size is not a multiple of the `data` axis of the mesh,
            precision is "float64" without jax_enable_x64, or labels are smoothed where the
            loss is not the cross-entropy.

    Example:
        >>> from jaxprune import models
        >>> init_key, data_key, fit_key = jax.random.split(jax.random.key(0), 3)
        >>> images = jax.random.bits(data_key, (8, 8, 8, 1), "uint8")
        >>> preprocessing = data.Preprocessing(mean=(0.5,), std=(0.5,))
        >>> image_set = ImageSet(images, jnp.arange(8), preprocessing)
        >>> model = models.create(
        ...     "mlp", key=init_key, input_shape=(8, 8, 1), num_classes=8, width=0.1
        ... )
        >>> mask = masks.ones_like(model.params)
        >>> training = Training(epochs=2, batch_size=4, learning_rate=0.1)
        >>> result = fit(model, mask, image_set, training, fit_key)
        >>> [entry["epoch"] for entry in result.history], result.diverged
        ([1, 2], False)
    """
    check_model(model)
    inputs, targets, task = unpack(examples)
    tree.check_key(key)
    if not isinstance(training, Training):
        raise TypeError(
            f"training is a {type(training).__name__}. Pass a train.Training."
        )
    number = inputs.shape[0]
    steps = data.steps_per_epoch(number, training.batch_size)
    total = round(training.epochs * steps)
    if not 0 <= start <= total:
        raise ValueError(
            f"start is iteration {start}, but training has {total}. Pass an iteration "
            "of the schedule."
        )
    if training.sparse is not None and start:
        raise ValueError(
            f"start is iteration {start}, but sparse training chooses its mask from "
            "iteration 0 on. Pass start=0."
        )
    if training.precision != jax.dtypes.canonicalize_dtype(training.precision):
        raise ValueError(
            'precision="float64" needs 64-bit mode. Call jax.config.update('
            '"jax_enable_x64", True), or pass precision="float32".'
        )
    if training.label_smoothing and task.objective.loss is not CLASSIFICATION.loss:
        raise ValueError(
            f"label_smoothing {training.label_smoothing} needs the cross-entropy, and the "
            "objective has another loss. Pass label_smoothing=0."
        )
    mesh = sharding.mesh_of(inputs)
    if mesh is not None:
        sharding.check_divides(mesh, training.batch_size)

    def place(arrays: Any) -> Any:
        return arrays if mesh is None else sharding.replicate(arrays, mesh)

    job = _Job(model.apply, task, training, steps, total, mesh)
    # On a mesh not under `jit`, where zeros would not be sharded like their parameters.
    begin = _compiled_begin if mesh is None else _begin
    carry, (order_key, *keys) = begin(model, mask, key, job)
    carry = carry._replace(
        iteration=place(jnp.int32(start)), totals=place(_no_totals())
    )
    augment_key, sparse_key = place(tuple(keys))

    def trained(carry: _Carry) -> Model:
        return dataclasses.replace(model, params=carry.params, state=carry.state)

    rewind_point = tree.copy(trained(carry)) if rewind_iteration == start else None
    history: list[dict[str, float]] = []
    iteration = start
    while iteration < total:
        epoch = iteration // steps
        order = place(
            data.epoch_order(order_key, number, epoch, shuffle=training.shuffle)
        )
        end = min((epoch + 1) * steps, total)
        stops = [end]
        if rewind_iteration is not None and iteration < rewind_iteration < end:
            stops = [rewind_iteration, end]
        for stop in stops:
            iterations = range(iteration, stop)
            arrays = (inputs, targets, order, augment_key, sparse_key)
            carry = _advance(carry, arrays, iterations, job)
            iteration = stop
            if iteration == rewind_iteration:
                rewind_point = tree.copy(trained(carry))
        history.append(_summary(carry, epoch, job))
        if on_epoch is not None:
            on_epoch(history[-1])
        if not math.isfinite(history[-1]["loss"]):
            return FitResult(
                trained(carry), rewind_point, history, True, carry.optimizer.mask
            )
        carry = carry._replace(totals=place(_no_totals()))
    is_finite = all(tree.find_finite(tree.by_name(carry.params)).values())
    return FitResult(
        trained(carry), rewind_point, history, not is_finite, carry.optimizer.mask
    )


def _begin(
    model: Model, mask: Mask, key: RandomKey, job: _Job
) -> tuple[_Carry, tuple[RandomKey, ...]]:
    """Return copies of the arrays, which the steps may donate, and the keys.

    The keys are for the order of the data, the augmentation, and sparse training.
    """
    order_key, augment_key = jax.random.split(key)
    sparse_key = jax.random.fold_in(key, 2)
    rule = optimizer(job.training, job.iterations, sparse_key)
    optimizer_state: Any = rule.init(model.params)
    if job.training.sparse is None:
        optimizer_state = optimizer_state._replace(mask=mask)
    masked = masks.apply(model.params, optimizer_state.mask)
    # An optimizer's state may hold the parameters too.
    params, state, optimizer_state = tree.copy((masked, model.state, optimizer_state))
    carry = _Carry(params, state, optimizer_state, jnp.int32(0), _no_totals())
    return carry, (order_key, augment_key, sparse_key)


_compiled_begin = jax.jit(_begin, static_argnames="job")


def _summary(carry: _Carry, epoch: int, job: _Job) -> dict[str, float]:
    """Fetch the epoch's sums: the only time the host waits for the device."""
    loss, metric, seen, rate = jax.device_get(carry.totals)
    target = job.task.objective
    return {
        "epoch": epoch + 1,
        "loss": float(loss) / int(seen),
        target.metric_name: objective.mean_metric(target, metric, int(seen)),
        "learning_rate": float(rate),
    }


def _is_scan(carry: _Carry, training: Training) -> bool:
    """Return whether the steps of an epoch run as one scan."""
    if training.loop != "auto":
        return training.loop == "scan"
    # Of the arrays, as jax.default_device may be a CPU beside a GPU.
    return all(device.platform != "cpu" for device in carry.iteration.devices())


def _advance(carry: _Carry, arrays: tuple, iterations: range, job: _Job) -> _Carry:
    """Run iterations of one epoch."""
    batch_size, examples = job.training.batch_size, arrays[0].shape[0]
    first_batch = iterations.start % job.steps_per_epoch
    full_batches = min(len(iterations), examples // batch_size - first_batch)
    if not _is_scan(carry, job.training):
        for _ in range(full_batches):
            carry = _step(carry, arrays, batch_size, job)
    elif full_batches:
        carry = _scan(carry, arrays, full_batches, job)
    if full_batches < len(iterations):
        carry = _step(carry, arrays, examples % batch_size, job)
    return carry


@functools.partial(jax.jit, static_argnames=("size", "job"), donate_argnames="carry")
def _step(carry: _Carry, arrays: tuple, size: int, job: _Job) -> _Carry:
    """Train on the next `size` examples of the epoch."""
    inputs, targets, order, key, sparse_key = arrays
    training = job.training
    first = (carry.iteration % job.steps_per_epoch) * training.batch_size
    indices = jax.lax.dynamic_slice(order, (first,), (size,))
    indices = sharded(indices, job.mesh)
    dtype = jnp.dtype(training.precision)
    augment_key = jax.random.fold_in(key, carry.iteration)
    inputs = job.task.inputs(inputs[indices], augment_key)
    inputs = tree.map_floating(lambda leaf: leaf.astype(dtype), inputs)
    targets = targets[indices]

    def loss_fn(params: Params) -> tuple[Array, tuple[Array, PyTree]]:
        cast = tree.map_floating(lambda leaf: leaf.astype(dtype), params)
        outputs, state = objective.run(job.apply, cast, carry.state, inputs, train=True)
        loss = objective.mean_loss(
            job.task.objective, outputs, targets, smoothing=training.label_smoothing
        )
        return loss, (outputs, state)

    (loss, (outputs, state)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        carry.params
    )
    rate = learning_rate(training, job.steps_per_epoch)(carry.iteration)
    # optax raises a float to an int32 power, which strict promotion (a user's choice)
    # refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer(
            training, job.iterations, sparse_key
        ).update(gradients, carry.optimizer, carry.params, learning_rate=rate)
    totals = carry.totals
    return _Carry(
        jax.tree.map(jnp.add, carry.params, updates),
        tree.map_floating(lambda new, old: new.astype(old.dtype), state, carry.state),
        optimizer_state,
        carry.iteration + 1,
        _Totals(
            totals.loss + loss.astype(jnp.float32) * jnp.float32(size),
            totals.metric + objective.metric_sum(job.task.objective, outputs, targets),
            totals.seen + jnp.int32(size),
            rate,
        ),
    )


@functools.partial(jax.jit, static_argnames=("steps", "job"), donate_argnames="carry")
def _scan(carry: _Carry, arrays: tuple, steps: int, job: _Job) -> _Carry:
    def body(carry: _Carry, _: None) -> tuple[_Carry, None]:
        return _step(carry, arrays, job.training.batch_size, job), None

    return jax.lax.scan(body, carry, None, length=steps)[0]
