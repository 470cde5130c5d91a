"""The stages that make weights."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import (
    data,
    imp,
    masks,
    models,
    profiling,
    train,
)
from jaxprune.study import code, settings, user, workbench
from jaxprune.study.workbench import Arrays, Bench, Output


def _initial(
    config: settings.Initialize | settings.Level, purpose: str = "initialize"
) -> dict[str, Any]:
    key = workbench.key_for(config.seed, purpose)
    model = workbench.build(config.network).init(key)
    return {"params": model.params, "state": model.state}


def initialize(config: settings.Initialize, arrays: Arrays, bench: Bench) -> Output:
    """Draw the initial weights."""
    del arrays, bench
    return Output(_initial(config), {})


def _fit(
    config: settings.Train,
    arrays: Arrays,
    mask: Any,
    bench: Bench,
    noise: str = "train",
) -> train.FitResult:
    """Train; `noise` names the key of the order of the data and of augmentation."""
    image_set = workbench.train_set(config.dataset, bench)
    steps = data.steps_per_epoch(image_set[0].shape[0], config.training.batch_size)
    rewind = config.rewind_epochs
    return train.fit(
        workbench.model(config.network, arrays),
        mask,
        image_set,
        config.training,
        workbench.key_for(config.seed, noise),
        start=round(config.start * steps),
        rewind_iteration=None if rewind is None else round(rewind * steps),
        on_epoch=bench.on_epoch,
    )


def count_steps(config: settings.Train, bench: Bench) -> int:
    """Count the steps that a stage trains for.

    Raises:
        ValueError: if there are none.
    """
    examples = len(workbench.train_set(config.dataset, bench)[0])
    training = config.training
    per_epoch = data.steps_per_epoch(examples, training.batch_size)
    steps = round(training.epochs * per_epoch) - round(config.start * per_epoch)
    if steps < 1:
        raise ValueError(
            f"training to epoch {training.epochs:g} from {config.start:g} has no step "
            f"with {examples} examples in batches of {training.batch_size}. Train for more "
            "epochs, on more examples, or in smaller batches."
        )
    return steps


@functools.lru_cache(maxsize=1)
def check_outputs(network: settings.Network, data: user.Data) -> None:
    """Check what a network of the user returns, and that it has a logit for every label.

    Raises:
        ValueError: if it returns something else.
    """
    model = jax.eval_shape(workbench.build(network).init, jax.random.key(0))

    def forward(model: models.Model, x: jax.Array) -> Any:
        pair = model.apply(model.params, model.state, x, train=False)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(
                f"apply returned a {type(pair).__name__}. Return the outputs and the state."
            )
        return pair[0]

    run = lambda: jax.eval_shape(forward, model, workbench.input_struct(network, 2))
    outputs = code.call(run, "model")
    if data.objective is not train.CLASSIFICATION:
        return
    labels = 1 + max(int(targets.max()) for _, targets in (data.train, data.test))
    shape = getattr(outputs, "shape", ())
    if len(shape) != 2 or shape[0] != 2 or shape[1] < labels:
        returned = shape if shape else type(outputs).__name__
        raise ValueError(
            f"the network returned outputs of {returned} for 2 examples, and the labels "
            f"are 0 to {labels - 1}. Return logits of shape (examples, {labels}), or pass an "
            "objective with a loss and a metric."
        )


def train_stage(config: settings.Train, arrays: Arrays, bench: Bench) -> Output:
    """Train the weights that the mask keeps, and sample the memory after each epoch."""
    mask = workbench.mask_of(arrays)
    samples: list[profiling.MemorySample] = []

    def on_epoch(history: Mapping[str, float]) -> None:
        samples.append(profiling.sample_memory())
        bench.on_epoch(history)

    fitted = _fit(config, arrays, mask, bench._replace(on_epoch=on_epoch))
    trained = fitted.model.params
    if config.keeps_pruned:
        trained = jax.tree.map(jnp.where, mask, trained, arrays["params"])
    results = {"params": trained, "state": fitted.model.state}
    if config.training.sparse is not None:
        results["mask"] = fitted.mask
    if fitted.rewind_point is not None:
        rewind_point = fitted.rewind_point
        results["rewind_point"] = {
            "params": rewind_point.params,
            "state": rewind_point.state,
        }
    facts = {
        "history": _finite(fitted.history),
        "diverged": fitted.diverged,
        "training_memory": profiling.maximum(samples),
    }
    return Output(results, facts)


def _finite(history: list[dict[str, float]]) -> list[dict[str, float | None]]:
    """Write a loss that is not finite as None, which JSON can hold."""
    return [
        {name: value if np.isfinite(value) else None for name, value in epoch.items()}
        for epoch in history
    ]


def reinitialize(config: settings.Initialize, arrays: Arrays, bench: Bench) -> Output:
    """Draw all weights and BatchNorm statistics again, with another key."""
    del arrays, bench
    return Output(_initial(config, "reinitialize"), {})


def level(config: settings.Level, arrays: Arrays, bench: Bench) -> Output:
    """Prune the trained weights, and rewind: `imp.step` after the stage that trained."""
    del bench
    trained = {name: arrays[name] for name in ("params", "state")}
    restarts = {
        "init": lambda: _initial(config),
        "early": lambda: arrays["rewind_point"],
        "weights_kept": lambda: trained,
    }
    state = imp.State(
        jnp.int32(config.level),
        restarts[config.rewind](),
        {
            "params": workbench.mask_of(arrays),
            "state": masks.ones_like(arrays["state"]),
        },
        workbench.key_for(config.seed, "score"),
    )
    state, _ = imp.step(
        state,
        lambda params, mask, key, level: imp.TrainResult(
            trained, rewind_point=arrays.get("rewind_point")
        ),
        config.density,
        rewind=config.rewind,
        regrow=config.regrow,
        scope=config.scope,
        ties=config.ties,
    )
    return Output({**state.params, "mask": state.mask["params"]}, {})


def connect(config: settings.Connect, arrays: Arrays, bench: Bench) -> Output:
    """Train from the rewind point with other noise; measure between the two networks."""
    mask = workbench.mask_of(arrays)
    again = _fit(config, arrays["rewind_point"], mask, bench, noise="noise")
    if again.diverged:
        return Output({}, {"diverged": True})
    first = workbench.model(config.network, arrays)
    errors = train.errors_between(
        dataclasses.replace(first, params=masks.apply(first.params, mask)),
        again.model,
        cast(train.ImageSet, workbench.test_set(bench)),
        points=config.points,
    )
    connectivity = {"errors": errors, "barrier": train.error_barrier(errors)}
    return Output({}, {"connectivity": connectivity})
