"""What compaction saves: the masked network compared with the compacted one."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune import checkpoint, compact, masks, models, profiling, tree
from jaxprune.study import workbench
from jaxprune.types import Mask

BATCHES = (1, 256)  # images per call
MOST_SPARSE = 64  # of these; what a sparse layer gathers grows with them, to gigabytes


class _Network(NamedTuple):
    """A forward pass, its parameters, and all arrays that it needs."""

    call: Callable[..., Any]
    params: PyTree
    arrays: PyTree


def measure(
    model: models.Model,
    mask: Mask,
    input_shape: Sequence[int],
    *,
    batches: Sequence[int] = BATCHES,
    calls: int = 20,
) -> Callable[[], dict[str, float | None]]:
    """Compact a network, and measure it with calls interleaved with the masked one's.

    With up to `MOST_SPARSE` images per call, `compact.fastest` is measured too.

    Args:
        model: the network, with its parameters and statistics.
        mask: True keeps.
        input_shape: height, width and channels of an image.
        batches: images per call.
        calls: number of calls of each network at each batch size.

    Returns:
        A function that waits for the processes that measure memory, at the last batch
        size, and returns: weights_dense, weights_kept, weights_compacted (kernels),
        bytes_dense and bytes_compacted (all arrays), file_masked and file_compacted (bytes
        on disk, as Orbax compresses them; None with several processes), macs_dense,
        macs_kept, macs_compacted (per image), empty_layers, difference (of all logits,
        as a share of the largest);
        `masked_1_p50_s`, `compacted_1_p95_s`, `sparse_1_p50_s` and so on,
        `sparse_1_layers` (how many gain by it; with none, the sparse network is the
        compacted one), `masked_peak_mb` and `compacted_peak_mb`.

    Raises:
        ValueError: if the compacted network computes something else.
    """
    model = dataclasses.replace(model, params=masks.apply(model.params, mask))

    def forward(params: PyTree, x: Any) -> Any:
        return model.apply(params, model.state, x)[0]

    # Two images, so that any number of them is accepted.
    example = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    small = compact.compact(forward, model.params, mask, example)
    networks = {
        "masked": _Network(forward, model.params, model),
        "compacted": _Network(small.fn, small.params, _arrays(small)),
    }
    chosen = tree.by_name(tree.prunable(mask))
    kernels = [name for name, prunable in chosen.items() if prunable]
    leaves, small_leaves = tree.by_name(mask), tree.by_name(small.params)
    facts: dict[str, float | None] = {
        "weights_dense": sum(leaves[name].size for name in kernels),
        "weights_kept": sum(int(leaves[name].sum()) for name in kernels),
        "weights_compacted": sum(small_leaves[name].size for name in kernels),
        "bytes_dense": _bytes(networks["masked"]),
        "bytes_compacted": _bytes(networks["compacted"]),
        "empty_layers": sum(not leaves[name].any() for name in kernels),
    }
    one = jnp.ones((1, *input_shape))
    macs = {
        side: profiling.macs(network.call, network.params, one)
        for side, network in networks.items()
    }
    facts["macs_dense"] = sum(jax.tree.leaves(macs["masked"]))
    facts["macs_kept"] = sum(jax.tree.leaves(profiling.kept_macs(macs["masked"], mask)))
    facts["macs_compacted"] = sum(jax.tree.leaves(macs["compacted"]))
    for side, network in networks.items():
        facts[f"file_{side}"] = _file_size(network)
    inference, compacted = workbench.inference(model.apply), jax.jit(small.fn)
    for batch in batches:
        x = jax.random.uniform(jax.random.key(0), (batch, *input_shape))
        runs = {
            "masked": _compiled(inference, model.params, model.state, x),
            "compacted": _compiled(compacted, small.params, x),
        }
        if batch <= MOST_SPARSE:
            few = compact.fastest(small, x, calls=5)
            facts[f"sparse_{batch}_layers"] = len(few.kernels)
            if few.kernels:
                runs["sparse"] = _compiled(jax.jit(few.fn), few.params, x)
        masked, *others = (run() for run in runs.values())
        most = float(jnp.abs(masked).max()) or 1.0
        for logits in others:
            difference = float(jnp.abs(masked - logits).max()) / most
            facts["difference"] = max(difference, facts.get("difference") or 0.0)
        latencies = profiling.interleaved(*runs.values(), calls=calls, warmup=2)
        timed = dict(zip(runs, latencies, strict=True))
        if batch <= MOST_SPARSE:
            timed.setdefault("sparse", timed["compacted"])
        for side, latency in timed.items():
            facts[f"{side}_{batch}_p50_s"] = latency.p50
            facts[f"{side}_{batch}_p95_s"] = latency.p95
    x = jnp.ones((batches[-1], *input_shape))
    waits = {
        side: profiling.start_measure(network.call, network.params, x)
        for side, network in networks.items()
    }

    def wait() -> dict[str, float | None]:
        peaks = {f"{side}_peak_mb": end().peak_rss for side, end in waits.items()}
        return {**facts, **peaks}

    return wait


def _arrays(small: compact.Compacted) -> PyTree:
    """Return the parameters and all other arrays of a compacted function."""
    constants = {str(i): leaf for i, leaf in enumerate(small.fn.arrays()) if leaf.ndim}
    return {"params": small.params, "constants": constants}


def _compiled(jitted: Any, *args: Any) -> Callable[[], Any]:
    run = jitted.lower(*args).compile()
    return lambda: run(*args)


def _bytes(network: _Network) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(network.arrays))


def _file_size(network: _Network) -> int | None:
    if jax.process_count() > 1:  # Orbax saves with all of them, and only one measures
        return None
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/arrays", network.arrays)
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)
