"""Tables of a study: compression down, methods across, mean ± std over seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import polars as pl
import rich.table
from rich import box

from jaxprune.study.records import Record


class Quantity(NamedTuple):
    """What a table shows.

    title: with its unit; reads: the figure of a record, None if it was not measured;
    digits: after the point; how: one sentence on how it was taken.
    """

    title: str
    reads: Callable[[Record], float | None]
    digits: int
    how: str


def _ratio(record: Record) -> float | None:
    if record.macs_kept is None or not record.macs_dense:
        return None
    return record.macs_kept / record.macs_dense


TABLES: Mapping[str, Quantity] = {
    "accuracy": Quantity(
        "Test accuracy (%)",
        lambda record: record.accuracy,
        2,
        "Top-1 on the whole test set after the last epoch; no epoch was picked by it.",
    ),
    "inference_time": Quantity(
        "Inference time (ms a call)",
        lambda record: _times(record.latency.get("call_p50_s"), 1e3),
        3,
        "Median of the compiled call on a batch of 256 already on the device. A mask alone "
        "makes nothing faster: the dense program runs.",
    ),
    "flop_ratio": Quantity(
        "Kept multiply-accumulates / dense",
        _ratio,
        4,
        "What the mask leaves of each layer's multiply-accumulates, biases and "
        "normalisation in full; what a perfect sparse machine would do.",
    ),
    "cpu_memory": Quantity(
        "Process memory at its peak (MB)",
        lambda record: record.memory.get("peak_rss"),
        1,
        "Highest resident set of a fresh process that loads the network and calls it.",
    ),
    "device_in_use": Quantity(
        "Device memory in use at its peak (MB)",
        lambda record: record.memory.get("device_peak"),
        1,
        "The allocator's peak in a fresh process; blank where the backend keeps none.",
    ),
    "device_reserved": Quantity(
        "Device memory reserved (MB)",
        lambda record: record.memory.get("device_reserved"),
        1,
        "What the allocator of a fresh process took from the device, without "
        "preallocation; blank where the backend keeps none.",
    ),
    "epochs": Quantity(
        "Epochs of training spent",
        lambda record: record.epochs,
        0,
        "All that a cell needs by itself, shared beginnings included: budgets differ, so "
        "read accuracy beside this table.",
    ),
    "density": Quantity(
        "Density reached (kept / prunable)",
        lambda record: record.density,
        6,
        "Counted on the mask.",
    ),
    "effective_density": Quantity(
        "Effective density",
        lambda record: record.effective_density,
        6,
        "Kept weights on a live path from input to output / prunable weights.",
    ),
    "feed_time": Quantity(
        "Inference time with data feed (images a second)",
        lambda record: record.latency.get("pass_images_per_s"),
        0,
        "Median pass over the test set, pictures copied from the host and normalised.",
    ),
    "machine_memory": Quantity(
        "Memory of the whole machine in use (%)",
        lambda record: record.memory.get("machine_percent"),
        1,
        "What the published study called CPU memory: all processes together.",
    ),
}


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


class Table(NamedTuple):
    """A table as text, ready for any format.

    name: a key of TABLES; columns: titles of the methods; rows: (c, density, cells), a
    cell being empty where nothing was measured.
    """

    name: str
    quantity: Quantity
    columns: Sequence[str]
    rows: Sequence[tuple[float, float, Sequence[str]]]


def build(records: Sequence[Record], name: str) -> Table:
    """Build one table.

    Args:
        records: of one study, in its order.
        name: a key of TABLES.

    Returns:
        The table; several seeds give mean ± sample standard deviation.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError(
            "there are no records yet, so there is no table. Run the study."
        )
    quantity = TABLES[name]
    columns = list(dict.fromkeys(record.title for record in records))
    compressions = sorted({record.cell["compression"] for record in records})
    rows = []
    for compression in compressions:
        cells = [
            _cell(
                [
                    record
                    for record in records
                    if record.title == title
                    and record.cell["compression"] == compression
                ],
                quantity,
            )
            for title in columns
        ]
        rows.append((compression, 10.0**-compression, cells))
    return Table(name, quantity, columns, rows)


def _cell(records: Sequence[Record], quantity: Quantity) -> str:
    values = [quantity.reads(record) for record in records]
    numbers = [value for value in values if value is not None]
    diverged = sum(record.status == "diverged" for record in records)
    if not numbers:
        return "diverged" if diverged else ""
    text = f"{statistics.fmean(numbers):.{quantity.digits}f}"
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):.{quantity.digits}f}"
    if diverged and len(numbers) < len(records):
        # A mean over the seeds that survived must not pass for a mean over all.
        text += f" ({diverged} diverged)"
    return text


def terminal(table: Table) -> rich.table.Table:
    """Lay a table out for the terminal; print it with a rich console."""
    quantity = table.quantity
    laid = rich.table.Table(  # narrow enough for 8 methods in 80 columns
        title=quantity.title,
        caption=quantity.how,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        min_width=78,
    )
    for title in ("c", "density", *table.columns):
        laid.add_column(title, justify="right", no_wrap=True)
    for c, d, cells in table.rows:
        laid.add_row(
            f"{c:g}", f"{d:.3g}", *(cell.replace(" ± ", "\n±") for cell in cells)
        )
    return laid


def markdown(table: Table) -> str:
    """Write a table in Markdown, its title above and how it was taken below."""
    head = ["c", "density", *table.columns]
    lines = [
        f"### {table.quantity.title}",
        "",
        _line(head),
        _line(["---:"] * len(head)),
    ]
    lines += [_line([f"{c:g}", f"{d:.3g}", *cells]) for c, d, cells in table.rows]
    return "\n".join([*lines, "", table.quantity.how, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def frame(records: Sequence[Record]) -> pl.DataFrame:
    """List every figure of every record: one row a cell, one column a quantity.

    Args:
        records: of one study.

    Returns:
        A frame with the cell's id, method, c and seed, its status and all of TABLES.
    """
    return pl.DataFrame(
        [
            {
                "id": record.id,
                "method": record.cell["method"],
                "c": float(record.cell["compression"]),
                "seed": int(record.cell["seed"]),
                "status": record.status,
                **{name: _float(of.reads(record)) for name, of in TABLES.items()},
            }
            for record in records
        ],
        infer_schema_length=None,
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def csv(table: Table) -> str:
    """Write a table as CSV, as it is printed."""
    columns = {
        "c": [f"{c:g}" for c, _, _ in table.rows],
        "density": [f"{d:.6g}" for _, d, _ in table.rows],
        **{
            title: [cells[i] for _, _, cells in table.rows]
            for i, title in enumerate(table.columns)
        },
    }
    return pl.DataFrame(columns).write_csv()
