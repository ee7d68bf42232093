"""Replays in progress, each in a daemon thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.failures.acts import change_groups
from qtasks_pluggy.failures.claims import Claims, Recorded
from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.replay import OtherArguments, Replay, Replayed


class _StoppedError(Exception):
    """Somebody has stopped a replay."""


class Job(threading.Thread):
    """Sends some runs, and writes down who wanted that.

    Args:
        app: The app, which is started.
        url: The store.
        runs: The runs.
        total: How many there are.
        who: Whoever wants it.
        scope: What was asked for, for people.
        arguments: Other arguments than the recorded ones.
        how: What ``Replay`` takes besides.
    """

    def __init__(
        self,
        app: QueueTasks,
        url: URL,
        runs: Iterable[Recorded],
        total: int,
        *,
        who: str,
        scope: str,
        arguments: OtherArguments,
        **how: Any,
    ) -> None:
        super().__init__(name="qtasks-failures-replay", daemon=True)
        self._url = url
        self._claims = Claims(url)
        self._replay = Replay(app, self._claims, arguments=arguments, wait=self._wait, **how)
        self._is_edited = arguments != OtherArguments()
        self._runs = runs
        self.total: Final = total
        self._who = who
        self._scope = scope
        self._is_stopping = threading.Event()
        self._fault = ""

    def stop(self) -> None:
        """Send no further run."""
        self._is_stopping.set()

    def _wait(self, seconds: float) -> None:
        if self._is_stopping.wait(seconds):
            raise _StoppedError

    def run(self) -> None:
        """Send the runs."""
        act: int | None = None
        try:
            act = self._claims.begin_act(self.total, who=self._who, scope=self._scope)
            for _ in self._replay.run(self._runs):
                self._wait(0)
        except _StoppedError:
            self._fault = "it was stopped"
        except Exception as error:  # noqa: BLE001  # whoever looks at the page is told
            self._fault = f"{type(error).__name__}: {error}"
        if act is not None:
            with suppress(StoreError, SQLAlchemyError, OSError):
                self._claims.end_act(act, self.sent)
                if not self._is_edited:
                    self._resolve()

    def _resolve(self) -> None:
        """Resolve groups of which no failure is left, as the command does."""
        mended = self._replay.mended()
        change_groups(self._url, "resolve", mended, who=self._who, scope=f"replay of {self._scope}")

    @property
    def sent(self) -> int:
        """How many runs were sent so far."""
        return sum(one.uuid is not None for one in tuple(self._replay.done))

    @property
    def results(self) -> Sequence[Replayed]:
        """What became of each run so far."""
        return self._replay.results()

    @property
    def why_ended(self) -> str:
        """Why it ended before its last run, or did not send one; empty where neither is so."""
        refused = [one.why_not for one in tuple(self._replay.done) if one.why_not]
        return self._fault or self._replay.stopped or (refused[-1] if refused else "")


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
