"""Records as polars frames: one row per cell, or one row per method and density."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from jaxprune.report.quantities import flop_ratio, quantities
from jaxprune.study.records import Record, read_all

_GROUP = ("method", "title", "c")


def records(folder: str | os.PathLike) -> pl.DataFrame:
    """Read the records of a study: one row per cell, one column per quantity.

    Args:
        folder: `runs/<study>`.

    Returns:
        The columns of `frame`; null where nothing was measured.

    Raises:
        RunsError: if there is no study, or another version wrote it.
        ValueError: if there are no records.
    """
    return frame(read_all(Path(folder)))


def frame(records: Sequence[Record]) -> pl.DataFrame:
    """Collect all values of all records: one row per record, one column per quantity.

    Args:
        records: records of one study.

    Returns:
        A frame with the id, method, c, seed, recipe, size and status of each record, and a
        column for each of `quantities`.

    Raises:
        ValueError: if there are no records.
    """
    columns = [
        pl.Series(name, [_float(quantity.get_value(r)) for r in records], pl.Float64)
        for name, quantity in quantities(records).items()
    ]
    return _cells(records).with_columns(columns)


def summarize(
    records: Sequence[Record], get_value: Callable[[Record], float | None]
) -> pl.DataFrame:
    """Average one value over the seeds: one row per method and compression c.

    Args:
        records: records of one study.
        get_value: returns the value of a record, or None if it was not measured.

    Returns:
        A frame with method, title, c, mean, std (the sample standard deviation; null for
        fewer than 2 values), count (number of values), cells and diverged (numbers of
        records), in the order of the records.
    """
    values = pl.Series("value", [_float(get_value(r)) for r in records], pl.Float64)
    return (
        _cells(records)
        .with_columns(values)
        .group_by(_GROUP, maintain_order=True)
        .agg(
            mean=pl.col("value").mean(),
            std=pl.col("value").std(),
            count=pl.col("value").count(),
            cells=pl.len(),
            diverged=(pl.col("status") == "diverged").sum(),
        )
    )


def networks(records: Sequence[Record]) -> pl.DataFrame:
    """Average what was measured of the networks over the seeds.

    Args:
        records: records of one study.

    Returns:
        One row per method and compression, in the order of the records: the metric, the
        number of epochs, the ratio of multiply-accumulates (flop_ratio), shares of weights
        in percent (density, effective), `collapsed` and `is_compacted` (in any seed), and
        every fact of `Record.compaction`. Diverged seeds are left out. The mean of a fact
        is null if it is missing in any seed that was compacted.
    """
    getters: dict[str, Callable[[Record], Any]] = {
        "metric": lambda r: r.metric,
        "epochs": lambda r: r.epochs,
        "flop_ratio": flop_ratio,
        "density": lambda r: _percent(r.density),
        "effective": lambda r: _percent(r.effective_density),
    }
    facts = dict.fromkeys(name for r in records for name in r.compaction)
    getters |= {name: lambda r, name=name: r.compaction.get(name) for name in facts}
    columns = [
        pl.Series(name, [_float(get_value(r)) for r in records], pl.Float64)
        for name, get_value in getters.items()
    ]
    compacted = pl.col("is_compacted").sum()
    means = [
        pl.when((name not in facts) | (pl.col(name).count() == compacted))
        .then(pl.col(name).mean())
        .alias(name)
        for name in getters
    ]
    return (
        _cells(records)
        .with_columns(
            *columns,
            collapsed=pl.Series([bool(r.collapse) for r in records], dtype=pl.Boolean),
            is_compacted=pl.Series(
                [bool(r.compaction) for r in records], dtype=pl.Boolean
            ),
        )
        .filter(pl.col("status") != "diverged")
        .group_by(_GROUP, maintain_order=True)
        .agg(pl.col("collapsed", "is_compacted").any(), *means)
    )


def batch_sizes(networks: pl.DataFrame) -> list[int]:
    """Return the batch sizes that the networks were timed with, smallest first.

    Args:
        networks: the frame of `networks`.

    Returns:
        Examples per call; an empty list if nothing was compacted.
    """
    parts = [name.split("_") for name in networks.columns]
    return sorted(
        int(part[1])
        for part in parts
        if part[0] == "masked" and part[2:] == ["p50", "s"]
    )


def titles(records: Sequence[Record]) -> dict[str, str]:
    """Return the title of each method, in the study's order.

    Args:
        records: records of one study.

    Returns:
        Titles by method. If two methods have the same one, their names are added.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("there are no records yet. Run the study first.")
    names = {record.method: record.title for record in records}
    shared = [title for title, count in Counter(names.values()).items() if count > 1]
    return {
        method: f"{title} ({method})" if title in shared else title
        for method, title in names.items()
    }


def compressions(records: Sequence[Record]) -> list[float]:
    """Return the compression exponents c, lowest first.

    Args:
        records: records of one study.
    """
    return sorted({float(record.cell["compression"]) for record in records})


def first_seeds(records: Sequence[Record], compression: float) -> dict[str, Record]:
    """Return the first record with layers of each method at a compression.

    Args:
        records: records of one study, in the study's order.
        compression: the compression exponent c.

    Returns:
        Records by method, in the study's order.
    """
    firsts: dict[str, Record] = {}
    for record in records:
        if record.cell["compression"] == compression and record.layers:
            firsts.setdefault(record.method, record)
    return firsts


def density(compression: float) -> str:
    """Return the density of a compression exponent c as text.

    Args:
        compression: the compression exponent c.

    Example:
        >>> density(0.5)
        '0.316'
    """
    return f"{10.0**-compression:.3g}"


def exponent(compression: float) -> str:
    """Return a compression exponent c as text, with 3 digits after the point at most.

    Args:
        compression: the compression exponent c.

    Example:
        >>> exponent(0.522879), exponent(1.30103), exponent(2.0)
        ('0.523', '1.301', '2')
    """
    return f"{compression:.3g}" if compression < 1 else f"{round(compression, 3):g}"


def has_exponents(records: Sequence[Record]) -> bool:
    """Return whether tables show the exponents c beside the densities.

    A study of densities such as 0.3 has exponents such as 0.522879, which help nobody. They
    are shown if all of them have at most 2 decimals.

    Args:
        records: records of one study.
    """
    levels = compressions(records)
    return all(round(c, 2) == c for c in levels)


def examples(batch: int) -> str:
    """Return a number of examples as text.

    Args:
        batch: the number.

    Example:
        >>> examples(1), examples(64)
        ('1 example', '64 examples')
    """
    return f"{batch} example{'s' if batch != 1 else ''}"


def _cells(records: Sequence[Record]) -> pl.DataFrame:
    """Return what identifies each record."""
    names = titles(records)
    return pl.DataFrame(
        [
            {
                "id": record.id,
                "method": record.method,
                "title": names[record.method],
                "c": float(record.cell["compression"]),
                "seed": int(record.cell["seed"]),
                "recipe": record.cell.get("recipe", {}).get("name"),
                "epochs_scale": record.cell.get("recipe", {}).get("epochs_scale"),
                "width": record.cell.get("width"),
                "train_examples": record.cell.get("train_examples"),
                "status": record.status,
            }
            for record in records
        ],
        infer_schema_length=None,
    )


def _float(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
