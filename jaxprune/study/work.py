"""The stages that make something: weights, scores and masks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import (
    data,
    imp,
    masks,
    models,
    profiling,
    prune,
    scores,
    sharding,
    train,
    tree,
)
from jaxprune.study import measure, workbench
from jaxprune.study.stages import Stage


def run(
    stage: Stage, inputs: Mapping[str, Any], at: workbench.Bench
) -> workbench.Output:
    """Do what a stage does.

    Args:
        stage: which one.
        inputs: arrays of the stages before it, the latest of each name.
        at: what it works with.

    Returns:
        Its arrays and facts.
    """
    return RUN[stage.kind](stage.settings, inputs, at)


def _initial(settings: workbench.Settings) -> dict[str, Any]:
    key = workbench.key_for(settings, "initialize")
    model = workbench.network(settings).init(key)
    return {"params": model.params, "state": model.state}


def _initialise(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    del inputs, at
    return workbench.Output(_initial(settings), {})


def _fit(
    settings: workbench.Settings,
    start: Mapping[str, Any],
    mask: Any,
    at: workbench.Bench,
    noise: str = "train",
) -> train.FitResult:
    """Train as the settings say; `noise` names the order of the data and augmentation."""
    image_set = workbench.train_set(settings, at)
    training = workbench.training(settings)
    steps = data.steps_per_epoch(image_set.images.shape[0], training.batch_size)
    rewind = settings["rewind_epochs"]
    return train.fit(
        workbench.model(settings, start),
        mask,
        image_set,
        training,
        workbench.key_for(settings, noise),
        start=round(settings["start"] * steps),
        rewind_iteration=None if rewind is None else round(rewind * steps),
        on_epoch=at.on_epoch,
    )


def steps(settings: workbench.Settings, at: workbench.Bench) -> int:
    """Count the steps that a stage trains for.

    Raises:
        ValueError: if there are none.
    """
    examples = workbench.train_set(settings, at).images.shape[0]
    training = workbench.training(settings)
    per_epoch = data.steps_per_epoch(examples, training.batch_size)
    start = round(settings["start"] * per_epoch)
    found = round(training.epochs * per_epoch) - start
    if found < 1:
        raise ValueError(
            f"training to epoch {training.epochs:g} from {settings['start']:g} has no step "
            f"with {examples} images in batches of {training.batch_size}. Train for more "
            "epochs, on more images, or in smaller batches."
        )
    return found


def _train(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    params = inputs["params"]
    mask = workbench.mask_of(inputs)
    samples: list[profiling.MemorySample] = []

    def on_epoch(history: Mapping[str, float]) -> None:
        samples.append(profiling.sample_memory())
        at.on_epoch(history)

    fitted = _fit(settings, inputs, mask, at._replace(on_epoch=on_epoch))
    trained = fitted.model.params
    if settings.get("regrow"):  # pruned weights keep the values they compete with
        trained = jax.tree.map(jnp.where, mask, trained, params)
    arrays = {"params": trained, "state": fitted.model.state}
    if fitted.rewind_point is not None:
        rewind_point = fitted.rewind_point
        arrays["rewind_point"] = {
            "params": rewind_point.params,
            "state": rewind_point.state,
        }
    facts = {
        "history": _finite(fitted.history),
        "diverged": fitted.diverged,
        "training_memory": profiling.maximum(samples),
    }
    return workbench.Output(arrays, facts)


def _finite(history: list[dict[str, float]]) -> list[dict[str, float | None]]:
    """Write a loss that is not finite as None, which JSON knows."""
    return [
        {name: value if np.isfinite(value) else None for name, value in epoch.items()}
        for epoch in history
    ]


def _score(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    return workbench.Output({"scores": _scorer(settings, inputs, at)(None)}, {})


def _scorer(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> Callable[[Any], Any]:
    """Bind everything but the mask."""
    params, model = inputs["params"], workbench.model(settings, inputs)
    name = settings["score"]
    needs = scores.SCORERS[name].needs
    if needs == "key":
        drawn = scores.random(workbench.key_for(settings, "score"), params)
        return lambda mask: drawn
    if needs == "nothing":
        return lambda mask: scores.magnitude(params, mask=mask)
    if needs == "inputs":
        ones = jnp.ones((1, *settings["input_shape"]))
        flow = models.flow(model, batch_norm=settings["norm_flow"])
        rescale = settings["rescale"]
        return lambda mask: _checked(_flow_scores(params, ones, mask, flow, rescale))
    image_set = workbench.train_set(settings, at)
    key, augment_key = jax.random.split(workbench.key_for(settings, "examples"))
    chosen = data.sample_examples(
        key, image_set.images.shape[0], settings["score_examples"]
    )
    batch = (
        data.preprocess(image_set.images[chosen], image_set.preprocessing, augment_key),
        image_set.labels[chosen],
    )
    if at.mesh is not None and len(chosen) % at.mesh.shape["data"] == 0:
        batch = sharding.shard_batch(batch, at.mesh)
    loss_fn = train.loss_function(
        model, train=settings["train_mode"], temperature=settings["temperature"]
    )
    return lambda mask: _data_scores(loss_fn, params, batch, mask, name)


def _checked(scored: Any) -> Any:
    tree.check_finite(scored, "set synflow_rescale=True in the recipe.")
    return scored


@functools.partial(jax.jit, static_argnames="rescale")
def _flow_scores(params: Any, ones: Any, mask: Any, flow: Any, rescale: bool) -> Any:
    return scores.synflow(flow, params, ones, mask=mask, rescale=rescale)


@functools.partial(jax.jit, static_argnames="name")
def _data_scores(loss_fn: Any, params: Any, batch: Any, mask: Any, name: str) -> Any:
    return scores.SCORERS[name].score(loss_fn, params, [batch], mask=mask)


def _select(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    del at
    mask = masks.select(inputs["scores"], settings["density"], ties=settings["ties"])
    return workbench.Output({"mask": mask}, {})


def _prune(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    scorer = _scorer(settings, inputs, at)
    mask, info = prune.prune(
        lambda params, *, mask: scorer(mask),
        inputs["params"],
        settings["density"],
        rounds=settings["rounds"],
        ties=settings["ties"],
        regrow=settings["regrow"],
    )
    return workbench.Output({"mask": mask}, {"densities": info.densities})


def _level(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Prune the trained weights, and rewind: `imp.step` after the stage that trained."""
    del at
    trained = {name: inputs[name] for name in ("params", "state")}
    mask = workbench.mask_of(inputs)
    restarts = {
        "init": lambda: _initial(settings),
        "early": lambda: inputs["rewind_point"],
        "weights_kept": lambda: trained,
    }
    state = imp.State(
        jnp.int32(settings["level"]),
        restarts[settings["rewind"]](),
        {"params": mask, "state": masks.ones_like(inputs["state"])},
        workbench.key_for(settings, "score"),
    )
    state, _ = imp.step(
        state,
        lambda params, mask, key, level: imp.TrainResult(
            trained, rewind_point=inputs.get("rewind_point")
        ),
        settings["density"],
        rewind=settings["rewind"],
        regrow=settings["regrow"],
        ties=settings["ties"],
    )
    return workbench.Output({**state.params, "mask": state.mask["params"]}, {})


def _connect(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Train the same weights again with other noise, and look between the two networks."""
    mask = workbench.mask_of(inputs)
    again = _fit(settings, inputs["rewind_point"], mask, at, noise="noise")
    if again.diverged:
        return workbench.Output({}, {"diverged": True})
    first = workbench.model(settings, inputs)
    errors = train.errors_between(
        dataclasses.replace(first, params=masks.apply(first.params, mask)),
        again.model,
        workbench.test_set(at),
        points=settings["points"],
    )
    found = {"errors": errors, "barrier": train.error_barrier(errors)}
    return workbench.Output({}, {"connectivity": found})


RUN: Mapping[
    str,
    Callable[
        [workbench.Settings, Mapping[str, Any], workbench.Bench], workbench.Output
    ],
] = {
    "initialize": _initialise,
    "train": _train,
    "score": _score,
    "select": _select,
    "prune": _prune,
    "level": _level,
    "connect": _connect,
    "inspect": measure.inspect,
    "evaluate": measure.evaluate,
    "profile": measure.profile,
    "compact": measure.compacted,
}

# What a finished stage has noted, unless its network diverged.
FACTS: Mapping[str, set[str]] = {
    "train": {"history", "training_memory"},
    "inspect": {"density", "effective_density", "layers", "macs_dense", "macs_kept"},
    "evaluate": {"accuracy", "loss", "histograms"},
    "connect": {"connectivity"},
    "profile": {"latency", "memory"},
    "compact": {"compaction"},
}
