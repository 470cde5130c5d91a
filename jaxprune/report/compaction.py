"""Tables that compare the masked network with the compacted one, per method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxprune.report import frame
from jaxprune.report.quantities import Better
from jaxprune.report.tables import Table
from jaxprune.study.records import Record

# Which network is compared with the masked one: the compacted network, or the compacted
# network in which some layers multiply by their kept weights only.
Network: TypeAlias = Literal["compacted", "sparse"]

# A row of frame.networks: means over the seeds.
Means: TypeAlias = Mapping[str, Any]


def speed_up(means: Means, batch: int, network: Network = "compacted") -> float | None:
    """Return how many times faster a network is than the masked network.

    Args:
        means: a row of `frame.networks`.
        batch: examples per call.
        network: "compacted", or "sparse" for the compacted network in which layers multiply
            by their kept weights only, wherever that was measured to be faster.

    Returns:
        The ratio of the mean times; None if a time is missing.
    """
    return ratio(means, f"masked_{batch}_p50_s", f"{network}_{batch}_p50_s")


def ratio(means: Means, part: str, total: str) -> float | None:
    """Return the ratio of two facts, or None if one is missing.

    Args:
        means: a row of `frame.networks`.
        part: name of the numerator.
        total: name of the denominator.
    """
    numerator, denominator = means.get(part), means.get(total)
    if numerator is None or not denominator:
        return None
    return numerator / denominator


class _Column(NamedTuple):
    """A column of a table: value of a row, format, and which values are better."""

    get_value: Callable[[Means], float | None]
    spec: str
    better: Better = ""
    suffix: str = ""


def _share(part: str, total: str) -> _Column:
    def get_share(means: Means) -> float | None:
        value = ratio(means, part, total)
        return None if value is None else 100 * value

    return _Column(get_share, ".3g", "lower")


def _number(
    name: str, unit: float = 1.0, spec: str = ".0f", better: Better = ""
) -> _Column:
    def get_number(means: Means) -> float | None:
        value = means.get(name)
        return None if value is None else value / unit

    return _Column(get_number, spec, better)


_SIZES: Mapping[str, _Column] = {
    "kept %": _share("weights_kept", "weights_dense"),
    "compacted %": _share("weights_compacted", "weights_dense"),
    "kB": _number("bytes_dense", 1e3),
    "compacted kB": _number("bytes_compacted", 1e3, better="lower"),
    "file kB": _number("file_masked", 1e3, better="lower"),
    "compacted file": _number("file_compacted", 1e3, better="lower"),
}
_WORK: Mapping[str, _Column] = {
    "kept MACs %": _share("macs_kept", "macs_dense"),
    "compacted %": _share("macs_compacted", "macs_dense"),
    "effective %": _number("effective", spec=".3g"),
    "empty": _number("empty_layers", spec=".3g"),
    "peak MB": _number("masked_peak_mb"),
    "compacted MB": _number("compacted_peak_mb", better="lower"),
}


def _times(batch: int) -> dict[str, _Column]:
    """Return the columns of times, each network's followed by its gain."""

    def time(network: str, percentile: str) -> _Column:
        name = f"{network}_{batch}_{percentile}_s"
        return _number(name, 1e-3, ".3g", "" if network == "masked" else "lower")

    def gain(network: Network) -> _Column:
        return _Column(
            lambda means: speed_up(means, batch, network), ".1f", "higher", "x"
        )

    return {
        "masked p50": time("masked", "p50"),
        "masked p95": time("masked", "p95"),
        "compacted p50": time("compacted", "p50"),
        "compacted p95": time("compacted", "p95"),
        "gain": gain("compacted"),
        "sparse p50": time("sparse", "p50"),
        "sparse gain": gain("sparse"),
    }


def build(records: Sequence[Record], notes: Sequence[str] = ()) -> list[Table]:
    """Build the tables of compaction results: size, work and memory, and time.

    Args:
        records: records of one study, in the study's order.
        notes: notes of the study.

    Returns:
        Three tables with means over the seeds, one row or more per method and density; an
        empty list if nothing was compacted.
    """
    networks = frame.networks(records).filter("is_compacted")
    rows = [
        ([row["title"], frame.density(row["c"])], row)
        for row in networks.iter_rows(named=True)
    ]
    if not rows:
        return []
    names = ["method", "density"]
    if frame.has_exponents(records):
        names.append("c")
        rows = [([*labels, frame.exponent(row["c"])], row) for labels, row in rows]
    batches = frame.batch_sizes(networks)
    tables = [
        _table("compacted_size", names, [(*row, _SIZES) for row in rows]),
        _table("compacted_work", names, [(*row, _WORK) for row in rows]),
    ]
    if batches:
        timed = [
            ([*labels, f"{batch}"], row, _times(batch))
            for labels, row in rows
            for batch in batches
        ]
        tables.append(_table("compacted_time", [*names, "batch"], timed))
    return [table._replace(notes=notes) for table in tables]


def _table(
    name: str,
    labels: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Means, Mapping[str, _Column]]],
) -> Table:
    """Build a table from the labels, the means and the columns of each row.

    Columns without any value are left out.
    """
    grid = [
        {title: column.get_value(means) for title, column in every_column.items()}
        for _, means, every_column in rows
    ]
    columns = {
        title: column
        for title, column in rows[0][2].items()
        if any(row[title] is not None for row in grid)
    }
    values = [[row[title] for title in columns] for row in grid]
    texts = [
        [
            "" if value is None else f"{value:{column.spec}}{column.suffix}"
            for value, column in zip(row, columns.values(), strict=True)
        ]
        for row in values
    ]
    title, caption = _TEXTS[name]
    blank = [None for _ in labels]
    return Table(
        name,
        title,
        [*labels, *columns],
        [[*row[0], *text] for row, text in zip(rows, texts, strict=True)],
        caption,
        values=[[*blank, *row] for row in values],
        better=[*("" for _ in labels), *(c.better for c in columns.values())],
        ranked="column",
        labels=len(labels),
    )


NAMES = ("compacted_size", "compacted_work", "compacted_time")
_TEXTS = {
    "compacted_size": (
        "Compaction: size",
        "The compacted network is a smaller dense network with the same outputs as the "
        "masked one. kept %: kernel weights that the mask keeps; compacted %: kernel "
        "weights of the compacted network; both as shares of all kernel weights. kB: all "
        "arrays, of the masked and of the compacted network. file: the same on disk, as "
        "compressed by Orbax. Compaction removes dead weights, so it can leave fewer "
        "weights than the mask keeps.",
    ),
    "compacted_work": (
        "Compaction: work and memory",
        "kept MACs %: multiply-accumulates (MACs) per example of the weights that the mask "
        "keeps; compacted %: those of the compacted network; both include biases and are "
        "shares of the dense network's. effective %: weights on a live path (a path of "
        "kept weights from input to output), as a share of all prunable weights. empty: "
        "layers without a kept weight. MB: peak memory of a process that does nothing "
        "but call the masked or the compacted network, at the largest batch size.",
    ),
    "compacted_time": (
        "Compaction: time per call (ms)",
        "batch: examples per call. masked: the network with its mask, which runs densely. "
        "compacted: the smaller dense network with the same outputs. sparse: the "
        "compacted network in which layers multiply by their kept weights only, wherever "
        "this was measured to be faster. Their calls were interleaved. p50: median; p95: "
        "95th percentile. A gain is the masked network's time divided by the "
        "other's; 1.0x means no gain. If a mask cuts every path through the network, the "
        "compacted network is a constant.",
    ),
}
