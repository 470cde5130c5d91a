"""The verdict of a study, in sentences that are computed from its records."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from jaxprune.report import compaction, frame
from jaxprune.report.quantities import Metric, metric
from jaxprune.study.records import Record


class Leader(NamedTuple):
    """The best method at one density.

    Attributes:
        c: compression exponent.
        method: its name.
        title: its title.
        mean: its mean metric over the seeds.
        second: title of the second best method.
        margin: how much better the best mean is than the second best, not negative.
        noise: two standard errors of that difference; None if either method has one seed.
        is_tie: whether the margin is zero in the digits that a report shows.
    """

    c: float
    method: str
    title: str
    mean: float
    second: str
    margin: float
    noise: float | None
    is_tie: bool

    @property
    def is_clear(self) -> bool:
        """Return whether the margin is greater than the noise, and not zero."""
        return self.noise is not None and self.margin > self.noise and not self.is_tie


class Verdict(NamedTuple):
    """One finding.

    Attributes:
        label: what it is about, in a few words.
        text: the finding, in a sentence or two.
    """

    label: str
    text: str


# The best network must be this close to the best metric, as a share of it.
_TOLERANCE = 0.01


def leaders(records: Sequence[Record]) -> list[Leader]:
    """Compare the two best methods at each density.

    The noise is two standard errors of the difference of the two means,
    `2 * s * sqrt(1 / n1 + 1 / n2)`, with s the pooled sample standard deviation of the two
    methods over their n1 and n2 seeds. It is a rule of thumb and no significance test: with
    few seeds the deviation itself is uncertain, and the best of many methods is partly best
    by luck. Networks that keep all weights are not ranked.

    Args:
        records: records of one study.

    Returns:
        One leader per compression at which two methods or more were evaluated, densest
        first.
    """
    unpruned = {
        (r.method, r.cell["compression"])
        for r in records
        if not r.cell["compression"] or (r.density or 0) >= 1
    }
    measured = metric(records)
    summary = frame.summarize(records, lambda record: record.metric)
    ranked = summary.drop_nulls("mean").sort(
        "mean", descending=measured.better == "higher", maintain_order=True
    )
    best_methods = []
    for c in frame.compressions(records):
        rows = ranked.filter(pl.col("c") == c).to_dicts()
        rows = [row for row in rows if (row["method"], c) not in unpruned]
        if len(rows) > 1:
            best, second = rows[:2]
            margin = abs(best["mean"] - second["mean"])
            best_methods.append(
                Leader(
                    c, best["method"], best["title"], best["mean"], second["title"],
                    margin, _noise(best, second), not round(margin, measured.digits),
                )
            )  # fmt: skip
    return best_methods


def _noise(best: dict[str, Any], second: dict[str, Any]) -> float | None:
    """Return two standard errors of the difference of two means."""
    n1, n2 = best["count"], second["count"]
    if min(n1, n2) < 2:
        return None
    squares = (n1 - 1) * best["std"] ** 2 + (n2 - 1) * second["std"] ** 2
    return 2 * math.sqrt(squares / (n1 + n2 - 2) * (1 / n1 + 1 / n2))


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """Sum up a study: the best methods, collapsed layers, and what pruning saved.

    Args:
        records: records of one study.

    Returns:
        Three findings.

    Raises:
        ValueError: if there are no records.
    """
    return [
        Verdict("Best method", _best(records)),
        Verdict("Collapse", _collapse(records)),
        Verdict("Savings", _savings(records)),
    ]


def _best(records: Sequence[Record]) -> str:
    """Name the best method at each density, with its lead and the seed noise."""
    best_methods, measured = leaders(records), metric(records)
    if not best_methods:
        return (
            f"No density has the {measured.name} of two methods yet, so there is nothing "
            "to compare."
        )
    parts = []
    clear = [x for x in best_methods if x.is_clear]
    if clear:
        leads = [
            f"{title} leads {_and(_lead(x, measured) for x in clear if x.title == title)}"
            for title in dict.fromkeys(x.title for x in clear)
        ]
        parts.append(f"In {measured.name}, {'; '.join(leads)}.")
    ties = [x.c for x in best_methods if x.is_tie]
    if ties:
        parts.append(
            f"The two best methods have the same {measured.name} at {_densities(ties)}."
        )
    rest = [x for x in best_methods if not x.is_tie and not x.is_clear]
    unclear = [x.c for x in rest if x.noise is not None]
    if unclear:
        parts.append(
            f"At {_densities(unclear)} no lead in {measured.name} exceeds the seed noise."
        )
    unknown = [x for x in rest if x.noise is None]
    for title in dict.fromkeys(x.title for x in unknown):
        leads = [x for x in unknown if x.title == title]
        parts.append(
            f"{title} has the best {measured.name} at {_densities(x.c for x in leads)}, by "
            f"{_range([x.margin for x in leads], measured)}."
        )
    if unknown:
        seeds = len({record.cell["seed"] for record in records})
        parts.append(
            "One seed can't tell this from noise."
            if seeds == 1
            else "One of the two best methods has one seed, which can't tell this from noise."
        )
    return " ".join(parts)


def _lead(leader: Leader, measured: Metric) -> str:
    """Describe where and by how much a method leads."""
    return (
        f"at {_densities([leader.c])} by {leader.margin:.{measured.digits}f}"
        f"{measured.margin_unit} (noise {leader.noise:.{measured.digits}f})"
    )


def _collapse(records: Sequence[Record]) -> str:
    """Name the networks without a path, the empty layers and the diverged trainings."""
    parts, titles = [], frame.titles(records)
    collapsed = [record for record in records if record.collapse]
    if collapsed:
        parts.append(
            f"No path is left from input to output in {_cells(collapsed, records)}."
        )
    empty: dict[str, list[str]] = {}
    for record in records:
        for layer in record.layers:
            if layer.size and not layer.kept:
                name, title = layer.name.removesuffix("/kernel"), titles[record.method]
                if title not in empty.setdefault(name, []):
                    empty[name].append(title)
    if empty:
        groups: dict[str, list[str]] = {}  # layers that the same methods empty
        for name, methods in empty.items():
            groups.setdefault(_and(methods), []).append(name)
        texts = [
            f"{_and(_first(names))} ({methods})" for methods, names in groups.items()
        ]
        parts.append(f"Layers without a kept weight: {_and(_first(texts))}.")
    if not parts:
        parts.append(
            "Every network has a path from input to output, and no layer is empty."
            if any(record.layers for record in records)
            else "No mask has been inspected yet."
        )
    diverged = [record for record in records if record.status == "diverged"]
    if diverged:
        parts.append(f"Training diverged for {_cells(diverged, records)}.")
    return " ".join(parts)


def _cells(chosen: Sequence[Record], records: Sequence[Record]) -> str:
    """Name the methods, densities and numbers of seeds of some records."""
    groups: dict[str, list[str]] = {}  # methods with the same densities
    for method, title in frame.titles(records).items():
        cells = [record for record in chosen if record.method == method]
        if not cells:
            continue
        levels = frame.compressions(cells)
        total = sum(
            r.method == method and r.cell["compression"] in levels for r in records
        )
        where = f"at {_densities(levels)}"
        if len(cells) < total:
            where += f" ({len(cells)} of {total} networks)"
        groups.setdefault(where, []).append(title)
    return _and(f"{_and(titles)} {where}" for where, titles in groups.items())


def _first(words: Sequence[str], most: int = 3) -> list[str]:
    """Return the first words, and the number of the others."""
    left = len(words) - most
    return [*words] if left < 2 else [*words[:most], f"{left} more"]


def _savings(records: Sequence[Record]) -> str:
    """Describe the cheapest network whose metric is close to the best."""
    measured = metric(records)
    sign = measured.sign
    networks = frame.networks(records)
    rows = [
        row
        for row in networks.iter_rows(named=True)
        if row["metric"] is not None and row["c"] and not row["collapsed"]
    ]
    best = max((sign * row["metric"] for row in rows), default=0.0)
    close = [
        row for row in rows if sign * row["metric"] >= best - _TOLERANCE * abs(best)
    ]
    counted = [row for row in close if row["flop_ratio"] is not None]
    if not counted:
        return "Multiply-accumulates, bytes and time are not measured yet."
    fewest = min(row["flop_ratio"] for row in counted)
    # The means of equal counts over the seeds can differ in their last digits.
    cheapest = [
        row for row in counted if math.isclose(row["flop_ratio"], fewest, rel_tol=1e-6)
    ]
    row = max(cheapest, key=lambda row: sign * row["metric"])
    network = (
        f"{row['title']} at {_densities([row['c']])} "
        f"({row['metric']:.{measured.digits}f}{measured.unit})"
    )
    others = [other for other in cheapest if other is not row]
    if others:
        is_best = all(
            round(abs(row["metric"] - other["metric"]), measured.digits)
            for other in others
        )
        names = [
            other["title"]
            + ("" if other["c"] == row["c"] else f" at {_densities([other['c']])}")
            for other in others
        ]
        claim = (
            f"{network} has the fewest multiply-accumulates (MACs), as few as "
            f"{_and(_first(names))}, and "
            + ("is the best of them" if is_best else "none of them is better")
        )
    else:
        claim = f"the network with the fewest multiply-accumulates (MACs) is {network}"
    text = (
        f"Within {100 * _TOLERANCE:g} % of the best {measured.name}, {claim}: its mask keeps "
        f"{100 * row['flop_ratio']:.3g} % of the dense network's MACs."
    )
    batch = max(frame.batch_sizes(networks), default=0)
    macs = compaction.ratio(row, "macs_compacted", "macs_dense")
    size = compaction.ratio(row, "bytes_compacted", "bytes_dense")
    gain = compaction.speed_up(row, batch)
    facts = [] if macs is None else [f"needs {100 * macs:.3g} % of the MACs"]
    facts += [] if size is None else [f"takes {100 * size:.3g} % of the bytes"]
    if gain:
        pace = f"takes {1 / gain:.2f} times as long"
        if gain >= 1:
            pace = f"runs {gain:.2f} times as fast"
        facts.append(f"{pace} ({frame.examples(batch)} per call)")
    return f"{text} Compacted, it {_and(facts)}." if facts else text


def _and(words: Any) -> str:
    """Join words with commas and a final "and"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _densities(levels: Any) -> str:
    texts = [frame.density(c) for c in levels]
    return f"densit{'ies' if len(texts) > 1 else 'y'} {_and(texts)}"


def _range(values: Sequence[float], measured: Metric) -> str:
    """Format the least and the greatest of some differences."""
    texts = dict.fromkeys(
        f"{value:.{measured.digits}f}" for value in (min(values), max(values))
    )
    return " to ".join(texts) + measured.margin_unit
