"""A table as CSV, as Markdown and for the terminal."""

import csv as csv_files
import html
import io
from collections.abc import Sequence

import rich.table
from rich import box
from rich.console import Group
from rich.text import Text

from jaxprune.report.tables import Table


def terminal(table: Table, width: int = 80) -> Group:
    """Convert a table for the terminal; print it with a rich console.

    Args:
        table: the table.
        width: characters in a line. Columns that do not fit follow below the others, with
            the labels of the rows repeated.
    """
    above = Text("\n".join(["", *table.notes, table.title]), style="bold")
    layouts = [_layout(table, columns) for columns in _split(table, width)]
    return Group(above, *layouts, Text(table.caption, style="dim"))


def _lines(text: str) -> str:
    return text.replace(" ± ", "\n±")


def _split(table: Table, width: int) -> list[list[int]]:
    """Return the columns of each part of a table; each part begins with the labels."""
    cells = [[_lines(text).splitlines() for text in row] for row in table.rows]
    widths = [
        1 + max(map(len, [title, *(line for row in cells for line in row[i])]))
        for i, title in enumerate(table.head)
    ]
    labels = list(range(min(table.labels, len(widths))))
    left = width - sum(widths[i] for i in labels)
    parts, room = [list(labels)], left
    for i in range(len(labels), len(widths)):
        if widths[i] > room and len(parts[-1]) > len(labels):
            parts.append(list(labels))
            room = left
        parts[-1].append(i)
        room -= widths[i]
    return parts


def _layout(table: Table, columns: Sequence[int]) -> rich.table.Table:
    layout = rich.table.Table(  # narrow enough for 9 methods in 80 columns
        box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for i in columns:  # not markup: names come from files and may contain brackets
        title = table.head[i]
        layout.add_column(
            Text(title), justify="right", no_wrap=True, min_width=len(title)
        )
    for row in table.rows:
        layout.add_row(*(Text(_lines(row[i])) for i in columns))
    return layout


def markdown(table: Table) -> str:
    """Convert a table to Markdown: title and notes above, caption below."""
    lines = [
        f"### {table.title}",
        "",
        *(f"> {note}\n" for note in table.notes),
        _markdown_row(table.head),
        _markdown_row(["---:"] * len(table.head)),
        *map(_markdown_row, table.rows),
    ]
    return "\n".join([*lines, "", table.caption, ""])


def _markdown_row(texts: Sequence[str]) -> str:
    escaped = (
        html.escape(" ".join(text.split())).replace("|", "\\|") for text in texts
    )
    return "| " + " | ".join(escaped) + " |"


def csv(table: Table) -> str:
    """Convert a table to CSV; notes are lines that start with #."""
    text = io.StringIO("".join(f"# {note}\n" for note in table.notes))
    text.seek(0, io.SEEK_END)
    writer = csv_files.writer(text, lineterminator="\n")
    writer.writerows([[title or "row" for title in table.head], *table.rows])
    return text.getvalue()
