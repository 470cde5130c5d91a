"""Figures with axes: the metric against density and cost, live paths, speed-up."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxprune.report import compaction, frame
from jaxprune.report.charts import (
    GROUP,
    Figure,
    Kind,
    Plot,
    Point,
    Series,
    span,
    styles,
)
from jaxprune.report.quantities import Metric, capitalized, metric
from jaxprune.study.records import Record

_DENSITY = "density (kept / prunable weights)"


def _curves(
    records: Sequence[Record],
    get_value: Callable[[Record], float | None],
    describe: Callable[[dict[str, Any]], str],
) -> list[Series]:
    """Return a quantity against the requested density: one series per method."""
    rows = frame.summarize(records, get_value).drop_nulls("mean").sort("c").to_dicts()
    return [
        Series(
            title,
            style,
            [
                Point(10.0 ** -r["c"], r["mean"], r["std"] or 0.0, describe(r))
                for r in rows
                if r["method"] == method
            ],
        )
        for (method, title), style in zip(
            frame.titles(records).items(), styles(records).values(), strict=True
        )
        if any(r["method"] == method for r in rows)
    ]


def _plot(series: Sequence[Series], x_label: str, y_label: str) -> Plot:
    """Return a plot against density, on a logarithmic axis, with all points in it."""
    points = [point for one in series for point in one.points]
    ends = [y for p in points for y in (p.y - p.error, p.y + p.error)]
    left, right = span((p.x for p in points), log=True)
    return Plot("", x_label, y_label, (right, left), span(ends), series, "x")


def metric_figure(records: Sequence[Record]) -> Figure | None:
    """Plot the metric against density, and again for the dense end.

    Args:
        records: records of one study.
    """
    measured = metric(records)
    series = _curves(records, lambda r: r.metric, lambda r: _describe(r, measured))
    if not series:
        return None
    whole = _plot(series, _DENSITY, measured.label)
    zoom = _dense_end(whole, measured)
    panels = [whole._replace(title="All densities"), zoom] if zoom else [whole]
    groups = _groups(zoom or whole)
    if len(groups) > 1:
        panels = groups
    seeds = len({record.cell["seed"] for record in records})
    texts = [f"{capitalized(measured.label)}; {measured.better} is better."]
    if seeds > 1:
        texts.append(
            f"Each point is the mean over {seeds} seeds; error bars show one sample standard "
            "deviation."
        )
    else:
        texts.append("Each point is one network: one seed has no error bars.")
    if len(groups) > 1:
        texts.append(
            f"Each panel shows up to {GROUP} methods"
            + ", enlarged to where half of them are close to the best." * bool(zoom)
        )
    elif zoom:
        texts.append("The second panel enlarges the dense end of the first.")
    if len({record.epochs for record in records}) > 1:
        texts.append(
            "Methods train for different numbers of epochs; see the table of epochs."
        )
    return Figure(
        measured.key,
        f"{capitalized(measured.name)} against density",
        " ".join(texts),
        panels,
    )


def _groups(plot: Plot) -> list[Plot]:
    """Split a plot of many methods into panels; the dense network is in each."""
    dense = [series for series in plot.series if series.style == 0]
    pruned = [series for series in plot.series if series.style]
    parts = [pruned[i : i + GROUP] for i in range(0, len(pruned), GROUP)]
    return [
        plot._replace(title=f"{part[0].label} to {part[-1].label}", series=dense + part)
        for part in parts
    ]


def _describe(row: Mapping[str, Any], measured: Metric) -> str:
    """Describe a mean of the metric in words."""
    text = f"{row['title']} at density {frame.density(row['c'])}: "
    text += f"{row['mean']:.{measured.digits}f}"
    if row["std"] is not None:
        text += f" ± {row['std']:.{measured.digits}f}"
    seeds = f"{row['count']} seed{'s' if row['count'] > 1 else ''}"
    return f"{text}{measured.unit} ({seeds})"


def _dense_end(plot: Plot, measured: Metric) -> Plot | None:
    """Return the part of a plot in which the methods are close to the best value.

    Densities count from the densest on, as long as half of the methods are close there.
    """
    points = [point for series in plot.series for point in series.points]
    sign = measured.sign
    limit = _limit([sign * point.y for point in points])
    chosen: list[Point] = []
    for density in sorted({p.x for p in points}, reverse=True):
        column = [p for p in points if p.x == density]
        close = [p for p in column if sign * p.y >= limit]
        if 2 * len(close) < len(column):
            break
        chosen += close
    if len({p.x for p in chosen}) < 2 or len({p.y for p in points}) < 2:
        return None
    left, right = span((p.x for p in chosen), log=True)
    ends = [y for p in chosen for y in (p.y - p.error, p.y + p.error)]
    return plot._replace(
        title="Dense end, enlarged", x_range=(right, left), y_range=span(ends)
    )


def _limit(values: Sequence[float]) -> float:
    """Return the lowest value that is close to the best: within a tenth of the span."""
    return max(values) - 0.1 * (max(values) - min(values))


def cost(records: Sequence[Record]) -> Figure | None:
    """Plot the metric against the work and the time of a call.

    Args:
        records: records of one study.
    """
    networks = frame.networks(records)
    batch = max(frame.batch_sizes(networks), default=0)
    measured = metric(records)
    costs = {
        "flop_ratio": (100.0, "multiply-accumulates that the mask keeps (% of dense)"),
        f"compacted_{batch}_p50_s": (
            1e3, f"time of a compacted call, {frame.examples(batch)} (ms)"
        ),
    }  # fmt: skip
    panels = []
    for name, (factor, label) in costs.items():
        rows = [
            {**row, "cost": factor * row[name]}
            for row in networks.iter_rows(named=True)
            if row.get(name) and row["metric"] is not None and not row["collapsed"]
        ]
        if not rows:
            continue
        plot = _front(rows, measured, styles(records))._replace(x_label=label)
        masked = [t for row in rows if (t := row.get(f"masked_{batch}_p50_s"))]
        if name != "flop_ratio" and masked:
            mean = 1e3 * statistics.fmean(masked)
            ends = [*plot.x_range, mean]
            plot = plot._replace(
                mark=("x", mean, "masked network"), x_range=(min(ends), max(ends))
            )
        panels.append(plot)
        sign = measured.sign
        limit = _limit([sign * row["metric"] for row in rows])
        close = [row["metric"] for row in rows if sign * row["metric"] >= limit]
        if len(set(close)) > 1:
            panels[-1] = plot._replace(title="All networks")
            title = f"Networks close to the best {measured.name}"
            panels.append(plot._replace(title=title, y_range=span(close)))
    if not panels:
        return None
    return Figure(
        "cost",
        f"{capitalized(measured.name)} against cost",
        "One point per method and density, mean over the seeds. The broad line is the Pareto "
        "front: no other network is both cheaper and better than one on it. Networks without "
        "a path from input to output are left out. Multiply-accumulates are counted: they "
        "are the work of ideal hardware that skips every zero. Time is measured: the median "
        "of calls of the compacted network, and as a dashed line that of the masked network, "
        "which runs densely.",
        panels,
    )


def _front(
    rows: Sequence[Mapping[str, Any]], measured: Metric, indices: Mapping[str, int]
) -> Plot:
    """Return a plot of the metric against the cost of each row, with its Pareto front."""
    sign = measured.sign
    front: list[Point] = []
    for row in sorted(rows, key=lambda row: (row["cost"], -sign * row["metric"])):
        if not front or sign * row["metric"] > sign * front[-1].y:
            front.append(Point(row["cost"], row["metric"], 0.0, ""))
    series = [Series("Pareto front", 0, front, "front")]
    for method, index in indices.items():
        networks = [row for row in rows if row["method"] == method]
        points = [
            Point(
                row["cost"],
                row["metric"],
                0.0,
                f"{row['title']} at density {frame.density(row['c'])}: "
                f"{row['metric']:.{measured.digits}f}{measured.unit}, {row['cost']:.3g} "
                "on the horizontal axis",
            )
            for row in sorted(networks, key=lambda row: row["c"])
        ]
        if points:
            series.append(Series(networks[0]["title"], index, points, "thin"))
    x_range = span((row["cost"] for row in rows), log=True)
    y_range = span(row["metric"] for row in rows)
    return Plot("", "", measured.label, x_range, y_range, series, "x")


def effective(records: Sequence[Record]) -> Figure | None:
    """Plot which share of the kept weights is on a live path.

    Args:
        records: records of one study.
    """

    def share(record: Record) -> float | None:
        if record.effective_density is None or not record.density:
            return None
        return 100 * record.effective_density / record.density

    series = _curves(
        records,
        share,
        lambda r: f"{r['title']} at density {frame.density(r['c'])}: {r['mean']:.1f} %",
    )
    if not series:
        return None
    return Figure(
        "effective_density",
        "Kept weights that do something",
        "Percentage of the kept weights that are on a live path, which is a path of kept "
        "weights from input to output. The other kept weights change nothing.",
        [
            _plot(series, _DENSITY, "kept weights on a live path (%)")._replace(
                y_range=span([0.0, 100.0])
            )
        ],
    )


def _bound(row: Mapping[str, Any]) -> float | None:
    """Return dense / kept multiply-accumulates, from a row of `frame.networks`."""
    return compaction.ratio(row, "macs_dense", "macs_kept")


# Bounds that differ by less are drawn as one line: they could not be told apart.
_NEARLY_EQUAL = 0.05


def _shared_bound(records: Sequence[Record]) -> list[Point]:
    """Return the mean bound at each density; nothing if methods differ, or one has any."""
    bounds: dict[float, list[float]] = {}
    methods = set()
    for row in frame.networks(records).sort("c").iter_rows(named=True):
        if bound := _bound(row):
            bounds.setdefault(row["c"], []).append(bound)
            methods.add(row["method"])
    if len(methods) < 2 or any(
        max(values) > (1 + _NEARLY_EQUAL) * min(values) for values in bounds.values()
    ):
        return []
    return [
        Point(10.0**-c, statistics.fmean(values), 0.0, "")
        for c, values in bounds.items()
    ]


def speed_up(records: Sequence[Record]) -> Figure | None:
    """Plot the speed-up by compaction, and its bound: one panel per batch size.

    Args:
        records: records of one study.
    """
    networks = frame.networks(records)
    shared = _shared_bound(records)
    getters: dict[Kind, Callable[[Mapping[str, Any], int], float | None]] = {
        "line": lambda row, batch: compaction.speed_up(row, batch),
        "hollow": lambda row, batch: compaction.speed_up(row, batch, "sparse"),
        "dashed": lambda row, _: None if shared else _bound(row),
    }
    words: Mapping[Kind, str] = {
        "line": "compacted",
        "hollow": "with sparse layers",
        "dashed": "bound",
    }
    rows = networks.sort("c").to_dicts()
    panels = []
    for batch in frame.batch_sizes(networks):
        series = [Series("bound", 0, shared, "shared")] if shared else []
        for (method, index), kind in itertools.product(
            styles(records).items(), getters
        ):
            points = [
                Point(
                    10.0 ** -row["c"],
                    value,
                    0.0,
                    f"{row['title']} at density {frame.density(row['c'])}, {words[kind]}: "
                    f"{value:.2f} times",
                )
                for row in rows
                if row["method"] == method
                and (value := getters[kind](row, batch))
                and (kind != "hollow" or value != getters["line"](row, batch))
            ]
            if points:
                title = frame.titles(records)[method]
                series.append(Series(title, index, points, kind))
        if any(one.kind == "line" for one in series):
            plot = _plot(series, _DENSITY, "times as fast as the masked network")
            ys = [point.y for one in series for point in one.points]
            panels.append(
                plot._replace(
                    title=f"{frame.examples(batch)} per call",
                    y_range=span([*ys, 1.0], log=True),
                    logs="xy",
                    mark=("y", 1.0, ""),
                )
            )
    if not panels:
        return None
    lines = "Dashed lines: the bound"
    if shared:
        lines = (
            "Gray dashed line above 1: the bound of all methods, which nearly agree,"
        )
    return Figure(
        "speed_up",
        "Speed-up by compaction",
        "Solid lines: time of the masked network divided by that of the compacted network, "
        "a smaller dense network with the same outputs. Hollow markers: the same, where "
        "layers of the compacted network multiply by their kept weights only, wherever that "
        f"was measured to be faster. {lines} for hardware that skips every zero, dense / "
        "kept multiply-accumulates. A collapsed network is a constant, and exceeds any "
        "bound.",
        panels,
    )


def connectivity(records: Sequence[Record]) -> Figure | None:
    """Plot the error between two trained networks: one series per record.

    Args:
        records: records of one study.
    """
    series = []
    for record in records:
        errors = record.connectivity.get("errors") or ()
        if len(errors) < 2:
            continue
        label = (
            f"density {frame.density(record.cell['compression'])}, seed "
            f"{record.cell['seed']}"
        )
        barrier = record.connectivity.get("barrier")
        text = label if barrier is None else f"{label}: barrier {barrier:.2f} points"
        points = [
            Point(i / (len(errors) - 1), error, 0.0, f"{label}: {error:.2f} %")
            for i, error in enumerate(errors)
        ]
        series.append(Series(text, len(series), points))
    if not series:
        return None
    ys = [point.y for one in series for point in one.points]
    return Figure(
        "connectivity",
        "Error between two trainings",
        "Test error on the straight line between two networks that were trained from the "
        "same rewind point with different data order and augmentation. A flat line means "
        "that both are in one basin of the loss.",
        [
            Plot(
                "",
                "position on the line from one network (0) to the other (1)",
                "test error (%)",
                (-0.03, 1.03),
                span([*ys, 0.0]),
                series,
            )
        ],
    )
