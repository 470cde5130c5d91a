"""What methods cost, in forward passes, and what sparse training adds to a training step."""

import _cli

import functools  # isort: skip
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import masks, profiling, reconstruct, scores, sparse_training
from jaxprune.study import provenance

LAYERS = 10


def methods(
    weights: int = 10_000_000, examples: int = 256, json_to: Path | None = None
) -> None:
    """Measure methods on a residual network of dense layers, each against the same baseline.

    Scores and reconstruction are divided by a forward pass over the same examples; a step of
    sparse training by a step of Adam without a mask.

    Args:
        weights: number of weights, in 10 layers.
        examples: in the batch.
        json_to: file for the medians, in seconds.
    """
    if weights < 10 * LAYERS or examples < 1:
        raise ValueError(
            f"--weights must be {10 * LAYERS} or more and --examples 1 or more; got "
            f"{weights} and {examples}."
        )
    if json_to is not None:
        _cli.check_writable(json_to)
    params, batch = dense_layers(weights, examples)
    size = sum(leaf.size for leaf in params.values())
    print(f"{size:,} weights, {examples} examples")
    forward = {"forward pass": functools.partial(jax.jit(network), params, batch[0])}
    scored = _times(forward | _scoring(params, batch))
    steps = _times(_steps(params, batch))
    _print(scored, "forward passes")
    _print(steps, "steps of Adam")
    if json_to is not None:
        result = {"machine": provenance.describe(), "seconds": scored | steps}
        _cli.write_text(json_to, json.dumps(result, indent=1) + "\n")


def dense_layers(
    weights: int, examples: int
) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    """Draw the weights of LAYERS square layers, and a batch of inputs and targets."""
    size = round((weights / LAYERS) ** 0.5)
    keys = jax.random.split(jax.random.key(0), LAYERS + 2)
    params = {
        f"layer{i}": jax.random.normal(key, (size, size)) / size**0.5
        for i, key in enumerate(keys[:LAYERS])
    }
    inputs, targets = (jax.random.normal(key, (examples, size)) for key in keys[-2:])
    return params, (inputs, targets)


def network(params: Any, x: jax.Array) -> jax.Array:
    """Run a residual network of dense layers."""
    for kernel in params.values():
        x = x + jax.nn.relu(x @ kernel)
    return x


def _loss(params: Any, batch: Any) -> jax.Array:
    return jnp.square(network(params, batch[0]) - batch[1]).mean()


def _scoring(params: Any, batch: Any) -> dict[str, Callable[[], Any]]:
    """Return a call for each score, and for SparseGPT."""
    inputs, key = batch[0], jax.random.key(0)
    arguments = {
        "nothing": (params,),
        "key": (key, params),
        "batches": (_loss, params, [batch]),
        "inputs": (network, params, inputs[:1]),
        "key_inputs": (key, network, params, inputs),
        "activations": (network, params, [inputs]),
    }
    calls: dict[str, Callable[[], Any]] = {}
    for name, scorer in scores.SCORERS.items():
        functions = [part for part in arguments[scorer.needs] if callable(part)]
        arrays = [part for part in arguments[scorer.needs] if not callable(part)]
        first = [arrays.pop(0)] if scorer.needs == "key_inputs" else []
        score = jax.jit(_bound(scorer.score, functions, bool(first)))
        calls[name] = functools.partial(score, *first, *arrays)
    sparsegpt = functools.partial(reconstruct.sparsegpt, network, params, [inputs], 0.5)
    return calls | {"sparsegpt": sparsegpt}


def _bound(score: Any, functions: list[Any], has_key: bool) -> Callable[..., Any]:
    if has_key:
        return lambda key, *arrays: score(key, *functions, *arrays)
    return lambda *arrays: score(*functions, *arrays)


def _steps(params: Any, batch: Any) -> dict[str, Callable[[], Any]]:
    """Return a training step of each wrapper, between two changes and at one."""
    adam = optax.adam(1e-3)
    calls: dict[str, Callable[[], Any]] = {}
    for name, optimizer in ({"adam": adam} | wrapped(adam, params, every=10)).items():
        state: Any = optimizer.init(params)
        update = jax.jit(functools.partial(step, optimizer))
        calls[name] = functools.partial(update, params, state, batch)
        if name not in ("adam", "hold_pruned"):
            due = state._replace(step=jnp.int32(10))
            calls[f"{name}, at a change"] = functools.partial(
                update, params, due, batch
            )
    return calls


def wrapped(inner: Any, params: Any, every: int) -> dict[str, Any]:
    """Return an optimizer in each wrapper of sparse training, at a density of 0.1."""
    key, steps = jax.random.key(0), sparse_training.Steps(100 * every, every)
    mask = masks.select(scores.random(key, params), 0.1)
    return {
        "hold_pruned": sparse_training.hold_pruned(inner, mask),
        "set": sparse_training.set(key, inner, 0.1, steps),
        "rigl": sparse_training.rigl(key, inner, 0.1, steps),
        "gradual": sparse_training.gradual(inner, 0.1, steps),
        "acdc": sparse_training.acdc(inner, 0.1, steps),
    }


def step(optimizer: Any, params: Any, state: Any, batch: Any) -> Any:
    """Train for one step."""
    updates, state = optimizer.update(jax.grad(_loss)(params, batch), state, params)
    return optax.apply_updates(params, updates), state


def _times(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of 5 calls of each."""
    return {
        name: statistics.median(profiling.seconds(call, calls=5, warmup=1))
        for name, call in calls.items()
    }


def _print(seconds: Mapping[str, float], unit: str) -> None:
    baseline = next(iter(seconds.values()))
    for name, taken in seconds.items():
        print(f"{name:22} {1e3 * taken:10.1f} ms {taken / baseline:8.2f} {unit}")
