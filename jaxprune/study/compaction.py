"""What compaction saves: the masked network compared with the compacted one."""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxprune import checkpoint, compact, masks, models, profiling, tree
from jaxprune.types import Mask

BATCHES = (1, 256)  # examples per call
MOST_SPARSE = 64  # examples per call; what a sparse layer gathers grows with them


class Comparison(NamedTuple):
    """The masked and the compacted network.

    Attributes:
        facts: weights_dense, weights_kept, weights_compacted (kernels), bytes_dense and
            bytes_compacted (all arrays), file_masked and file_compacted (bytes on disk, as
            Orbax compresses them), macs_dense, macs_kept, macs_compacted (per example),
            empty_layers, difference (of all outputs, as a share of the largest);
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
    inputs: Array,
    *,
    batches: Sequence[int] = BATCHES,
    calls: int = 20,
    memory: bool = True,
) -> Comparison:
    """Compact a network, and time its calls interleaved with those of the masked one.

    With up to `MOST_SPARSE` examples per call, `compact.fastest` is timed too.

    Args:
        model: the network, with its parameters and statistics.
        mask: True keeps.
        inputs: examples to call the networks with, repeated where a batch needs more.
        batches: examples per call.
        calls: number of calls of each network at each batch size.
        memory: whether to measure the memory of both in fresh processes.

    Returns:
        Sizes, times and memory.

    Raises:
        ValueError: if the compacted network computes something else.
    """
    masked = {"params": masks.apply(model.params, mask), "state": model.state}
    full_mask = {"params": mask, "state": masks.ones_like(model.state)}
    forward = inference(model.apply)
    # Two examples, so that any number of them is accepted.
    example = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype)
    small = compact.compact(forward, masked, full_mask, example)
    compacted = jax.jit(small.fn)
    by_batch = {batch: inputs[jnp.arange(batch) % inputs.shape[0]] for batch in batches}
    lowered = [forward.lower(masked, x) for x in by_batch.values()]
    lowered += [compacted.lower(small.params, x) for x in by_batch.values()]
    with futures.ThreadPoolExecutor() as pool:  # compiling is most of the time
        compiling = [pool.submit(program.compile) for program in lowered]
        facts = _sizes(forward, masked, mask, small, inputs[:1])
    programs = [program.result() for program in compiling]
    for i, (batch, x) in enumerate(by_batch.items()):
        runs = {
            "masked": functools.partial(programs[i], masked, x),
            "compacted": functools.partial(
                programs[len(by_batch) + i], small.params, x
            ),
        }
        if batch <= MOST_SPARSE:
            few = compact.fastest(small, x, calls=5)
            facts[f"sparse_{batch}_layers"] = len(few.kernels)
            if few.kernels:
                by_weight = jax.jit(few.fn).lower(few.params, x).compile()
                runs["sparse"] = functools.partial(by_weight, few.params, x)
        difference = max(facts.get("difference", 0.0), _difference(runs))
        latencies = profiling.interleaved(*runs.values(), calls=calls, warmup=2)
        times = dict(zip(runs, latencies, strict=True))
        if batch <= MOST_SPARSE:
            times.setdefault("sparse", times["compacted"])
        facts["difference"] = difference
        for side, latency in times.items():
            facts[f"{side}_{batch}_p50_s"] = latency.p50
            facts[f"{side}_{batch}_p95_s"] = latency.p95
    if not memory:
        return Comparison(facts, None)
    x = by_batch[batches[-1]]
    started = {
        "masked": profiling.start_measure(forward, masked, x),
        "compacted": profiling.start_measure(compacted, small.params, x),
    }
    used = {side: wait() for side, wait in started.items()}
    facts |= {f"{side}_peak_mb": result.peak_rss for side, result in used.items()}
    return Comparison(facts, used["masked"])


@functools.lru_cache(maxsize=8)
def inference(apply: Callable[..., Any]) -> Any:
    """Return `forward(variables, x) -> outputs`, jitted; one function for each network.

    So cells share its programs. `variables` are the parameters and the state.
    """
    return jax.jit(lambda v, x: apply(v["params"], v["state"], x)[0])


def _difference(runs: Mapping[str, Callable[[], Any]]) -> float:
    """Return the largest difference to the first, as a share of its largest logit."""
    first, *others = (np.asarray(run()) for run in runs.values())
    most = float(np.abs(first).max()) or 1.0
    return max(float(np.abs(first - logits).max()) / most for logits in others)


def _sizes(
    forward: Callable[..., Any],
    masked: PyTree,
    mask: Mask,
    small: compact.Compacted,
    example: Array,
) -> dict[str, Any]:
    """Count weights, bytes and multiply-accumulates."""
    chosen = tree.by_name(tree.prunable(mask))
    kernels = [name for name, prunable in chosen.items() if prunable]
    leaves, small_leaves = tree.by_name(mask), tree.by_name(small.params["params"])
    macs, small_macs = (
        profiling.macs(
            lambda params, x, fn=fn, v=v: fn({**v, "params": params}, x),
            v["params"],
            example,
        )
        for fn, v in ((forward, masked), (small.fn, small.params))
    )
    constants = {str(i): leaf for i, leaf in enumerate(small.fn.arrays()) if leaf.ndim}
    arrays = {"masked": masked, "compacted": {**small.params, "constants": constants}}
    return {
        "weights_dense": sum(leaves[name].size for name in kernels),
        "weights_kept": sum(int(leaves[name].sum()) for name in kernels),
        "weights_compacted": sum(small_leaves[name].size for name in kernels),
        "bytes_dense": sum(leaf.nbytes for leaf in jax.tree.leaves(arrays["masked"])),
        "bytes_compacted": sum(
            leaf.nbytes for leaf in jax.tree.leaves(arrays["compacted"])
        ),
        "empty_layers": sum(not leaves[name].any() for name in kernels),
        "macs_dense": sum(jax.tree.leaves(macs)),
        "macs_kept": sum(jax.tree.leaves(profiling.kept_macs(macs, mask))),
        "macs_compacted": sum(jax.tree.leaves(small_macs)),
        **{f"file_{side}": _file_size(tree) for side, tree in arrays.items()},
    }


def _file_size(arrays: PyTree) -> int:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/arrays", arrays)
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)
