"""What pruning bought: the masked network beside the compacted one, method by method."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from jaxprune.report.tables import Table
from jaxprune.study.records import Record

_Figures: TypeAlias = Mapping[str, float | None]
_Write: TypeAlias = Callable[[_Figures], str]


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


def speed_up(
    records: Sequence[Record], batch: int, side: str = "compacted"
) -> float | None:
    """Return how many times faster than the masked network another one is.

    Args:
        records: of one method and density, over seeds.
        batch: pictures a call.
        side: "compacted", or "sparse" where layers multiply by their kept weights alone.

    Returns:
        The ratio of the times, each summed over the records; None if one lacks a time.
    """
    taken = [
        sum(
            record.compaction.get(f"{one}_{batch}_p50_s") or math.nan
            for record in records
        )
        for one in ("masked", side)
    ]
    ratio = taken[0] / taken[1]
    return None if math.isnan(ratio) else ratio


def build(records: Sequence[Record], notes: Sequence[str] = ()) -> list[Table]:
    """Build the tables of what the compacted networks weigh, compute and take.

    Args:
        records: of one study, in its order.
        notes: of the study.

    Returns:
        Three tables, a row or more for each method and density, means over seeds; none if
        nothing was compacted.
    """
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        if record.compaction:
            group = (record.title, record.cell["compression"])
            groups.setdefault(group, []).append(record)
    found = {group: _means(held) for group, held in groups.items()}
    if not found:
        return []
    times = [
        [method, f"{c:g}", f"{batch}", *_times(found[method, c], held, batch)]
        for (method, c), held in groups.items()
        for batch in batches(records)
    ]
    head = ["method", "c", "batch", "masked p50", "masked p95"]
    return [
        Table(
            "compacted_size",
            "What pruning bought: size",
            ["method", "c", *_SIZES],
            _rows(found, _SIZES),
            "Kernels that the mask keeps, and those of the smaller dense network that "
            "computes the same; all arrays; and their files as Orbax compresses them. Dead "
            "weights are no part of a compacted network, so that it may hold fewer than the "
            "mask keeps.",
            notes,
        ),
        Table(
            "compacted_work",
            "What pruning bought: work and memory",
            ["method", "c", *_WORK],
            _rows(found, _WORK),
            "Multiply-accumulates per picture, biases too, as shares of the dense network's; "
            "weights on a live path, as a share of all; layers that keep none; most memory "
            "of a process that does nothing else, at the largest batch.",
            notes,
        ),
        Table(
            "compacted_time",
            "What pruning bought: time of a call (ms)",
            [
                *head,
                "compacted p50",
                "compacted p95",
                "gain",
                "sparse p50",
                "sparse gain",
            ],
            times,
            "The masked network as it is executed, densely, the compacted one, and that one "
            "with its layers multiplying by their kept weights alone wherever this was "
            "measured to be faster, in turns; a gain is the ratio of the masked network's "
            "time to the other's, 1.0x where nothing was gained. A network that a mask has "
            "cut is a constant once it is compacted.",
            notes,
        ),
    ]


def _times(means: _Figures, records: Sequence[Record], batch: int) -> list[str]:
    """Write the times of the networks, and after each the gain."""

    def write(side: str, *ranks: str) -> list[str]:
        gained = speed_up(records, batch, side)
        if gained is None:
            return ["" for _ in (*ranks, "gain")]
        taken = [
            _number(f"{side}_{batch}_{rank}_s", 1e-3, ".3g")(means) for rank in ranks
        ]
        return [*taken, f"{gained:.1f}x"]

    masked = write("masked", "p50", "p95")[:-1]
    return [*masked, *write("compacted", "p50", "p95"), *write("sparse", "p50")]


def _share(part: str, whole: str) -> _Write:
    def write(figures: _Figures) -> str:
        one, all_of_it = figures[part], figures[whole]
        return "" if one is None or not all_of_it else f"{100 * one / all_of_it:.3g}"

    return write


def _number(name: str, unit: float = 1.0, form: str = ".0f") -> _Write:
    def write(figures: _Figures) -> str:
        value = figures[name]
        return "" if value is None else f"{value / unit:{form}}"

    return write


_SIZES: Mapping[str, _Write] = {
    "kept %": _share("weights_kept", "weights_dense"),
    "compacted %": _share("weights_compacted", "weights_dense"),
    "kB": _number("bytes_dense", 1e3),
    "compacted kB": _number("bytes_compacted", 1e3),
    "file kB": _number("file_masked", 1e3),
    "compacted file": _number("file_compacted", 1e3),
}
_WORK: Mapping[str, _Write] = {
    "kept MACs %": _share("macs_kept", "macs_dense"),
    "compacted %": _share("macs_compacted", "macs_dense"),
    "effective %": _number("effective", form=".3g"),
    "empty": _number("empty_layers", form=".3g"),
    "peak MB": _number("masked_peak_mb"),
    "compacted MB": _number("compacted_peak_mb"),
}


def _rows(
    found: Mapping[tuple[str, float], _Figures], columns: Mapping[str, _Write]
) -> list[list[str]]:
    return [
        [method, f"{c:g}", *(write(means) for write in columns.values())]
        for (method, c), means in found.items()
    ]


def _means(records: Sequence[Record]) -> dict[str, float | None]:
    """Take the mean of every figure over the seeds; None if one of them lacks it."""
    figures = [
        {
            **record.compaction,
            "effective": None
            if record.effective_density is None
            else 100 * record.effective_density,
        }
        for record in records
    ]
    means: dict[str, float | None] = {}
    for name in figures[0]:
        values = [one.get(name) for one in figures]
        whole = [value for value in values if value is not None]
        means[name] = statistics.fmean(whole) if len(whole) == len(values) else None
    return means
