"""Whole epochs of training: images per second, and the fraction of the device's peak."""

import _cli

import itertools  # isort: skip
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import ours
from jaxprune import masks, profiling, train
from jaxprune.study import provenance

Precision = Literal["float32", "tf32", "bfloat16"]
ScoreTask = Literal["snip", "grasp", "synflow_1", "synflow_100", "select"]

# precision -> dtype of the pass, precision of float32 products
DTYPES: dict[Precision, tuple[Literal["float32", "bfloat16"], str]] = {
    "float32": ("float32", "highest"),
    "tf32": ("float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", "default"),
}
# Peak floating point operations per second without sparsity, from NVIDIA's data sheets of
# the H100 SXM (the H200 has the same chip) and the A100.
_HOPPER = {"float32": 67e12, "tf32": 495e12, "bfloat16": 989e12}
PEAK = {
    "H200": _HOPPER,
    "H100": _HOPPER,
    "A100": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
}


def epoch(
    precisions: tuple[Precision, ...] = get_args(Precision),
    batch_sizes: tuple[int, ...] = (128, 256, 512),
    examples: int = 50_000,
    repeats: int = 3,
    width: float = 1.0,
    scores: tuple[ScoreTask, ...] = get_args(ScoreTask),
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time training epochs and scores of VGG-16 on JAX's default device.

    Intended for accelerators. On a CPU the defaults take hours (try --examples 512), and
    tf32 is float32 there.

    Args:
        precisions: precisions to train in.
        batch_sizes: images per step.
        examples: images of 32x32 per epoch, which stay on the device as uint8.
        repeats: timed epochs and score calls, after one that compiles.
        width: factor on the number of channels, for a quick try.
        scores: scores to time.
        to: file to write the measurements to.
    """
    for option, values, choices in (
        ("--precisions", precisions, get_args(Precision)),
        ("--scores", scores, get_args(ScoreTask)),
    ):
        if not values:
            raise ValueError(
                f"{option} has no value. Pass some of {', '.join(choices)}."
            )
    if (
        not batch_sizes
        or min(repeats, examples, *batch_sizes) < 1
        or max(batch_sizes) > examples
    ):
        raise ValueError(
            "--repeats, --examples and --batch-sizes must be 1 or more, and --batch-sizes at "
            f"most --examples; got {repeats}, {examples} and {batch_sizes}."
        )
    if to is not None:
        _cli.check_writable(to)
    machine = provenance.describe()
    rows: list[dict[str, Any]] = []
    milliseconds: dict[str, float] = {}

    def save() -> None:
        if to is not None:  # after each measurement, so that none is lost
            result = {"machine": machine, "rows": rows, "milliseconds": milliseconds}
            _cli.write_text(to, json.dumps(result, indent=1) + "\n")

    console, network = Console(stderr=True), ours.vgg(width=width)
    for name in track(scores, "scoring", console=console, transient=True):
        times = profiling.seconds(ours.SCORES[name](network), calls=repeats, warmup=1)
        milliseconds[name] = 1e3 * statistics.median(times)
        save()
    settings = list(itertools.product(precisions, batch_sizes))
    for precision, batch_size in track(
        settings, "training", console=console, transient=True
    ):
        rows.append(_row(precision, batch_size, examples, repeats, width))
        save()
    _print(rows, milliseconds, machine)


def _row(
    precision: Precision, batch_size: int, examples: int, repeats: int, width: float
) -> dict[str, Any]:
    dtype, product_precision = DTYPES[precision]
    network, image_set = ours.vgg(width=width), ours.random_images(examples)
    training = train.Training(
        epochs=repeats + 1, batch_size=batch_size, learning_rate=1e-3, precision=dtype
    )
    epoch_ends: list[float] = []
    with jax.default_matmul_precision(product_precision):
        train.fit(
            network,
            masks.ones_like(network.params),
            image_set,
            training,
            jax.random.key(1),
            on_epoch=lambda _: epoch_ends.append(time.perf_counter()),
        )
    # The first epoch compiles; its end starts the clock.
    seconds = statistics.median(b - a for a, b in itertools.pairwise(epoch_ends))
    # A backward pass counts as two forward passes.
    flops = 3 * 2 * ours.macs(network) * examples / seconds
    side = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((side, side), dtype)
    with jax.default_matmul_precision(product_precision):
        dot_seconds = profiling.latency(jnp.dot, square, square, calls=3, warmup=1).p50
    device = str(profiling.describe()["kind"])
    peak = next(
        (peaks[precision] for name, peaks in PEAK.items() if name in device), None
    )
    return {
        "precision": precision,
        "batch_size": batch_size,
        "epoch_s": seconds,
        "images_per_s": examples / seconds,
        "tflops": flops / 1e12,
        "share_of_dot": flops / (2 * side**3 / dot_seconds),
        "share_of_peak": None if peak is None else flops / peak,
    }


def _print(
    rows: list[dict[str, Any]], milliseconds: dict[str, float], machine: dict[str, Any]
) -> None:
    table = Table(box=box.MARKDOWN)
    for title in (
        "precision",
        "batch",
        "epoch s",
        "images/s",
        "TFLOP/s",
        "% of best dot",
        "% of peak",
    ):
        table.add_column(title, justify="left" if title == "precision" else "right")
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
