"""The stages that measure something: masks, accuracy, time and memory."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import data, masks, profiling, train, tree
from jaxprune.study import compaction, settings, workbench
from jaxprune.study.workbench import Arrays, Bench, Output

BATCH = compaction.BATCHES[-1]  # examples per call, as in the published study


def inspect(config: settings.Inspect, arrays: Arrays, bench: Bench) -> Output:
    """Count what the mask leaves, which training does not change."""
    del bench
    model, mask = workbench.model(config.network, arrays), workbench.mask_of(arrays)
    fn = lambda params, x: model.apply(params, model.state, x)[0]
    example = workbench.input_struct(config.network)
    dense = profiling.macs(fn, model.params, example)
    health = masks.health(fn, model.params, mask, example)
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
    return Output({}, facts)


def evaluate(config: settings.Evaluate, arrays: Arrays, bench: Bench) -> Output:
    """Evaluate on the test set, and bin the kept weights of each layer."""
    model, mask = workbench.model(config.network, arrays), workbench.mask_of(arrays)
    params = masks.apply(model.params, mask)
    model = dataclasses.replace(model, params=params)
    test = workbench.test_set(bench)
    result, objective = train.evaluate(model, test), train.unpack(test)[2].objective
    if not np.isfinite(result.loss):  # finite weights may still overflow on new images
        return Output({}, {"diverged": True})
    if not np.isfinite(result.metric):
        raise ValueError(
            f"the metric {objective.metric_name!r} is {result.metric} on the test set, where "
            "the loss is finite. Return finite values from the metric."
        )
    prunable = tree.by_name(tree.prunable(mask))
    weights = tree.by_name(params)
    histograms = {
        name: _histogram(np.asarray(weights[name])[np.asarray(kept)])
        for name, kept in tree.by_name(mask).items()
        if prunable[name]
    }
    facts = {
        **result._asdict(),
        "metric_name": objective.metric_name,
        "metric_unit": objective.metric_unit,
        "higher_is_better": objective.higher_is_better,
        "histograms": histograms,
    }
    return Output({}, facts)


def _histogram(weights: np.ndarray) -> dict[str, list]:
    """Bin the kept weights symmetrically about 0."""
    if weights.size == 0:
        return {"edges": [], "counts": []}
    most = float(np.abs(weights).max()) or 1.0
    bins = 2 * int(np.clip(np.sqrt(weights.size) / 2, 4, 30)) + 1  # odd: one about 0
    counts, edges = np.histogram(weights, bins=bins, range=(-most, most))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def measure(config: settings.Measure, arrays: Arrays, bench: Bench) -> Output:
    """Time the masked network, a pass with its data feed, and the compacted network."""
    model, mask = workbench.model(config.network, arrays), workbench.mask_of(arrays)
    inputs, _, task = train.unpack(workbench.test_set(bench))
    some = task.inputs(inputs[:BATCH])
    result = compaction.compare(model, mask, some, memory=config.memory)
    host, forward = np.asarray(inputs), compaction.inference(model.apply)
    masked = {"params": masks.apply(model.params, mask), "state": model.state}

    def pass_with_feed() -> list[Any]:
        parts = [host[i : i + BATCH] for i in range(0, len(host), BATCH)]
        return [forward(masked, task.inputs(jnp.asarray(part))) for part in parts]

    seconds = float(np.median(profiling.seconds(pass_with_feed, calls=3, warmup=1)))
    call = result.facts[f"masked_{BATCH}_p50_s"]
    latency = {
        "batch": BATCH,
        "call_p50_s": call,
        "call_p95_s": result.facts[f"masked_{BATCH}_p95_s"],
        "call_examples_per_s": BATCH / call,
        "pass_s": seconds,
        "pass_examples": len(host),
        "pass_examples_per_s": len(host) / seconds,
    }
    memory = {} if result.masked is None else {"memory": result.masked._asdict()}
    return Output({}, {"latency": latency, "compaction": result.facts, **memory})


def memory(config: settings.Memory, arrays: Arrays, bench: Bench) -> Output:
    """Measure the memory of the network in a fresh process; masks do not change it."""
    del bench
    forward = compaction.inference(workbench.build(config.network).apply)
    dense = {"params": arrays["params"], "state": arrays["state"]}
    example = workbench.input_struct(config.network, BATCH)
    x = jnp.ones(example.shape, example.dtype)
    used = profiling.measure(forward, dense, x)
    return Output({}, {"memory": used._asdict()})


class EpochTime(NamedTuple):
    """The time of an epoch of training.

    Attributes:
        seconds: of an epoch.
        timed: number of steps that were timed.
        steps: number of steps of an epoch.
    """

    seconds: float
    timed: int
    steps: int


def epoch_time(
    config: settings.Train, bench: Bench, most: int | None = None
) -> EpochTime:
    """Time the training of a dense network, compilation left out.

    Args:
        config: settings of a stage that trains.
        bench: where the data set is.
        most: number of steps to time; None for a whole epoch.

    Returns:
        Seconds per epoch.
    """
    examples, training = workbench.train_set(config.dataset, bench), config.training
    model = workbench.build(config.network).init(
        workbench.key_for(config.seed, "initialize")
    )
    steps = data.steps_per_epoch(examples[0].shape[0], training.batch_size)
    total = round(training.epochs * steps)
    timed = min(steps, total, most or steps)

    def train_some_steps() -> Any:
        key, mask = (
            workbench.key_for(config.seed, "train"),
            masks.ones_like(model.params),
        )
        start = total - timed
        return train.fit(model, mask, examples, training, key, start=start).model

    (taken,) = profiling.seconds(train_some_steps, calls=1, warmup=1)
    return EpochTime(taken * steps / timed, timed, steps)
