"""Tables that compare the masked network with the compacted one, per method."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from jaxprune.report.tables import Table
from jaxprune.study.records import Record

# Which network is compared with the masked one: the compacted network, or the compacted
# network in which some layers multiply by their kept weights only.
Network: TypeAlias = Literal["compacted", "sparse"]

_Values: TypeAlias = Mapping[str, float | None]
_Format: TypeAlias = Callable[[_Values], str]


def batch_sizes(records: Sequence[Record]) -> list[int]:
    """Return the batch sizes that the networks were timed with, smallest first.

    Args:
        records: records of one study.

    Returns:
        Images per call; an empty list if nothing was compacted.
    """
    names = {name for record in records for name in record.compaction}
    parts = [name.split("_") for name in names]
    return sorted(
        int(part[1])
        for part in parts
        if part[0] == "masked" and part[2:] == ["p50", "s"]
    )


def speed_up(
    records: Sequence[Record], batch: int, network: Network = "compacted"
) -> float | None:
    """Return how many times faster a network is than the masked network.

    Args:
        records: records of one method and density, one per seed.
        batch: images per call.
        network: "compacted", or "sparse" for the compacted network in which layers multiply
            by their kept weights only, wherever that was measured to be faster.

    Returns:
        The ratio of the times, each summed over the records; None if a time is missing.
    """
    masked, other = (
        sum(
            record.compaction.get(f"{name}_{batch}_p50_s") or math.nan
            for record in records
        )
        for name in ("masked", network)
    )
    ratio = masked / other
    return None if math.isnan(ratio) else ratio


def build(records: Sequence[Record], notes: Sequence[str] = ()) -> list[Table]:
    """Build the tables of compaction results: size, work and memory, and time.

    Args:
        records: records of one study, in the study's order.
        notes: notes of the study.

    Returns:
        Three tables with means over the seeds, one row or more per method and density; an
        empty list if nothing was compacted.
    """
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        if record.compaction:
            group = (record.title, record.cell["compression"])
            groups.setdefault(group, []).append(record)
    means = {group: _means(members) for group, members in groups.items()}
    if not means:
        return []
    times = [
        [method, f"{c:g}", f"{batch}", *_times(means[method, c], members, batch)]
        for (method, c), members in groups.items()
        for batch in batch_sizes(records)
    ]
    return [
        Table(
            "compacted_size",
            "Compaction: size",
            ["method", "c", *_SIZES],
            _rows(means, _SIZES),
            "The compacted network is a smaller dense network with the same outputs as the "
            "masked one. kept %: kernel weights that the mask keeps; compacted %: kernel "
            "weights of the compacted network; both as shares of all kernel weights. kB: all "
            "arrays, of the masked and of the compacted network. file: the same on disk, as "
            "compressed by Orbax. Compaction removes dead weights, so it can leave fewer "
            "weights than the mask keeps.",
            notes,
        ),
        Table(
            "compacted_work",
            "Compaction: work and memory",
            ["method", "c", *_WORK],
            _rows(means, _WORK),
            "kept MACs %: multiply-accumulates (MACs) per image of the weights that the mask "
            "keeps; compacted %: those of the compacted network; both include biases and are "
            "shares of the dense network's. effective %: weights on a live path (a path of "
            "kept weights from input to output), as a share of all prunable weights. empty: "
            "layers without a kept weight. MB: peak memory of a process that does nothing "
            "but call the masked or the compacted network, at the largest batch size.",
            notes,
        ),
        Table(
            "compacted_time",
            "Compaction: time per call (ms)",
            ["method", "c", "batch", *_TIMES],
            times,
            "batch: images per call. masked: the network with its mask, which runs densely. "
            "compacted: the smaller dense network with the same outputs. sparse: the "
            "compacted network in which layers multiply by their kept weights only, wherever "
            "this was measured to be faster. Their calls were interleaved. p50: median; p95: "
            "95th percentile. A gain is the masked network's time divided by the "
            "other's; 1.0x means no gain. If a mask cuts every path through the network, the "
            "compacted network is a constant.",
            notes,
        ),
    ]


_TIMES = (
    "masked p50",
    "masked p95",
    "compacted p50",
    "compacted p95",
    "gain",
    "sparse p50",
    "sparse gain",
)


def _times(means: _Values, records: Sequence[Record], batch: int) -> list[str]:
    """Format the times of the networks, each followed by its gain."""

    def format_times(network: str, *percentiles: str) -> list[str]:
        return [
            _number(f"{network}_{batch}_{percentile}_s", 1e-3, ".3g")(means)
            for percentile in percentiles
        ]

    def format_network(network: Network, *percentiles: str) -> list[str]:
        ratio = speed_up(records, batch, network)
        if ratio is None:
            return ["" for _ in (*percentiles, "gain")]
        return [*format_times(network, *percentiles), f"{ratio:.1f}x"]

    return [
        *format_times("masked", "p50", "p95"),
        *format_network("compacted", "p50", "p95"),
        *format_network("sparse", "p50"),
    ]


def _share(part: str, total: str) -> _Format:
    """Return a function that formats one value as a percentage of another."""

    def format_share(values: _Values) -> str:
        numerator, denominator = values[part], values[total]
        if numerator is None or not denominator:
            return ""
        return f"{100 * numerator / denominator:.3g}"

    return format_share


def _number(name: str, unit: float = 1.0, spec: str = ".0f") -> _Format:
    """Return a function that formats one value in a unit."""

    def format_number(values: _Values) -> str:
        value = values.get(name)
        return "" if value is None else f"{value / unit:{spec}}"

    return format_number


_SIZES: Mapping[str, _Format] = {
    "kept %": _share("weights_kept", "weights_dense"),
    "compacted %": _share("weights_compacted", "weights_dense"),
    "kB": _number("bytes_dense", 1e3),
    "compacted kB": _number("bytes_compacted", 1e3),
    "file kB": _number("file_masked", 1e3),
    "compacted file": _number("file_compacted", 1e3),
}
_WORK: Mapping[str, _Format] = {
    "kept MACs %": _share("macs_kept", "macs_dense"),
    "compacted %": _share("macs_compacted", "macs_dense"),
    "effective %": _number("effective", spec=".3g"),
    "empty": _number("empty_layers", spec=".3g"),
    "peak MB": _number("masked_peak_mb"),
    "compacted MB": _number("compacted_peak_mb"),
}


def _rows(
    means: Mapping[tuple[str, float], _Values], columns: Mapping[str, _Format]
) -> list[list[str]]:
    return [
        [method, f"{c:g}", *(format_value(values) for format_value in columns.values())]
        for (method, c), values in means.items()
    ]


def _means(records: Sequence[Record]) -> dict[str, float | None]:
    """Return the mean of every value over the seeds; None if a seed has no such value."""
    seeds = [
        {
            **record.compaction,
            "effective": None
            if record.effective_density is None
            else 100 * record.effective_density,
        }
        for record in records
    ]
    means: dict[str, float | None] = {}
    for name in seeds[0]:
        values = [value for seed in seeds if (value := seed.get(name)) is not None]
        means[name] = statistics.fmean(values) if len(values) == len(seeds) else None
    return means
