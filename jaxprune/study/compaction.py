"""What compaction saves: the masked network compared with the compacted one."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune import checkpoint, compact, masks, models, profiling, tree
from jaxprune.types import Mask

BATCHES = (1, 256)  # images per call
MOST_SPARSE = 64  # images per call; what a sparse layer gathers grows with them


class _Network(NamedTuple):
    """A forward pass, its parameters, and all arrays that it needs."""

    call: Callable[..., Any]
    params: PyTree
    arrays: PyTree


class Comparison(NamedTuple):
    """The masked and the compacted network.

    Attributes:
        facts: weights_dense, weights_kept, weights_compacted (kernels), bytes_dense and
            bytes_compacted (all arrays), file_masked and file_compacted (bytes on disk, as
            Orbax compresses them), macs_dense, macs_kept, macs_compacted (per image),
            empty_layers, difference (of all logits, as a share of the largest);
            `masked_1_p50_s`, `compacted_1_p95_s`, `sparse_1_p50_s` and so on,
            `sparse_1_layers` (how many are faster so; with none, the sparse network is the
            compacted one); with memory, `masked_peak_mb` and `compacted_peak_mb`.
        masked: memory of the masked network at the last batch size, or None.
    """

    facts: dict[str, Any]
    masked: profiling.Memory | None


def compare(
    model: models.Model,
    mask: Mask,
    input_shape: Sequence[int],
    *,
    inference: Any = None,
    batches: Sequence[int] = BATCHES,
    calls: int = 20,
    memory: bool = True,
) -> Comparison:
    """Compact a network, and time its calls interleaved with those of the masked one.

    With up to `MOST_SPARSE` images per call, `compact.fastest` is timed too.

    Args:
        model: the network, with its parameters and statistics.
        mask: True keeps.
        input_shape: height, width and channels of an image.
        inference: jitted `inference(params, state, x) -> logits` of the network, so that
            several comparisons share its programs.
        batches: images per call.
        calls: number of calls of each network at each batch size.
        memory: whether to measure the memory of both in fresh processes.

    Returns:
        Sizes, times and memory.

    Raises:
        ValueError: if the compacted network computes something else.
    """
    model = dataclasses.replace(model, params=masks.apply(model.params, mask))
    networks, small = _networks(model, mask, input_shape)
    facts = _sizes(networks, mask, input_shape)
    inference = inference or jax.jit(lambda p, state, x: model.apply(p, state, x)[0])
    compacted = jax.jit(small.fn)
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
            facts["difference"] = max(difference, facts.get("difference", 0.0))
        latencies = profiling.interleaved(*runs.values(), calls=calls, warmup=2)
        times = dict(zip(runs, latencies, strict=True))
        if batch <= MOST_SPARSE:
            times.setdefault("sparse", times["compacted"])
        for side, latency in times.items():
            facts[f"{side}_{batch}_p50_s"] = latency.p50
            facts[f"{side}_{batch}_p95_s"] = latency.p95
    if not memory:
        return Comparison(facts, None)
    x = jnp.ones((batches[-1], *input_shape))
    started = {
        side: profiling.start_measure(network.call, network.params, x)
        for side, network in networks.items()
    }
    used = {side: wait() for side, wait in started.items()}
    facts |= {f"{side}_peak_mb": result.peak_rss for side, result in used.items()}
    return Comparison(facts, used["masked"])


def _networks(
    model: models.Model, mask: Mask, input_shape: Sequence[int]
) -> tuple[dict[str, _Network], compact.Compacted]:
    def forward(params: PyTree, x: Any) -> Any:
        return model.apply(params, model.state, x)[0]

    # Two images, so that any number of them is accepted.
    example = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    small = compact.compact(forward, model.params, mask, example)
    networks = {
        "masked": _Network(forward, model.params, model),
        "compacted": _Network(small.fn, small.params, _arrays(small)),
    }
    return networks, small


def _sizes(
    networks: Mapping[str, _Network], mask: Mask, input_shape: Sequence[int]
) -> dict[str, Any]:
    """Count weights, bytes and multiply-accumulates."""
    chosen = tree.by_name(tree.prunable(mask))
    kernels = [name for name, prunable in chosen.items() if prunable]
    leaves = tree.by_name(mask)
    small_leaves = tree.by_name(networks["compacted"].params)
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    macs = {
        side: profiling.macs(network.call, network.params, image)
        for side, network in networks.items()
    }
    kept = profiling.kept_macs(macs["masked"], mask)
    return {
        "weights_dense": sum(leaves[name].size for name in kernels),
        "weights_kept": sum(int(leaves[name].sum()) for name in kernels),
        "weights_compacted": sum(small_leaves[name].size for name in kernels),
        "bytes_dense": _bytes(networks["masked"]),
        "bytes_compacted": _bytes(networks["compacted"]),
        "empty_layers": sum(not leaves[name].any() for name in kernels),
        "macs_dense": sum(jax.tree.leaves(macs["masked"])),
        "macs_kept": sum(jax.tree.leaves(kept)),
        "macs_compacted": sum(jax.tree.leaves(macs["compacted"])),
        **{f"file_{side}": _file_size(network) for side, network in networks.items()},
    }


def _arrays(small: compact.Compacted) -> PyTree:
    """Return the parameters and all other arrays of a compacted function."""
    constants = {str(i): leaf for i, leaf in enumerate(small.fn.arrays()) if leaf.ndim}
    return {"params": small.params, "constants": constants}


def _compiled(jitted: Any, *args: Any) -> Callable[[], Any]:
    run = jitted.lower(*args).compile()
    return lambda: run(*args)


def _bytes(network: _Network) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(network.arrays))


def _file_size(network: _Network) -> int:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/arrays", network.arrays)
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)
