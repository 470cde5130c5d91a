"""Tables of a study: compression down, methods across, mean ± std over seeds."""

import html
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import polars as pl
import rich.table
from rich import box
from rich.text import Text

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


def flop_ratio(record: Record) -> float | None:
    """Return kept multiply-accumulates / dense, None where they were not counted."""
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
        flop_ratio,
        4,
        "What the mask leaves of each layer's multiply-accumulates, biases and "
        "normalization in full; what a perfect sparse machine would do.",
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
        1,
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
        "Median pass over the test set, pictures copied from the host and normalized.",
    ),
    "machine_memory": Quantity(
        "Memory of the whole machine in use (%)",
        lambda record: record.memory.get("machine_percent"),
        1,
        "What the published study called CPU memory: all processes together.",
    ),
    "barrier": Quantity(
        "Error barrier between two trainings from the early iteration (points)",
        lambda record: record.connectivity.get("barrier"),
        2,
        "Highest test error on the line between the two, above the mean of both ends; "
        "below 2 they count as connected. Blank where a cell trains once.",
    ),
    "training_in_use": Quantity(
        "Device memory in use while training (MB)",
        lambda record: record.training_memory.get("device_in_use"),
        1,
        "The most that the allocator held between two epochs of the last training; blank "
        "where the backend keeps no statistics.",
    ),
    "training_reserved": Quantity(
        "Device memory reserved while training (MB)",
        lambda record: record.training_memory.get("device_reserved"),
        1,
        "The most that the allocator had taken from the device, read at the same moments; "
        "what earlier cells of the process needed counts, since it gives nothing back.",
    ),
    "training_machine": Quantity(
        "Memory of the whole machine in use while training (%)",
        lambda record: record.training_memory.get("machine_percent"),
        1,
        "The most between two epochs of the last training; all processes together.",
    ),
}


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


class Comparison(NamedTuple):
    """A published table, and what of ours belongs beside it.

    name: of the files; quantity: of ours, in the published unit; published: by method and
    c, a key of config.METHODS and the compression exponent.
    """

    name: str
    quantity: Quantity
    published: Mapping[tuple[str, float], float]


class Table(NamedTuple):
    """A table as text, ready for any format.

    name: of the files; title: with the unit; head: of the columns; rows: as long as the
    head, a cell being empty where nothing was measured; how: one sentence on how it was
    taken; notes: what every reader must know.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    how: str
    notes: Sequence[str] = ()


def build(records: Sequence[Record], name: str, notes: Sequence[str] = ()) -> Table:
    """Build one table.

    Args:
        records: of one study, in its order.
        name: a key of TABLES.
        notes: of the study.

    Returns:
        The table; several seeds give mean ± sample standard deviation.

    Raises:
        ValueError: if there are no records.
    """
    quantity, columns = TABLES[name], _columns(records)
    if any(_mean(_of(records, method), quantity) is not None for method in columns):
        columns = {  # a method that this quantity is not measured of has no column
            method: title
            for method, title in columns.items()
            if any(_cell([record], quantity) for record in _of(records, method))
        }
    rows = [
        [f"{c:g}", f"{10.0**-c:.3g}"]
        + [_cell(_at(records, method, c), quantity) for method in columns]
        for c in compressions(records)
    ]
    head = ["c", "density", *columns.values()]
    return Table(name, quantity.title, head, rows, quantity.how, notes)


def _of(records: Sequence[Record], method: str) -> list[Record]:
    return [record for record in records if record.cell["method"] == method]


def beside(
    records: Sequence[Record], comparison: Comparison, notes: Sequence[str] = ()
) -> Table:
    """Build a table of ours, what was published, and the difference.

    Args:
        records: of one study, in its order.
        comparison: what to compare.
        notes: of the study.

    Returns:
        Three rows for each compression.

    Raises:
        ValueError: if there are no records.
    """
    quantity, columns = comparison.quantity, _columns(records)
    rows = []
    for c in compressions(records):
        ours = {method: _at(records, method, c) for method in columns}
        theirs = {method: comparison.published.get((method, c)) for method in columns}
        differences = []
        for method, published in theirs.items():
            mean = _mean(ours[method], quantity)
            differences.append(
                ""
                if mean is None or published is None
                else f"{mean - published:+.{quantity.digits}f}"
            )
        rows += [
            [f"{c:g}", "ours", *(_cell(found, quantity) for found in ours.values())],
            [
                "",
                "theirs",
                *(
                    "" if v is None else f"{v:.{quantity.digits}f}"
                    for v in theirs.values()
                ),
            ],
            ["", "gap", *differences],
        ]
    head = ["c", "", *columns.values()]
    return Table(comparison.name, quantity.title, head, rows, quantity.how, notes)


def by_layer(
    records: Sequence[Record],
    published: Mapping[str, Sequence[float]],
    compression: float,
    notes: Sequence[str] = (),
) -> Table:
    """Build a table of the multiply-accumulates that each layer keeps, in percent.

    Args:
        records: of one study, in its order.
        published: what each layer kept, by method, as a share of the dense network's.
        compression: the exponent c to look at.
        notes: of the study.

    Returns:
        Two rows a layer, ours and theirs, in network order; no rows if no network was
        pruned to that compression.

    Raises:
        ValueError: if there are no records.
    """
    columns = _columns(records)
    firsts = {
        method: next((r.layers for r in _at(records, method, compression)), ())
        for method in columns
    }
    firsts = {method: layers for method, layers in firsts.items() if layers}
    deepest = max(firsts.values(), key=len, default=())
    whole = sum(layer.macs for layer in deepest)
    rows = []
    for i, layer in enumerate(deepest):
        ours = [
            f"{100 * x[i].macs * x[i].kept / x[i].size / whole:.3f}"
            for x in firsts.values()
        ]
        theirs = [published.get(method, ()) for method in firsts]
        beside = [f"{100 * x[i]:.3f}" if len(x) == len(deepest) else "" for x in theirs]
        name = layer.name.removesuffix("/kernel")
        rows += [[name, "ours", *ours], ["", "theirs", *beside]]
    return Table(
        "layer_macs",
        f"Kept multiply-accumulates of each layer, c = {compression:g} (% of all the dense "
        "network's)",
        ["layer", "", *(columns[method] for method in firsts)],
        rows,
        "Dense multiply-accumulates of a layer times its density, without biases; ours of "
        "the first seed. A network of another width spreads them otherwise over its layers: "
        "at a quarter of the width, the first layer has four times the share.",
        notes,
    )


def _columns(records: Sequence[Record]) -> dict[str, str]:
    """Return the titles of the methods, by method, in the study's order."""
    if not records:
        raise ValueError(
            "there are no records yet, so there is no table. Run the study."
        )
    return {record.cell["method"]: record.title for record in records}


def compressions(records: Sequence[Record]) -> list[float]:
    """List the compression exponents c, lowest first."""
    return sorted({record.cell["compression"] for record in records})


def _at(records: Sequence[Record], method: str, c: float) -> list[Record]:
    cells = ((record, record.cell) for record in records)
    return [
        r for r, cell in cells if (cell["method"], cell["compression"]) == (method, c)
    ]


def _mean(records: Sequence[Record], quantity: Quantity) -> float | None:
    numbers = [v for v in map(quantity.reads, records) if v is not None]
    return statistics.fmean(numbers) if numbers else None


def _cell(records: Sequence[Record], quantity: Quantity) -> str:
    numbers = [v for v in map(quantity.reads, records) if v is not None]
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
    laid = rich.table.Table(  # narrow enough for 9 methods in 80 columns
        title=Text("\n".join([*table.notes, table.title])),
        caption=Text(table.how),
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for title in table.head:
        head = Text(title)  # names come from files: brackets are no markup
        laid.add_column(head, justify="right", no_wrap=True, min_width=len(title))
    for row in table.rows:
        laid.add_row(*(Text(cell.replace(" ± ", "\n±")) for cell in row))
    return laid


def markdown(table: Table) -> str:
    """Write a table in Markdown: title and notes above, how it was taken below."""
    lines = [
        f"### {table.title}",
        "",
        *(f"> {note}\n" for note in table.notes),
        _line(table.head),
        _line(["---:"] * len(table.head)),
        *map(_line, table.rows),
    ]
    return "\n".join([*lines, "", table.how, ""])


def _line(cells: Sequence[str]) -> str:
    escaped = (
        html.escape(" ".join(cell.split())).replace("|", "\\|") for cell in cells
    )
    return "| " + " | ".join(escaped) + " |"


def frame(records: Sequence[Record]) -> pl.DataFrame:
    """List every figure of every record: one row a cell, one column a quantity.

    Args:
        records: of one study.

    Returns:
        A frame with the cell's id, method, c, seed, recipe and size, its status and all of
        TABLES.
    """
    return pl.DataFrame(
        [
            {
                "id": record.id,
                "method": record.cell["method"],
                "c": float(record.cell["compression"]),
                "seed": int(record.cell["seed"]),
                "recipe": record.cell["recipe"].get("name"),
                "epochs_scale": record.cell["recipe"].get("epochs_scale"),
                "width": record.cell["width"],
                "train_examples": record.cell.get("train_examples"),
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
    """Write a table as CSV, as it is printed; notes are lines that begin with #."""
    head = [title or "row" for title in table.head]
    notes = "".join(f"# {note}\n" for note in table.notes)
    return notes + pl.DataFrame(table.rows, schema=head, orient="row").write_csv()
