"""What each stage does: the library at work, on the settings of one stage."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import (
    checkpoint,
    data,
    imp,
    masks,
    models,
    profiling,
    prune,
    scores,
    train,
    tree,
)
from jaxprune.study.stages import Stage

PROFILE_BATCH = 256  # pictures a call, as in the published study
Settings = Mapping[str, Any]


class Output(NamedTuple):
    """What a stage makes: arrays, which later stages see, and facts, which are JSON.

    late: waits for facts that another process is still gathering, or None.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]
    late: Callable[[], dict[str, Any]] | None = None


class Bench(NamedTuple):
    """What a stage works with, and no id depends on.

    found: where the data set lies; folder: the stage's own, for checkpoints; on_epoch:
    called after every epoch of training.
    """

    found: data.Found
    folder: Path
    on_epoch: Callable[[Mapping[str, float]], None]


def run(stage: Stage, inputs: Mapping[str, Any], bench: Bench) -> Output:
    """Do what a stage does.

    Args:
        stage: which one.
        inputs: arrays of the stages before it, the latest of each name.
        bench: what it works with.

    Returns:
        Its arrays and facts.
    """
    return RUN[stage.kind](stage.settings, inputs, bench)


def _key(settings: Settings, purpose: str) -> Any:
    """Give each purpose its own key, so that none is used twice."""
    purposes = ("initialise", "train", "score", "examples", "inputs")
    return jax.random.fold_in(jax.random.key(settings["seed"]), purposes.index(purpose))


class _Network(NamedTuple):
    init: Callable[..., Any]
    apply: models.Apply
    flows: Mapping[str, Any]


@functools.lru_cache(maxsize=8)
def _built(
    name: str, input_shape: tuple, num_classes: int, batch_norm: bool, width: float
) -> _Network:
    """Build a network once: one function object, so that nothing compiles twice."""
    made: list[models.Model] = []

    def init(key: Any) -> tuple[Any, Any]:
        model = models.create(
            name,
            key=key,
            input_shape=input_shape,
            num_classes=num_classes,
            batch_norm=batch_norm,
            width=width,
        )
        made.append(model)
        return model.params, model.state

    # Tracing is enough for the forward pass, which holds no arrays; the flow holds
    # statistics.
    _, shapes = jax.eval_shape(init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    model = made[0]._replace(state=zeros)
    flows = {kind: models.flow(model, batch_norm=kind) for kind in models.FLOWS}
    return _Network(jax.jit(init), model.apply, flows)


def _network(settings: Settings) -> _Network:
    return _built(
        settings["model"],
        tuple(settings["input_shape"]),
        settings["num_classes"],
        settings["batch_norm"],
        settings["width"],
    )


@functools.lru_cache(maxsize=1)
def _loaded(found: data.Found) -> data.Dataset:
    return data.load(found)


@functools.lru_cache(maxsize=2)
def _split(found: data.Found, split: str, examples: int | None) -> train.Pictures:
    source, dataset = data.SOURCES[found.name], _loaded(found)
    how = data.Preprocessing(source.mean, source.std, source.pad, source.flip)
    images, labels = (
        (dataset.train_images, dataset.train_labels)
        if split == "train"
        else (dataset.test_images, dataset.test_labels)
    )
    return train.Pictures(
        jnp.asarray(images[:examples]), jnp.asarray(labels[:examples]), how
    )


def _train_set(settings: Settings, bench: Bench) -> train.Pictures:
    return _split(bench.found, "train", settings["train_examples"])


def _initial(settings: Settings) -> tuple[Any, Any]:
    return _network(settings).init(_key(settings, "initialise"))


def _initialise(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    del inputs, bench
    params, state = _initial(settings)
    return Output({"params": params, "state": state}, {})


def _fit(
    settings: Settings,
    params: Any,
    state: Any,
    mask: Any,
    bench: Bench,
    start: float,
    early: float | None,
) -> train.Fitted:
    pictures = _train_set(settings, bench)
    held = {**settings["training"]}
    held["drop_epochs"] = tuple(held["drop_epochs"])
    training = train.Training(**held)
    steps = data.steps_per_epoch(pictures.images.shape[0], training.batch_size)
    return train.fit(
        _network(settings).apply,
        params,
        state,
        mask,
        pictures,
        training,
        _key(settings, "train"),
        start=round(start * steps),
        early=None if early is None else round(early * steps),
        on_epoch=bench.on_epoch,
    )


def _train(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    mask = inputs.get("mask") or masks.ones_like(inputs["params"])
    fitted = _fit(
        settings,
        inputs["params"],
        inputs["state"],
        mask,
        bench,
        settings["start"],
        settings["early"],
    )
    arrays = {"params": fitted.params, "state": fitted.state}
    if fitted.early is not None:
        arrays["early"] = dict(zip(("params", "state"), fitted.early, strict=True))
    facts = {"history": _finite(fitted.history), "diverged": fitted.diverged}
    return Output(arrays, facts)


def _finite(history: list[dict[str, float]]) -> list[dict[str, float | None]]:
    """Write a loss that is not finite as None, which JSON knows."""
    return [
        {name: value if np.isfinite(value) else None for name, value in epoch.items()}
        for epoch in history
    ]


def _score(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    return Output({"scores": _scorer(settings, inputs, bench)(None)}, {})


def _scorer(settings: Settings, inputs: Mapping, bench: Bench) -> Callable[[Any], Any]:
    """Bind everything but the mask."""
    params, network = inputs["params"], _network(settings)
    name = settings["score"]
    needs = scores.SCORERS[name].needs
    if needs == "key":
        drawn = scores.random(_key(settings, "score"), params)
        return lambda mask: drawn
    if needs == "nothing":
        return lambda mask: scores.magnitude(params, mask=mask)
    if needs == "inputs":
        ones = jnp.ones((1, *settings["input_shape"]))
        flow = network.flows[settings["norm_flow"]]
        return lambda mask: _checked(
            _flow_scores(params, ones, mask, flow, settings["rescale"]),
            "synflow_rescale",
        )
    pictures = _train_set(settings, bench)
    key, augment_key = jax.random.split(_key(settings, "examples"))
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


def _checked(scored: Any, option: str) -> Any:
    tree.check_finite(scored, f"set {option}=True in the recipe.")
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


def _select(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    del bench
    mask = masks.select(inputs["scores"], settings["density"], ties=settings["ties"])
    return Output({"mask": mask}, {})


def _prune(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    scorer = _scorer(settings, inputs, bench)
    mask, info = prune.prune(
        lambda params, mask, key: scorer(mask),
        inputs["params"],
        settings["density"],
        rounds=settings["rounds"],
        ties=settings["ties"],
        regrow=settings["regrow"],
    )
    return Output({"mask": mask}, {"densities": info.densities})


def _imp(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    """Run the levels; the first one's training is the dense network's, done before."""
    late = settings["early"] if settings["rewind"] == "early" else 0

    def train_fn(variables: Any, mask: Any, key: Any, level: Any) -> imp.Trained:
        del key  # the order of the data continues, as in open_lth: it is the seed's
        if level == 0:
            dense = {name: inputs[name] for name in ("params", "state")}
            return imp.Trained(dense, early=inputs["early"])
        params, state, mask = variables["params"], variables["state"], mask["params"]
        fitted = _fit(settings, params, state, mask, bench, late, None)
        if fitted.diverged:
            raise _DivergedError(fitted.history)
        return imp.Trained({"params": fitted.params, "state": fitted.state})

    initial = dict(zip(("params", "state"), _initial(settings), strict=True))
    step = functools.partial(
        imp.step,
        train_fn=train_fn,
        rewind=settings["rewind"],
        regrow=settings["regrow"],
        ties=settings["ties"],
    )
    state = imp.init(initial, _key(settings, "score"))
    folder = bench.folder / "levels"
    try:
        *_, (state, _) = checkpoint.levels(folder, state, step, settings["densities"])
    except _DivergedError as diverged:
        return Output({}, {"history": _finite(diverged.args[0]), "diverged": True})
    return Output({**state.rewind, "mask": state.mask["params"]}, {})


class _DivergedError(Exception):
    """A level's loss was not finite; carries its history."""


def _inspect(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    """Say what the mask leaves, which no training changes."""
    del bench
    network, mask = _network(settings), inputs["mask"]
    dense = profiling.macs(
        lambda params, x: network.apply(params, inputs["state"], x)[0],
        inputs["params"],
        jnp.ones((1, *settings["input_shape"])),
    )
    examples = jax.random.uniform(
        _key(settings, "inputs"), (32, *settings["input_shape"]), minval=0.5, maxval=1.5
    )
    health = masks.health(mask, network.flows["identity"], examples)
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


def _evaluate(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    network, mask = _network(settings), inputs["mask"]
    params = masks.apply(inputs["params"], mask)
    test = _split(bench.found, "test", None)
    found = train.evaluate(network.apply, params, inputs["state"], test)
    prunable = tree.by_name(tree.prunable(mask))
    weights = tree.by_name(params)
    histograms = {
        name: _histogram(np.asarray(weights[name])[np.asarray(kept)])
        for name, kept in tree.by_name(mask).items()
        if prunable[name]
    }
    return Output({}, {**found._asdict(), "histograms": histograms})


def _histogram(weights: np.ndarray) -> dict[str, list]:
    """Bin the kept weights symmetrically about 0; zeros are no bin of their own here."""
    if weights.size == 0:
        return {"edges": [], "counts": []}
    most = float(np.abs(weights).max()) or 1.0
    bins = 2 * int(np.clip(np.sqrt(weights.size) / 2, 4, 30)) + 1  # odd: one about 0
    counts, edges = np.histogram(weights, bins=bins, range=(-most, most))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _profile(settings: Settings, inputs: Mapping, bench: Bench) -> Output:
    network, state = _network(settings), inputs["state"]
    params = masks.apply(inputs["params"], inputs["mask"])
    test = _split(bench.found, "test", None)
    host, how = np.asarray(test.images), test.how
    first = data.preprocess(test.images[jnp.arange(PROFILE_BATCH) % len(host)], how)
    call = _inference(network.apply)
    alone = profiling.latency(call, params, state, first)

    def fed_pass() -> list[Any]:
        return [
            call(
                params,
                state,
                data.preprocess(jnp.asarray(host[i : i + PROFILE_BATCH]), how),
            )
            for i in range(0, len(host), PROFILE_BATCH)
        ]

    fed = float(np.median(profiling.seconds(fed_pass, calls=5, warmup=1)))
    memory = profiling.start(call, params, state, first)
    latency = {
        "batch": PROFILE_BATCH,
        "call_p50_s": alone.p50,
        "call_p95_s": alone.p95,
        "call_images_per_s": PROFILE_BATCH / alone.p50,
        "pass_s": fed,
        "pass_images": len(host),
        "pass_images_per_s": len(host) / fed,
    }
    return Output({}, {"latency": latency}, lambda: {"memory": memory()._asdict()})


@functools.lru_cache(maxsize=8)
def _inference(apply: models.Apply) -> Callable[..., Any]:
    return jax.jit(lambda params, state, x: apply(params, state, x)[0])


RUN: Mapping[str, Callable[[Settings, Mapping[str, Any], Bench], Output]] = {
    "initialise": _initialise,
    "train": _train,
    "score": _score,
    "select": _select,
    "prune": _prune,
    "imp": _imp,
    "inspect": _inspect,
    "evaluate": _evaluate,
    "profile": _profile,
}
