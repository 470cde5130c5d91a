"""The stages that measure something: masks, accuracy, time and memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import data, masks, profiling, train, tree
from jaxprune.study import gain, workbench

PROFILE_BATCH = 256  # images a call, as in the published study


def inspect(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Say what the mask leaves, which no training changes."""
    del at
    model, mask = workbench.model(settings, inputs), workbench.mask_of(inputs)
    fn = lambda params, x: model.apply(params, model.state, x)[0]
    image = jax.ShapeDtypeStruct((1, *settings["input_shape"]), jnp.float32)
    dense = profiling.macs(fn, inputs["params"], image)
    health = masks.health(fn, inputs["params"], mask, image)
    macs, kept = tree.by_name(dense), tree.by_name(mask)
    layers = [
        {
            "name": name,
            "size": kept[name].size,
            "kept": round(share * kept[name].size),
            "effective": round(health.effective[name] * kept[name].size),
            "macs": macs[name],
        }
        for name, share in health.densities.items()
    ]
    facts = {
        "density": health.density,
        "effective_density": health.effective_density,
        "collapse": health.collapse.message if health.collapse else None,
        "layers": layers,
        "macs_dense": sum(jax.tree.leaves(dense)),
        "macs_kept": sum(jax.tree.leaves(profiling.kept_macs(dense, mask))),
    }
    return workbench.Output({}, facts)


def evaluate(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Evaluate on the test set, and bin the kept weights of each layer."""
    model, mask = workbench.model(settings, inputs), workbench.mask_of(inputs)
    params = masks.apply(model.params, mask)
    model = dataclasses.replace(model, params=params)
    found = train.evaluate(model, workbench.test_set(at))
    if not np.isfinite(found.loss):  # finite weights may still overflow on new images
        return workbench.Output({}, {"diverged": True})
    prunable = tree.by_name(tree.prunable(mask))
    weights = tree.by_name(params)
    histograms = {
        name: _histogram(np.asarray(weights[name])[np.asarray(kept)])
        for name, kept in tree.by_name(mask).items()
        if prunable[name]
    }
    return workbench.Output({}, {**found._asdict(), "histograms": histograms})


def _histogram(weights: np.ndarray) -> dict[str, list]:
    """Bin the kept weights symmetrically about 0; zeros are no bin of their own here."""
    if weights.size == 0:
        return {"edges": [], "counts": []}
    most = float(np.abs(weights).max()) or 1.0
    bins = 2 * int(np.clip(np.sqrt(weights.size) / 2, 4, 30)) + 1  # odd: one about 0
    counts, edges = np.histogram(weights, bins=bins, range=(-most, most))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def profile(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Time the call and a pass with its data feed; memory comes from a process of its own."""
    network, state = workbench.network(settings), inputs["state"]
    params = masks.apply(inputs["params"], workbench.mask_of(inputs))
    test = workbench.test_set(at)
    host, preprocessing = np.asarray(test.images), test.preprocessing
    chosen = test.images[jnp.arange(PROFILE_BATCH) % len(host)]
    first = data.preprocess(chosen, preprocessing)
    call = workbench.inference(network.apply)
    alone = profiling.latency(call, params, state, first)

    def fed_pass() -> list[Any]:
        return [
            call(
                params,
                state,
                data.preprocess(
                    jnp.asarray(host[i : i + PROFILE_BATCH]), preprocessing
                ),
            )
            for i in range(0, len(host), PROFILE_BATCH)
        ]

    fed = float(np.median(profiling.seconds(fed_pass, calls=3, warmup=1)))
    memory = profiling.start_measure(call, params, state, first)
    latency = {
        "batch": PROFILE_BATCH,
        "call_p50_s": alone.p50,
        "call_p95_s": alone.p95,
        "call_images_per_s": PROFILE_BATCH / alone.p50,
        "pass_s": fed,
        "pass_images": len(host),
        "pass_images_per_s": len(host) / fed,
    }
    return workbench.Output(
        {}, {"latency": latency}, lambda: {"memory": memory()._asdict()}
    )


def compacted(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Set the masked network beside the smaller one that computes the same."""
    del at
    model = workbench.model(settings, inputs)
    wait = gain.measure(model, workbench.mask_of(inputs), settings["input_shape"])
    return workbench.Output({}, {}, lambda: {"compaction": wait()})


class EpochTime(NamedTuple):
    """Seconds an epoch of training takes, timed on `timed` of its `steps` steps."""

    seconds: float
    timed: int
    steps: int


def epoch_time(
    settings: workbench.Settings, at: workbench.Bench, most: int | None = None
) -> EpochTime:
    """Time the training of a dense network, compilation left out.

    Args:
        settings: of a stage that trains.
        at: what it works with.
        most: steps to time; None for a whole epoch.

    Returns:
        Seconds an epoch.
    """
    network, image_set = workbench.network(settings), workbench.train_set(settings, at)
    training = workbench.training(settings)
    model = network.init(workbench.key_for(settings, "initialize"))
    steps = data.steps_per_epoch(image_set.images.shape[0], training.batch_size)
    total = round(training.epochs * steps)
    timed = min(steps, total, most or steps)

    def train_a_bit() -> Any:
        key, mask = workbench.key_for(settings, "train"), masks.ones_like(model.params)
        start = total - timed
        return train.fit(model, mask, image_set, training, key, start=start).model

    (taken,) = profiling.seconds(train_a_bit, calls=1, warmup=1)
    return EpochTime(taken * steps / timed, timed, steps)
