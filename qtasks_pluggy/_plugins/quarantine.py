"""Quarantine: a hookimpl that keeps failing is left alone for a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

from qtasks_pluggy._fork import lock_of


class Breaker:
    """Counts one hookimpl's failures in a row, and keeps it out when there are too many.

    The circuit breaker of M. Nygard's "Release It!". When the time is over one call is let through
    as a trial, and the next trial is a period later: so a trial that is interrupted, and of which
    nothing is heard, delays the hookimpl's return and never prevents it.

    Args:
        after: Failures in a row that begin a quarantine.
        seconds: How long it lasts before one call is tried.
        clock: Seconds, never going back.
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
        """What an event says of a quarantine."""
        return {"failures": self.failures, "seconds": self._seconds}

    def allow(self) -> bool:
        """Say whether a call may go through; after the time, one in each period may."""
        with self._lock:
            if self.until is None:
                return True
            now = self._clock()
            if now < self.until:
                return False
            self.until = now + self._seconds
            return True

    def record_failure(self) -> bool:
        """Count a failure; say whether it begins a quarantine, or a further period of one."""
        with self._lock:
            self.failures += 1
            if self.failures < self._after:
                return False
            self.until = self._clock() + self._seconds
            return True

    def record_success(self) -> bool:
        """Forget the failures; say whether that ends a quarantine."""
        with self._lock:
            ended = self.until is not None
            self.failures, self.until = 0, None
            return ended


# For the hooks of the app's start and stop, which never come often enough.
NO_BREAKER: Final = Breaker(sys.maxsize, 0.0, time.monotonic)
