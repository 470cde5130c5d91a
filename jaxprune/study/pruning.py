"""The stages that make scores and masks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprune import (
    data,
    graph,
    masks,
    models,
    prune,
    reconstruct,
    scores,
    sharding,
    train,
    tree,
)
from jaxprune.study import settings, workbench
from jaxprune.study.code import Code
from jaxprune.study.workbench import Arrays, Bench, Output


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
    with jax.default_matmul_precision("highest"):  # the user's too, as those of scores
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
