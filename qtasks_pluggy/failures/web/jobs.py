"""Replays that were begun on the page; each in a thread of its own, which ends with the process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from qtasks_pluggy.failures.acts import acting, note
from qtasks_pluggy.failures.claims import Recorded
from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.replay import Replay, Replayed


class Job(threading.Thread):
    """Sends some runs, and writes down who wanted that.

    Args:
        url: The store.
        replay: What sends them.
        runs: The runs.
        total: How many there are.
        who: Whoever wants it.
        scope: What was asked for, for people.
    """

    def __init__(
        self,
        url: URL,
        replay: Replay,
        runs: Iterable[Recorded],
        total: int,
        *,
        who: str,
        scope: str,
    ) -> None:
        super().__init__(name="qtasks-failures-replay", daemon=True)
        self._url = url
        self._replay = replay
        self._runs = runs
        self.total: Final = total
        self._who = who
        self._scope = scope
        self._is_stopping = threading.Event()
        self.fault = ""

    def stop(self) -> None:
        """Send no further run."""
        self._is_stopping.set()

    def run(self) -> None:
        """Send the runs."""
        try:
            for _ in self._replay.run(self._until_stopped()):
                pass
        except Exception as error:  # noqa: BLE001  # whoever waits for the job is told
            self.fault = f"{type(error).__name__}: {error}"
        if self.sent:
            with suppress(StoreError, SQLAlchemyError, OSError), acting(self._url) as connection:
                note(connection, "replay", self.sent, who=self._who, scope=self._scope)

    def _until_stopped(self) -> Iterator[Recorded]:
        for run in self._runs:
            if self._is_stopping.is_set():
                return
            yield run

    @property
    def sent(self) -> int:
        """How many runs were sent so far."""
        return sum(one.uuid is not None for one in tuple(self._replay.done))

    @property
    def done(self) -> Sequence[Replayed]:
        """What became of each run so far."""
        return self._replay.results()

    @property
    def why_ended(self) -> str:
        """Why it ended before its last run; empty where it did not."""
        refused = [one.why_not for one in tuple(self._replay.done) if one.why_not]
        return self.fault or self._replay.stopped or (refused[-1] if refused else "")


class Jobs:
    """The newest replay of each group that this process has begun."""

    def __init__(self) -> None:
        self._by_group: dict[str, Job] = {}
        self._lock = threading.Lock()

    def begin(self, group: str, job: Job) -> bool:
        """Begin the replay of a group, unless there is one at work."""
        with self._lock:
            before = self._by_group.get(group)
            if before is not None and before.is_alive():
                return False
            self._by_group[group] = job
            job.start()
            return True

    def of(self, group: str) -> Job | None:
        """Find the newest replay of a group."""
        return self._by_group.get(group)
