"""The tasks of ours.py as a user of JAX writes them without jaxprune.

Flax NNX layers, optax, and jit around each score and step. Masks are in the optimizer's
state and multiply the weights after each update, as in JaxPruner. Thresholds come from
`jnp.sort` of all scores, as in the published code of RigL for Flax; JaxPruner uses argsort.
Tasks whose name ends in `_numpy` find the threshold on the host, with `np.partition`.

Nothing here imports jaxprune, and `compare` starts it without jaxprune's settings of XLA and
of the compilation cache.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bench import sizes

VGG16 = (64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3
Call = Callable[[], Any]
Above = Callable[[Any, int], Any]


class VGG(nnx.Module):
    """A VGG without BatchNorm, for images of 32x32."""

    def __init__(self, stages: Sequence[Sequence[int]] = VGG16, *, rngs: nnx.Rngs):
        """Draw the weights; `stages` lists the channels of each layer."""
        self.depths = tuple(len(stage) for stage in stages)
        widths = [features for stage in stages for features in stage]
        init = nnx.initializers.he_normal()
        self.convs = nnx.List(
            nnx.Conv(before, after, (3, 3), kernel_init=init, rngs=rngs)
            for before, after in zip([3, *widths], widths, strict=False)
        )
        self.fc = nnx.Linear(widths[-1], 10, kernel_init=init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        convs = iter(self.convs)
        for stage, depth in enumerate(self.depths):
            if stage:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for _ in range(depth):
                x = nnx.relu(next(convs)(x))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.fc(x.reshape(len(x), -1))


def _vgg() -> VGG:
    return VGG(rngs=nnx.Rngs(0))


class Conv2(nnx.Module):
    """Conv-2 with BatchNorm at a quarter of its width, for images of 8x8."""

    def __init__(self, *, rngs: nnx.Rngs):
        """Draw the weights."""
        init = nnx.initializers.he_normal()
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        conv = functools.partial(
            nnx.Conv, kernel_size=(3, 3), kernel_init=init, rngs=rngs
        )
        linear = functools.partial(nnx.Linear, kernel_init=init, rngs=rngs)
        self.convs = nnx.List([conv(1, 16), conv(16, 16)])
        self.conv_norms = nnx.List([norm(16), norm(16)])
        self.linears = nnx.List([linear(256, 64), linear(64, 64)])
        self.linear_norms = nnx.List([norm(64), norm(64)])
        self.head = linear(64, 10)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for linear, norm in zip(self.linears, self.linear_norms, strict=True):
            x = nnx.relu(norm(linear(x)))
        return self.head(x)


class Split(NamedTuple):
    """A network in evaluation mode as a definition and arrays."""

    graphdef: Any
    kernels: Any
    others: Any  # biases, scales of BatchNorm
    stats: Any


def split(network: nnx.Module) -> Split:
    """Separate the kernels, which are pruned, from the other arrays."""
    network.eval()
    is_kernel = lambda path, value: path[-1] == "kernel"
    return Split(*nnx.split(network, is_kernel, nnx.Param, ...))


def all_true(net: Split) -> Any:
    """Return the masks that keep every weight."""
    return jax.tree.map(lambda kernel: jnp.ones_like(kernel, bool), net.kernels)


class Dataset(NamedTuple):
    """Images on the device, and their preprocessing."""

    images: jax.Array
    labels: jax.Array
    mean: Sequence[float]
    std: Sequence[float]
    augment: bool

    def normalize(self, images: jax.Array) -> jax.Array:
        """Return the inputs of the network."""
        return (images / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)


def random_images(number: int) -> Dataset:
    """Draw random images of 32x32 with labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 10, number, np.int32)
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    return Dataset(jnp.asarray(images), jnp.asarray(labels), mean, std, augment=True)


def digits() -> tuple[Dataset, Dataset]:
    """Load the training and the test set of digits."""
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    images = jnp.asarray((loaded.images * 255 / 16).astype(np.uint8)[..., None])
    labels = jnp.asarray(loaded.target, jnp.int32)
    parts = slice(None, 1437), slice(1437, None)
    train_set, test_set = (
        Dataset(images[part], labels[part], (0.287,), (0.353,), augment=False)
        for part in parts
    )
    return train_set, test_set


@jax.jit
def _flatten(scores: Any) -> jax.Array:
    return jnp.concatenate([score.ravel() for score in jax.tree.leaves(scores)])


@jax.jit
def _above(scores: Any, threshold: jax.Array) -> Any:
    return jax.tree.map(lambda score: score > threshold, scores)


@jax.jit
def above_sorted(scores: Any, pruned: int) -> Any:
    """Keep the scores above the highest of `pruned` scores."""
    return _above(scores, jnp.sort(_flatten(scores))[pruned - 1])


def above_partitioned(scores: Any, pruned: int) -> Any:
    """Do the same on the host."""
    flat = np.asarray(_flatten(scores))
    return _above(scores, np.partition(flat, pruned - 1)[pruned - 1])


def select_masks(scores: Any, density: float, above: Above = above_sorted) -> Any:
    """Keep the highest scores of all layers together; ties with the threshold fall."""
    size = sum(score.size for score in jax.tree.leaves(scores))
    return above(scores, int((1 - density) * size))


def _multiply(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.multiply, a, b)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def snip_scores(net: Split, inputs: jax.Array, labels: jax.Array) -> Any:
    """Return |w * dL/dw| of each kernel."""

    def loss_fn(kernels: Any) -> jax.Array:
        network = nnx.merge(net.graphdef, kernels, net.others, net.stats)
        return _cross_entropy(network(inputs), labels)

    gradients = jax.grad(loss_fn)(net.kernels)
    return jax.tree.map(jnp.abs, _multiply(net.kernels, gradients))


def grasp_scores(net: Split, inputs: jax.Array, labels: jax.Array) -> Any:
    """Return w * (H g) of each kernel, by the derivative of the gradient along it."""

    def loss_fn(kernels: Any) -> jax.Array:
        network = nnx.merge(net.graphdef, kernels, net.others, net.stats)
        return _cross_entropy(network(inputs) / 200, labels)

    gradient = jax.grad(loss_fn)
    _, products = jax.jvp(gradient, (net.kernels,), (gradient(net.kernels),))
    return _multiply(net.kernels, products)


def synflow_scores(net: Split, masks: Any, ones: jax.Array) -> Any:
    """Return |w * dR/dw| of each kernel, R the output for ones at |parameters|."""
    kernels = jax.tree.map(jnp.abs, _multiply(net.kernels, masks))
    others = jax.tree.map(jnp.abs, net.others)

    def flow(kernels: Any) -> jax.Array:
        return nnx.merge(net.graphdef, kernels, others, net.stats)(ones).sum()

    return jax.tree.map(jnp.abs, _multiply(kernels, jax.grad(flow)(kernels)))


def snip(network: nnx.Module, above: Above = above_sorted) -> Call:
    """Score with 100 images, and select a tenth of the weights."""
    return _data_scores(network, snip_scores, above)


def grasp(network: nnx.Module, above: Above = above_sorted) -> Call:
    """Score with 100 images, and select a tenth of the weights."""
    return _data_scores(network, grasp_scores, above)


def _data_scores(network: nnx.Module, scores: Callable[..., Any], above: Above) -> Call:
    net, data, score_fn = split(network), random_images(sizes.IMAGES), jax.jit(scores)
    inputs = data.normalize(data.images)
    return lambda: select_masks(score_fn(net, inputs, data.labels), 0.1, above)


def synflow(network: nnx.Module, above: Above = above_sorted, rounds: int = 1) -> Call:
    """Score in rounds, down to a tenth of the weights."""
    net, ones, score_fn = (
        split(network),
        jnp.ones((1, 32, 32, 3)),
        jax.jit(synflow_scores),
    )

    def run() -> Any:
        masks = all_true(net)
        for k in range(1, rounds + 1):
            masks = select_masks(score_fn(net, masks, ones), 0.1 ** (k / rounds), above)
        return masks

    return run


def select(network: nnx.Module, above: Above = above_sorted) -> Call:
    """Select the tenth of the weights that are largest."""
    magnitudes = jax.tree.map(jnp.abs, split(network).kernels)
    return lambda: select_masks(magnitudes, 0.1, above)


class SparseState(NamedTuple):
    """The state of an optimizer, and the masks of the kernels."""

    masks: Any
    inner: Any


class TrainState(NamedTuple):
    """What a step of training changes."""

    params: tuple[Any, Any]  # kernels, and others
    stats: Any
    optimizer: SparseState
    key: jax.Array


class Fit(NamedTuple):
    """The result of training."""

    net: Split
    rewind_point: Split | None
    losses: list[float]  # of each epoch


def _augment(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Crop and flip at random."""
    crop_key, flip_key = jax.random.split(key)
    number, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(crop_key, (number, 2), 0, 2 * pad + 1)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape)
    cropped = jax.vmap(crop)(padded, corners)
    is_flipped = jax.random.bernoulli(flip_key, shape=(number, 1, 1, 1))
    return jnp.where(is_flipped, cropped[:, :, ::-1], cropped)


def trainer(
    net: Split, data: Dataset, learning_rate: Any, batch_size: int, epochs: int
) -> Callable[[Any], Fit]:
    """Return a function that trains under masks; its step is compiled once."""
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4),
        optax.sgd(learning_rate, momentum=0.9, nesterov=True),
    )

    @functools.partial(jax.jit, donate_argnames="state")
    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, chosen: np.ndarray
    ) -> tuple[TrainState, jax.Array]:
        key, augment_key = jax.random.split(state.key)
        batch = images[chosen]
        if data.augment:
            batch = _augment(augment_key, batch)
        inputs = data.normalize(batch)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            network = nnx.merge(net.graphdef, *params, state.stats, copy=True)
            network.train()
            loss = _cross_entropy(network(inputs), labels[chosen])
            return loss, nnx.state(network, nnx.Not(nnx.Param))

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, stats), gradients = gradient_fn(state.params)
        masks, inner = state.optimizer
        updates, inner = optimizer.update(gradients, inner, state.params)
        updated: Any = optax.apply_updates(cast(Any, state.params), updates)
        params = _multiply(updated[0], masks), updated[1]
        return TrainState(params, stats, SparseState(masks, inner), key), loss

    def trained(state: TrainState) -> Split:
        return Split(net.graphdef, *state.params, state.stats)

    def fit(masks: Any) -> Fit:
        params = _multiply(net.kernels, masks), net.others
        sparse_state = SparseState(masks, optimizer.init(params))
        state = TrainState(params, net.stats, sparse_state, jax.random.key(1))
        state = jax.tree.map(jnp.copy, state)  # which the steps donate
        generator, rewind_point, epoch_losses = np.random.default_rng(1), None, []
        iteration = 0
        for _ in range(epochs):
            order, losses = generator.permutation(len(data.images)), []
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                state, loss = step(state, data.images, data.labels, chosen)
                losses.append(loss)
                iteration += 1
                if iteration == sizes.REWIND_ITERATION:
                    rewind_point = jax.tree.map(jnp.copy, trained(state))
            epoch_losses.append(float(np.mean(jax.device_get(losses))))
        return Fit(trained(state), rewind_point, epoch_losses)

    return fit


def _train_step() -> Call:
    net, data = split(_vgg()), random_images(sizes.STEPS * sizes.BATCH)
    fit, masks = trainer(net, data, 1e-3, sizes.BATCH, epochs=1), all_true(net)
    return lambda: fit(masks).net


@jax.jit
def _totals(net: Split, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    logits = nnx.merge(*net)(inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.stack([losses.sum(), (logits.argmax(-1) == labels).sum()])


def evaluate(net: Split, data: Dataset) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    total = np.zeros(2)
    for first in range(0, len(data.images), sizes.EVALUATED_BATCH):
        chosen = slice(first, first + sizes.EVALUATED_BATCH)
        inputs = data.normalize(data.images[chosen])
        total += jax.device_get(_totals(net, inputs, data.labels[chosen]))
    loss, accuracy = map(float, total / len(data.images))
    return loss, accuracy


def _evaluate() -> Call:
    net, data = split(_vgg()), random_images(sizes.EVALUATED)
    return lambda: evaluate(net, data)


def level_trainer(net: Split, train_set: Dataset) -> Callable[[Any], Fit]:
    """Return the training of one level of IMP."""
    steps = -(-len(train_set.images) // sizes.LEVEL_BATCH) * sizes.LEVEL_EPOCHS
    schedule = optax.cosine_decay_schedule(0.1, steps)
    return trainer(net, train_set, schedule, sizes.LEVEL_BATCH, sizes.LEVEL_EPOCHS)


def _imp_level() -> Call:
    """Train, prune a fifth of the weights, rewind."""
    net, (train_set, _) = split(Conv2(rngs=nnx.Rngs(0))), digits()
    fit, ones = level_trainer(net, train_set), all_true(net)

    def level() -> tuple[Split, Any]:
        trained, rewind_point, _ = fit(ones)
        masks = select_masks(jax.tree.map(jnp.abs, trained.kernels), 0.8)
        assert rewind_point is not None
        kernels = _multiply(rewind_point.kernels, masks)
        return rewind_point._replace(kernels=kernels), masks

    return level


def _cold_start() -> Call:
    """Prune with SNIP, train and evaluate: the first result of the digits study."""

    def first_result() -> tuple[float, float]:
        net, (train_set, test_set) = split(Conv2(rngs=nnx.Rngs(0))), digits()
        inputs = train_set.normalize(train_set.images[: sizes.IMAGES])
        scores = jax.jit(snip_scores)(net, inputs, train_set.labels[: sizes.IMAGES])
        fit = level_trainer(net, train_set)
        return evaluate(fit(select_masks(scores, 0.1)).net, test_set)

    return first_result


SCORES: dict[str, Callable[..., Call]] = {
    "snip": snip,
    "grasp": grasp,
    "synflow_1": synflow,
    "synflow_100": functools.partial(synflow, rounds=100),
    "select": select,
}
ABOVE: dict[str, Above] = {"": above_sorted, "_numpy": above_partitioned}
TASKS: dict[str, Callable[[], Call]] = {
    **{
        name + suffix: lambda score=score, above=above: score(_vgg(), above)
        for name, score in SCORES.items()
        for suffix, above in ABOVE.items()
    },
    "train_step": _train_step,
    "evaluate": _evaluate,
    "imp_level": _imp_level,
    "cold_start": _cold_start,
}
wait = jax.block_until_ready
