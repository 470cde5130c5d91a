"""What each panel of scaling.py measures."""

import _cli  # noqa: F401

import functools  # isort: skip
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import optax
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from rich.progress import track

from bench import methods, networks, ours
from bench.networks import Network
from jaxprune import compact, graph, masks, models, profiling, scores, tree

PARAMETERS = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000)
MOST_TRAINED = 100_000_000  # with the state of Adam, twice: 3 GB
VGGS, WIDTHS = ("vgg11", "vgg13", "vgg16", "vgg19"), (0.25, 0.5, 1.0, 2.0)
LAYERS = (2, 4, 8, 16, 32, 48)
SEEDS = (1, 2, 4, 8)  # each with the 6 cells of random pruning in the digits study
EXAMPLES = 256  # of a training step, and that Wanda scores with
Panel = Literal["tree", "network", "cells", "width", "depth", "wanda", "adam", "sgd"]
PANELS: tuple[Panel, ...] = get_args(Panel)
Call = Callable[[], Any]


class Point(NamedTuple):
    """A measurement.

    Attributes:
        panel: a panel of the figure.
        work: what was timed.
        size: parameters, operations or cells.
        seconds: median time.
        baseline: median time of what it is divided by, from interleaved calls; or None.
    """

    panel: str
    work: str
    size: int
    seconds: float
    baseline: float | None = None


def measure(panel: Panel, repeats: int, largest: int) -> Iterator[Point]:
    """Measure the points of a panel.

    Args:
        panel: which.
        repeats: calls per point.
        largest: skip trees and networks with more parameters.
    """
    sizes = [size for size in PARAMETERS if size <= largest]
    trained = [size for size in sizes if size <= MOST_TRAINED]
    calls: Mapping[Panel, Callable[[], Iterator[Point]]] = {
        "tree": lambda: _trees(repeats, sizes),
        "network": lambda: _networks(repeats, largest),
        "cells": _cells,
        "width": lambda: _widths(repeats, largest),
        "depth": lambda: _depths(repeats),
        "wanda": lambda: _wanda(repeats, trained),
        "adam": lambda: _steps("adam", optax.adam(1e-3), repeats, trained),
        "sgd": lambda: _steps("sgd", optax.sgd(1e-3, momentum=0.9), repeats, trained),
    }
    return calls[panel]()


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _median_seconds(call: Call, repeats: int) -> float:
    return statistics.median(profiling.seconds(call, calls=repeats, warmup=1))


def _trees(repeats: int, sizes: Sequence[int]) -> Iterator[Point]:
    """Time magnitude and select on ten equal kernels."""
    for size in _track(sizes, "select, magnitude"):
        keys = jax.random.split(jax.random.key(0), 10)
        params = {
            f"layer{i}": jax.random.normal(key, (size // 10_000, 1000))
            for i, key in enumerate(keys)
        }
        magnitude = jax.jit(lambda params: scores.magnitude(params))
        magnitudes = magnitude(params)
        calls = {
            "magnitude": functools.partial(magnitude, params),
            "select": functools.partial(masks.select, magnitudes, 0.1),
        }
        for work, call in calls.items():
            yield Point("tree", work, size, _median_seconds(call, repeats))
        del params, magnitudes, calls
        gc.collect()


def _networks(repeats: int, largest: int) -> Iterator[Point]:
    """Time scores of a VGG."""
    shapes = [(depth, width) for width in WIDTHS for depth in VGGS]
    for depth, width in _track(shapes, "SNIP, GraSP, SynFlow"):
        network = ours.vgg(depth, width)
        size = _size(network.params)
        if size > largest:
            continue
        calls = {
            "snip": ours.snip(network),
            "grasp": ours.grasp(network),
            "synflow_1": ours.synflow(network, 1),
        }
        for work, call in calls.items():
            yield Point("network", work, size, _median_seconds(call, repeats))
        jax.clear_caches()
        gc.collect()


def _cells() -> Iterator[Point]:
    """Time whole studies of random pruning on digits, each in its own folder."""
    script = Path(__file__).parents[1] / "study.py"
    command = [sys.executable, script, "run", "digits", "--only", "method=random"]
    for seeds in _track(SEEDS, "studies"):
        with tempfile.TemporaryDirectory() as runs:
            start = time.perf_counter()
            subprocess.run(
                [*command, "--seeds", str(seeds), "--runs-dir", runs],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - start
            cells = len(list(Path(runs).glob("digits/*/record.json")))
        yield Point("cells", "study", cells, seconds)


def _widths(repeats: int, largest: int) -> Iterator[Point]:
    """Time finding the channels of VGG-16 with BatchNorm, and compaction."""
    for width in _track(WIDTHS, "VGG-16"):
        model = models.create("vgg16", key=jax.random.key(0), width=width)
        fn = lambda params, x, model=model: model.apply(params, model.state, x)[0]
        network = Network(fn, model.params, (32, 32, 3))
        size = _size(model.params)
        if size <= largest:
            for work, seconds in _structure(network, repeats):
                yield Point("width", work, size, seconds)


def _depths(repeats: int) -> Iterator[Point]:
    """Time the same of transformers, against their number of operations."""
    builders = {
        "GPT": networks.narrow_gpt_nnx,
        "encoder": networks.narrow_encoder_equinox,
    }
    for layers in _track(LAYERS, "transformers"):
        for name, build in builders.items():
            network = build(layers)
            program = graph.trace(network.fn, network.params, network.examples(2))
            for work, seconds in _structure(network, repeats):
                yield Point("depth", f"{work}, {name}", len(program.eqns), seconds)


def _structure(network: Network, repeats: int) -> Iterator[tuple[str, float]]:
    """Time `graph.channels`, and once `compact.compact` of half of the channels."""
    params, examples = network.params, network.examples(2)
    find = functools.partial(graph.channels, network.fn, params, examples)
    yield "channels", statistics.median(_first_seconds(find) for _ in range(repeats))
    mask = masks.select_channels(find(), scores.magnitude(params), 0.5)
    yield (
        "compact",
        _first_seconds(lambda: compact.compact(network.fn, params, mask, examples)),
    )


def _first_seconds(call: Call) -> float:
    """Time a call that traces and compiles everything, as the first one in a process."""
    jax.clear_caches()
    gc.collect()
    options: Any = jax.config
    was_enabled = options.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else JAX does not read the option again
    (seconds,) = profiling.seconds(call, calls=1, warmup=0)
    jax.config.update("jax_enable_compilation_cache", was_enabled)
    compilation_cache.reset_cache()
    return seconds


def _wanda(repeats: int, sizes: Sequence[int]) -> Iterator[Point]:
    """Time Wanda beside a forward pass."""
    for size in _track(sizes, "Wanda"):
        params, (inputs, _) = methods.dense_layers(size, EXAMPLES)
        forward = jax.jit(methods.network)
        wanda = jax.jit(lambda p, x: scores.wanda(methods.network, p, [x]))
        calls = (functools.partial(fn, params, inputs) for fn in (forward, wanda))
        yield _ratio("wanda", "wanda", size, calls, repeats)


def _steps(
    panel: Panel, inner: Any, repeats: int, sizes: Sequence[int]
) -> Iterator[Point]:
    """Time steps in each wrapper, between two changes, beside those of the optimizer."""
    for size in _track(sizes, panel):
        params, batch = methods.dense_layers(size, EXAMPLES)
        for work, optimizer in methods.wrapped(inner, params, every=2**20).items():
            pair = [_training(one, params, batch) for one in (inner, optimizer)]
            yield _ratio(panel, work, size, pair, repeats)
            del pair
            gc.collect()


def _training(optimizer: Any, params: Any, batch: Any) -> Call:
    """Return a call that takes the next step; it donates parameters and state."""
    step = jax.jit(functools.partial(methods.step, optimizer), donate_argnums=(0, 1))
    current = tree.copy(params), optimizer.init(params)

    def call() -> Any:
        nonlocal current
        current = step(*current, batch)
        return current

    return call


def _ratio(panel: Panel, work: str, size: int, calls: Any, repeats: int) -> Point:
    """Time a call beside its baseline, which comes first."""
    # Short calls vary more, and take less time.
    number = max(repeats, repeats * 30_000_000 // size)
    baseline, timed = profiling.interleaved(*calls, calls=number, warmup=1)
    return Point(panel, work, size, timed.p50, baseline.p50)


def _track(sequence: Sequence[Any], description: str) -> Any:
    console = Console(stderr=True)
    return track(sequence, description, console=console, transient=True)
