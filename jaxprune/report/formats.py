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


def terminal(table: Table) -> Group:
    """Convert a table for the terminal; print it with a rich console."""
    layout = rich.table.Table(  # narrow enough for 9 methods in 80 columns
        box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for title in table.head:
        head = Text(title)  # not markup: names come from files and may contain brackets
        layout.add_column(head, justify="right", no_wrap=True, min_width=len(title))
    for row in table.rows:
        layout.add_row(*(Text(text.replace(" ± ", "\n±")) for text in row))
    above = Text("\n".join(["", *table.notes, table.title]), style="bold")
    return Group(above, layout, Text(table.caption, style="dim"))


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
