"""The report of a study: one page with everything in it, and every table by itself."""

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.report import figures, gain, tables
from jaxprune.report.tables import Comparison, Table
from jaxprune.study import files, records
from jaxprune.study.records import Record

CAPTIONS = {
    "accuracy": "Test accuracy against density; bars are one standard deviation over seeds.",
    "layer_density": "What each method keeps of each layer, in network order.",
    "effective_density": "Share of the kept weights that lie on a path of kept weights from "
    "input to output; the rest does nothing.",
    "weight_histograms": "Weights that the mask keeps, layer by layer, after training.",
    "speed_up": "How many times faster the compacted network is than the masked one (solid), "
    "beside the bound of a machine that skips every zero: dense over kept "
    "multiply-accumulates (dashed). A collapsed network is a constant, above any bound.",
    "connectivity": "Test error between two networks that were trained from the same early "
    "iteration with other noise; flat means that they lie in one valley.",
    "layer_macs": "Multiply-accumulates that the mask keeps in each layer, as a share of the "
    "whole dense network's.",
}


class Published(NamedTuple):
    """What a study is compared with.

    source: names it in one line; tables: side by side with ours; layers: by method, kept
    multiply-accumulates of each layer at c = 0.5; layers_dense: of the dense network.
    """

    source: str
    tables: Sequence[Comparison]
    layers: Mapping[str, Sequence[float]]
    layers_dense: Sequence[float]


def write(folder: Path, published: Published | None = None) -> Path:
    """Write the report of a study to `<folder>/report`.

    Args:
        folder: `runs/<study>`.
        published: what to set beside it.

    Returns:
        `index.html`, which holds all tables and figures; beside it lie each table as
        CSV and Markdown, each figure as PNG and SVG, and `records.csv`.

    Raises:
        RunsError: if there is no study, or the disk takes no more.
        ValueError: if no cell is finished yet.
    """
    study, found = records.read_study(folder), records.read_all(folder)
    place = folder / "report"
    # All of it is there before the first file of an earlier one is replaced.
    with (
        files.disk_errors(place),
        tempfile.TemporaryDirectory(
            prefix=".report.", suffix=".part", dir=folder
        ) as partial,
    ):
        _write(Path(partial), study, found, published)
        place.mkdir(exist_ok=True)
        for path in sorted(Path(partial).iterdir()):
            path.replace(place / path.name)
    return place / "index.html"


def _write(
    place: Path,
    study: dict[str, Any],
    found: Sequence[Record],
    published: Published | None,
) -> None:
    built = build_all(found, study["notes"], published)
    summary = _summary(study, found)
    if published is not None:
        summary.append(f"Published: {published.source}")
    for table in built:
        (place / f"{table.name}.csv").write_text(tables.csv(table))
        (place / f"{table.name}.md").write_text(tables.markdown(table))
    tables.frame(found).write_csv(place / "records.csv")
    shares = {} if published is None else _shares(published)
    pictures = figures.draw(found, place, study["notes"], shares)
    (place / "index.html").write_text(_html(study, summary, built, pictures))


def build_all(
    found: Sequence[Record], notes: Sequence[str], published: Published | None = None
) -> list[Table]:
    """Build every table of a report: first those beside published ones, then all of ours.

    Args:
        found: records of one study, in its order.
        notes: of the study.
        published: what to set beside them.

    Raises:
        ValueError: if there are no records.
    """
    ours = [tables.build(found, name, notes) for name in tables.TABLES]
    ours += gain.build(found, notes)
    if published is None:
        return ours
    layers = tables.by_layer(found, _shares(published), 0.5, notes)
    return [
        *(tables.beside(found, comparison, notes) for comparison in published.tables),
        *([layers] if layers.rows else []),
        *ours,
    ]


def _shares(published: Published) -> dict[str, list[float]]:
    """Turn kept multiply-accumulates into shares of the dense network's, by method."""
    dense = sum(published.layers_dense)
    return {
        method: [kept / dense for kept in layers]
        for method, layers in published.layers.items()
    }


def _summary(study: dict[str, Any], found: Sequence[Record]) -> list[str]:
    """Say what was run, where, and what went wrong."""
    made = found[-1].made
    lines = [
        f"{len(found)} of {len(study['cells'])} cells finished; "
        f"{sum(record.seconds for record in found) / 60:.1f} minutes of stages, shared ones "
        "counted for every cell.",
        f"{made['kind']} ({made['devices']} device, {made['processor']}, {made['cores']} "
        f"cores, {made['ram_gb']} GB), jax {made['jax']}, flax {made['flax']}, jaxprune "
        f"{made['jaxprune']}, commit {made['commit'] or 'unknown'}, {made['began']}.",
    ]
    data = {f"{r.cell['dataset']} ({r.cell['data_version']})" for r in found}
    nets = {f"{r.cell['model']} at width {r.cell['width']:g}" for r in found}
    seeds = len({r.cell["seed"] for r in found})
    lines.append(
        f"{', '.join(sorted(nets))} on {', '.join(sorted(data))}; {seeds} seed(s)."
    )
    for record in found:
        cell = record.cell
        where = f"{record.title}, c = {cell['compression']:g}, seed {cell['seed']}"
        if record.status == "diverged":
            lines.append(f"{where}: diverged; the loss was not finite.")
        elif record.collapse:
            lines.append(f"{where}: {record.collapse}")
    return lines


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto;
       padding: 0 1em; color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; }
tr:hover td { background: #f4f6f8; }
.table { overflow-x: auto; }
.how { color: #555; font-size: 13px; margin: .3em 0 2em; }
img { max-width: 100%; height: auto; }
.note { background: #fff6dd; padding: .4em .8em; }
"""


def _html(
    study: dict[str, Any],
    summary: Sequence[str],
    built: Sequence[Table],
    pictures: Sequence[Path],
) -> str:
    title = html.escape(f"Pruning study: {study['name']}")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        *(f"<p class='note'>{html.escape(note)}</p>" for note in study["notes"]),
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in summary),
        "</ul><p>density = 10<sup>-c</sup> of the prunable weights is kept.</p>",
    ]
    for path in pictures:
        caption = html.escape(CAPTIONS[path.stem])
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(path.stem.replace('_', ' ').capitalize())}</h2>"
            f"<img alt='{caption}' src='data:image/png;base64,{image}'>"
            f"<p class='how'>{caption}</p>"
        )
    parts += [_table(table) for table in built]
    return "\n".join([*parts, "</body></html>\n"])


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(t)}</th>" for t in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(t)}</td>" for t in row) + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in table.notes)
    return (
        f"<h2>{html.escape(table.title)}</h2>{notes}<div class='table'><table><tr>{head}"
        f"</tr>{rows}</table></div><p class='how'>{html.escape(table.how)}</p>"
    )
