"""Print what a mask leaves of each layer, and what compacting the network saves.

Example:
    python scripts/profile_model.py vgg16 --method synflow --density 0.1 --batch 1 64
"""

import _cli

import json  # isort: skip
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jaxprune import masks, models, profiling, prune, scores, tree
from jaxprune.study import compaction, provenance
from jaxprune.types import Mask, Params, RandomKey, Scores

ModelName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(models.MODELS)}}}")
]


def profile(
    model: ModelName,
    /,
    method: Literal["random", "magnitude", "synflow"] = "synflow",
    c: float | None = None,
    density: float | None = None,
    rounds: int | None = None,
    batch: tuple[int, ...] = (1, 64, 256),
    width: float = 1.0,
    batch_norm: bool = True,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Prune a network at initialization without data, and measure it.

    VGG-16 at full width takes about three minutes on 2 cores.

    Args:
        model: network to prune.
        method: pruning method; scripts/prune.py has those that need data.
        c: compression exponent: keep 10**-c of the prunable weights. It is 1 if neither
            --c nor --density is given.
        density: fraction of the prunable weights to keep, in (0, 1]; another way to give c.
        rounds: rounds of scoring; by default those of the method's paper.
        batch: batch sizes to measure.
        width: factor on the number of channels.
        batch_norm: whether the network has BatchNorm.
        input_shape: height, width and channels of an image.
        seed: seed of the weights and the scores.
        to: file to write the measurements to.
    """
    compression = _cli.compression(c, density)
    fraction = 10.0**-compression if density is None else density
    if not 0 <= seed < 2**32:
        raise ValueError(
            f"--seed must be a whole number from 0 to 2**32 - 1; got {seed}. Pass one."
        )
    if min(batch, default=0) < 1 or len(set(batch)) < len(batch):
        raise ValueError(
            "--batch takes different batch sizes, each 1 or more; got "
            f"{' '.join(map(str, batch)) or 'none'}. Pass some, such as 1 64."
        )
    if to is not None:
        _cli.check_writable(to)
    weights_key, score_key = jax.random.split(jax.random.key(seed))
    network = models.create(
        model,
        key=weights_key,
        input_shape=input_shape,
        batch_norm=batch_norm,
        width=width,
    )
    size = tree.size(network.params)
    if round(fraction * size) < 1:
        raise ValueError(
            f"a density of {fraction:g} keeps none of the {size} weights of {model}. Pass "
            f"--density {1 / size:.2g} or more, or --c {math.log10(size):.2f} or less."
        )
    rounds = scores.SCORERS[method].rounds if rounds is None else rounds
    score_fn = _score_fn(method, network, input_shape, score_key)
    mask, _ = prune.prune(score_fn, network.params, fraction, rounds=rounds)
    console = Console()
    console.print(_layer_table(network, mask, input_shape))
    machine = provenance.describe()
    images = jax.random.uniform(jax.random.key(0), (max(batch), *input_shape))
    with console.status("measuring the masked and the compacted network, interleaved"):
        measured = compaction.compare(network, mask, images, batches=batch).facts
    device = profiling.describe()
    console.print(_size_table(measured))
    console.print(
        _time_table(measured, batch),
        f"Measured on {device['kind']} ({device['processor']}), the networks interleaved. "
        f"Their logits differ by at most {measured['difference']:.1g} of the largest logit.",
    )
    if to is not None:
        options = {
            "model": model,
            "method": method,
            "c": compression,
            "rounds": rounds,
            "width": width,
            "batch_norm": batch_norm,
            "input_shape": input_shape,
            "seed": seed,
        }
        result = {"network": options, "machine": machine, **measured}
        _cli.write_text(to, json.dumps(result, indent=1) + "\n")


def _score_fn(
    method: str,
    network: models.Model,
    input_shape: tuple[int, int, int],
    key: RandomKey,
):
    if method == "random":
        return partial(scores.random, key)
    if method == "magnitude":
        return scores.magnitude
    flow, ones = models.flow(network), jnp.ones((1, *input_shape))

    @jax.jit
    def synflow(params: Params, mask: Mask) -> Scores:
        return scores.synflow(flow, params, ones, mask=mask)

    def score_fn(params: Params, *, mask: Mask) -> Scores:
        scored = synflow(params, mask)
        tree.check_finite(
            scored, "SynFlow overflowed float32 on this network; pass another --method."
        )
        return scored

    return score_fn


def _layer_table(
    network: models.Model, mask: Mask, input_shape: tuple[int, int, int]
) -> Table:
    dense = profiling.macs(
        lambda params, x: network.apply(params, network.state, x)[0],
        network.params,
        jnp.ones((1, *input_shape)),
    )
    macs = tree.by_name(dense)
    kept_macs = tree.by_name(profiling.kept_macs(dense, mask))
    is_prunable = tree.by_name(tree.prunable(mask))
    table = Table(
        title="Weights and multiply-accumulates per image", box=box.SIMPLE_HEAD
    )
    for title in ("layer", "weights", "kept", "MACs", "kept MACs"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for name, leaf in tree.by_name(mask).items():
        if is_prunable[name]:
            table.add_row(
                name,
                f"{leaf.size:,}",
                f"{100 * masks.density([leaf], [True]):.2f} %",
                f"{macs[name]:,}",
                f"{kept_macs[name]:,.0f}",
            )
    table.add_section()
    table.add_row(
        "all (MACs with biases, norms)",
        f"{tree.size(mask):,}",
        f"{100 * masks.density(mask):.2f} %",
        f"{sum(macs.values()):,}",
        f"{sum(kept_macs.values()):,.0f}",
    )
    return table


def _size_table(measured: Mapping[str, float | None]) -> Table:
    table = Table(title="The compacted network", box=box.SIMPLE_HEAD)
    for title in ("", "dense, masked", "kept", "compacted", "%"):
        table.add_column(title, justify="right" if title else "left")
    rows = (
        ("weights", "weights_dense", "weights_kept", "weights_compacted"),
        ("MACs per image", "macs_dense", "macs_kept", "macs_compacted"),
        ("bytes", "bytes_dense", None, "bytes_compacted"),
        ("bytes on disk", "file_masked", None, "file_compacted"),
        ("peak MB", "masked_peak_mb", None, "compacted_peak_mb"),
    )
    for title, *names in rows:
        dense, kept, compacted = (measured[name] if name else None for name in names)
        percent = (
            "" if not dense or compacted is None else f"{100 * compacted / dense:.1f}"
        )
        figures = (
            "" if value is None else f"{value:,.0f}"
            for value in (dense, kept, compacted)
        )
        table.add_row(title, *figures, percent)
    return table


def _time_table(measured: Mapping[str, Any], batch_sizes: Sequence[int]) -> Table:
    table = Table(title="Time per batch (ms)", box=box.SIMPLE_HEAD)
    for title in ("batch", "network", "p50", "p95", "speed-up"):
        table.add_column(title, justify="left" if title == "network" else "right")
    for size in batch_sizes:
        masked = measured[f"masked_{size}_p50_s"]
        networks = {"masked": "masked", "compacted": "compacted"}
        if measured.get(f"sparse_{size}_layers"):
            networks["sparse"] = f"{measured[f'sparse_{size}_layers']} layers sparse"
        for side, title in networks.items():
            p50, p95 = (measured[f"{side}_{size}_{rank}_s"] for rank in ("p50", "p95"))
            figures = (f"{1e3 * p50:.4g}", f"{1e3 * p95:.4g}", f"{masked / p50:.1f}x")
            table.add_row(f"{size}" if side == "masked" else "", title, *figures)
    return table


if __name__ == "__main__":
    _cli.main([profile], __doc__ or "")
