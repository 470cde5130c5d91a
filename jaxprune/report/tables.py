"""Tables of a study: one row per compression, one column per method."""

import html
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import rich.table
from rich import box
from rich.text import Text

from jaxprune.study.records import Record, read_all


class Quantity(NamedTuple):
    """A quantity that a table shows.

    Attributes:
        title: title of the table, with the unit.
        get_value: returns the value of a record, or None if it was not measured.
        digits: number of digits after the decimal point.
        caption: what the quantity is and how it was measured, in a few sentences.
    """

    title: str
    get_value: Callable[[Record], float | None]
    digits: int
    caption: str


def flop_ratio(record: Record) -> float | None:
    """Return kept / dense multiply-accumulates, or None if they were not counted."""
    if record.macs_kept is None or not record.macs_dense:
        return None
    return record.macs_kept / record.macs_dense


# By the name of the table's files.
TABLES: Mapping[str, Quantity] = {
    "accuracy": Quantity(
        "Test accuracy (%)",
        lambda record: record.metric,
        2,
        "Top-1 accuracy on the whole test set after the last epoch. The test set was not "
        "used to choose an epoch.",
    ),
    "inference_time": Quantity(
        "Inference time (ms per call)",
        lambda record: _times(record.latency.get("call_p50_s"), 1e3),
        3,
        "Median time of a compiled call on a batch of 256 images that are already on the "
        "device. A mask alone makes nothing faster, because the dense program runs.",
    ),
    "flop_ratio": Quantity(
        "Kept multiply-accumulates / dense",
        flop_ratio,
        4,
        "Multiply-accumulates of the weights that the mask keeps, as a share of the dense "
        "network's; biases and normalization count in full. They are counted, not timed: "
        "this is the work of ideal hardware that skips every zero.",
    ),
    "cpu_memory": Quantity(
        "Process memory, peak (MB)",
        lambda record: record.memory.get("peak_rss"),
        1,
        "Highest resident set size of a fresh process that only loads the network and calls "
        "it.",
    ),
    "device_in_use": Quantity(
        "Device memory in use, peak (MB)",
        lambda record: record.memory.get("device_peak"),
        1,
        "Peak of the allocator's memory in use, in a fresh process that only loads the "
        "network and calls it. Blank where the backend reports no statistics, as on a CPU.",
    ),
    "device_reserved": Quantity(
        "Device memory reserved (MB)",
        lambda record: record.memory.get("device_reserved"),
        1,
        "Memory that the allocator of a fresh process took from the device, with "
        "preallocation turned off. Blank where the backend reports no statistics, as on a "
        "CPU.",
    ),
    "epochs": Quantity(
        "Epochs of training",
        lambda record: record.epochs,
        1,
        "All epochs that a result depends on, including those that it shares with other "
        "results. Methods train for different numbers of epochs, so read the accuracies "
        "together with this table.",
    ),
    "density": Quantity(
        "Density reached (kept / prunable weights)",
        lambda record: record.density,
        6,
        "Counted in the final mask.",
    ),
    "effective_density": Quantity(
        "Effective density",
        lambda record: record.effective_density,
        6,
        "Kept weights on a live path, which is a path of kept weights from input to output, "
        "divided by all prunable weights.",
    ),
    "feed_time": Quantity(
        "Inference speed including data transfer (images per second)",
        lambda record: record.latency.get("pass_examples_per_s"),
        0,
        "Median over passes through the test set, including the time to copy the images "
        "from the host and to normalize them.",
    ),
    "machine_memory": Quantity(
        "Memory of the whole machine in use (%)",
        lambda record: record.memory.get("machine_percent"),
        1,
        "Share of the machine's memory that all processes use together. The published study "
        "that this benchmark reproduces calls this figure CPU memory.",
    ),
    "barrier": Quantity(
        "Error barrier between two trainings from the rewind point (percentage points)",
        lambda record: record.connectivity.get("barrier"),
        2,
        "Two networks start from the same rewind point and are trained with different data "
        "order and augmentation. The barrier is the highest test error on the straight line "
        "between their weights, minus the mean error of the two ends. Below 2 points they "
        "count as linearly connected. Blank where only one network was trained.",
    ),
    "training_in_use": Quantity(
        "Device memory in use while training (MB)",
        lambda record: record.training_memory.get("device_in_use"),
        1,
        "The allocator's memory in use, read after every epoch of the last training; the "
        "highest reading. Blank where the backend reports no statistics, as on a CPU.",
    ),
    "training_reserved": Quantity(
        "Device memory reserved while training (MB)",
        lambda record: record.training_memory.get("device_reserved"),
        1,
        "Memory that the allocator had taken from the device, read after every epoch of the "
        "last training; the highest reading. The allocator returns no memory, so this "
        "includes what earlier trainings in the same process needed.",
    ),
    "training_machine": Quantity(
        "Memory of the whole machine in use while training (%)",
        lambda record: record.training_memory.get("machine_percent"),
        1,
        "Share of the machine's memory that all processes use together, read after every "
        "epoch of the last training; the highest reading.",
    ),
}


# Quantities that a recipe can measure once per network.
_MEMORY = ("cpu_memory", "device_in_use", "device_reserved", "machine_memory")


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


class Comparison(NamedTuple):
    """A published table, and the quantity of ours to compare with it.

    Attributes:
        name: name of the table's files, without suffix.
        quantity: our quantity, in the published unit.
        published: published values by (method, c): a key of `config.METHODS` and the
            compression exponent.
    """

    name: str
    quantity: Quantity
    published: Mapping[tuple[str, float], float]


class Table(NamedTuple):
    """A table as text, ready for any format.

    Attributes:
        name: name of the table's files, without suffix.
        title: title of the table, with the unit.
        head: titles of the columns.
        rows: rows of one string per column, empty where nothing was measured.
        caption: what the table shows and how it was measured.
        notes: notes that every reader must see, such as a reduced size of the study.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    notes: Sequence[str] = ()


# Labels of rows; short, so that 9 methods fit in 80 columns.
PUBLISHED, DIFFERENCE = "published", "diff."


def build(records: Sequence[Record], name: str, notes: Sequence[str] = ()) -> Table:
    """Build one table.

    Args:
        records: records of one study, in the study's order.
        name: a key of TABLES.
        notes: notes of the study.

    Returns:
        The table. Several seeds are shown as mean ± sample standard deviation.

    Raises:
        ValueError: if there are no records.
    """
    quantity, columns = TABLES[name], _columns(records)
    if any(quantity.get_value(record) is not None for record in records):
        # Leave out methods for which this quantity is never measured.
        columns = {
            method: title
            for method, title in columns.items()
            if any(
                _format([record], quantity)
                for record in records
                if record.method == method
            )
        }
    rows = [
        [f"{c:g}", f"{10.0**-c:.3g}"]
        + [_format(_select(records, method, c), quantity) for method in columns]
        for c in compressions(records)
    ]
    head = ["c", "density", *columns.values()]
    caption = quantity.caption
    if name in _MEMORY and any(
        record.cell["recipe"].get("memory") == "network" for record in records
    ):
        caption += " Measured once, for the dense network: a mask does not change it."
    return Table(name, quantity.title, head, rows, caption, notes)


def compare(
    records: Sequence[Record], comparison: Comparison, notes: Sequence[str] = ()
) -> Table:
    """Build a table of our values, the published values, and the differences.

    Args:
        records: records of one study, in the study's order.
        comparison: the published table and our quantity.
        notes: notes of the study.

    Returns:
        The table, with three rows per compression.

    Raises:
        ValueError: if there are no records.
    """
    quantity, columns = comparison.quantity, _columns(records)
    rows = []
    for c in compressions(records):
        ours = {method: _select(records, method, c) for method in columns}
        published = {
            method: comparison.published.get((method, c)) for method in columns
        }
        differences = []
        for method, value in published.items():
            mean = _mean(ours[method], quantity)
            differences.append(
                ""
                if mean is None or value is None
                else f"{mean - value:+.{quantity.digits}f}"
            )
        published_texts = [
            "" if value is None else f"{value:.{quantity.digits}f}"
            for value in published.values()
        ]
        rows += [
            [f"{c:g}", "ours", *(_format(group, quantity) for group in ours.values())],
            ["", PUBLISHED, *published_texts],
            ["", DIFFERENCE, *differences],
        ]
    head = ["c", "", *columns.values()]
    caption = f"{quantity.caption} {DIFFERENCE}: ours minus {PUBLISHED}."
    return Table(comparison.name, quantity.title, head, rows, caption, notes)


def compare_layers(
    records: Sequence[Record],
    published: Mapping[str, Sequence[float]],
    compression: float,
    notes: Sequence[str] = (),
) -> Table:
    """Build a table of the multiply-accumulates that each layer keeps, in percent.

    Args:
        records: records of one study, in the study's order.
        published: by method, the published multiply-accumulates that each layer keeps, as
            shares of the dense network's total.
        compression: the compression exponent c.
        notes: notes of the study.

    Returns:
        The table, with two rows per layer in network order: ours and the published one. It
        has no rows if no network was pruned to that compression.

    Raises:
        ValueError: if there are no records.
    """
    columns = _columns(records)
    first_seeds = {
        method: next((r.layers for r in _select(records, method, compression)), ())
        for method in columns
    }
    first_seeds = {method: layers for method, layers in first_seeds.items() if layers}
    deepest = max(first_seeds.values(), key=len, default=())
    total = sum(layer.macs for layer in deepest)
    rows = []
    for i, layer in enumerate(deepest):
        ours = [
            f"{100 * layers[i].macs * layers[i].kept / layers[i].size / total:.3f}"
            for layers in first_seeds.values()
        ]
        shares = [published.get(method, ()) for method in first_seeds]
        published_texts = [
            f"{100 * share[i]:.3f}" if len(share) == len(deepest) else ""
            for share in shares
        ]
        name = layer.name.removesuffix("/kernel")
        rows += [[name, "ours", *ours], ["", PUBLISHED, *published_texts]]
    return Table(
        "layer_macs",
        f"Kept multiply-accumulates per layer, c = {compression:g} (% of the dense "
        "network's total)",
        ["layer", "", *(columns[method] for method in first_seeds)],
        rows,
        "Dense multiply-accumulates of each layer times its density, without biases. Our "
        "values are those of the first seed. A network of another width distributes its work "
        "differently over the layers: at a quarter of the width, the first layer's share is "
        "four times as large.",
        notes,
    )


def _columns(records: Sequence[Record]) -> dict[str, str]:
    """Return the title of each method, in the study's order."""
    if not records:
        raise ValueError("there are no records yet. Run the study first.")
    return {record.method: record.title for record in records}


def compressions(records: Sequence[Record]) -> list[float]:
    """Return the compression exponents c, lowest first."""
    return sorted({record.cell["compression"] for record in records})


def _select(records: Sequence[Record], method: str, c: float) -> list[Record]:
    return [
        record
        for record in records
        if record.method == method and record.cell["compression"] == c
    ]


def _mean(records: Sequence[Record], quantity: Quantity) -> float | None:
    values = [v for v in map(quantity.get_value, records) if v is not None]
    return statistics.fmean(values) if values else None


def _format(records: Sequence[Record], quantity: Quantity) -> str:
    """Format the mean and the standard deviation over the seeds."""
    values = [v for v in map(quantity.get_value, records) if v is not None]
    diverged = sum(record.status == "diverged" for record in records)
    if not values:
        return "diverged" if diverged else ""
    text = f"{statistics.fmean(values):.{quantity.digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{quantity.digits}f}"
    if diverged and len(values) < len(records):
        # This is a mean over the other seeds only; the reader must see that.
        text += f" ({diverged} diverged)"
    return text


def terminal(table: Table) -> rich.table.Table:
    """Convert a table for the terminal; print it with a rich console."""
    layout = rich.table.Table(  # narrow enough for 9 methods in 80 columns
        title=Text("\n".join([*table.notes, table.title])),
        caption=Text(table.caption),
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for title in table.head:
        head = Text(title)  # not markup: names come from files and may contain brackets
        layout.add_column(head, justify="right", no_wrap=True, min_width=len(title))
    for row in table.rows:
        layout.add_row(*(Text(text.replace(" ± ", "\n±")) for text in row))
    return layout


def markdown(table: Table) -> str:
    """Convert a table to Markdown: title and notes above, caption below."""
    lines = [
        f"### {table.title}",
        "",
        *(f"> {note}\n" for note in table.notes),
        _markdown_row(table.head),
        _markdown_row(["---:"] * len(table.head)),
        *map(_markdown_row, table.rows),
    ]
    return "\n".join([*lines, "", table.caption, ""])


def _markdown_row(texts: Sequence[str]) -> str:
    escaped = (
        html.escape(" ".join(text.split())).replace("|", "\\|") for text in texts
    )
    return "| " + " | ".join(escaped) + " |"


def records(folder: str | os.PathLike) -> pl.DataFrame:
    """Read the records of a study: one row per cell, one column per quantity.

    Args:
        folder: `runs/<study>`.

    Returns:
        The columns of `frame`; null where nothing was measured.

    Raises:
        RunsError: if there is no study, or another version wrote it.
    """
    return frame(read_all(Path(folder)))


def frame(records: Sequence[Record]) -> pl.DataFrame:
    """Collect all values of all records: one row per record, one column per quantity.

    Args:
        records: records of one study.

    Returns:
        A frame with the id, method, c, seed, recipe, size and status of each record, and a
        column for each of TABLES.
    """
    return pl.DataFrame(
        [
            {
                "id": record.id,
                "method": record.method,
                "c": float(record.cell["compression"]),
                "seed": int(record.cell["seed"]),
                "recipe": record.cell["recipe"].get("name"),
                "epochs_scale": record.cell["recipe"].get("epochs_scale"),
                "width": record.cell["width"],
                "train_examples": record.cell.get("train_examples"),
                "status": record.status,
                **{
                    name: _float(quantity.get_value(record))
                    for name, quantity in TABLES.items()
                },
            }
            for record in records
        ],
        infer_schema_length=None,
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def csv(table: Table) -> str:
    """Convert a table to CSV; notes are lines that start with #."""
    head = [title or "row" for title in table.head]
    notes = "".join(f"# {note}\n" for note in table.notes)
    return notes + pl.DataFrame(table.rows, schema=head, orient="row").write_csv()
