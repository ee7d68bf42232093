"""Counts how attempts end, by task, end, and the plugin that decided."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import attrs

from qtasks_hookspecs import Outcome, TaskFunc, hookimpl


@attrs.frozen
class Settings:
    """Where the counts go when the app stops; a file of Prometheus's text format."""

    file: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))


class OutcomeCounter:
    """The plugin: an app makes one for itself."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self._file: Path | None = None

    @hookimpl
    def qtasks_start(self, settings: Settings) -> None:
        """Take the plugin's section of the settings."""
        self._file = settings.file

    @hookimpl
    def task_executor_attempt_ended(self, task_func: TaskFunc, outcome: Outcome) -> None:
        """Count; attempts end in many threads."""
        with self._lock:
            self.counts[task_func.name, outcome.status, outcome.decided_by or ""] += 1

    @hookimpl
    def qtasks_stop(self) -> None:
        """Write the counts."""
        if self._file is not None:
            self._file.write_text(self.text(), "utf-8")

    def text(self) -> str:
        """Return the counts as Prometheus reads them."""
        with self._lock:
            counts = sorted(self.counts.items())
        return "".join(
            f'task_attempts_total{{task="{task}",outcome="{status}",by="{by}"}} {number}\n'
            for (task, status, by), number in counts
        )
