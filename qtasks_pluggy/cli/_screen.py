"""What people see, on a terminal and on a pipe."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any, Final, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from qtasks_pluggy._console.say import one_line, say
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._text import printable
from qtasks_pluggy.cli._records import Records
from qtasks_pluggy.cli._tally import Tally

MOST_TOLD: Final = 160
"""Characters of an error that a table shows; the whole of it is in the output file."""


def show_summary(
    tally: Tally, title: str, seconds: float, *, most_running: int = 20, err: bool = False
) -> None:
    """Show how all runs ended.

    Args:
        tally: How they ended.
        title: What ran.
        seconds: How long it took.
        most_running: How many of the runs that were left behind to name.
        err: Whether it goes to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    rate = f", {tally.runs / seconds:,.0f} a second" if tally.runs > 1 and seconds > 0 else ""
    headline = f"{one_line(title, stream)}: {count_runs(tally.runs)} in {_duration(seconds)}{rate}"
    if tally.interrupted:
        headline += ", then interrupted"
    say(headline, bold=True, err=err)
    say(err=err)
    rows: list[list[str]] = [["good", f"{tally.good:,}", "", ""]]
    for (plugin, how), count in _most_first(tally.recovered):
        rows.append(["recovered", f"{count.runs:,}", f"{plugin} {how}".strip(), ""])
    for (status, kind), count in _most_first(tally.lost):
        rows.append([status.replace("_", "-"), f"{count.runs:,}", kind, _first(count, stream)])
    for kind, count in _most_first(tally.unwritten):
        rows.append(["not written", f"{count.runs:,}", kind, _first(count, stream)])
    if tally.unfinished:
        told = ", ".join(f"{line} ({uuid})" for line, uuid in tally.unfinished[:most_running])
        more = len(tally.unfinished) - most_running
        told += f" and {more} more" if more > 0 else ""
        rows.append(["unfinished", f"{len(tally.unfinished):,}", "", f"line {told}"])
    columns = [
        Column("outcome"),
        Column("runs", right=True),
        Column("by"),
        Column("first", below=True),
    ]
    while len(columns) > 2 and not any(row[len(columns) - 1] for row in rows):  # noqa: PLR2004  # the numbers stay
        del columns[-1]
    show_table(columns, [row[: len(columns)] for row in rows], err=err)


def count_runs(runs: int) -> str:
    """Say how many runs, as people do."""
    return "1 run" if runs == 1 else f"{runs:,} runs"


def _most_first(counts: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(counts.items(), key=lambda item: -item[1].runs)


def _first(count: Any, stream: TextIO) -> str:
    return f"line {count.line}: {one_line(count.why, stream, MOST_TOLD)}"


def _duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004  # a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class Silent:
    """Watches a batch where no terminal is: says only what has to be known."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """End."""

    def show(self, tally: Tally) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Say it on standard error."""
        say(text, err=True)

    def end_at_once(self, running: list[tuple[int, str]]) -> None:
        """Name the runs that are left behind, and end the process.

        In a signal's handler, so past every buffer and lock that whoever was interrupted holds.
        """
        lines = "".join(f"  line {line}, run {uuid}\n" for line, uuid in running)
        left = f"these runs were left behind:\n{lines}" if running else "no run was in flight.\n"
        self._leave(f"Interrupted twice: {left}")

    def _leave(self, text: str) -> None:
        os.write(2, text.encode("ascii", "backslashreplace"))
        os._exit(130)


class ProgressBar(Silent):
    """Watches a batch on a terminal: one line, gone when the batch has ended.

    Args:
        title: What runs.
        records: Where its records come from.
    """

    def __init__(self, title: str, records: Records) -> None:
        self._records = records
        self._progress = Progress(
            TextColumn("{task.description}", style="bold"),
            # Not the whole width: what the terminal echoes of Ctrl-C must not break the line.
            BarColumn(),
            *([TaskProgressColumn()] if records.size else []),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
            # What a task prints belongs to the output, unless that is the same terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        description = one_line(title, sys.stderr, 40)
        self._bar = self._progress.add_task(description, total=records.size, counts="")

    def __enter__(self) -> Self:
        """Begin."""
        self._progress.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Take the line away."""
        self._progress.stop()

    def show(self, tally: Tally) -> None:
        """Show how far it is."""
        counts = Text(count_runs(tally.runs))
        if tally.recovered:
            counts.append(f"  {tally.recovered_runs:,} recovered", "yellow")
        if tally.lost:
            counts.append(f"  {tally.lost_runs:,} failed", "red")
        done = self._records.position if self._records.size else None
        self._progress.update(self._bar, completed=done, counts=counts.markup)

    def say(self, text: str) -> None:
        """Say it above the line."""
        self._progress.console.print(Text(printable(text)))

    def _leave(self, text: str) -> None:
        # The cursor, which the progress line hides.
        super()._leave(f"\r\x1b[K\x1b[?25h{text}")


def watcher(title: str, records: Records, *, bar: bool) -> Silent:
    """Choose who watches a batch.

    Args:
        title: What runs.
        records: Where its records come from.
        bar: Whether there is room for a progress bar: a terminal that nothing else writes to.

    Returns:
        The watcher.
    """
    if bar and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return ProgressBar(title, records)
    return Silent()
