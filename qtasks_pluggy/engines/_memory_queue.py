"""The queue of ``memory://``: what waits, for room, for its time or for its turn."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from heapq import heapify, heappop, heappush
from typing import Any, Final, TypeAlias

from qtasks_pluggy import TaskExecutor, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, RunResult, log_event, url_options
from qtasks_pluggy.engines.native import named
from qtasks_pluggy.exc import EngineError, NotRunningError, QueueFullError, TaskCancelError


class MemoryRun:
    """One submitted run; what ``MemoryEngine`` knows it by.

    Args:
        message: What was submitted.
    """

    __slots__ = (
        "cancelling",
        "ended",
        "executor",
        "future",
        "in_thread",
        "message",
        "seen",
        "status",
        "task",
    )

    def __init__(self, message: TaskMessage) -> None:
        self.message: TaskMessage = message
        self.in_thread: bool = False  # where nothing can cut it
        self.status: TaskStatus = TaskStatus.queued
        self.executor: TaskExecutor | None = None
        self.task: asyncio.Task[None] | None = None
        self.cancelling: str | None = None  # why it was asked to end
        self.ended: RunResult | None = None
        self.future: EndFuture | None = None  # made when somebody waits
        self.seen: bool = False

    def __del__(self) -> None:
        """Tell of an error that nobody has looked at, as asyncio does."""
        if self.status is TaskStatus.failed and not self.seen and self.ended is not None:
            known = {"task": self.message.name, "uuid": str(self.message.uuid)}
            log_event("error", "task_error_never_seen", **known, exc_info=self.ended.error)


# Runs that were cancelled while they waited, and whose entries are still in the queue.
_MOST_DROPPED: Final = 100

Outside: TypeAlias = "tuple[MemoryRun, float, Future[MemoryRun]]"


class MemoryQueue:
    """Runs in order: higher priority first, then as they came; not thread-safe.

    Times are seconds of any one clock; 0 is for a run that waits for its turn alone.

    Args:
        size: How many runs it takes; more wait outside.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.queued = 0
        self.outside: deque[Outside] = deque()
        self._numbers = itertools.count()
        self._ready: list[tuple[float, int, MemoryRun]] = []
        self._later: list[tuple[float, int, MemoryRun]] = []
        self._dropped = 0

    @property
    def is_full(self) -> bool:
        """Whether a run has to wait outside; also when others do."""
        return self.queued >= self.size or bool(self.outside)

    @property
    def due(self) -> float | None:
        """When the next run's time has come; None where none waits for it."""
        return self._later[0][0] if self._later else None

    def put(self, run: MemoryRun, due: float) -> None:
        """Take a run in, whether there is room or not."""
        run.status = TaskStatus.queued
        self.queued += 1
        number = next(self._numbers)
        if due:
            heappush(self._later, (due, number, run))
        else:
            heappush(self._ready, (-(run.message.priority or 0), number, run))

    def take(self) -> MemoryRun | None:
        """Take out the run whose turn it is, if there is one."""
        while self._ready:
            run = heappop(self._ready)[2]
            if run.status is TaskStatus.queued:  # else it was dropped
                self._leave(run)
                return run
        return None

    def drop(self, run: MemoryRun) -> None:
        """Take a run out whose turn it is not."""
        self._leave(run)
        self._dropped += 1
        # Its entry stays until its turn, which may be a year off; so sometimes all such are swept.
        if self._dropped > _MOST_DROPPED and self._dropped > self.queued:
            self._dropped = 0
            for heap in (self._ready, self._later):
                heap[:] = [one for one in heap if one[2].status is TaskStatus.queued]
                heapify(heap)

    def _leave(self, run: MemoryRun) -> None:
        run.status = TaskStatus.running
        self.queued -= 1
        while self.outside and self.queued < self.size:
            other, due, room = self.outside.popleft()
            if room.set_running_or_notify_cancel():
                self.put(other, due)
                room.set_result(other)

    def ripen(self, now: float) -> None:
        """Let the runs whose time has come wait for their turn."""
        while self._later and self._later[0][0] <= now:
            _, number, run = heappop(self._later)
            heappush(self._ready, (-(run.message.priority or 0), number, run))

    def runs(self, due_after: float = 0.0) -> Iterable[MemoryRun]:
        """Find the runs that are queued.

        Args:
            due_after: Only those whose time comes after this; 0 for all.
        """
        ready = [] if due_after else self._ready
        runs = [run for _, _, run in ready]
        runs += [run for due, _, run in self._later if due > due_after]
        return [run for run in runs if run.status is TaskStatus.queued]


class Alarm:
    """A timer of the event loop that this runs on; set again, it forgets what it was set to."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something called."""
        self.cancel()
        self._handle = asyncio.get_running_loop().call_later(seconds, call)

    def cancel(self) -> None:
        """Have it not called."""
        if self._handle is not None:
            self._handle.cancel()


class EndFuture(Future[RunResult]):
    """A run's end.

    Args:
        expired: Called when somebody's time of waiting for it in plain code is over.
    """

    def __init__(self, expired: Callable[[], None]) -> None:
        super().__init__()
        self._expired = expired

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for it."""
        try:
            return super().result(timeout)
        except TimeoutError:
            self._expired()
            raise


class Loans:
    """The places of runs that wait for other runs: else all could wait for those queued."""

    def __init__(self) -> None:
        self._waits: dict[MemoryRun, set[Future[RunResult]]] = {}

    def __len__(self) -> int:
        """Count the places that are lent."""
        return len(self._waits)

    def lend(self, run: MemoryRun, ended: Future[RunResult]) -> None:
        """Lend a run's place until another run has ended."""
        # It is given back when that has ended, or when the run waits no more.
        waits_for = self._waits.setdefault(run, set())
        if ended not in waits_for:
            waits_for.add(ended)
            ended.add_done_callback(lambda ended: self._take_back(run, ended))

    def _take_back(self, run: MemoryRun, ended: Future[RunResult]) -> None:
        self._waits.get(run, set()).discard(ended)
        if not self._waits.get(run):
            self.end(run)

    def end(self, run: MemoryRun | None) -> None:
        """Give a run its place back, if it is one."""
        if run is not None:
            self._waits.pop(run, None)


def outcome_of(error: BaseException, run: MemoryRun) -> Attempt:
    """Say what an exception that left an attempt comes to."""
    if isinstance(error, asyncio.CancelledError):
        return Attempt("cancel", TaskCancelError(run.cancelling or "the task was cancelled"))
    return Attempt("fail", error if isinstance(error, Exception) else named(error, "memory"))


def options_of(url: str) -> dict[str, Any]:
    """Read the options of a URL.

    Raises:
        EngineError: The URL has something else in it.
    """
    if url.partition("?")[0] != "memory://":
        # Not what it is, which may be a password.
        msg = (
            "engine 'memory': its URL has something between 'memory://' and '?'; it has no host"
            " and no path, write memory:// or memory://?workers=8&size=10000&grace=10"
        )
        raise EngineError(msg)
    return url_options(url, {"workers": 8, "size": 10_000, "grace": 10.0})


def due_after(delay: float | None) -> float:
    """Say when a delay is over; 0 for none."""
    return time.monotonic() + delay if delay else 0.0


def no_room_for_a_run(queue: MemoryQueue, message: TaskMessage) -> QueueFullError:
    """Say that a run cannot submit another one to a full queue."""
    msg = (
        f"engine 'memory' has {queue.queued} runs queued, and takes {queue.size}; a run that"
        f" submits task {message.name!r} cannot wait for room, because all runs could be waiting;"
        " use memory://?size=..."
    )
    return QueueFullError(msg)


def not_running(message: TaskMessage) -> NotRunningError:
    """Say that the engine takes no runs."""
    msg = f"engine 'memory' has stopped or is stopping, so task {message.name!r} is not submitted"
    return NotRunningError(msg)


def refuse_in_a_fork(pid: int) -> None:
    """Refuse where nobody does runs, because this process was forked from the one that does."""
    if pid != os.getpid():
        msg = "engine 'memory' is in the process that this was forked from; start the app here"
        raise EngineError(msg)
