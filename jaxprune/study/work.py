"""The stages that make something: weights, scores and masks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoint, data, imp, masks, prune, scores, train, tree
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


def _initial(settings: workbench.Settings) -> tuple[Any, Any]:
    return workbench.network(settings).init(workbench.key_for(settings, "initialise"))


def _initialise(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    del inputs, at
    params, state = _initial(settings)
    return workbench.Output({"params": params, "state": state}, {})


def _fit(
    settings: workbench.Settings,
    params: Any,
    state: Any,
    mask: Any,
    at: workbench.Bench,
    start: float,
    early: float | None,
) -> train.Fitted:
    pictures = workbench.train_set(settings, at)
    held = {**settings["training"]}
    held["drop_epochs"] = tuple(held["drop_epochs"])
    training = train.Training(**held)
    steps = data.steps_per_epoch(pictures.images.shape[0], training.batch_size)
    return train.fit(
        workbench.network(settings).apply,
        params,
        state,
        mask,
        pictures,
        training,
        workbench.key_for(settings, "train"),
        start=round(start * steps),
        early=None if early is None else round(early * steps),
        on_epoch=at.on_epoch,
    )


def _train(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    mask = inputs.get("mask") or masks.ones_like(inputs["params"])
    fitted = _fit(
        settings,
        inputs["params"],
        inputs["state"],
        mask,
        at,
        settings["start"],
        settings["early"],
    )
    arrays = {"params": fitted.params, "state": fitted.state}
    if fitted.early is not None:
        arrays["early"] = dict(zip(("params", "state"), fitted.early, strict=True))
    facts = {"history": _finite(fitted.history), "diverged": fitted.diverged}
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
    params, network = inputs["params"], workbench.network(settings)
    name = settings["score"]
    needs = scores.SCORERS[name].needs
    if needs == "key":
        drawn = scores.random(workbench.key_for(settings, "score"), params)
        return lambda mask: drawn
    if needs == "nothing":
        return lambda mask: scores.magnitude(params, mask=mask)
    if needs == "inputs":
        ones = jnp.ones((1, *settings["input_shape"]))
        flow = network.flows[settings["norm_flow"]]
        rescale = settings["rescale"]
        return lambda mask: _checked(_flow_scores(params, ones, mask, flow, rescale))
    pictures = workbench.train_set(settings, at)
    key, augment_key = jax.random.split(workbench.key_for(settings, "examples"))
    chosen = data.choose(key, pictures.images.shape[0], settings["score_examples"])
    batch = (
        data.preprocess(pictures.images[chosen], pictures.how, augment_key),
        pictures.labels[chosen],
    )
    return lambda mask: _data_scores(
        params,
        inputs["state"],
        batch,
        mask,
        name,
        network.apply,
        settings["temperature"],
    )


def _checked(scored: Any) -> Any:
    tree.check_finite(scored, "set synflow_rescale=True in the recipe.")
    return scored


@functools.partial(jax.jit, static_argnames=("flow", "rescale"))
def _flow_scores(params: Any, ones: Any, mask: Any, flow: Any, rescale: bool) -> Any:
    return scores.synflow(flow, params, ones, mask=mask, rescale=rescale)


@functools.partial(jax.jit, static_argnames=("name", "apply", "temperature"))
def _data_scores(
    params: Any,
    state: Any,
    batch: Any,
    mask: Any,
    name: str,
    apply: Any,
    temperature: float,
) -> Any:
    loss_fn = train.loss_function(apply, state, temperature)
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
        lambda params, mask, key: scorer(mask),
        inputs["params"],
        settings["density"],
        rounds=settings["rounds"],
        ties=settings["ties"],
        regrow=settings["regrow"],
    )
    return workbench.Output({"mask": mask}, {"densities": info.densities})


def _imp(
    settings: workbench.Settings, inputs: Mapping, at: workbench.Bench
) -> workbench.Output:
    """Run the levels; the first one's training is the dense network's, done before."""
    late = settings["early"] if settings["rewind"] == "early" else 0

    def train_fn(variables: Any, mask: Any, key: Any, level: Any) -> imp.Trained:
        del key  # the order of the data continues, as in open_lth: it is the seed's
        if level == 0:
            dense = {name: inputs[name] for name in ("params", "state")}
            return imp.Trained(dense, early=inputs["early"])
        params, state, mask = variables["params"], variables["state"], mask["params"]
        fitted = _fit(settings, params, state, mask, at, late, None)
        if fitted.diverged:
            raise _DivergedError(fitted.history)
        trained = fitted.params
        if settings["regrow"]:  # pruned weights keep the values they compete with
            trained = jax.tree.map(jnp.where, mask, trained, params)
        return imp.Trained({"params": trained, "state": fitted.state})

    initial = dict(zip(("params", "state"), _initial(settings), strict=True))
    step = functools.partial(
        imp.step,
        train_fn=train_fn,
        rewind=settings["rewind"],
        regrow=settings["regrow"],
        ties=settings["ties"],
    )
    state = imp.init(initial, workbench.key_for(settings, "score"))
    folder = at.folder / "levels"
    try:
        *_, (state, _) = checkpoint.levels(folder, state, step, settings["densities"])
    except _DivergedError as diverged:
        return workbench.Output(
            {}, {"history": _finite(diverged.args[0]), "diverged": True}
        )
    return workbench.Output({**state.rewind, "mask": state.mask["params"]}, {})


class _DivergedError(Exception):
    """A level's loss was not finite; carries its history."""


RUN: Mapping[
    str,
    Callable[
        [workbench.Settings, Mapping[str, Any], workbench.Bench], workbench.Output
    ],
] = {
    "initialise": _initialise,
    "train": _train,
    "score": _score,
    "select": _select,
    "prune": _prune,
    "imp": _imp,
    "inspect": measure.inspect,
    "evaluate": measure.evaluate,
    "profile": measure.profile,
}
