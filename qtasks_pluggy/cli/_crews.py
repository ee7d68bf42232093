"""Who does the runs of a batch: threads for plain tasks, one event loop for async ones.

Neither uses the main thread, which stays free to watch, and to hear Ctrl-C.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias

import attrs

from qtasks_pluggy import QueueTasks
from qtasks_pluggy._console.load import Task
from qtasks_pluggy.cli._ended import Ended, run, run_async, submit, submit_async
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.engines import worker_lifespan

LEAVE_SECONDS: Final = 2.0
"""How long what was left behind may take to hear that it is cancelled."""


@attrs.frozen
class Skipped:
    """A record whose run was not begun, because the batch stops."""

    record: Record


@attrs.frozen
class Died:
    """The crew itself is gone: a task has stopped its event loop."""

    error: BaseException


Event: TypeAlias = Ended | Skipped | Died


@attrs.define
class Work:
    """What a crew works on.

    Attributes:
        app: The app.
        task: Its task.
        size: How many runs at a time.
        tell: Told what became of each record.
        by_engine: Whether the app's engine does the runs.
        stopping: Set when no further run is to begin.
        running: The ids of the runs that have begun and not ended, by line.
    """

    app: QueueTasks
    task: Task
    size: int
    tell: Callable[[Event], None]
    by_engine: bool = False
    stopping: threading.Event = attrs.field(factory=threading.Event)
    running: dict[int, str] = attrs.field(factory=dict)

    @property
    def life(self) -> Any:
        """The app as a context manager; without its engine, where that has nothing to do."""
        return self.app if self.by_engine else worker_lifespan(self.app)

    def begin(self, record: Record, uuid: str) -> None:
        """Take down that a run has begun."""
        self.running[record.line or 0] = uuid

    def end(self, ended: Ended) -> None:
        """Take down that a run has ended."""
        self.running.pop(ended.line or 0, None)
        self.tell(ended)


class Crew(Protocol):
    """Does runs; entering it starts the app, leaving it stops the app."""

    def __enter__(self) -> Self:
        """Start the app."""
        ...

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Stop the app; runs that have not ended are left behind."""
        ...

    def submit(self, record: Record) -> None:
        """Take on one more record; it is begun as soon as fewer than ``size`` run."""
        ...


class Threads:
    """Does runs in threads that hold up nobody's exit.

    Args:
        work: What to work on.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._threads = 0

    def __enter__(self) -> Self:
        """Start the app."""
        self._life = self._work.life
        self._life.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the app; runs that have not ended are left behind."""
        for _ in range(self._threads):
            self._records.put(None)
        stop = partial(self._life.__exit__, kind, error, trace)
        if not (self._work.by_engine and self._work.running):
            stop()
            return
        # An engine lets its runs end before it stops, and some wait for that without a limit.
        stopped: Future[None] = Future()

        def tell() -> None:
            try:
                stopped.set_result(stop())
            except BaseException as failure:  # noqa: BLE001  # raised where it is waited for
                stopped.set_exception(failure)

        threading.Thread(target=tell, name="qtasks-pluggy-stop", daemon=True).start()
        with suppress(TimeoutError):
            stopped.result(2 * LEAVE_SECONDS)

    def submit(self, record: Record) -> None:
        """Take on one more record."""
        self._records.put(record)
        if self._threads < self._work.size:
            self._threads += 1
            name = f"qtasks-pluggy-run-{self._threads}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        work = self._work
        while (record := self._records.get()) is not None:
            if work.stopping.is_set():
                work.tell(Skipped(record))
                continue
            do = submit if work.by_engine else run
            work.end(do(work.app, work.task, record, partial(work.begin, record)))


class EventLoop:
    """Does runs on one event loop, in a thread of its own.

    Args:
        work: What to work on.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = asyncio.Semaphore(work.size)
        self._done = asyncio.Event()
        self._leaving = False
        self._started: Future[None] = Future()
        self._stopped: Future[None] = Future()

    def __enter__(self) -> Self:
        """Start the app."""
        threading.Thread(target=self._main, name="qtasks-pluggy-runs", daemon=True).start()
        self._started.result()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """Stop the app; runs that have not ended are cancelled, and left behind."""
        left = bool(self._work.running)
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed already
                self._loop.call_soon_threadsafe(self._done.set)
        with suppress(TimeoutError):
            self._stopped.result(2 * LEAVE_SECONDS if left or error is not None else None)

    def submit(self, record: Record) -> None:
        """Take on one more record."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: somebody has been told that the crew died
                self._loop.call_soon_threadsafe(self._begin, record)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # raised where somebody listens
            if not self._started.done():
                self._started.set_exception(error)
            elif self._leaving:
                self._stopped.set_exception(error)
            else:
                self._work.tell(Died(error))
                self._stopped.set_result(None)
        else:
            self._stopped.set_result(None)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._work.life:
            self._started.set_result(None)
            await self._done.wait()
            self._leaving = True
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS)

    def _begin(self, record: Record) -> None:
        task = asyncio.get_running_loop().create_task(self._one(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, record: Record) -> None:
        work = self._work
        async with self._limit:
            if work.stopping.is_set():
                work.tell(Skipped(record))
                return
            begun = partial(work.begin, record)
            do = submit_async if work.by_engine else run_async
            work.end(await do(work.app, work.task, record, begun))
