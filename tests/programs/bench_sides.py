"""Do the tasks of the benchmarks in jaxprune and in plain JAX, with the same weights.

    python -m tests.programs.bench_sides

Prints a JSON object of differences: between scores and between trained arrays relative to
the largest; between masks, the share of the entries that differ; and between losses and
accuracies.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune import masks, models, scores, train, tree
from tests.programs.run_scripts import SCRIPTS

sys.path.insert(0, str(SCRIPTS))

from bench import ours, plain_jax, sizes  # isort: skip


def layers(network: Any) -> dict[str, nnx.Module]:
    """Return the layers of plain JAX by their names in jaxprune."""
    named = {f"conv{i}": conv for i, conv in enumerate(network.convs, start=1)}
    if isinstance(network, plain_jax.VGG):
        return {**named, "fc": network.fc}
    named |= {f"bn{i}": norm for i, norm in enumerate(network.conv_norms, start=1)}
    for i in (1, 2):
        named[f"dense/fc{i}"] = network.linears[i - 1]
        named[f"dense/bn{i}"] = network.linear_norms[i - 1]
    return {**named, "dense/fc3": network.head}


def by_name(net: plain_jax.Split, kernels: Any = None) -> dict[str, np.ndarray]:
    """Return the arrays of plain JAX, or kernels only, by their names in jaxprune."""
    arrays = net if kernels is None else net._replace(kernels=kernels)
    return {
        f"{name}/{'/'.join(map(str, path))}": np.asarray(value[...])
        for name, layer in layers(nnx.merge(*arrays)).items()
        for path, value in nnx.to_flat_state(nnx.state(layer))
        if kernels is None or path[-1] == "kernel"
    }


def share(model: models.Model, network: nnx.Module) -> plain_jax.Split:
    """Give a network of plain JAX the weights of jaxprune's."""
    for name, layer in layers(network).items():
        weights = model.params
        for part in name.split("/"):
            weights = weights[part]
        nnx.update(layer, weights)
    return plain_jax.split(network)


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest difference, relative to the largest value of `a`."""
    largest = max(float(np.abs(a[name]).max()) for name in b)
    return max(float(np.abs(a[name] - b[name]).max()) for name in b) / largest


def unequal(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the share of the entries of `b` that are different in `a`."""
    return float(np.concatenate([(a[name] != b[name]).ravel() for name in b]).mean())


def compare_scores() -> dict[str, float]:
    """Score and prune a narrow VGG-11."""
    model = ours.vgg("vgg11", width=0.125)
    stages = (8,), (16,), (32,) * 2, (64,) * 2, (64,) * 2
    network = plain_jax.VGG(stages, rngs=nnx.Rngs(0))
    net, data = share(model, network), plain_jax.random_images(sizes.IMAGES)
    batch = data.normalize(data.images), data.labels
    loss = train.loss_function(model)
    cooled_loss = train.loss_function(model, temperature=200.0)
    flow, ones = models.flow(model), jnp.ones((1, 32, 32, 3))
    flow_args = plain_jax.all_true(net), ones
    tasks = {
        "snip": (lambda p: scores.snip(loss, p, [batch]), plain_jax.snip_scores, batch),
        "grasp": (
            lambda p: scores.grasp(cooled_loss, p, [batch]),
            plain_jax.grasp_scores,
            batch,
        ),
        "synflow_1": (
            lambda p: scores.synflow(flow, p, ones),
            plain_jax.synflow_scores,
            flow_args,
        ),
        "select": (
            scores.magnitude,
            lambda net: jax.tree.map(jnp.abs, net.kernels),
            (),
        ),
    }
    results = {}
    for name, (score, plain_score, args) in tasks.items():
        scored = jax.jit(score)(model.params)
        plain_scored = by_name(net, jax.jit(plain_score)(net, *args))
        results[f"{name} scores"] = difference(tree.by_name(scored), plain_scored)
        mask = tree.by_name(masks.select(scored, 0.1))
        pruned = by_name(net, plain_jax.SCORES[name](network)())
        results[f"{name} masks"] = unequal(mask, pruned)
    pruned = by_name(net, plain_jax.select(network, plain_jax.above_partitioned)())
    results["select_numpy masks"] = unequal(mask, pruned)
    mask = tree.by_name(ours.synflow(model, 3)())
    pruned = by_name(net, plain_jax.synflow(network, rounds=3)())
    return {**results, "synflow_3 masks": unequal(mask, pruned)}


def compare_training() -> dict[str, float]:
    """Train Conv-2 on digits under a mask, with all images in each batch; evaluate."""
    model, *sets, training = ours.digits()
    sets = [
        part._replace(images=part.images[:64], labels=part.labels[:64]) for part in sets
    ]
    training = dataclasses.replace(training, epochs=3, batch_size=64)
    net = share(model, plain_jax.Conv2(rngs=nnx.Rngs(0)))
    data, test_data = (
        plain_jax.Dataset(
            images, labels, preprocessing.mean, preprocessing.std, augment=False
        )
        for images, labels, preprocessing in sets
    )
    mask = masks.select(scores.magnitude(model.params), 0.5)
    result = train.fit(model, mask, sets[0], training, jax.random.key(1))
    schedule = optax.cosine_decay_schedule(training.learning_rate, 3)
    fit = plain_jax.trainer(net, data, schedule, training.batch_size, 3)
    magnitudes = jax.tree.map(jnp.abs, net.kernels)
    plain = fit(plain_jax.select_masks(magnitudes, 0.5))
    trained = result.model
    arrays = tree.by_name(trained.params) | tree.by_name(trained.state)
    evaluated = train.evaluate(trained, sets[1])
    loss, accuracy = plain_jax.evaluate(plain.net, test_data)
    losses = [entry["loss"] for entry in result.history]
    return {
        "trained": difference(arrays, by_name(plain.net)),
        "losses": float(np.abs(np.subtract(losses, plain.losses)).max()),
        "evaluated loss": abs(evaluated.loss - loss),
        "evaluated accuracy": abs(evaluated.metric / 100 - accuracy),
    }


if __name__ == "__main__":
    print(json.dumps({**compare_scores(), **compare_training()}))
