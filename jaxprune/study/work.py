"""The stages that make something: weights, scores and masks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxprune import (
    data,
    graph,
    imp,
    masks,
    models,
    profiling,
    prune,
    reconstruct,
    scores,
    sharding,
    train,
    tree,
)
from jaxprune.study import code, settings, user, workbench
from jaxprune.study.code import Code
from jaxprune.study.workbench import Arrays, Bench, Output


def _initial(
    config: settings.Initialize | settings.Level | settings.Reinitialize,
    purpose: str = "initialize",
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


def check_scoring(
    config: settings.ScoreData | settings.Reconstruct, bench: Bench
) -> None:
    """Check that there are as many examples as a score needs.

    Raises:
        ValueError: if there are fewer.
    """
    number = len(workbench.train_set(config.dataset, bench)[0])
    if config.examples > number:
        method = getattr(config, "method", "sparsegpt")
        name = method if isinstance(method, str) else method.title
        raise ValueError(
            f"{name} scores with {config.examples} examples, but the training set has "
            f"{number}. Pass score_examples={number} or less in the recipe."
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


def score(config: settings.Score, arrays: Arrays, bench: Bench) -> Output:
    """Score the weights once."""
    return Output({"scores": _scorer(config, arrays, bench)(None)}, {})


def _scorer(
    config: settings.Score, arrays: Arrays, bench: Bench, number: int = 0
) -> Callable[[Any], Any]:
    """Return the scoring function of a mask, with the examples of a round."""
    params, method = arrays["params"], config.method
    model = workbench.model(config.network, arrays)
    options: dict[str, Any] = {}
    if isinstance(config, settings.ScoreFlow):
        struct = workbench.input_struct(config.network)
        flow = models.flow(model, batch_norm=config.batch_norm)
        arguments = flow, params, jnp.ones(struct.shape, struct.dtype)
        if method == "synflow":
            options = {"rescale": config.rescale}
    elif isinstance(config, settings.ScoreData):
        batch, objective = _batch(config, bench, number)
        loss_fn = train.loss_function(
            model,
            train=config.train_mode,
            temperature=config.temperature,
            objective=objective,
        )
        arguments = loss_fn, params, [batch]
        if config.needs == "activations":
            arguments = Partial(_outputs, model), params, [batch[0]]
    elif isinstance(config, settings.ScoreNoise):
        struct = workbench.input_struct(config.network, config.examples)
        noise = jax.random.normal(
            workbench.key_for(config.seed, "inputs"), struct.shape, struct.dtype
        )
        key = workbench.key_for(config.seed, "score")
        arguments = key, Partial(_outputs, model), params, noise
    elif config.needs == "key":
        arguments = workbench.key_for(config.seed, "score"), params
    else:
        arguments = (params,)
    return lambda mask: _checked(
        _scores(arguments, mask, method, **options), params, method
    )


def _outputs(model: models.Model, params: Any, inputs: jax.Array) -> Any:
    """Run a network with other weights, BatchNorm in evaluation mode."""
    return model.apply(params, model.state, inputs, train=False)[0]


def _batch(
    config: settings.ScoreData | settings.Reconstruct, bench: Bench, number: int = 0
) -> tuple[Any, train.Objective]:
    """Return the examples of a round as inputs and targets, and the objective."""
    inputs, targets, task = train.unpack(workbench.train_set(config.dataset, bench))
    key = workbench.key_for(config.seed, "examples")
    key, augment_key = jax.random.split(
        jax.random.fold_in(key, number) if number else key
    )
    chosen = data.sample_examples(key, inputs.shape[0], config.examples)
    batch = task.inputs(inputs[chosen], augment_key), targets[chosen]
    if bench.mesh is not None and len(chosen) % bench.mesh.shape["data"] == 0:
        batch = sharding.shard_batch(batch, bench.mesh)
    return batch, task.objective


def _checked(scored: Any, params: Any, method: str | Code) -> Any:
    """Check the scores of a function of the user, and those that can be infinite."""
    if method == "synflow":
        tree.check_finite(scored, "set synflow_rescale=True in the recipe.")
    if method == "prospr":
        tree.check_finite(
            scored,
            "its training steps diverged. Pass a scoring function that calls scores.prospr "
            "with a smaller learning_rate.",
        )
    if isinstance(method, str):
        return scored
    name = f"score {method.title}"
    leaves, structure = jax.tree.flatten(scored)
    shapes = [getattr(leaf, "shape", None) for leaf in leaves]
    if structure != jax.tree.structure(params) or shapes != [
        leaf.shape for leaf in jax.tree.leaves(params)
    ]:
        raise ValueError(
            f"{name} returned {structure} of shapes {shapes}, where a tree like the "
            f"parameters is expected: {jax.tree.map(lambda leaf: leaf.shape, params)}. "
            "Return one score for each weight, such as jax.tree.map(..., params)."
        )
    for leaf_name, leaf in tree.by_name(scored).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not jnp.isfinite(leaf).all():
            raise ValueError(
                f"{name} returned {leaf.dtype} with {int((~jnp.isfinite(leaf)).sum())} "
                f"entries that are not finite at '{leaf_name}'. Return finite floating "
                "scores."
            )
    return scored


# Leaf by leaf, each shape would compile.
@functools.partial(jax.jit, static_argnames=("method", "rescale"))
def _scores(arguments: Any, mask: Any, method: str | Code, **options: Any) -> Any:
    """Call a scoring function with what it needs, as in scores.Scorer."""
    score = scores.SCORERS[method].score if isinstance(method, str) else method
    return score(*arguments, mask=mask, **options)


def select(config: settings.Select, arrays: Arrays, bench: Bench) -> Output:
    """Keep the weights of the highest scores."""
    del bench
    scored = arrays["scores"]
    if config.inverted:
        scored = masks.invert(scored)
    if config.scope == "channels":
        model, inputs = _for_tracing(config, arrays)
        run: Callable[..., Any] = functools.partial(_outputs, model)
        groups = graph.channels(run, model.params, inputs)
        is_signed = any(bool((leaf < 0).any()) for leaf in jax.tree.leaves(scored))
        mask = masks.select_channels(
            groups,
            scored,
            config.density,
            kinds=config.kinds or None,
            reduce="abs" if is_signed else None,
        )
        return Output({"mask": mask}, {})
    density, scope = _target(config, arrays)
    mask = masks.select(scored, density, scope=scope, ties=config.ties)
    return Output({"mask": mask}, {})


def _for_tracing(config: settings.Select, arrays: Arrays) -> tuple[models.Model, Any]:
    """Return the network, and the shape of two inputs."""
    model = workbench.model(config.network, arrays)
    return model, workbench.input_struct(config.network, 2)


def _target(config: settings.Select, arrays: Arrays) -> tuple[Any, Any]:
    """Return the density or budget, and the scope of masks.select."""
    if config.scope == "erk":
        return masks.erk(arrays["params"], config.density), "layer"
    if config.scope != "output":
        return config.density, config.scope
    model, inputs = _for_tracing(config, arrays)
    run: Callable[..., Any] = functools.partial(_outputs, model)
    return config.density, graph.outputs(run, model.params, inputs)


def prune_rounds(config: settings.Prune, arrays: Arrays, bench: Bench) -> Output:
    """Score and select in rounds."""
    density, scope = _target(config.select, arrays)
    numbers = iter(range(config.rounds))

    def score_fn(params: Any, *, mask: Any) -> Any:
        del params
        scored = _scorer(config.scoring, arrays, bench, next(numbers))(mask)
        return masks.invert(scored) if config.select.inverted else scored

    mask, info = prune.prune(
        score_fn,
        arrays["params"],
        density,
        rounds=config.rounds,
        scope=scope,
        ties=config.select.ties,
        regrow=config.regrow,
    )
    return Output({"mask": mask}, {"densities": info.densities})


def reconstruct_stage(
    config: settings.Reconstruct, arrays: Arrays, bench: Bench
) -> Output:
    """Prune layer by layer, and change the weights that stay."""
    model = workbench.model(config.network, arrays)
    (inputs, _), _ = _batch(config, bench)
    mask, params = reconstruct.sparsegpt(
        functools.partial(_outputs, model), model.params, [inputs], config.density
    )
    return Output({"mask": mask, "params": params}, {})


def shuffle(config: settings.Shuffle, arrays: Arrays, bench: Bench) -> Output:
    """Shuffle the mask within each leaf, so that only the leaves' densities remain."""
    del bench
    key = workbench.key_for(config.seed, "shuffle")
    prunable = tree.prunable(arrays["params"])
    return Output({"mask": masks.shuffle(key, arrays["mask"], prunable)}, {})


def reinitialize(config: settings.Reinitialize, arrays: Arrays, bench: Bench) -> Output:
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
