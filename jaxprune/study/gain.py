"""What a mask bought: the masked network beside the compacted one, dense and sparse."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import checkpoint, compact, masks, models, profiling, tree
from jaxprune.types import Mask

BATCHES = (1, 64, 256)  # images a call
MOST_SPARSE = 64  # of these; what a sparse layer gathers grows with them, to gigabytes


def measure(
    model: models.Model,
    mask: Mask,
    input_shape: Sequence[int],
    *,
    batches: Sequence[int] = BATCHES,
    calls: int = 20,
) -> Callable[[], dict[str, float | None]]:
    """Compact a network, and measure it beside the masked one, taking turns.

    Up to `MOST_SPARSE` images a call `compact.fastest` takes its turn too.

    Args:
        model: with its parameters and statistics, and a graph.
        mask: what to keep.
        input_shape: height, width and channels of a picture.
        batches: images a call.
        calls: of each network at each batch size.

    Returns:
        A function that waits for the processes that measure memory, at the last batch
        size, and returns: weights_dense, weights_kept, weights_compacted (kernels),
        bytes_dense and bytes_compacted (all arrays), file_masked and file_compacted (bytes
        on disk, as Orbax compresses them; None with several processes), macs_dense,
        macs_kept, macs_compacted (per picture), empty_layers, difference (of all logits,
        as a share of the largest);
        `masked_1_p50_s`, `compacted_1_p95_s`, `sparse_1_p50_s` and so on,
        `sparse_1_layers` (how many gain by it; with none, the sparse network is the
        compacted one), `masked_peak_mb` and `compacted_peak_mb`.

    Raises:
        ValueError: if the wiring of the network is not known.
    """
    model = dataclasses.replace(model, params=masks.apply(model.params, mask))
    small = compact.compact(model, model.params, model.state, mask).model
    networks = {"masked": model, "compacted": small}
    chosen = tree.by_name(tree.prunable(mask))
    kernels = [name for name, prunable in chosen.items() if prunable]
    found: dict[str, float | None] = {
        "weights_dense": sum(tree.by_name(mask)[name].size for name in kernels),
        "weights_kept": sum(int(tree.by_name(mask)[name].sum()) for name in kernels),
        "weights_compacted": sum(
            tree.by_name(small.params)[name].size for name in kernels
        ),
        "bytes_dense": _bytes(model),
        "bytes_compacted": _bytes(small),
        "empty_layers": sum(not tree.by_name(mask)[name].any() for name in kernels),
    }
    one = jnp.ones((1, *input_shape))
    macs = {side: _macs(network, one) for side, network in networks.items()}
    found["macs_dense"] = sum(jax.tree.leaves(macs["masked"]))
    found["macs_kept"] = sum(jax.tree.leaves(profiling.kept_macs(macs["masked"], mask)))
    found["macs_compacted"] = sum(jax.tree.leaves(macs["compacted"]))
    for side, network in networks.items():
        found[f"file_{side}"] = _file_size(network)
    waits = {}
    for batch in batches:
        x = jax.random.uniform(jax.random.key(0), (batch, *input_shape))
        taking_turns = dict(networks)
        if batch <= MOST_SPARSE:
            few = compact.fastest(small, x, calls=5)
            found[f"sparse_{batch}_layers"] = len(few.layers)
            taking_turns |= {"sparse": few.model} if few.layers else {}
        runs = {side: _compiled(network, x) for side, network in taking_turns.items()}
        masked, *others = (run() for run in runs.values())
        most = float(jnp.abs(masked).max()) or 1.0
        for logits in others:
            apart = float(jnp.abs(masked - logits).max()) / most
            found["difference"] = max(apart, found.get("difference") or 0.0)
        latencies = profiling.interleaved(*runs.values(), calls=calls, warmup=2)
        timed = dict(zip(runs, latencies, strict=True))
        if batch <= MOST_SPARSE:
            timed.setdefault("sparse", timed["compacted"])
        for side, latency in timed.items():
            found[f"{side}_{batch}_p50_s"] = latency.p50
            found[f"{side}_{batch}_p95_s"] = latency.p95
    x = jnp.ones((batches[-1], *input_shape))
    for side, network in networks.items():
        waits[side] = profiling.start_measure(
            _call(network), network.params, network.state, x
        )

    def wait() -> dict[str, float | None]:
        peaks = {f"{side}_peak_mb": end().peak_rss for side, end in waits.items()}
        return {**found, **peaks}

    return wait


def _call(network: models.Model) -> Callable[..., Any]:
    return lambda params, state, x: network.apply(params, state, x)[0]


def _compiled(network: models.Model, x: jax.Array) -> Callable[[], Any]:
    run = jax.jit(_call(network)).lower(network.params, network.state, x).compile()
    return lambda: run(network.params, network.state, x)


def _macs(network: models.Model, x: jax.Array) -> Any:
    return profiling.macs(
        lambda params, x: network.apply(params, network.state, x)[0], network.params, x
    )


def _bytes(network: models.Model) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(network))


def _file_size(network: models.Model) -> int | None:
    if jax.process_count() > 1:  # Orbax saves with all of them, and only one measures
        return None
    arrays = tree.by_name({"params": network.params, "state": network.state})
    with tempfile.TemporaryDirectory() as folder:
        # Orbax refuses arrays of size zero.
        held = {name: leaf for name, leaf in arrays.items() if leaf.size}
        checkpoint.save(f"{folder}/arrays", held)
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)
