"""The report of a study: one page with all tables and figures, and a file for each."""

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

# By the name of the figure.
CAPTIONS = {
    "accuracy": "Test accuracy against density. Error bars show one standard deviation over "
    "the seeds.",
    "layer_density": "Percentage of weights that each method keeps in each layer, in network "
    "order.",
    "effective_density": "Percentage of the kept weights that are on a live path, which is a "
    "path of kept weights from input to output. The other kept weights do nothing.",
    "weight_histograms": "Histograms of the weights that the mask keeps in each layer, after "
    "training.",
    "speed_up": "Solid lines: time of the masked network divided by that of the compacted "
    "network, a smaller dense network with the same outputs. Hollow markers: the same, where "
    "layers of the compacted network multiply by their kept weights only, wherever that was "
    "measured to be faster. Dashed lines: the bound for hardware that skips every zero: "
    "dense / kept multiply-accumulates. A collapsed network is a constant, and exceeds "
    "any bound.",
    "connectivity": "Test error on the straight line between two networks that were trained "
    "from the same rewind point with different data order and augmentation. A flat line "
    "means that both are in one basin of the loss.",
    "layer_macs": "Multiply-accumulates of the weights that the mask keeps in each layer, as "
    "a percentage of the dense network's total.",
}


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


def write(folder: Path, published: Published | None = None) -> Path:
    """Write the report of a study to `<folder>/report`.

    Args:
        folder: `runs/<study>`.
        published: published numbers to compare the study with.

    Returns:
        `index.html`, a page with all tables and figures. The folder also contains each table
        as CSV and Markdown, each figure as PNG and SVG, and `records.csv`.

    Raises:
        RunsError: if there is no study, or the disk is full.
        ValueError: if no cell is finished yet.
    """
    study, finished = records.read_study(folder), records.read_all(folder)
    target = folder / "report"
    # The report is complete before the first file of an earlier one is replaced.
    with (
        files.disk_errors(target),
        tempfile.TemporaryDirectory(
            prefix=".report.", suffix=".part", dir=folder
        ) as partial,
    ):
        _write_files(Path(partial), study, finished, published)
        target.mkdir(exist_ok=True)
        for path in sorted(Path(partial).iterdir()):
            path.replace(target / path.name)
    return target / "index.html"


def _write_files(
    folder: Path,
    study: dict[str, Any],
    finished: Sequence[Record],
    published: Published | None,
) -> None:
    report_tables = build_all(finished, study["notes"], published)
    summary = _summary(study, finished)
    if published is not None:
        summary.append(f"Published: {published.source}")
    for table in report_tables:
        (folder / f"{table.name}.csv").write_text(tables.csv(table))
        (folder / f"{table.name}.md").write_text(tables.markdown(table))
    tables.frame(finished).write_csv(folder / "records.csv")
    shares = {} if published is None else _shares(published)
    figure_paths = figures.draw(finished, folder, study["notes"], shares)
    page = _html(study, summary, report_tables, figure_paths)
    (folder / "index.html").write_text(page)


def build_all(
    finished: Sequence[Record], notes: Sequence[str], published: Published | None = None
) -> list[Table]:
    """Build every table of a report: first the comparisons with published tables, then ours.

    Args:
        finished: records of one study, in the study's order.
        notes: notes of the study.
        published: published numbers to compare the study with.

    Returns:
        The tables, in the order of the page.

    Raises:
        ValueError: if there are no records.
    """
    ours = [tables.build(finished, name, notes) for name in tables.TABLES]
    ours += gain.build(finished, notes)
    if published is None:
        return ours
    layers = tables.compare_layers(finished, _shares(published), 0.5, notes)
    return [
        *(tables.compare(finished, table, notes) for table in published.tables),
        *([layers] if layers.rows else []),
        *ours,
    ]


def _shares(published: Published) -> dict[str, list[float]]:
    """Return kept multiply-accumulates by method, as shares of the dense network's total."""
    dense = sum(published.layers_dense)
    return {
        method: [kept / dense for kept in layers]
        for method, layers in published.layers.items()
    }


def _summary(study: dict[str, Any], finished: Sequence[Record]) -> list[str]:
    """Describe what was run and where, and list the cells that diverged or collapsed."""
    machine = finished[-1].made
    minutes = sum(record.seconds for record in finished) / 60
    unmeasured = sum(record.status == "trained" for record in finished)
    trained = f" ({unmeasured} not measured yet)" if unmeasured else ""
    lines = [
        f"{len(finished)} of {len(study['cells'])} cells are trained{trained}. A cell is one "
        "method "
        f"at one compression c with one seed. Their stages took {minutes:.1f} minutes; a "
        "stage that several cells share is counted for each of them.",
        f"{machine['kind']} ({machine['devices']} device(s), {machine['processor']}, "
        f"{machine['cores']} cores, {machine['ram_gb']} GB of memory), jax "
        f"{machine['jax']}, flax {machine['flax']}, jaxprune {machine['jaxprune']}, commit "
        f"{machine['commit'] or 'unknown'}, started {machine['began']}.",
    ]
    datasets = {f"{r.cell['dataset']} ({r.cell['data_version']})" for r in finished}
    networks = {f"{r.cell['model']} at width {r.cell['width']:g}" for r in finished}
    seeds = len({r.cell["seed"] for r in finished})
    lines.append(
        f"{', '.join(sorted(networks))} on {', '.join(sorted(datasets))}; {seeds} seed(s)."
    )
    for record in finished:
        cell = record.cell
        name = f"{record.title}, c = {cell['compression']:g}, seed {cell['seed']}"
        if record.status == "diverged":
            lines.append(f"{name}: diverged; the loss was not finite.")
        elif record.collapse:
            lines.append(f"{name}: {record.collapse}")
    return lines


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto;
       padding: 0 1em; color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; }
tr:hover td { background: #f4f6f8; }
.table { overflow-x: auto; }
.caption { color: #555; font-size: 13px; margin: .3em 0 2em; }
img { max-width: 100%; height: auto; }
.note { background: #fff6dd; padding: .4em .8em; }
"""


def _html(
    study: dict[str, Any],
    summary: Sequence[str],
    report_tables: Sequence[Table],
    figure_paths: Sequence[Path],
) -> str:
    title = html.escape(f"Pruning study: {study['name']}")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        *(f"<p class='note'>{html.escape(note)}</p>" for note in study["notes"]),
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in summary),
        "</ul><p>c is the compression exponent: a network at c keeps a density of "
        "10<sup>-c</sup> of its prunable weights.</p>",
    ]
    for path in figure_paths:
        caption = html.escape(CAPTIONS[path.stem])
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(path.stem.replace('_', ' ').capitalize())}</h2>"
            f"<img alt='{caption}' src='data:image/png;base64,{image}'>"
            f"<p class='caption'>{caption}</p>"
        )
    parts += [_table(table) for table in report_tables]
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
        f"</tr>{rows}</table></div><p class='caption'>{html.escape(table.caption)}</p>"
    )
