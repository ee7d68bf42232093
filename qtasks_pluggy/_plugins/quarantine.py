"""Quarantine: a hookimpl that keeps failing is skipped for a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

from qtasks_pluggy._fork import lock_of


class Breaker:
    """Counts one hookimpl's failures in a row, and skips it after too many.

    The circuit breaker of M. Nygard's "Release It!". When the time is up one call is let through as
    a trial, and the next trial follows one period later: a trial that is interrupted, and so never
    reports, delays the hookimpl's return and does not prevent it.

    Args:
        after: Failures in a row that begin a quarantine.
        seconds: How long it lasts before a trial.
        clock: Monotonic seconds.
    """

    __slots__ = ("__weakref__", "_after", "_clock", "_lock", "_seconds", "failures", "until")

    def __init__(self, after: int, seconds: float, clock: Callable[[], float]) -> None:
        self._lock = lock_of(self)
        self._clock = clock
        self.failures = 0
        self.until: float | None = None
        self.configure(after, seconds)

    def configure(self, after: int, seconds: float) -> None:
        """Take new bounds; a quarantine that has begun stays."""
        self._after = after
        self._seconds = seconds

    @property
    def event_fields(self) -> dict[str, float]:
        """The fields of a quarantine's event."""
        return {"failures": self.failures, "seconds": self._seconds}

    def allow(self) -> bool:
        """Return whether a call may go through; in a quarantine, one trial in each period."""
        with self._lock:
            if self.until is None:
                return True
            now = self._clock()
            if now < self.until:
                return False
            self.until = now + self._seconds
            return True

    def record_failure(self) -> bool:
        """Count a failure; return whether it begins or extends a quarantine."""
        with self._lock:
            self.failures += 1
            if self.failures < self._after:
                return False
            self.until = self._clock() + self._seconds
            return True

    def record_success(self) -> bool:
        """Reset the count; return whether that ends a quarantine."""
        with self._lock:
            ended = self.until is not None
            self.failures, self.until = 0, None
            return ended


# For hooks outside of runs, which are not called often enough for a quarantine.
NO_BREAKER: Final = Breaker(sys.maxsize, 0.0, time.monotonic)
