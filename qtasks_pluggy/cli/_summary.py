"""Counts how the runs ended, in bounded memory, and shows it."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any, Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from qtasks_pluggy import PluginManager
from qtasks_pluggy._console.say import one_line, own_stdout, say
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy.cli._each import Batch, count_runs
from qtasks_pluggy.cli._runs import Run

GOOD: Final = ("succeeded", "recovered", "retried")
MOST_TOLD: Final = 160
"""Characters of an error that the table shows; the whole of it is in the output file."""
MOST_UNFINISHED: Final = 20

_FAULTS: Final = {"raised": "failed", "timed_out": "cut_off", "quarantined": "not_asked"}
"""Statuses of the trail, and what the summary calls them."""

_OUTCOMES: Final = [
    Column("outcome"),
    Column("runs", right=True),
    Column("decided by"),
    Column("error", below=True),
]
_PLUGINS: Final = [
    Column("plugin", style="bold"),
    Column("failed", right=True),
    Column("cut off", right=True),
    Column("in quarantine"),
]


@attrs.define
class Tally:
    """How all runs ended, in numbers.

    Attributes:
        counts: Runs by outcome, who decided, and error.
        first: The first run of each such kind: its line, and what its error said.
        faults: How often each plugin failed, was cut off, or was not asked for that.
        runs: All that have ended.
        lost: Those without a result.
        skipped: The records that were already in the output.
        skipped_failed: Those of them that had failed.
    """

    counts: Counter[tuple[str, str, str]] = attrs.field(factory=Counter)
    first: dict[tuple[str, str, str], tuple[int | None, str]] = attrs.field(factory=dict)
    faults: dict[str, Counter[str]] = attrs.field(factory=lambda: defaultdict(Counter))
    runs: int = 0
    lost: int = 0
    skipped: int = 0
    skipped_failed: int = 0

    def add(self, run: Run) -> None:
        """Count a run."""
        self.runs += 1
        self.lost += run.outcome not in GOOD
        self._count((run.outcome, run.decided_by or "", run.kind), run, run.why if run.kind else "")
        for one in run.trail:
            if one.status in _FAULTS:
                self.faults[one.plugin][_FAULTS[one.status]] += 1

    def add_unwritten(self, run: Run, kind: str, why: str) -> None:
        """Count a result that could not be written."""
        self._count(("not written", "", kind), run, why)

    def _count(self, key: tuple[str, str, str], run: Run, why: str) -> None:
        self.counts[key] += 1
        if self.counts[key] == 1:
            self.first[key] = run.record.line, why

    @property
    def is_good(self) -> bool:
        """Whether every run has a result, and every result is written."""
        return all(outcome in GOOD for outcome, _, _ in self.counts)


def as_json(tally: Tally, batch: Batch, seconds: float) -> dict[str, Any]:
    """Return the numbers for a script."""
    told: dict[str, Any] = {"task": batch.task.name, "seconds": round(seconds, 3)}
    told |= {"runs": tally.runs, "skipped": tally.skipped, "succeeded": 0}
    lists = ("recovered", "retried", "failed", "cancelled", "dead_lettered", "not_written")
    told |= {outcome: Counter() for outcome in lists}
    for (outcome, decided_by, error), runs in tally.counts.items():
        if outcome == "succeeded":
            told[outcome] += runs
        else:
            told[outcome.replace(" ", "_")][error or decided_by] += runs
    told["unfinished"] = [
        {"line": one.record.line, "uuid": one.uuid} for one in _by_line(batch.running)
    ]
    told["plugins"] = _plugins(tally, batch.app.plugins)
    told["signal"] = None if batch.ended_by is None else batch.ended_by.name
    told["trouble"] = batch.trouble
    return told


def show_summary(tally: Tally, batch: Batch, seconds: float, *, err: bool) -> None:
    """Show how all runs ended, and which plugins failed meanwhile."""
    stream = sys.stderr if err else own_stdout()
    rate = f", {tally.runs / seconds:,.0f} a second" if tally.runs > 1 and seconds > 0 else ""
    # From a minute on as the progress bar shows it.
    took = f"{seconds:.1f} s" if seconds < 60 else timedelta(seconds=round(seconds))  # noqa: PLR2004  # a minute
    title = f"{batch.task.name}: {count_runs(tally.runs)} in {took}{rate}"
    say(f"{title}{', then ' + batch.word.lower() if batch.word else ''}", bold=True, err=err)
    say(err=err)
    rows: list[list[str]] = []
    order = {outcome: place for place, outcome in enumerate(GOOD)}
    counts = sorted(tally.counts.items(), key=lambda one: (order.get(one[0][0], 9), -one[1]))
    for key, runs in counts:
        outcome, decided_by, error = key
        line, why = tally.first[key]
        if error:
            where = "" if line is None else f" in line {line}"
            error = f"{error}{where}: {one_line(why, stream, MOST_TOLD)}" if why else error
        rows.append([outcome.replace("_", "-"), f"{runs:,}", decided_by, error])
    if batch.running:
        told = [f"{one.record.line} ({one.uuid})" for one in _by_line(batch.running)]
        more = f" and {len(told) - MOST_UNFINISHED} more" if len(told) > MOST_UNFINISHED else ""
        text = f"line {', '.join(told[:MOST_UNFINISHED])}{more}"
        rows.append(["unfinished", f"{len(told):,}", "", text])
    if tally.skipped:
        text = "already in the output"
        if tally.skipped_failed:
            text += f", {tally.skipped_failed:,} of them failed; --retry-failed runs these again"
        rows.append(["skipped", f"{tally.skipped:,}", "", text])
    show_table(_OUTCOMES, rows or [["none", "0", "", ""]], err=err)
    plugins = [
        [one["plugin"], f"{one['failed']:,}", f"{one['cut_off']:,}", _quarantine(one)]
        for one in _plugins(tally, batch.app.plugins)
    ]
    if plugins:
        say(err=err)
        show_table(_PLUGINS, plugins, err=err)


def _by_line(runs: set[Run]) -> list[Run]:
    return sorted(runs, key=lambda one: one.record.line or 0)


def _plugins(tally: Tally, manager: PluginManager) -> list[dict[str, Any]]:
    """List the plugins that failed, were cut off, or are in quarantine."""
    quarantined = {one.name: one.quarantined for one in manager.list_plugin_info()}
    names = {*tally.faults, *(name for name, hooks in quarantined.items() if hooks)}
    return [
        {"plugin": name}
        | {word: tally.faults[name][word] for word in _FAULTS.values()}
        | {"quarantined": quarantined.get(name, ())}
        for name in sorted(names)
    ]


def _quarantine(one: dict[str, Any]) -> str:
    now = "now" if one["quarantined"] else ""
    missed = f"{one['not_asked']:,} times not asked" if one["not_asked"] else ""
    return ", ".join(filter(None, (now, missed))) or "no"


def progress_bar(*, knows_size: bool, is_shown: bool) -> Progress:
    """Make the progress bar; it disappears when the runs have ended."""
    console = Console(stderr=True, highlight=False)
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(20),
        *([TaskProgressColumn()] if knows_size else []),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # What a task prints belongs to the output, unless that is the same terminal.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        disable=not is_shown or not console.is_terminal or console.is_dumb_terminal,
    )
