"""What bench.py times on our side; `_bench_torch.py` does the same work in PyTorch.

Each work is prepared once and returns the call to time, which waits for its result.
"""

import _cli  # noqa: F401

from collections.abc import Callable  # isort: skip
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import data, imp, masks, models, profiling, prune, scores, train

PICTURES = 100  # that SNIP and GraSP see
STEPS, BATCH = 4, 128
EVALUATED, EVALUATED_BATCH = 1024, 256
LEVEL_BATCH, LEVEL_EPOCHS = 64, 8.0

Call = Callable[[], Any]


def _preprocessing(name: str) -> data.Preprocessing:
    source = data.DATASETS[name]
    return data.Preprocessing(source.mean, source.std, source.pad, source.flip)


def vgg(name: str = "vgg16", width: float = 1.0) -> models.Model:
    """Build a VGG without batch normalization."""
    return models.create(name, key=jax.random.key(0), batch_norm=False, width=width)


def macs() -> int:
    """Count the multiply-accumulates of VGG-16 for one picture."""
    network = vgg()
    counted = profiling.macs(
        lambda params, x: network.apply(params, network.state, x)[0],
        network.params,
        jnp.ones((1, 32, 32, 3)),
    )
    return sum(jax.tree.leaves(counted))


def pictures(number: int) -> train.ImageSet:
    """Draw random pictures of 32x32."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (number, 32, 32, 3), np.uint8)
    labels = draw.integers(0, 10, number, np.int32)
    return train.ImageSet(jnp.asarray(images), jnp.asarray(labels), _preprocessing("cifar10"))


def snip(network: models.Model) -> Call:
    """Score 100 pictures, and take the mask that keeps a tenth."""
    return _scored(network, scores.snip, 1.0)


def grasp(network: models.Model) -> Call:
    """Score 100 pictures, and take the mask that keeps a tenth."""
    return _scored(network, scores.grasp, 200.0)


def _scored(
    network: models.Model, score: Callable[..., Any], temperature: float
) -> Call:
    images, labels, how = pictures(PICTURES)
    batch = (data.preprocess(images, how), labels)
    loss_fn = train.loss_function(network.apply, network.state, temperature)
    scored = jax.jit(lambda params: score(loss_fn, params, [batch]))
    return lambda: masks.select(scored(network.params), 0.1)


def synflow(network: models.Model, rounds: int) -> Call:
    """Score in rounds, down to a tenth of the weights."""
    flow, ones = models.flow(network), jnp.ones((1, 32, 32, 3))
    score = jax.jit(
        lambda params, mask, _: scores.synflow(flow, params, ones, mask=mask)
    )
    return lambda: prune.prune(score, network.params, 0.1, rounds=rounds)[0]


def _select() -> Call:
    scored = scores.magnitude(vgg().params)
    return lambda: masks.select(scored, 0.1)


def _sort() -> Call:
    """Find the same threshold as JAX users do without us."""
    flat = [leaf.ravel() for leaf in jax.tree.leaves(scores.magnitude(vgg().params))]
    ranked = jnp.concatenate(flat)
    kth = jax.jit(lambda values: jnp.sort(values)[int(0.9 * values.size)])
    return lambda: kth(ranked)


def _train_step() -> Call:
    network, shown = vgg(), pictures(STEPS * BATCH)
    recipe = train.Training(
        epochs=1, batch_size=BATCH, learning_rate=1e-3, weight_decay=1e-4
    )
    mask = masks.ones_like(network.params)
    return lambda: (
        train.fit(
            network.apply,
            network.params,
            network.state,
            mask,
            shown,
            recipe,
            jax.random.key(1),
        ).params
    )


def _evaluate() -> Call:
    network, shown = vgg(), pictures(EVALUATED)
    return lambda: train.evaluate(
        network.apply, network.params, network.state, shown, EVALUATED_BATCH
    )


def _digits() -> tuple[models.Model, train.ImageSet, train.ImageSet, train.Training]:
    """Take the network, the pictures and the recipe of the digits study."""
    network = models.create(
        "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.25
    )
    digits = data.load(data.find("digits"))
    sets = [
        train.ImageSet(jnp.asarray(images), jnp.asarray(labels), _preprocessing("digits"))
        for images, labels in (
            (digits.train_images, digits.train_labels),
            (digits.test_images, digits.test_labels),
        )
    ]
    recipe = train.Training(
        epochs=LEVEL_EPOCHS,
        batch_size=LEVEL_BATCH,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=1e-4,
    )
    train_set, test_set = sets
    return network, train_set, test_set, recipe


def _imp_level() -> Call:
    """Train, drop a fifth of the weights, rewind."""
    network, pictures, _, recipe = _digits()

    def train_fn(params: Any, mask: Any, key: Any, level: Any) -> imp.Trained:
        del level
        fitted = train.fit(
            network.apply, params, network.state, mask, pictures, recipe, key, early=23
        )
        assert fitted.early is not None
        return imp.Trained(fitted.params, early=fitted.early[0])

    start = imp.init(network.params, jax.random.key(1))
    return lambda: imp.step(start, train_fn, 0.8)[0]


def _cold_start() -> Call:
    """Prune with SNIP, train and evaluate: the first result of the digits study."""
    network, pictures, test, recipe = _digits()
    images, labels, how = pictures
    batch = (data.preprocess(images[:PICTURES], how), labels[:PICTURES])
    loss_fn = train.loss_function(network.apply, network.state)

    def first() -> train.EvaluationResult:
        scored = jax.jit(lambda p: scores.snip(loss_fn, p, [batch]))(network.params)
        mask = masks.select(scored, 0.1)
        fitted = train.fit(
            network.apply,
            network.params,
            network.state,
            mask,
            pictures,
            recipe,
            jax.random.key(1),
        )
        return train.evaluate(network.apply, fitted.params, fitted.state, test)

    return first


WORKS: dict[str, Callable[[], Call]] = {
    "snip": lambda: snip(vgg()),
    "grasp": lambda: grasp(vgg()),
    "synflow_1": lambda: synflow(vgg(), 1),
    "synflow_100": lambda: synflow(vgg(), 100),
    "select": _select,
    "sort": _sort,
    "train_step": _train_step,
    "evaluate": _evaluate,
    "imp_level": _imp_level,
    "cold_start": _cold_start,
}
wait = jax.block_until_ready
