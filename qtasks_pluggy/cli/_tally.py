"""How all runs ended, in numbers: what is kept does not grow with them."""

from __future__ import annotations

from typing import Any

import attrs

from qtasks_pluggy.cli._ended import Ended, Status


@attrs.define
class Count:
    """Runs that ended in one way.

    Attributes:
        runs: How many.
        line: The line of the first of them.
        why: What the first of them said.
    """

    runs: int = 0
    line: int | None = None
    why: str = ""

    def add(self, line: int | None, why: str) -> None:
        """Count one more."""
        self.runs += 1
        if self.runs == 1:
            self.line, self.why = line, why


@attrs.define
class Tally:
    """How all runs ended.

    Attributes:
        good: Runs that succeeded by themselves.
        recovered: Runs that succeeded because of a plugin, by the plugin and what it did.
        lost: Runs without a result, by status and error.
        unwritten: Good and recovered runs whose result JSON cannot hold, by the error.
        unfinished: The lines and ids of runs that were left behind.
        interrupted: Whether somebody pressed Ctrl-C.
    """

    good: int = 0
    recovered: dict[tuple[str, str], Count] = attrs.field(factory=dict)
    lost: dict[tuple[Status, str], Count] = attrs.field(factory=dict)
    unwritten: dict[str, Count] = attrs.field(factory=dict)
    unfinished: list[tuple[int, str]] = attrs.field(factory=list)
    interrupted: bool = False

    def add(self, ended: Ended) -> None:
        """Count a run."""
        if ended.status != "succeeded":
            why = (ended.status, ended.kind)
            self.lost.setdefault(why, Count()).add(ended.line, ended.why)
        elif ended.decided is None:
            self.good += 1
        else:
            how = "by a retry" if ended.decided.kind == "Retry" else ""
            by = self.recovered.setdefault((ended.decided.plugin, how), Count())
            by.add(ended.line, "")

    def add_unwritten(self, ended: Ended, kind: str, why: str) -> None:
        """Count a result that could not be written."""
        self.unwritten.setdefault(kind, Count()).add(ended.line, why)

    @property
    def runs(self) -> int:
        """All runs that ended."""
        return self.good + self.recovered_runs + self.lost_runs

    @property
    def recovered_runs(self) -> int:
        """Runs that succeeded because of a plugin."""
        return sum(count.runs for count in self.recovered.values())

    @property
    def lost_runs(self) -> int:
        """Runs without a result."""
        return sum(count.runs for count in self.lost.values())

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; 1 unless every run has a result, and every result is written."""
        if self.interrupted:
            return 130
        return 1 if self.lost or self.unwritten or self.unfinished else 0

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for a script."""
        recovered: dict[str, int] = {}
        for (plugin, _), count in self.recovered.items():
            recovered[plugin] = recovered.get(plugin, 0) + count.runs
        statuses: tuple[Status, ...] = ("failed", "cancelled", "dead_lettered")
        return {
            "runs": self.runs,
            "good": self.good,
            "recovered": recovered,
            **{
                status: {
                    kind: count.runs for (one, kind), count in self.lost.items() if one == status
                }
                for status in statuses
            },
            "unwritten": {kind: count.runs for kind, count in self.unwritten.items()},
            "unfinished": [{"line": line, "uuid": uuid} for line, uuid in self.unfinished],
            "interrupted": self.interrupted,
        }
