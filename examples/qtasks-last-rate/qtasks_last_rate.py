"""Answers a missing exchange rate with the last one published.

Where the task ``eur_100`` of an app has no rate for a day, this plugin asks the same task about the
days before, and the first rate that it finds becomes the result of the run.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import date, timedelta

import attrs

from qtasks_hookspecs import RunningTask, hookimpl, on_error

NO_RATE = (KeyError, ValueError)  # no row for that day; a row that says N/A


@attrs.frozen
class Settings:
    """What an operator may set; the app checks it when it starts."""

    # Enough for the longest break, Easter.
    max_age_days: int = attrs.field(default=5, validator=attrs.validators.ge(1))


class LastRate:
    """The plugin: an app makes one for itself."""

    def __init__(self) -> None:
        self.max_age_days = Settings().max_age_days

    @hookimpl
    def qtasks_start(self, settings: Settings) -> None:
        """Take the plugin's section of the settings."""
        self.max_age_days = settings.max_age_days

    @on_error(*NO_RATE, task="*eur_100")  # Celery and Taskiq put the module before the name
    def use_last_rate(self, run: RunningTask) -> float | None:
        """Answer with the last rate before that day; None, no opinion, if it is too old."""
        if run.task_func.is_async:
            return None  # asking such a task about other days takes an event loop
        return self._last_rate(run, *run.args, **run.kwargs)

    def _last_rate(self, run: RunningTask, day: str, currency: str) -> float | None:
        try:
            missing = date.fromisoformat(day)
        except ValueError:
            return None  # no day, so there is none before it
        for age in range(1, self.max_age_days + 1):
            with suppress(*NO_RATE):
                rate: float = run.task_func.func(str(missing - timedelta(days=age)), currency)
                return rate
        return None
