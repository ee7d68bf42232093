"""Quarantine: a hookimpl that keeps failing is left alone for a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

from qtasks_pluggy._fork import lock_of


class Breaker:
    """Counts one hookimpl's failures in a row, and keeps it out when there are too many.

    The circuit breaker of M. Nygard's "Release It!", with one trial call when the time is over.
    Each call brings an object of its own, by which the trial is known: a call that began before
    the quarantine did, and ends while the trial is on, has no say in it.

    Args:
        after: Failures in a row that begin a quarantine.
        seconds: How long it lasts before one call is tried.
        clock: Seconds, never going back.
    """

    __slots__ = (
        "__weakref__",
        "_after",
        "_clock",
        "_lock",
        "_seconds",
        "_trial",
        "failures",
        "until",
    )

    def __init__(self, after: int, seconds: float, clock: Callable[[], float]) -> None:
        self._lock = lock_of(self)
        self._clock = clock
        self._trial: object = None
        self.failures = 0
        self.until: float | None = None
        self.configure(after, seconds)

    def configure(self, after: int, seconds: float) -> None:
        """Take new bounds; a quarantine that has begun stays."""
        self._after = after
        self._seconds = seconds

    @property
    def facts(self) -> dict[str, float]:
        """What an event tells of a quarantine."""
        return {"failures": self.failures, "seconds": self._seconds}

    def admits(self, call: object) -> bool:
        """Say whether a call may go through; after the time, one may at a time."""
        with self._lock:
            if self.until is None:
                return True
            if self._trial is not None or self._clock() < self.until:
                return False
            self._trial = call
            return True

    def failed(self, call: object) -> bool:
        """Count a failure; say whether a quarantine begins with it, anew or for the first time."""
        with self._lock:
            self.failures += 1
            if self._trial is call:
                self._trial = None
            elif self.until is not None or self.failures < self._after:
                return False
            self.until = self._clock() + self._seconds
            return True

    def succeeded(self, call: object) -> bool:
        """Forget the failures; say whether a quarantine ends with it."""
        with self._lock:
            ended = self._trial is call
            if self.until is None or ended:
                self.failures = 0
                self.until = self._trial = None
            return ended

    def abandoned(self, call: object) -> None:
        """Take back a call that neither failed nor succeeded: its run was cancelled."""
        with self._lock:
            if self._trial is call:
                self._trial = None


# For the hooks of the app's start and stop, which never come often enough.
NO_BREAKER: Final = Breaker(sys.maxsize, 0.0, time.monotonic)
