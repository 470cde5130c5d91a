"""What pruning bought: the masked network beside the compacted one, method by method."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from jaxprune.report.tables import Table
from jaxprune.study.records import Record

_Figures: TypeAlias = Mapping[str, float]


def batches(records: Sequence[Record]) -> list[int]:
    """List the pictures a call that both networks were timed with, fewest first.

    Args:
        records: of one study.

    Returns:
        Numbers of pictures; none where nothing was compacted.
    """
    names = {name for record in records for name in record.compaction}
    timed = [name.split("_") for name in names]
    return sorted(
        int(name[1])
        for name in timed
        if name[0] == "masked" and name[2:] == ["p50", "s"]
    )


def speed_up(record: Record, batch: int) -> float | None:
    """Return how many times faster the compacted network is; None if nothing was timed."""
    taken = record.compaction
    masked = taken.get(f"masked_{batch}_p50_s")
    compacted = taken.get(f"compacted_{batch}_p50_s")
    return masked / compacted if masked and compacted else None


def build(records: Sequence[Record], notes: Sequence[str] = ()) -> list[Table]:
    """Build the tables of sizes and of time and memory.

    Args:
        records: of one study, in its order.
        notes: of the study.

    Returns:
        Two tables, a row for each method and density, means over seeds; none if nothing was
        compacted.
    """
    held = [record for record in records if record.compaction]
    if not held:
        return []
    sizes: dict[str, Callable[[_Figures], str]] = {
        "weights": lambda f: f"{f['weights_dense']:.0f}",
        "kept %": lambda f: _share(f, "weights_kept", "weights_dense"),
        "compacted %": lambda f: _share(f, "weights_compacted", "weights_dense"),
        "kB": lambda f: f"{f['bytes_dense'] / 1e3:.0f}",
        "compacted kB": lambda f: f"{f['bytes_compacted'] / 1e3:.0f}",
        "file kB": lambda f: f"{f['file_masked'] / 1e3:.0f}",
        "compacted file kB": lambda f: f"{f['file_compacted'] / 1e3:.0f}",
        "kept MACs %": lambda f: _share(f, "macs_kept", "macs_dense"),
        "compacted MACs %": lambda f: _share(f, "macs_compacted", "macs_dense"),
        "effective %": lambda f: f"{f['effective']:.3g}",
        "empty layers": lambda f: f"{f['empty_layers']:.3g}",
    }
    times: dict[str, Callable[[_Figures], str]] = {}
    for batch in batches(records):
        masked, compacted = f"masked_{batch}_", f"compacted_{batch}_"
        times[f"{batch}: ms (p95)"] = lambda f, side=masked: _milliseconds(f, side)
        times[f"{batch}: compacted ms (p95)"] = lambda f, side=compacted: _milliseconds(
            f, side
        )
        times[f"{batch}: x"] = lambda f, batch=batch: f"{f[f'speed_up_{batch}']:.1f}"
    times["peak MB"] = lambda f: f"{f['masked_peak_mb']:.0f}"
    times["compacted peak MB"] = lambda f: f"{f['compacted_peak_mb']:.0f}"
    return [
        _table(
            held,
            "compacted_size",
            "What pruning bought: size of the compacted network",
            sizes,
            "Kernels kept by the mask, and those of the smaller dense network that computes "
            "the same; bytes of all arrays, and of their files as Orbax compresses them; "
            "multiply-accumulates per picture with biases; kept weights on a live path, as a "
            "share of all, and layers that keep none. Dead weights are no part of a compacted "
            "network, so that it may hold fewer than the mask keeps.",
            notes,
        ),
        _table(
            held,
            "compacted_time",
            "What pruning bought: time and memory of the compacted network",
            times,
            "Compiled calls on so many pictures, the masked network as it is executed, "
            "densely, and the compacted one in turns: median and 95th percentile, and the "
            "ratio of the medians; 1.0 means that nothing was gained. Most memory of a "
            "process that does nothing else, at the last batch size.",
            notes,
        ),
    ]


def _table(
    records: Sequence[Record],
    name: str,
    title: str,
    columns: Mapping[str, Callable[[_Figures], str]],
    how: str,
    notes: Sequence[str],
) -> Table:
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.title, record.cell["compression"]), []).append(record)
    rows = []
    for (method, c), group in groups.items():
        means = _means(group)
        rows.append([method, f"{c:g}", *(write(means) for write in columns.values())])
    return Table(name, title, ["method", "c", *columns], rows, how, notes)


def _means(records: Sequence[Record]) -> dict[str, float]:
    """Take the mean of every figure over the seeds."""
    figures = [
        {
            **record.compaction,
            "effective": 100 * (record.effective_density or 0.0),
            **{f"speed_up_{b}": speed_up(record, b) for b in batches([record])},
        }
        for record in records
    ]
    return {
        name: statistics.fmean(one[name] or 0.0 for one in figures)
        for name in figures[0]
    }


def _share(figures: _Figures, part: str, whole: str) -> str:
    return f"{100 * figures[part] / figures[whole]:.3g}"


def _milliseconds(figures: _Figures, side: str) -> str:
    p50, p95 = (1e3 * figures[f"{side}{name}_s"] for name in ("p50", "p95"))
    return f"{p50:.3g} ({p95:.3g})"
