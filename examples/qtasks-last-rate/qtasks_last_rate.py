"""Answers a missing exchange rate with the last one published.

Where the task ``eur_100`` of an app has no rate for a day, this plugin asks the same task about the
days before, and the first rate that it finds becomes the result of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

from qtasks_hookspecs import RunningTask, TaskFunc, hookimpl, when

NO_RATE = (KeyError, ValueError)  # no row for that day; a row that says N/A


class LastRate:
    """The plugin; ``max_age_days`` is its only setting."""

    max_age_days = 5  # enough for the longest break, Easter

    @hookimpl
    def qtasks_start(self, settings: Mapping[str, Any]) -> None:
        """Read the plugin's section of the settings."""
        days = settings.get("max_age_days", LastRate.max_age_days)
        if type(days) is not int or days < 1:
            msg = f"max_age_days: expected a number of days from 1 on, got {days!r}"
            raise ValueError(msg)
        self.max_age_days = days

    @hookimpl
    @when(error=NO_RATE, task="*eur_100")  # Celery and Taskiq put the module before the name
    def task_executor_run_task_trigger_error(
        self, task_executor: RunningTask, task_func: TaskFunc
    ) -> float | None:
        """Answer with the last rate before that day; None, no opinion, if it is too old."""
        return self._last(task_func.func, *task_executor.args, **task_executor.kwargs)

    def _last(self, eur_100: Callable[[str, str], float], day: str, currency: str) -> float | None:
        try:
            missing = date.fromisoformat(day)
        except ValueError:
            return None  # no day, so there is none before it
        for age in range(1, self.max_age_days + 1):
            with suppress(*NO_RATE):
                return eur_100(str(missing - timedelta(days=age)), currency)
        return None


plugin = LastRate()
