"""Say what a mask leaves of a network, layer by layer, and what leaving it out gains.

python scripts/profile.py vgg16 --method synflow --c 1 --batch 1 64
"""

import _cli

import json  # isort: skip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jaxprune import masks, models, profiling, prune, scores, tree
from jaxprune.study import config, gain, provenance

DATA_FREE = ("random", "magnitude", "synflow")


def profile(
    model: Annotated[str, tyro.conf.Positional],
    /,
    method: str = "synflow",
    c: float = 1.0,
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
        model: such as conv2, vgg16, resnet20 or lenet-300-100.
        method: random, magnitude or synflow.
        c: compression; 10**-c of the prunable weights are kept.
        rounds: of scoring; the method's own number without it.
        batch: pictures a call.
        width: factor on the number of channels.
        batch_norm: whether to normalize.
        input_shape: height, width and channels of a picture.
        seed: of weights and scores.
        to: file to write what was measured to.
    """
    if method not in DATA_FREE:
        known = method in scores.SCORERS or method in config.METHODS
        also = " scripts/prune.py knows it." if known else ""
        raise ValueError(
            f"--method '{method}' is none that needs no data. Pass one of "
            f"{', '.join(DATA_FREE)}.{also}"
        )
    if not 0 <= c < 300:
        raise ValueError(
            f"--c keeps 10**-c of the weights; got {c}. Pass 0 or more, such as 1."
        )
    if not width > 0:
        raise ValueError(
            f"--width is a factor on the number of channels; got {width}. Pass 0.25, say."
        )
    if not 0 <= seed < 2**32:
        raise ValueError(
            f"--seed is a whole number from 0 to 2**32 - 1; got {seed}. Pass one."
        )
    if min(batch, default=0) < 1 or len(set(batch)) < len(batch):
        raise ValueError(
            f"--batch is different numbers of pictures a call, each 1 or more; got "
            f"{' '.join(map(str, batch)) or 'none'}. Pass 1 64, say."
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
    if round(10.0**-c * size) < 1:
        raise ValueError(
            f"--c {c:g} keeps none of the {size} weights of {model}. Pass less than "
            f"{math.log10(size):.2f}."
        )
    rounds = scores.SCORERS[method].rounds if rounds is None else rounds
    score_fn = _score_fn(method, network, input_shape)
    mask, _ = prune.prune(
        score_fn, network.params, 10.0**-c, rounds=rounds, key=score_key
    )
    console = Console()
    console.print(_layers(network, mask, input_shape))
    machine = provenance.describe()
    with console.status("measuring the masked and the compacted network in turns"):
        measured = gain.measure(network, mask, input_shape, batches=batch)()
    device = profiling.describe()
    console.print(_sizes(measured))
    console.print(
        _times(measured, batch),
        f"On {device['kind']} ({device['processor']}), the networks taking turns; their "
        f"logits differ by {measured['difference']:.1g} of the largest.",
    )
    if to is not None:
        asked = {
            "model": model,
            "method": method,
            "c": c,
            "rounds": rounds,
            "width": width,
            "batch_norm": batch_norm,
            "input_shape": input_shape,
            "seed": seed,
        }
        found = {"network": asked, "machine": machine, **measured}
        _cli.write_text(to, json.dumps(found, indent=1) + "\n")


def _sizes(measured: Mapping[str, float | None]) -> Table:
    laid = Table(title="The compacted network", box=box.SIMPLE_HEAD)
    for title in ("", "dense, masked", "kept", "compacted", "%"):
        laid.add_column(title, justify="right" if title else "left")
    rows = (
        ("weights", "weights_dense", "weights_kept", "weights_compacted"),
        ("MACs per picture", "macs_dense", "macs_kept", "macs_compacted"),
        ("bytes", "bytes_dense", None, "bytes_compacted"),
        ("bytes on disk", "file_masked", None, "file_compacted"),
        ("peak MB", "masked_peak_mb", None, "compacted_peak_mb"),
    )
    for title, *names in rows:
        dense, kept, left = (measured[name] if name else None for name in names)
        share = "" if not dense or left is None else f"{100 * left / dense:.1f}"
        figures = (
            "" if value is None else f"{value:,.0f}" for value in (dense, kept, left)
        )
        laid.add_row(title, *figures, share)
    return laid


def _times(measured: Mapping[str, Any], batches: Sequence[int]) -> Table:
    laid = Table(title="Time of a call (ms)", box=box.SIMPLE_HEAD)
    for title in ("batch", "network", "p50", "p95", "gain"):
        laid.add_column(title, justify="left" if title == "network" else "right")
    for size in batches:
        masked = measured[f"masked_{size}_p50_s"]
        networks = {"masked": "masked", "compacted": "compacted"}
        if measured.get(f"sparse_{size}_layers"):
            networks["sparse"] = f"{measured[f'sparse_{size}_layers']} layers sparse"
        for side, title in networks.items():
            p50, p95 = (measured[f"{side}_{size}_{rank}_s"] for rank in ("p50", "p95"))
            figures = (f"{1e3 * p50:.4g}", f"{1e3 * p95:.4g}", f"{masked / p50:.1f}x")
            laid.add_row(f"{size}" if side == "masked" else "", title, *figures)
    return laid


def _score_fn(method: str, network: models.Model, input_shape: tuple[int, int, int]):
    if method == "random":
        return lambda params, mask, key: scores.random(key, params)
    if method == "magnitude":
        return lambda params, mask, key: scores.magnitude(params, mask=mask)
    flow, ones = models.flow(network), jnp.ones((1, *input_shape))
    scored = jax.jit(lambda params, mask: scores.synflow(flow, params, ones, mask=mask))

    def score_fn(params, mask, key):
        del key
        made = scored(params, mask)
        tree.check_finite(made, "this network is too deep for SynFlow in float32.")
        return made

    return score_fn


def _layers(
    network: models.Model, mask: dict, input_shape: tuple[int, int, int]
) -> Table:
    dense = profiling.macs(
        lambda params, x: network.apply(params, network.state, x)[0],
        network.params,
        jnp.ones((1, *input_shape)),
    )
    kept = profiling.kept_macs(dense, mask)
    laid = Table(
        title="Weights and multiply-accumulates per picture", box=box.SIMPLE_HEAD
    )
    for title in ("layer", "weights", "kept", "MACs", "kept MACs"):
        laid.add_column(title, justify="left" if title == "layer" else "right")
    counts, left = tree.by_name(dense), tree.by_name(kept)
    for name, leaf in tree.by_name(mask).items():
        if leaf.ndim >= 2:
            share = f"{100 * masks.density([leaf], [True]):.2f} %"
            macs = (f"{counts[name]:,}", f"{left[name]:,.0f}")
            laid.add_row(name, f"{leaf.size:,}", share, *macs)
    totals = (sum(jax.tree.leaves(counts)), sum(jax.tree.leaves(left)))
    laid.add_section()
    laid.add_row(
        "all (MACs with biases, norms)",
        f"{tree.size(mask):,}",
        f"{100 * masks.density(mask):.2f} %",
        f"{totals[0]:,}",
        f"{totals[1]:,.0f}",
    )
    return laid


if __name__ == "__main__":
    _cli.main([profile], __doc__ or "")
