"""Writes the report of a study: the page, and a file for each table and figure."""

import tempfile
from collections.abc import Sequence, Set
from pathlib import Path

from jaxprune.report import (
    compaction,
    figures,
    formats,
    frame,
    page,
    tables,
)
from jaxprune.report.quantities import quantities
from jaxprune.report.tables import Published, Table
from jaxprune.study import files, records
from jaxprune.study.records import Record


def write(folder: Path, published: Published | None = None) -> Path:
    """Write the report of a study to `<folder>/report`.

    Args:
        folder: `runs/<study>`.
        published: published numbers to compare the study with.

    Returns:
        `index.html`, a page with all tables and figures. The folder also contains each table
        as CSV and Markdown, each figure as PNG and SVG, and `records.csv`. Tables without
        any value are left out; the page names them.

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
        place, notes = Path(partial), study["notes"]
        own = build_own(finished, notes)
        shares = {} if published is None else tables.shares(published)
        content = page.Content(
            study,
            finished,
            figures.build(finished, shares),
            compare_all(finished, notes, published),
            own,
            _blank(finished, own),
            "" if published is None else published.source,
        )
        for table in [*content.compared, *content.tables]:
            (place / f"{table.name}.csv").write_text(formats.csv(table))
            (place / f"{table.name}.md").write_text(formats.markdown(table))
        frame.frame(finished).write_csv(place / "records.csv")
        figures.draw(content.figures, place, notes)
        (place / "index.html").write_text(page.build(content))
        target.mkdir(exist_ok=True)
        written = sorted(place.iterdir())
        for path in written:
            path.replace(target / path.name)
        _remove_stale(target, {path.name for path in written}, finished)
    return target / "index.html"


def _remove_stale(target: Path, written: Set[str], finished: Sequence[Record]) -> None:
    """Remove the tables and figures of an earlier report that this one has no values for."""
    tables = [*quantities(finished), *compaction.NAMES, "layer_macs"]
    for suffixes, names in (("csv md", tables), ("png svg", figures.NAMES)):
        for suffix in suffixes.split():
            for name in names:
                if f"{name}.{suffix}" not in written:
                    (target / f"{name}.{suffix}").unlink(missing_ok=True)


def build_all(
    finished: Sequence[Record], notes: Sequence[str], published: Published | None = None
) -> list[Table]:
    """Build every table of a report: first the comparisons with published tables, then ours.

    Args:
        finished: records of one study, in the study's order.
        notes: notes of the study.
        published: published numbers to compare the study with.

    Returns:
        The tables that have a value, in the order of the page.

    Raises:
        ValueError: if there are no records.
    """
    return [*compare_all(finished, notes, published), *build_own(finished, notes)]


def compare_all(
    finished: Sequence[Record], notes: Sequence[str], published: Published | None
) -> list[Table]:
    """Build the tables that compare a study with published numbers.

    Args:
        finished: records of one study, in the study's order.
        notes: notes of the study.
        published: published numbers; None for none.
    """
    if published is None:
        return []
    shares = tables.shares(published)
    built = [tables.compare(finished, table, notes) for table in published.tables]
    built.append(tables.compare_layers(finished, shares, 0.5, notes))
    return [table for table in built if table.rows]


def build_own(finished: Sequence[Record], notes: Sequence[str]) -> list[Table]:
    """Build the tables of a study's own quantities and of compaction.

    Args:
        finished: records of one study, in the study's order.
        notes: notes of the study.

    Returns:
        The tables that have a value.
    """
    built = [
        tables.build(finished, name, quantity, notes)
        for name, quantity in quantities(finished).items()
    ]
    built += compaction.build(finished, notes)
    return [table for table in built if has_values(table)]


def _blank(finished: Sequence[Record], shown: Sequence[Table]) -> list[str]:
    """Return the titles of the quantities that have no table."""
    names = {table.name for table in shown}
    return [q.title for name, q in quantities(finished).items() if name not in names]


def has_values(table: Table) -> bool:
    """Return whether any cell of a table has a value, or a diverged network.

    Args:
        table: a table of `tables.build` or `compaction.build`.
    """
    return any(text for row in table.rows for text in row[table.labels :])
