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

from qtasks_pluggy._console.say import one_line, say

GAP: Final = 3
"""Blanks between two columns on a terminal."""


@attrs.frozen
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        right: Whether it is aligned to the right, as numbers are.
        style: How it looks on a terminal.
        below: As the last column, on a terminal too narrow for all: whether it goes below its row.
    """

    title: str
    right: bool = False
    style: str = ""
    below: bool = False


def show_table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, err: bool = False
) -> None:
    """Show a table: with colours and as wide as the terminal, or as plain columns on a pipe.

    Args:
        columns: The columns.
        rows: A text for each column; on a terminal the first one's style is that of the row.
        err: Whether it goes to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    cells = [[one_line(cell, stream) for cell in row] for row in rows]
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        for line in _plain(columns, cells):
            say(line, err=err)
        return
    widths = _widths(columns, cells)
    last = columns[-1]
    if not last.below or sum(widths) + GAP * len(widths) - GAP <= console.width:
        table = _grid(columns, widths=None)
        for row in cells:
            table.add_row(*_styled(row))
        console.print(table)
        return
    console.print(_grid(columns[:-1], widths))
    for row in cells:
        table = _grid(columns[:-1], widths)
        table.show_header = False
        table.add_row(*_styled(row[:-1]))
        console.print(table)
        if row[-1]:
            console.print(Padding(Text(row[-1], style=last.style, overflow="fold"), (0, 0, 0, GAP)))


def _grid(columns: Sequence[Column], widths: Sequence[int] | None) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            style=column.style,
            overflow="fold",
            min_width=None if widths is None else widths[number],
        )
    return table


def _styled(row: Sequence[str]) -> list[Text]:
    return [Text(row[0], style=_STYLES.get(row[0], "")), *map(Text, row[1:])]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    titles = [column.title for column in columns]
    return [max(map(cell_len, texts)) for texts in zip(titles, *rows, strict=True)]


_STYLES: Final = {
    "good": "green",
    "recovered": "yellow",
    "failed": "red",
    "cancelled": "magenta",
    "dead-lettered": "red",
    "not written": "red",
    "unfinished": "red",
}


def _plain(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = _widths(columns, rows)
    for row in ([column.title for column in columns], *rows):
        aligned: list[str] = []
        for column, cell, width in zip(columns, row, widths, strict=True):
            blanks = " " * (width - cell_len(cell))
            aligned.append(f"{blanks}{cell}" if column.right else f"{cell}{blanks}")
        yield "  ".join(aligned).rstrip()
