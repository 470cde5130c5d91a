"""Memory of VGG-16: of inference, dense and masked, and of training."""

import _cli

import json  # isort: skip
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import psutil
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from bench import ours
from jaxprune import masks, profiling, scores, train
from jaxprune.study import compaction, provenance

# Columns of the table, in MB, and the fields of profiling.Memory behind them.
COLUMNS = {
    "in use": "device_in_use",
    "peak": "device_peak",
    "reserved": "device_reserved",
    "arguments": "arguments",
    "temporaries": "temporaries",
    "process": "rss",
}


def memory(
    batch: int = 256,
    examples: int = 50_000,
    width: float = 1.0,
    density: float = 0.1,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure the memory of VGG-16 without BatchNorm on JAX's default device.

    Inference runs in fresh processes, and an epoch of training in this one. The peak of
    training includes what XLA tries while it compiles, unless the program is in the cache
    of an earlier run.

    Args:
        batch: images per call and per training step.
        examples: images of 32x32 to train on, which stay on the device as uint8.
        width: factor on the number of channels, for a quick try.
        density: kept / prunable of the masked network, by magnitude.
        to: file to write the measurements to.
    """
    if not 1 <= batch <= examples:
        raise ValueError(
            f"--batch is a number of images, from 1 to --examples; got {batch} of "
            f"{examples}. Pass another one."
        )
    if to is not None:
        _cli.check_writable(to)
    network = ours.vgg(width=width)
    mask = masks.select(scores.magnitude(network.params), density)
    rows = [{"work": "training", **_training(network, batch, examples)}]
    forward, x = compaction.inference(network.apply), jnp.ones((batch, 32, 32, 3))
    masked = masks.apply(network.params, mask)
    for name, params in (("dense", network.params), ("masked", masked)):
        used = profiling.measure(forward, {"params": params, "state": network.state}, x)
        rows.append({"work": f"inference, {name}", **used._asdict()})
    machine = provenance.describe()
    if to is not None:
        stats = jax.local_devices()[0].memory_stats()  # as the backend gives them
        result = {"machine": machine, "batch": batch, "rows": rows, "stats": stats}
        _cli.write_text(to, json.dumps(result, indent=1) + "\n")
    table = Table(
        title=f"Device memory (MB), {batch} images per call", box=box.MARKDOWN
    )
    table.add_column("work")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for row in rows:
        values = (row.get(field) for field in COLUMNS.values())
        table.add_row(row["work"], *("" if v is None else f"{v:,.0f}" for v in values))
    console = Console(width=100)
    console.print(table)
    console.print(f"{machine['kind']}, jax {machine['jax']}", highlight=False)


def _training(network: Any, batch: int, examples: int) -> dict[str, float | None]:
    """Train an epoch with Adam, as the poster study does, and read the memory after it."""
    training = train.Training(
        epochs=1, batch_size=batch, learning_rate=1e-3, optimizer="adam"
    )
    used: list[profiling.DeviceMemory] = []
    train.fit(
        network,
        masks.ones_like(network.params),
        ours.random_images(examples),
        training,
        jax.random.key(1),
        on_epoch=lambda _: used.append(profiling.device_memory()),
    )
    device = {f"device_{name}": value for name, value in used[0]._asdict().items()}
    return {**device, "rss": psutil.Process().memory_info().rss / 1e6}
