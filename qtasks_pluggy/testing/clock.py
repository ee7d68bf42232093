"""A clock that tests move."""

from __future__ import annotations


class FakeClock:
    """Seconds that pass when a test says so: ``isolated_app(clock=FakeClock())``.

    The quarantine of failing plugins reads it. Time limits of plugins and of tasks, and the delays
    of retries, are waited for by the system's own clock: set short ones, or use ``no_delays()``.

    Args:
        now: Where it begins, in seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now: float = now

    def __call__(self) -> float:
        """Read it."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: How much.

        Raises:
            ValueError: They are negative; a monotonic clock does not go back.
        """
        if seconds < 0:
            msg = f"FakeClock.advance({seconds!r}): a clock does not go back; give 0 or more"
            raise ValueError(msg)
        self.now += seconds
