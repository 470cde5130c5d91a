"""Whole epochs of training: pictures a second, and what share of the peak that is."""

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import _bench_ours
import _cli
import jax
import jax.numpy as jnp
import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxprune import masks, profiling, train
from jaxprune.study import provenance

PRECISIONS = {  # name -> dtype of the pass, precision of products in float32
    "float32": ("float32", "highest"),
    "tf32": ("float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", "default"),
}
# Floating point operations a second without sparsity, from NVIDIA's data sheets of the H100
# SXM (whose chip the H200 has) and of the A100.
_HOPPER = {"float32": 67e12, "tf32": 495e12, "bfloat16": 989e12}
PEAK = {
    "H200": _HOPPER,
    "H100": _HOPPER,
    "A100": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
}
SCORES = ("snip", "grasp", "synflow_1", "synflow_100", "select")


def epoch(
    precisions: tuple[str, ...] = tuple(PRECISIONS),
    batch_sizes: tuple[int, ...] = (128, 256, 512),
    examples: int = 50_000,
    repeats: int = 3,
    scores: tuple[str, ...] = SCORES,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time epochs of VGG-16 and its scores on the device that JAX has.

    Made for accelerators: on a CPU all of it takes hours (try --examples 512), and tf32 is
    float32 there.

    Args:
        precisions: of float32, tf32 and bfloat16.
        batch_sizes: pictures a step.
        examples: pictures of 32x32 in an epoch; they stay on the device as uint8.
        repeats: epochs and scores timed, after one that compiles.
        scores: of snip, grasp, synflow_1, synflow_100 and select.
        to: file to write the same to.
    """
    for name, got, known in (
        ("--precisions", precisions, PRECISIONS),
        ("--scores", scores, SCORES),
    ):
        unknown = [one for one in got if one not in known]
        if unknown or not got:
            raise ValueError(
                f"{name} knows {', '.join(known)}; got {', '.join(unknown) or 'none'}."
            )
    if (
        not batch_sizes
        or min(repeats, examples, *batch_sizes) < 1
        or max(batch_sizes) > examples
    ):
        raise ValueError(
            f"--repeats and --examples are 1 or more and --batch-sizes at most the "
            f"examples; got {repeats}, {examples} and {batch_sizes}."
        )
    if to is not None:
        _cli.check_writable(to)
    machine = provenance.describe()
    rows: list[dict[str, Any]] = []
    milliseconds: dict[str, float] = {}

    def save() -> None:
        if to is not None:  # after each, so that nothing measured is lost
            found = {"machine": machine, "rows": rows, "milliseconds": milliseconds}
            _cli.write_text(to, json.dumps(found, indent=1) + "\n")

    shown = Console(stderr=True)
    for name in track(scores, "scoring", console=shown, transient=True):
        times = profiling.seconds(_bench_ours.WORKS[name](), calls=repeats, warmup=1)
        milliseconds[name] = 1e3 * statistics.median(times)
        save()
    chosen = list(itertools.product(precisions, batch_sizes))
    for precision, batch_size in track(
        chosen, "training", console=shown, transient=True
    ):
        kind = str(machine["kind"])
        rows.append(_row(precision, batch_size, examples, repeats, kind))
        save()
    _print(rows, milliseconds, machine)


def _row(
    precision: str, batch_size: int, examples: int, repeats: int, kind: str
) -> dict[str, Any]:
    dtype, products = PRECISIONS[precision]
    network, pictures = _bench_ours.vgg(), _bench_ours.pictures(examples)
    recipe = train.Training(
        epochs=repeats + 1, batch_size=batch_size, learning_rate=1e-3, precision=dtype
    )
    ends: list[float] = []
    with jax.default_matmul_precision(products):
        train.fit(
            network.apply,
            network.params,
            network.state,
            masks.ones_like(network.params),
            pictures,
            recipe,
            jax.random.key(1),
            on_epoch=lambda _: ends.append(time.perf_counter()),
        )
    seconds = statistics.median(b - a for a, b in itertools.pairwise(ends))
    # A backward pass is worth two forward ones.
    flops = 3 * 2 * _bench_ours.macs() * examples / seconds
    side = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((side, side), dtype)
    with jax.default_matmul_precision(products):
        best = profiling.latency(jnp.dot, square, square, calls=3, warmup=1).p50
    peak = next((chip[precision] for name, chip in PEAK.items() if name in kind), None)
    return {
        "precision": precision,
        "batch_size": batch_size,
        "epoch_s": seconds,
        "images_per_s": examples / seconds,
        "tflops": flops / 1e12,
        "share_of_dot": flops / (2 * side**3 / best),
        "share_of_peak": None if peak is None else flops / peak,
    }


def _print(
    rows: list[dict[str, Any]], milliseconds: dict[str, float], machine: dict[str, Any]
) -> None:
    table = Table(box=box.MARKDOWN)
    for name in (
        "precision",
        "batch",
        "epoch s",
        "pictures/s",
        "TFLOP/s",
        "% of best dot",
        "% of peak",
    ):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for row in rows:
        peak = row["share_of_peak"]
        table.add_row(
            row["precision"],
            str(row["batch_size"]),
            f"{row['epoch_s']:.3f}",
            f"{row['images_per_s']:,.0f}",
            f"{row['tflops']:.3g}",
            f"{100 * row['share_of_dot']:.1f}",
            "" if peak is None else f"{100 * peak:.1f}",
        )
    console = Console(width=100)
    console.print(table)
    for name, value in milliseconds.items():
        console.print(f"{name}: {value:.3g} ms, mask included")
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
