"""Tables: with colours and as wide as the terminal, or as plain columns on a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtasks_pluggy._console.say import one_line, own_stdout, say

GAP: Final = 2
"""Blanks between two columns."""

_PIPE_WIDTH: Final = 100_000

_STYLES: Final = {
    "succeeded": "green",
    "recovered": "yellow",
    "retried": "yellow",
    "waiting": "yellow",
    "cancelled": "magenta",
    **dict.fromkeys(("failed", "dead-lettered", "not written", "unfinished"), "red"),
}


@attrs.frozen
class Column:
    """One column of a table.

    Attributes:
        below: Whether the last column goes below its row on a terminal that is too narrow.
    """

    title: str
    right: bool = False
    style: str = ""
    below: bool = False


def show_table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, err: bool = False
) -> None:
    """Show a table: with colours and as wide as the terminal, or as plain columns on a pipe."""
    stream = sys.stderr if err else own_stdout()
    cells = [[one_line(cell, stream) for cell in row] for row in rows]
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
        with console.capture() as plain:
            console.print(_grid(columns, cells))
        say("\n".join(line.rstrip() for line in plain.get().splitlines()), err=err)
        return
    titles = [column.title for column in columns]
    widths = [max(map(cell_len, texts)) for texts in zip(titles, *cells, strict=True)]
    if not columns[-1].below or sum(widths) + GAP * (len(widths) - 1) <= console.width:
        console.print(_grid(columns, cells))
        return
    del widths[-1]
    while sum(widths) + GAP * len(widths) > console.width and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1  # its cells fold
    console.print(_grid(columns[:-1], [], widths))
    for *row, last in cells:
        console.print(_grid(columns[:-1], [row], widths, show_header=False))
        if last:
            text = Text(last, style=columns[-1].style, overflow="fold")
            console.print(Padding(text, (0, 0, 0, GAP)))


def _grid(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    widths: Sequence[int] | None = None,
    *,
    show_header: bool = True,
) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=show_header)
    table.header_style = "bold"
    for number, column in enumerate(columns):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            style=column.style,
            overflow="fold",
            width=None if widths is None else widths[number],
        )
    for row in rows:
        table.add_row(Text(row[0], style=_STYLES.get(row[0], "")), *map(Text, row[1:]))
    return table
