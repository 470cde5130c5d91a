"""The training loop: compiled steps over data that stays on the device.

On a CPU the steps are called from Python, since XLA's convolution gradients inside a
scan are many times slower there; on an accelerator an epoch is one scan.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, PyTree, UInt8

from jaxprune import data, masks, sharding, tree
from jaxprune.data import Preprocessing
from jaxprune.models import Model
from jaxprune.train import objective
from jaxprune.train.optimizer import learning_rate, optimizer
from jaxprune.train.recipe import Training
from jaxprune.types import Mask, Params, RandomKey


class ImageSet(NamedTuple):
    """Labeled images on the device.

    Attributes:
        images: uint8 pixels of 0 to 255, (examples, height, width, channels).
        labels: int32 from 0, (examples,).
        preprocessing: how images become inputs.
    """

    images: UInt8[Array, "examples height width channels"]
    labels: Int32[Array, " examples"]
    preprocessing: Preprocessing


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
        model: the trained network.
        rewind_point: the network after `rewind_iteration`, or None. In a `train_fn`, return
            `imp.TrainResult(result.model, rewind_point=result.rewind_point)`.
        history: one dict per epoch: `epoch` (from 1), `loss` (nats per example), `accuracy`
            (%) and `learning_rate` (of its last iteration).
        diverged: whether a loss or a weight is not finite; training then ended with
            that epoch.
    """

    model: Model
    rewind_point: Model | None
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


class _Job(NamedTuple):
    """What a compiled step depends on."""

    apply: Any
    preprocessing: Preprocessing
    training: Training
    steps_per_epoch: int
    mesh: Mesh | None


def _no_totals() -> _Totals:
    return _Totals(jnp.float32(0), jnp.int32(0), jnp.int32(0))


def fit(
    model: Model,
    mask: Mask,
    image_set: ImageSet,
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
        mask: True keeps; a mask of `model.params`.
        image_set: the training set.
        training: the recipe.
        key: order of the data and augmentation.
        start: iteration to continue from.
        rewind_iteration: also return the network after this iteration, if it is reached.
        on_epoch: called with each entry of the history.

    Returns:
        The trained network and the history.

    Raises:
        TypeError: if `image_set` is not an `ImageSet`, its images are not uint8 or its
            labels not int32.
        ValueError: if its sizes do not fit, `mask` does not mirror the parameters, `start`
            is not an iteration of the schedule, the batch size is not a multiple of the
            `data` axis of the mesh, or precision is "float64" without jax_enable_x64.

    Example:
        >>> from jaxprune import models
        >>> init_key, data_key, fit_key = jax.random.split(jax.random.key(0), 3)
        >>> images = jax.random.bits(data_key, (8, 8, 8, 1), "uint8")
        >>> preprocessing = Preprocessing(mean=(0.5,), std=(0.5,))
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
    _check_images(image_set)
    examples = image_set.images.shape[0]
    steps = data.steps_per_epoch(examples, training.batch_size)
    total = round(training.epochs * steps)
    if not 0 <= start <= total:
        raise ValueError(
            f"start is iteration {start}, but training has {total}. Pass an iteration "
            "of the schedule."
        )
    if training.precision != jax.dtypes.canonicalize_dtype(training.precision):
        raise ValueError(
            'precision="float64" needs 64-bit mode. Call jax.config.update('
            '"jax_enable_x64", True), or pass precision="float32".'
        )
    mesh = sharding.mesh_of(image_set.images)
    if mesh is not None:
        sharding.check_divides(mesh, training.batch_size)

    def place(arrays: Any) -> Any:
        return arrays if mesh is None else sharding.replicate(arrays, mesh)

    # Copies, which the steps may donate.
    params, state = tree.copy((masks.apply(model.params, mask), model.state))
    fresh: Any = optimizer(training).init(params)
    optimizer_state = fresh._replace(mask=tree.copy(mask))
    carry = _Carry(
        params, state, optimizer_state, place(jnp.int32(start)), place(_no_totals())
    )
    job = _Job(model.apply, image_set.preprocessing, training, steps, mesh)
    order_key, augment_key = jax.random.split(key)
    augment_key = place(augment_key)

    def trained(carry: _Carry) -> Model:
        return dataclasses.replace(model, params=carry.params, state=carry.state)

    rewind_point = tree.copy(trained(carry)) if rewind_iteration == start else None
    history: list[dict[str, float]] = []
    iteration = start
    while iteration < total:
        epoch = iteration // steps
        order = place(data.epoch_order(order_key, examples, epoch))
        end = min((epoch + 1) * steps, total)
        stops = [end]
        if rewind_iteration is not None and iteration < rewind_iteration < end:
            stops = [rewind_iteration, end]
        for stop in stops:
            iterations = range(iteration, stop)
            carry = _advance(carry, image_set, order, augment_key, iterations, job)
            iteration = stop
            if iteration == rewind_iteration:
                rewind_point = tree.copy(trained(carry))
        history.append(_summary(carry, epoch, job))
        if on_epoch is not None:
            on_epoch(history[-1])
        if not math.isfinite(history[-1]["loss"]):
            return FitResult(trained(carry), rewind_point, history, True)
        carry = carry._replace(totals=place(_no_totals()))
    is_finite = all(
        bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(carry.params)
    )
    return FitResult(trained(carry), rewind_point, history, not is_finite)


def _check_images(image_set: Any) -> None:
    """Check the types and sizes of a set of images."""
    if not isinstance(image_set, ImageSet):
        raise TypeError(
            f"image_set is a {type(image_set).__name__}. Pass train.ImageSet(images, "
            "labels, data.Preprocessing(mean, std))."
        )
    if image_set.images.dtype != jnp.uint8:
        raise TypeError(
            f"images are {image_set.images.dtype}, where uint8 pixels of 0 to 255 are "
            "expected; preprocessing scales them. For images in 0..1, pass "
            "(255 * images).round().astype('uint8')."
        )
    images, labels = image_set.images, image_set.labels
    if images.ndim != 4 or labels.shape != images.shape[:1] or not labels.size:
        raise ValueError(
            f"images have the shape {images.shape} and labels {labels.shape}. Pass images "
            "of (examples, height, width, channels), at least one, and a label for each."
        )
    if labels.dtype != jnp.int32:
        raise TypeError(
            f"labels are {labels.dtype}, where int32 from 0 is expected. Pass "
            "labels.astype('int32')."
        )


def _summary(carry: _Carry, epoch: int, job: _Job) -> dict[str, float]:
    """Fetch the epoch's sums: the only time the host waits for the device."""
    loss, correct, seen = jax.device_get(carry.totals)
    rate = learning_rate(job.training, job.steps_per_epoch)
    return {
        "epoch": epoch + 1,
        "loss": float(loss) / int(seen),
        "accuracy": 100.0 * int(correct) / int(seen),
        "learning_rate": float(rate(carry.iteration - 1)),
    }


def _advance(
    carry: _Carry,
    image_set: ImageSet,
    order: Array,
    key: RandomKey,
    iterations: range,
    job: _Job,
) -> _Carry:
    """Run iterations of one epoch."""
    batch_size, examples = job.training.batch_size, image_set.images.shape[0]
    first_batch = iterations.start % job.steps_per_epoch
    full_batches = min(len(iterations), examples // batch_size - first_batch)
    arrays = (image_set.images, image_set.labels, order, key)
    if jax.default_backend() == "cpu":
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
    images, labels, order, key = arrays
    training = job.training
    first = (carry.iteration % job.steps_per_epoch) * training.batch_size
    indices = jax.lax.dynamic_slice(order, (first,), (size,))
    if job.mesh is not None and size % job.mesh.shape["data"] == 0:
        indices = jax.lax.with_sharding_constraint(
            indices, NamedSharding(job.mesh, PartitionSpec("data"))
        )
    dtype = jnp.dtype(training.precision)
    augment_key = jax.random.fold_in(key, carry.iteration)
    inputs = data.preprocess(images[indices], job.preprocessing, augment_key)

    def loss_fn(params: Params) -> tuple[Array, tuple[Array, PyTree]]:
        cast = tree.map_floating(lambda leaf: leaf.astype(dtype), params)
        logits, state = job.apply(cast, carry.state, inputs.astype(dtype), train=True)
        loss = objective.cross_entropy(
            logits, labels[indices], smoothing=training.label_smoothing
        )
        return loss, (logits, state)

    (loss, (logits, state)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        carry.params
    )
    rate = learning_rate(training, job.steps_per_epoch)(carry.iteration)
    # optax raises a float to an int32 power, which strict promotion (a user's choice)
    # refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer(training).update(
            gradients, carry.optimizer, carry.params, learning_rate=rate
        )
    totals = carry.totals
    return _Carry(
        jax.tree.map(jnp.add, carry.params, updates),
        tree.map_floating(lambda new, old: new.astype(old.dtype), state, carry.state),
        optimizer_state,
        carry.iteration + 1,
        _Totals(
            totals.loss + loss.astype(jnp.float32) * jnp.float32(size),
            totals.correct + objective.count_correct(logits, labels[indices]),
            totals.seen + jnp.int32(size),
        ),
    )


@functools.partial(jax.jit, static_argnames=("steps", "job"), donate_argnames="carry")
def _scan(carry: _Carry, arrays: tuple, steps: int, job: _Job) -> _Carry:
    def body(carry: _Carry, _: None) -> tuple[_Carry, None]:
        return _step(carry, arrays, job.training.batch_size, job), None

    return jax.lax.scan(body, carry, None, length=steps)[0]


class EvaluationResult(NamedTuple):
    """Averages over all examples.

    Attributes:
        loss: nats per example.
        accuracy: percent.
    """

    loss: float
    accuracy: float


def evaluate(
    model: Model, image_set: ImageSet, *, batch_size: int = 256
) -> EvaluationResult:
    """Evaluate a network on every example, each counted once.

    Args:
        model: the network, its parameters masked already.
        image_set: the test set.
        batch_size: examples per call, rounded up to a multiple of the parts of a mesh.

    Returns:
        Mean loss and accuracy.

    Raises:
        TypeError: if `image_set` is not an `ImageSet`, its images are not uint8 or its
            labels not int32.
        ValueError: if `batch_size` is less than 1, or sizes do not fit.

    Example:
        >>> image_set = ImageSet(
        ...     jnp.full((3, 1, 1, 1), 255, jnp.uint8),
        ...     jnp.zeros(3, jnp.int32),
        ...     Preprocessing(mean=(0.0,), std=(1.0,)),
        ... )
        >>> apply = lambda params, state, x: (x[:, 0, 0] * params["w"], state)
        >>> evaluate(Model({"w": jnp.array([[1.0, 0.0]])}, {}, apply), image_set).accuracy
        100.0
    """
    _check_images(image_set)
    if batch_size < 1:
        raise ValueError(
            f"batch_size is the number of examples per call; got {batch_size}. Pass 1 or "
            "more."
        )
    examples, mesh = image_set.images.shape[0], sharding.mesh_of(image_set.images)
    batch_size += -batch_size % (mesh.shape["data"] if mesh else 1)
    arrays = (image_set.images, image_set.labels)
    loss, num_correct = 0.0, 0
    for first in range(0, examples, batch_size):
        number = min(batch_size, examples - first)
        indices = (jnp.arange(batch_size) + first) % examples
        counts = jnp.arange(batch_size) < number
        if mesh is not None:
            indices, counts = sharding.shard_batch((indices, counts), mesh)
        batch_loss, batch_num_correct = _evaluate(
            model, arrays, indices, counts, image_set.preprocessing
        )
        loss += float(batch_loss) * number
        num_correct += int(batch_num_correct)
    return EvaluationResult(loss / examples, 100.0 * num_correct / examples)


@functools.partial(jax.jit, static_argnames="preprocessing")
def _evaluate(
    model: Model,
    arrays: tuple,
    indices: Array,
    counts: Array,
    preprocessing: Preprocessing,
) -> tuple[Array, Array]:
    images, labels = arrays
    inputs = data.preprocess(images[indices], preprocessing)
    logits = model.apply(model.params, model.state, inputs)[0]
    return (
        objective.cross_entropy(logits, labels[indices], counts),
        objective.count_correct(logits, labels[indices], counts),
    )
