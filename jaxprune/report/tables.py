"""Tables of a study: one row per compression, one column per method."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxprune.report import frame
from jaxprune.report.quantities import Better, Quantity
from jaxprune.study.records import Layer, Record

# Labels of rows; short, so that 9 methods fit in 80 columns.
PUBLISHED, DIFFERENCE = "published", "diff."


class Comparison(NamedTuple):
    """A published table, and the quantity of ours to compare with it.

    Attributes:
        name: name of the table's files, without suffix.
        quantity: our quantity, in the published unit.
        published: published values by (method, c): the name of a method and the
            compression exponent.
    """

    name: str
    quantity: Quantity
    published: Mapping[tuple[str, float], float]


class Published(NamedTuple):
    """Published numbers that a study is compared with.

    Attributes:
        source: author, title and setting of the publication, in one line.
        tables: published tables and our quantities to compare with them.
        layers: by method, kept multiply-accumulates of each layer at c = 0.5.
        layers_dense: multiply-accumulates of each layer of the dense network.
    """

    source: str
    tables: Sequence[Comparison]
    layers: Mapping[str, Sequence[float]]
    layers_dense: Sequence[float]


class Table(NamedTuple):
    """A table as text, ready for any format, and the values behind it.

    Attributes:
        name: name of the table's files, without suffix.
        title: title of the table, with the unit.
        head: titles of the columns.
        rows: rows of one string per column, empty where nothing was measured.
        caption: what the table shows and how it was measured.
        notes: notes that every reader must see, such as a reduced size of the study.
        values: numbers of the rows, None where a cell is no number; empty if the page
            need not rank them.
        better: for each column, which of its values are better.
        ranked: whether values are compared with those of their row or of their column.
        labels: number of columns, at the left, that name a row.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    notes: Sequence[str] = ()
    values: Sequence[Sequence[float | None]] = ()
    better: Sequence[Better] = ()
    ranked: Literal["row", "column"] = "row"
    labels: int = 2


def build(
    records: Sequence[Record],
    name: str,
    quantity: Quantity,
    notes: Sequence[str] = (),
) -> Table:
    """Build the table of one quantity.

    Args:
        records: records of one study, in the study's order.
        name: name of the table's files, without suffix.
        quantity: what the table shows.
        notes: notes of the study.

    Returns:
        The table. Several seeds are shown as mean ± sample standard deviation. Methods
        that the quantity was never measured for have no column; if it was never measured,
        no method has one.

    Raises:
        ValueError: if there are no records.
    """
    cells = _summaries(records, quantity)
    columns = {
        method: title
        for method, title in frame.titles(records).items()
        if any(_text(s, quantity) for (m, _), s in cells.items() if m == method)
    }
    compressions = frame.compressions(records)
    grid = [[cells.get((method, c), {}) for method in columns] for c in compressions]
    head, labels = ["density"], [[frame.density(c)] for c in compressions]
    if frame.has_exponents(records):
        head.append("c")
        labels = [[frame.density(c), frame.exponent(c)] for c in compressions]
    rows = [
        [*label, *(_text(summary, quantity) for summary in row)]
        for label, row in zip(labels, grid, strict=True)
    ]
    blank = [None for _ in head]
    caption = quantity.caption
    if name in _MEMORY and any(
        record.cell.get("recipe", {}).get("memory") == "network" for record in records
    ):
        caption += " Measured once, for the dense network: a mask does not change it."
    return Table(
        name,
        quantity.title,
        [*head, *columns.values()],
        rows,
        caption,
        notes,
        [[*blank, *(_rounded(s, quantity) for s in row)] for row in grid],
        [*("" for _ in head), *(quantity.better for _ in columns)],
        labels=len(head),
    )


# Quantities that a recipe can measure once per network.
_MEMORY = ("cpu_memory", "device_in_use", "device_reserved", "machine_memory")


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
    quantity, titles = comparison.quantity, frame.titles(records)
    cells = _summaries(records, quantity)
    rows, values = [], []
    for c in frame.compressions(records):
        ours = [cells.get((method, c), {}) for method in titles]
        published = [comparison.published.get((method, c)) for method in titles]
        differences = [
            None if value is None or summary.get("mean") is None
            else summary["mean"] - value
            for summary, value in zip(ours, published, strict=True)
        ]  # fmt: skip
        rows += [
            [
                frame.exponent(c),
                "ours",
                *(_text(summary, quantity) for summary in ours),
            ],
            ["", PUBLISHED, *_numbers(published, f".{quantity.digits}f")],
            ["", DIFFERENCE, *_numbers(differences, f"+.{quantity.digits}f")],
        ]
        values += [
            [None, None, *(_rounded(summary, quantity) for summary in ours)],
            [None, None, *published],
            [None for _ in range(2 + len(titles))],
        ]
    return Table(
        comparison.name,
        quantity.title,
        ["c", "", *titles.values()],
        rows,
        f"{quantity.caption} {DIFFERENCE}: ours minus {PUBLISHED}.",
        notes,
        values,
        ["", "", *(quantity.better for _ in titles)],
    )


def shares(published: Published) -> dict[str, list[float]]:
    """Return published multiply-accumulates by layer, as shares of the dense network's.

    Args:
        published: published numbers.

    Returns:
        Shares of each layer by method, in network order.
    """
    dense = sum(published.layers_dense)
    return {
        method: [kept / dense for kept in layers]
        for method, layers in published.layers.items()
    }


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
    titles = frame.titles(records)
    layers = {m: r.layers for m, r in frame.first_seeds(records, compression).items()}
    deepest = max(layers.values(), key=len, default=())
    percentages = {method: kept_macs(by_layer) for method, by_layer in layers.items()}
    rows = []
    for i, layer in enumerate(deepest):
        ours = [
            values[i] if i < len(values) else None for values in percentages.values()
        ]
        theirs = [
            100 * share[i] if len(share) == len(deepest) else None
            for share in (published.get(method, ()) for method in layers)
        ]
        rows += [
            [layer.name.removesuffix("/kernel"), "ours", *_numbers(ours, ".3f")],
            ["", PUBLISHED, *_numbers(theirs, ".3f")],
        ]
    return Table(
        "layer_macs",
        f"Kept multiply-accumulates per layer, c = {compression:g} (% of the dense "
        "network's total)",
        ["layer", "", *(titles[method] for method in layers)],
        rows,
        "Dense multiply-accumulates of each layer times its density, without biases. Our "
        "values are those of the first seed. A network of another width distributes its work "
        "differently over the layers: at a quarter of the width, the first layer's share is "
        "four times as large.",
        notes,
    )


def kept_macs(layers: Sequence[Layer]) -> list[float]:
    """Return the multiply-accumulates that each layer keeps, in % of the dense total.

    Args:
        layers: layers of one network.
    """
    total = sum(layer.macs for layer in layers) or 1
    return [100 * layer.macs * share(layer) / total for layer in layers]


def share(layer: Layer) -> float:
    """Return kept / all weights of a layer.

    Args:
        layer: the layer.
    """
    return layer.kept / layer.size if layer.size else 0.0


def _summaries(
    records: Sequence[Record], quantity: Quantity
) -> dict[tuple[str, float], dict[str, Any]]:
    """Return means and deviations by method and compression."""
    rows = frame.summarize(records, quantity.get_value).iter_rows(named=True)
    return {(row["method"], row["c"]): row for row in rows}


def _numbers(values: Sequence[float | None], spec: str) -> list[str]:
    return ["" if value is None else f"{value:{spec}}" for value in values]


def _rounded(summary: Mapping[str, Any], quantity: Quantity) -> float | None:
    """Return a mean as it is shown, so that values that look equal rank equal."""
    mean = summary.get("mean")
    return None if mean is None else round(mean, quantity.digits)


def _text(summary: Mapping[str, Any], quantity: Quantity) -> str:
    """Format the mean and the standard deviation over the seeds."""
    diverged = summary.get("diverged", 0)
    if summary.get("mean") is None:
        return "diverged" if diverged else ""
    text = f"{summary['mean']:.{quantity.digits}f}"
    if summary["std"] is not None:
        text += f" ± {summary['std']:.{quantity.digits}f}"
    if diverged and summary["count"] < summary["cells"]:
        # This is a mean over the other seeds only; the reader must see that.
        text += f" ({diverged} diverged)"
    return text
