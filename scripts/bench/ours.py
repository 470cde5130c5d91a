"""The tasks of the benchmarks in jaxprune.

Each is prepared once and returns the call to time. plain_jax.py does the same without
jaxprune, and torch_side.py in PyTorch.
"""

import _cli  # noqa: F401

import functools  # isort: skip
from collections.abc import Callable  # isort: skip
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import sizes
from jaxprune import data, imp, masks, models, profiling, prune, scores, train

Call = Callable[[], Any]


def _preprocessing(dataset: str) -> data.Preprocessing:
    spec = data.DATASETS[dataset]
    return data.Preprocessing(spec.mean, spec.std, spec.pad, spec.flip)


def vgg(name: str = "vgg16", width: float = 1.0) -> models.Model:
    """Build a VGG without BatchNorm."""
    return models.create(name, key=jax.random.key(0), batch_norm=False, width=width)


def macs(network: models.Model) -> int:
    """Count the multiply-accumulates of a network per image."""
    counts = profiling.macs(
        lambda params, x: network.apply(params, network.state, x)[0],
        network.params,
        jnp.ones((1, 32, 32, 3)),
    )
    return sum(jax.tree.leaves(counts))


def random_images(number: int) -> train.ImageSet:
    """Draw random images of 32x32 with labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 10, number, np.int32)
    return train.ImageSet(
        jnp.asarray(images), jnp.asarray(labels), _preprocessing("cifar10")
    )


@functools.partial(jax.jit, static_argnames="preprocessing")
def _first_batch(
    images: jax.Array, labels: jax.Array, preprocessing: data.Preprocessing
) -> tuple[jax.Array, jax.Array]:
    """Preprocess the images that SNIP and GraSP score with."""
    return data.preprocess(images[: sizes.IMAGES], preprocessing), labels[
        : sizes.IMAGES
    ]


def snip(network: models.Model) -> Call:
    """Score with 100 images, and select a tenth of the weights."""
    return _data_scores(network, scores.snip, 1.0)


def grasp(network: models.Model) -> Call:
    """Score with 100 images, and select a tenth of the weights."""
    return _data_scores(network, scores.grasp, 200.0)


def _data_scores(
    network: models.Model, score: Callable[..., Any], temperature: float
) -> Call:
    batch = _first_batch(*random_images(sizes.IMAGES))
    loss_fn = train.loss_function(network, temperature=temperature)
    score_fn = jax.jit(lambda params: score(loss_fn, params, [batch]))
    return lambda: masks.select(score_fn(network.params), 0.1)


def synflow(network: models.Model, rounds: int) -> Call:
    """Score in rounds, down to a tenth of the weights."""
    flow, ones = models.flow(network), jnp.ones((1, 32, 32, 3))
    score_fn = jax.jit(
        lambda params, *, mask: scores.synflow(flow, params, ones, mask=mask)
    )
    return lambda: prune.prune(score_fn, network.params, 0.1, rounds=rounds)[0]


def select(network: models.Model) -> Call:
    """Select the tenth of the weights that are largest."""
    magnitudes = scores.magnitude(network.params)
    return lambda: masks.select(magnitudes, 0.1)


def _train_step() -> Call:
    network, image_set = vgg(), random_images(sizes.STEPS * sizes.BATCH)
    training = train.Training(
        epochs=1, batch_size=sizes.BATCH, learning_rate=1e-3, weight_decay=1e-4
    )
    mask, key = masks.ones_like(network.params), jax.random.key(1)
    return lambda: train.fit(network, mask, image_set, training, key).model.params


def _evaluate() -> Call:
    network, image_set = vgg(), random_images(sizes.EVALUATED)
    return lambda: train.evaluate(network, image_set, batch_size=sizes.EVALUATED_BATCH)


def digits() -> tuple[models.Model, train.ImageSet, train.ImageSet, train.Training]:
    """Return the network, training set, test set and recipe of the digits study."""
    network = models.create(
        "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.25
    )
    loaded = data.load(data.find("digits"))
    train_set, test_set = (
        train.ImageSet(
            jnp.asarray(images), jnp.asarray(labels), _preprocessing("digits")
        )
        for images, labels in (
            (loaded.train_images, loaded.train_labels),
            (loaded.test_images, loaded.test_labels),
        )
    )
    training = train.Training(
        epochs=sizes.LEVEL_EPOCHS,
        batch_size=sizes.LEVEL_BATCH,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=1e-4,
    )
    return network, train_set, test_set, training


def _imp_level() -> Call:
    """Train, prune a fifth of the weights, rewind."""
    network, train_set, _, training = digits()

    def train_fn(model: Any, mask: Any, key: Any, level: Any) -> imp.TrainResult:
        del level
        result = train.fit(
            model,
            mask.params,
            train_set,
            training,
            key,
            rewind_iteration=sizes.REWIND_ITERATION,
        )
        return imp.TrainResult(result.model, rewind_point=result.rewind_point)

    state = imp.init(network, jax.random.key(1))
    return lambda: imp.step(state, train_fn, 0.8)[0]


def _cold_start() -> Call:
    """Prune with SNIP, train and evaluate: the first result of the digits study."""
    network, train_set, test_set, training = digits()
    batch = _first_batch(*train_set)
    loss_fn = train.loss_function(network)

    def first_result() -> train.EvaluationResult:
        score_fn = jax.jit(lambda params: scores.snip(loss_fn, params, [batch]))
        mask = masks.select(score_fn(network.params), 0.1)
        result = train.fit(network, mask, train_set, training, jax.random.key(1))
        return train.evaluate(result.model, test_set)

    return first_result


SCORES: dict[str, Callable[[models.Model], Call]] = {
    "snip": snip,
    "grasp": grasp,
    "synflow_1": functools.partial(synflow, rounds=1),
    "synflow_100": functools.partial(synflow, rounds=100),
    "select": select,
}
TASKS: dict[str, Callable[[], Call]] = {
    **{name: lambda score=score: score(vgg()) for name, score in SCORES.items()},
    "train_step": _train_step,
    "evaluate": _evaluate,
    "imp_level": _imp_level,
    "cold_start": _cold_start,
}
wait = jax.block_until_ready
