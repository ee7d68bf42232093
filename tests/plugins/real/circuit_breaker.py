"""Stops the retries of a task that keeps failing, until it had some rest.

A plugin cannot keep a run from being tried once. It can have the last word on what follows: while a
task's breaker is open, a run that fails is not tried again, whatever other plugins say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import attrs

from qtasks_hookspecs import (
    Outcome,
    Raise,
    RunningTask,
    TaskFunc,
    hookimpl,
    on_error,
    when,
)


class CircuitOpenError(Exception):
    """A task has failed so often that it is not tried again for a while."""


@attrs.frozen
class Settings:
    """When a breaker opens, and for how long."""

    after: int = attrs.field(default=5, validator=attrs.validators.ge(1))  # failures in a row
    seconds: float = attrs.field(default=30.0, validator=attrs.validators.gt(0))


@attrs.define
class _Breaker:
    failures: int = 0
    open_until: float | None = None


class CircuitBreaker:
    """The plugin: an app makes one for itself, with a breaker for each task.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._settings = Settings()
        self._breakers: dict[str, _Breaker] = {}
        self._lock = threading.Lock()

    @hookimpl
    def qtasks_start(self, settings: Settings) -> None:
        """Take the plugin's section of the settings."""
        self._settings = settings

    @hookimpl
    @when(outcome=("succeeded", "recovered", "retried", "failed", "dead_lettered"))
    def task_executor_attempt_ended(self, task_func: TaskFunc, outcome: Outcome) -> None:
        """Count failures in a row: a recovered attempt has failed as well."""
        with self._lock:
            breaker = self._breakers.setdefault(task_func.name, _Breaker())
            if outcome.error is None:
                breaker.failures, breaker.open_until = 0, None
            else:
                breaker.failures += 1
                if breaker.failures >= self._settings.after:
                    breaker.open_until = self._clock() + self._settings.seconds

    @on_error(Exception, trylast=True)
    def stop_retries(self, run: RunningTask) -> Raise | None:
        """Have the last word while the breaker is open; else no opinion."""
        name = run.task_func.name
        with self._lock:
            breaker = self._breakers.get(name)
            if breaker is None or breaker.open_until is None:
                return None
            if self._clock() >= breaker.open_until:
                # Half open: this run may be tried again, and the next failure opens it anew.
                breaker.open_until = None
                return None
        return Raise(CircuitOpenError(f"task {name!r} failed too often; it is left alone"))
