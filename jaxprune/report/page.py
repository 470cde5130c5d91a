"""The page of a study: one HTML file without scripts or references to the network."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxprune.report import frame, svg, verdict
from jaxprune.report.charts import Figure, HeatMap, Panel, Plot
from jaxprune.report.quantities import metric
from jaxprune.report.style import STYLE
from jaxprune.report.tables import Table
from jaxprune.report.verdict import Leader
from jaxprune.study.records import Record


class Content(NamedTuple):
    """What a page shows.

    Attributes:
        study: contents of `study.json`.
        records: records of the study, in the study's order.
        figures: figures, in the order of the page.
        compared: tables that compare ours with published numbers.
        tables: our tables, the main one first.
        blank: titles of the tables that have no value.
        source: source of the published numbers; empty if there are none.
    """

    study: dict[str, Any]
    records: Sequence[Record]
    figures: Sequence[Figure]
    compared: Sequence[Table]
    tables: Sequence[Table]
    blank: Sequence[str]
    source: str = ""


_text = html.escape


def build(content: Content) -> str:
    """Build the page.

    Args:
        content: what it shows.

    Returns:
        HTML. Every text from the records is escaped.
    """
    title = _text(content.study["name"])
    compared = [_table(table, is_open=False) for table in content.compared]
    if compared:
        source = f"<p class='small'>Published: {_text(content.source)}</p>"
        compared = ["<h2 id='published'>Published numbers</h2>", source, *compared]
    ours = [_table(table, i == 0) for i, table in enumerate(content.tables)]
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{title}: pruning study</title><style>{STYLE}</style></head>",
            "<body><div class='page'>",
            f"<header id='top'><p class='kind'>Pruning study</p><h1>{title}</h1>",
            f"<p class='lead'>{_text(_lead(content))}</p>",
            *(f"<p class='note'>{_text(note)}</p>" for note in content.study["notes"]),
            f"</header>{_contents(content)}<main>",
            *_verdicts(content.records),
            "<h2 id='figures'>Figures</h2>",
            f"<div class='figures'>{''.join(map(_figure, content.figures))}</div>",
            *compared,
            "<h2 id='tables'>Tables</h2>",
            f"<p class='small'>{_exponent(content)}±: one sample standard deviation over the "
            "seeds. Bold: the best value of a row. Color: the better a value is among those "
            "of its row, the stronger its color; where each row is one method, among those "
            "of its column.</p>",
            *ours,
            _blank(content.blank),
            "<h2 id='run'>How it was run</h2><div class='card'><ul class='facts'>",
            *(f"<li>{_text(line)}</li>" for line in _facts(content)),
            "</ul></div></main>",
            "<footer class='small'>Each table is also a CSV and a Markdown file in the "
            "folder of this page, each figure a PNG and an SVG file. All values of all "
            "networks are in records.csv.</footer>",
            "</div></body></html>\n",
        ]
    )


def _exponent(content: Content) -> str:
    """Explain c, if a table shows it."""
    if not any("c" in t.head[: t.labels] for t in (*content.compared, *content.tables)):
        return ""
    return (
        "c is the compression exponent: a network at c keeps a density of 10<sup>-c</sup> of "
        "its prunable weights. "
    )


def _contents(content: Content) -> str:
    links = [("top", "Verdict", ""), ("figures", "Figures", "")]
    links += [(f"figure-{f.name}", f.title, "sub") for f in content.figures]
    if content.compared:
        links.append(("published", "Published numbers", ""))
    links.append(("tables", "Tables", ""))
    links += [
        (f"table-{t.name}", t.title.split(" (")[0], "sub") for t in content.tables
    ]
    links.append(("run", "How it was run", ""))
    items = "".join(
        f"<li class='{kind}'><a href='#{_text(name)}'>{_text(title)}</a></li>"
        for name, title, kind in links
    )
    return f"<nav aria-label='Contents'><ul>{items}</ul></nav>"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _lead(content: Content) -> str:
    """Describe what was run, in two sentences."""
    records = content.records
    networks = dict.fromkeys(
        # A user's network has the name of its function, an @ and a hash of its source.
        ("A network" if "@" in r.cell["model"] else r.cell["model"])
        + (f" at width {r.cell['width']:g}" if r.cell.get("width", 1) != 1 else "")
        for r in records
        if r.cell.get("model")
    )
    datasets = dict.fromkeys(
        r.cell["dataset"] for r in records if r.cell.get("dataset")
    )
    what = (
        f"{', '.join(networks) or 'A network'} on {', '.join(datasets) or 'a data set'}"
    )
    methods = _count(len(frame.titles(records)), "method")
    levels = _count(len(frame.compressions(records)), "density", "densities")
    seeds = _count(len({r.cell["seed"] for r in records}), "seed")
    cells = len(content.study["cells"])
    unmeasured = sum(record.status == "trained" for record in records)
    trained = f", {unmeasured} of them not measured yet" if unmeasured else ""
    return (
        f"{what}: {methods}, {levels}, {seeds}. {len(records)} of "
        f"{_count(cells, 'network')} are trained{trained}."
    )


def _verdicts(records: Sequence[Record]) -> list[str]:
    cards = "".join(
        f"<div class='card'><h3>{_text(one.label)}</h3><p>{_text(one.text)}</p></div>"
        for one in verdict.verdicts(records)
    )
    tiles = [_tile(leader, records) for leader in verdict.leaders(records)]
    parts = [f"<div class='verdicts'>{cards}</div>"]
    if tiles:
        rule = (
            "The best method at each density, and its lead over the second best. The lead "
            "is compared with the seed noise: two standard errors of the difference between "
            "the two means. With few seeds this is a rule of thumb."
        )
        parts += [f"<div class='tiles'>{''.join(tiles)}</div>"]
        parts += [f"<p class='small'>{rule}</p>"]
    return parts


def _tile(leader: Leader, records: Sequence[Record]) -> str:
    """Describe the best method at one density in a few words."""
    measured = metric(records)
    number = lambda value: f"{value:.{measured.digits}f}"
    lead = f"{number(leader.margin)}{measured.margin_unit} ahead of"
    if leader.is_tie:
        lead = "equal to"
    if leader.noise is None:
        kind, judgment = "", "one seed: noise unknown"
    elif leader.is_clear:
        kind, judgment = "clear", f"above the noise of {number(leader.noise)}"
    else:
        kind, judgment = "", f"within the noise of {number(leader.noise)}"
    return (
        f"<div class='tile'>density {frame.density(leader.c)}"
        f"<b>{_text(leader.title)}</b>{number(leader.mean)}{_text(measured.unit)}<br>"
        f"{_text(lead)} {_text(leader.second)}<br>"
        f"<span class='{kind}'>{judgment}</span></div>"
    )


def _figure(figure: Figure) -> str:
    legend = "".join(svg.key(label, style) for label, style in figure.legend.items())
    if any(
        series.kind == "front"
        for panel in figure.panels
        if isinstance(panel, Plot)
        for series in panel.series
    ):
        legend += svg.key("Pareto front", None)
    kind = "panels" if isinstance(figure.panels[0], Plot) else "maps"
    size = "half" if _is_narrow(figure) else ""
    panels = [_panel(panel) for panel in figure.panels]
    parts = [f"<div class='{kind}'>{''.join(panels[: figure.shown])}</div>"]
    if panels[figure.shown :]:
        others = len(panels) - figure.shown
        parts.append(
            f"<details class='more'><summary>{_count(others, 'more panel')}</summary>"
            f"<div class='{kind}'>{''.join(panels[figure.shown :])}</div></details>"
        )
    return (
        f"<section class='card {size}' id='figure-{_text(figure.name)}'>"
        f"<h3>{_text(figure.title)}</h3>"
        + (f"<div class='legend'>{legend}</div>" if legend else "")
        + "".join(parts)
        + f"<p class='caption'>{_text(figure.caption)}</p></section>"
    )


def _is_narrow(figure: Figure) -> bool:
    """Return whether a figure can share a row of the page with another."""
    if len(figure.panels) > 1:
        return False
    panel = figure.panels[0]
    if isinstance(panel, Plot):
        return True
    return len(panel.columns) <= (8 if isinstance(panel, HeatMap) else 3)


def _panel(panel: Panel) -> str:
    title = f"<h4>{_text(panel.title)}</h4>" if panel.title else ""
    drawing = svg.draw(panel)
    if not isinstance(panel, Plot):
        drawing = f"<div class='scroll'>{drawing}</div>"
    return f"<div>{title}{drawing}</div>"


def _table(table: Table, is_open: bool) -> str:
    head = "".join(f"<th>{_text(title)}</th>" for title in table.head)
    marks = rank(table)
    rows = "".join(
        "<tr>"
        + "".join(
            _cell(text, marks.get((i, j), (0.0, False))) for j, text in enumerate(row)
        )
        + "</tr>"
        for i, row in enumerate(table.rows)
    )
    return (
        f"<details class='card' id='table-{_text(table.name)}'{' open' * is_open}>"
        f"<summary>{_text(table.title)}</summary><div class='inside'>"
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        f"</table></div><p class='caption'>{_text(table.caption)}</p></div></details>"
    )


def _cell(text: str, mark: tuple[float, bool]) -> str:
    shade, is_best = mark
    style = f" style='--s:{shade:.2f}'" if shade else ""
    return (
        f"<td{style}>" + (f"<b>{_text(text)}</b>" if is_best else _text(text)) + "</td>"
    )


def rank(table: Table) -> dict[tuple[int, int], tuple[float, bool]]:
    """Rank the values of a table.

    Args:
        table: a table; values are compared with those of their row or column.

    Returns:
        By row and column: how good a value is, from 0 for the worst to 1 for the best, and
        whether it is the best of its row. Values are left out where nothing is better than
        anything else.
    """
    groups: dict[int, list[tuple[int, int, float]]] = {}
    for i, row in enumerate(table.values):
        for j, value in enumerate(row):
            if value is not None and table.better[j]:
                signed = value if table.better[j] == "higher" else -value
                groups.setdefault(i if table.ranked == "row" else j, []).append(
                    (i, j, signed)
                )
    marks = {}
    for group in groups.values():
        values = [value for _, _, value in group]
        low, high = min(values), max(values)
        if low < high:
            for i, j, value in group:
                is_best = value == high and table.ranked == "row"
                marks[i, j] = ((value - low) / (high - low), is_best)
    return marks


def _blank(titles: Sequence[str]) -> str:
    """Name the tables that have no value, in one line."""
    if not titles:
        return ""
    names = "; ".join(title[0].lower() + title[1:] for title in titles)
    return (
        "<p class='small' id='blank'>Not reported by this device, or not measured in this "
        f"study: {_text(names)}.</p>"
    )


def _facts(content: Content) -> list[str]:
    """Describe the machine, the versions and the data, and what went wrong."""
    records = content.records
    machine = records[-1].made
    minutes = sum(record.seconds for record in records) / 60
    units = {
        "kind": "",
        "processor": "",
        "cores": " cores",
        "ram_gb": " GB of memory",
    }
    device = [
        f"{machine[n]}{unit}" for n, unit in units.items() if machine.get(n) is not None
    ]
    versions = [
        f"{name} {machine[name]}"
        for name in ("jax", "flax", "jaxprune")
        if name in machine
    ]
    versions.append(f"commit {machine.get('commit') or 'unknown'}")
    versions.append(f"started {machine.get('began', 'at an unknown time')}")
    data = dict.fromkeys(
        f"{r.cell['dataset']} ({r.cell.get('data_version', 'unknown version')})"
        for r in records
        if r.cell.get("dataset")
    )
    networks = dict.fromkeys(r.cell["model"] for r in records if r.cell.get("model"))
    lines = [
        "A network is one method at one density with one seed. The stages of all networks "
        f"took {minutes:.1f} minutes; a stage that several networks share is counted for "
        "each.",
        f"Device: {', '.join(device) or 'unknown'}; "
        f"{_count(machine.get('devices', 1), 'device')} in use.",
        f"Versions: {', '.join(versions)}.",
        f"Data: {', '.join(data) or 'unknown'}.",
        f"Network: {', '.join(networks) or 'unknown'}.",
    ]
    for record in records:
        if record.status == "diverged":
            lines.append(f"{record.label}: diverged; the loss was not finite.")
        elif record.collapse:
            lines.append(f"{record.label}: {record.collapse}")
    return lines
