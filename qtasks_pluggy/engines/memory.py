"""``memory://``: runs are done in this process, and gone with it.

In an app that was started by ``async with``, every run is a task on that event loop. In one that
was started by ``with``, async tasks run on the background event loop, and plain ones in threads.

The lock is held while a run changes its place; what that leads to, ``_begin`` does after it.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import TaskExecutor, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import (
    Attempt,
    Capabilities,
    NoRoomError,
    RunResult,
    background,
    executor_for,
    log_event,
)
from qtasks_pluggy.engines._memory_queue import (
    Alarm,
    EndFuture,
    Loans,
    MemoryQueue,
    MemoryRun,
    due_after,
    no_room_for_a_run,
    not_running,
    options_of,
    outcome_of,
    refuse_in_a_fork,
)
from qtasks_pluggy.engines._memory_threads import Threads
from qtasks_pluggy.engines.native import named
from qtasks_pluggy.exc import EngineError, TaskCancelError

if TYPE_CHECKING:
    from qtasks_pluggy import QueueTasks

_GAVE_UP: Final = "the app stopped, and its time for finishing was over"
# Seconds in which runs that a stop cancels can clean up; those that take longer are left behind.
_CLEANING_UP: Final = 1.0

# The run that we are in: it must not wait for room, and lends its place while it waits for another.
_inside: Final[contextvars.ContextVar[MemoryRun | None]] = contextvars.ContextVar(
    "qtasks_pluggy_memory_run", default=None
)


class MemoryEngine:
    """Does submitted runs in this process, the highest priority first.

    Args:
        url: ``memory://``, with any of ``?workers=8&size=10000&grace=10``: how many runs at a
            time, how many may wait for their turn, and the seconds that a stop gives them.

    Raises:
        EngineError: The URL has something else in it.
    """

    name = "memory"
    native = None
    capabilities: Capabilities = Capabilities(
        delay=True, dead_letter=True, cancel_queued=True, results=True, priority=True, metadata=True
    )
    blocking = False

    def __init__(self, url: str) -> None:
        options = options_of(url)
        self.workers: int = options["workers"]
        self.size: int = options["size"]
        self.grace: float = options["grace"]
        self.control: tuple[type[Exception], ...] = ()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._warned = False
        self._app: QueueTasks
        self._pid: int

    def will_retry(self, error: BaseException) -> bool:  # noqa: ARG002  # the seam's name
        """Say no: whoever retries is a plugin."""
        return False

    def failure(self, error: BaseException) -> BaseException | None:
        """Name what ends the task's own run: a task that calls sys.exit() ends itself alone."""
        if isinstance(error, KeyboardInterrupt):
            with suppress(RuntimeError):
                # There it is the whole process's.
                asyncio.get_running_loop()
                return None
        return named(error, self.name)

    def check_answer(self, value: Any) -> None:
        """Do nothing: a result stays in this process."""

    def check_result(self, run: RunningTask) -> None:
        """Do nothing: a result stays in this process."""

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Do nothing: the app knows its tasks."""

    async def start(self, app: QueueTasks, workers: int | None) -> None:
        """Begin to do runs, on the event loop that this runs on.

        Raises:
            EngineError: It does the runs of another app.
        """
        if self.loop is not None and not self.loop.is_closed() and self._pid == os.getpid():
            msg = f"engine 'memory' is behind app {self._app.name!r} already; make one for each app"
            raise EngineError(msg)
        if not self._warned:
            self._warned = True
            hint = "submitted runs die with this process"
            log_event("info", "memory_engine_keeps_nothing", app=app.name, hint=hint)
        self.workers = workers or self.workers
        self._app = app
        self._in_threads = background.in_loop_thread()
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._context = contextvars.copy_context()
        self._queue = MemoryQueue(self.size)
        self._running: set[MemoryRun] = set()
        self._loans = Loans()
        self._armed: float | None = None
        self._threads = Threads(self._work)
        self._clock, self._ending = Alarm(), Alarm()
        self._stopped: Future[None] | None = None
        self.loop = asyncio.get_running_loop()

    def submit(self, message: TaskMessage, delay: float | None) -> MemoryRun:
        """Queue a run, or let it wait outside for room.

        Raises:
            EngineError: This is a fork of the process that does the runs.
            NoRoomError: It is full.
            NotRunningError: The engine is stopping.
            QueueFullError: It is full, and this is one of its own runs.
        """
        if self.loop is None:
            raise not_running(message)
        refuse_in_a_fork(self._pid)
        run = MemoryRun(message)
        if self._in_threads:
            run.in_thread = not self._app.tasks[message.name].task_func.is_async
        with self._lock:
            if self._stopped is not None:
                raise not_running(message)
            if self._queue.is_full:
                if _inside.get() in self._running:
                    raise no_room_for_a_run(self._queue, message)
                room: Future[MemoryRun] = Future()
                self._queue.outside.append((run, due_after(delay), room))
                raise NoRoomError(room)
            self._queue.put(run, due_after(delay))
            begun = self._take()
        self._begin(begun)
        return run

    def result(self, ticket: MemoryRun, timeout: float | None) -> RunResult | Future[RunResult]:  # noqa: ARG002  # the waiting is the caller's
        """Return a run's end, or what to wait for it with."""
        ticket.seen = True
        if ticket.ended is not None:
            return ticket.ended
        refuse_in_a_fork(self._pid)
        begun: list[MemoryRun] = []
        with self._lock:
            if ticket.ended is not None:
                return ticket.ended
            future = ticket.future = ticket.future or EndFuture(
                lambda: self._loans.end(_inside.get())
            )
            inside = _inside.get()
            if inside is not None and inside in self._running:
                self._loans.lend(inside, future)
                begun = self._take()
        self._begin(begun)
        return future

    def status(self, ticket: MemoryRun) -> TaskStatus:
        """Tell how far a run is."""
        return ticket.status

    def trail(self, ticket: MemoryRun) -> Trail:
        """Tell who was asked so far."""
        return Trail() if ticket.executor is None else ticket.executor.trail

    def revoke(self, ticket: MemoryRun, reason: str) -> bool:
        """Cancel a run that waits for its turn, or whose function runs on the event loop."""
        refuse_in_a_fork(self._pid)
        is_async = self._app.tasks[ticket.message.name].task_func.is_async
        return self._cut(ticket, reason, only_queued=not is_async)

    def _cut(self, ticket: MemoryRun, reason: str, *, only_queued: bool) -> bool:
        with self._lock:
            if ticket.ended is not None or ticket.cancelling is not None:
                return False
            queued = ticket.status is TaskStatus.queued
            if only_queued and not queued:
                return False
            ticket.cancelling = reason
            begun: list[MemoryRun] = []
            if not queued:
                self._on_loop(lambda: ticket.task and ticket.task.cancel())
            else:
                self._queue.drop(ticket)
                if ticket.executor is None:
                    self._end(ticket, Attempt("cancel", TaskCancelError(reason)))
                else:
                    # It has begun before, so the plugins are to be told of its end.
                    self._running.add(ticket)
                    begun = [ticket]
                begun += self._take()
        self._begin(begun)
        return True

    def stop(self) -> Future[None]:
        """Finish what was submitted, for ``grace`` seconds, then list what is given up."""
        stopped: Future[None] = Future()
        if self.loop is None or self._pid != os.getpid():
            self.loop = None
            stopped.set_result(None)
            return stopped
        # So that nobody who gives up waiting for the stop can cancel it.
        stopped.set_running_or_notify_cancel()
        with self._lock:
            self._stopped = stopped
            for run, _, room in self._queue.outside:
                if room.set_running_or_notify_cancel():
                    room.set_exception(not_running(run.message))
            self._queue.outside.clear()
            hopeless = self._queue.runs(due_after=time.monotonic() + self.grace)
        self._on_loop(self._ending.set, self.grace, self._run_out)
        self._give_up(hopeless)
        self._let_go_if_empty()
        return stopped

    def _run_out(self) -> None:
        self._give_up(self._every())
        self._ending.set(_CLEANING_UP, self._leave_behind)

    def _leave_behind(self) -> None:
        """End what swallowed its cancellation, for those who wait for it."""
        for run in self._every():
            self._begin(self.settle(Attempt("cancel", TaskCancelError(_GAVE_UP)), run))
        self._let_go()

    def _every(self) -> list[MemoryRun]:
        # With the lock: a run on its way from one place to the next is in neither.
        with self._lock:
            return [*self._queue.runs(), *self._running]

    def _give_up(self, runs: Iterable[MemoryRun]) -> None:
        with self._lock:
            lost = [run for run in runs if run.ended is None]
        if not lost:
            return
        known = [f"{run.message.name} {run.message.uuid} {run.status}" for run in lost]
        log_event("warning", "memory_engine_gave_up", app=self._app.name, runs=known)
        for run in lost:
            if not self._cut(run, _GAVE_UP, only_queued=run.in_thread):
                # Nothing can cut it; but whoever waits for it need not.
                self._begin(self.settle(Attempt("cancel", TaskCancelError(_GAVE_UP)), run))

    def _let_go_if_empty(self) -> None:
        if self._stopped is None:
            return
        with self._lock:
            if not self._queue.queued and not self._running:
                self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if self._stopped is not None and not self._stopped.done():
                for alarm in (self._clock, self._ending):
                    self._on_loop(alarm.cancel)
                self.loop = None
                self._threads.let_go()
                self._stopped.set_result(None)

    def _take(self) -> list[MemoryRun]:
        """Take the runs whose turn it is; with the lock."""
        begun: list[MemoryRun] = []
        while len(self._running) - len(self._loans) < self.workers:
            run = self._queue.take()
            if run is None:
                break
            self._running.add(run)
            begun.append(run)
        if self._queue.due != self._armed and self.loop is not None:
            self._armed = self._queue.due
            self.loop.call_soon_threadsafe(self._look_at_the_clock)
        return begun

    def _end(self, run: MemoryRun, outcome: Attempt) -> None:
        """Take down how a run ended; with the lock."""
        run.status = outcome.status
        run.ended = RunResult(run.status, outcome.result, outcome.error)
        run.task = None
        if run.future is not None:
            run.future.set_result(run.ended)
        self._let_go_if_empty()

    def _look_at_the_clock(self) -> None:
        with self._lock:
            if self.loop is None:
                return
            now = time.monotonic()
            self._queue.ripen(now)
            self._armed = self._queue.due
            if self._queue.due is not None:
                self._clock.set(self._queue.due - now, self._look_at_the_clock)
            begun = self._take()
        self._begin(begun)

    def _begin(self, runs: list[MemoryRun]) -> None:
        for run in runs:
            if not run.in_thread or run.cancelling is not None:
                self._on_loop(self._make_task, run)
                continue
            try:
                self._threads.give(run)
            except RuntimeError as error:
                runs += self.settle(Attempt("fail", error), run)  # gone through in this loop

    def _on_loop(self, call: Callable[..., Any], *args: Any) -> None:
        loop = self.loop
        if loop is not None:
            try:
                here = asyncio.get_running_loop() is loop
            except RuntimeError:
                here = False
            if here:
                call(*args)
            else:
                loop.call_soon_threadsafe(call, *args)

    def _make_task(self, run: MemoryRun) -> None:
        context = self._context.copy()
        # Kept by the loop until its first step, and by the run from then on.
        _ = asyncio.get_running_loop().create_task(self._attempt(run), context=context)

    async def _attempt(self, run: MemoryRun) -> None:
        """Make one attempt on the event loop, or end a run that was cancelled before it."""
        # Not before: a task that is cancelled before its first step never makes it.
        run.task = asyncio.current_task()
        _inside.set(run)
        try:
            executor = self._executor_of(run)
            if run.cancelling is None:
                outcome = await executor.execute_attempt(self)
            else:
                outcome = await executor.give_up(TaskCancelError(run.cancelling))
        except KeyboardInterrupt as error:
            self._begin(self.settle(outcome_of(error, run), run))
            raise
        except BaseException as error:  # noqa: BLE001  # a task that calls sys.exit() ends itself alone
            outcome = outcome_of(error, run)
        self._begin(self.settle(outcome, run))

    def _work(self, run: MemoryRun) -> MemoryRun | None:
        """Make one attempt in this thread; give the run that it is to go on with."""
        try:
            outcome = self._context.copy().run(self._attempt_here, run)
        except BaseException as error:  # noqa: BLE001  # a task that calls sys.exit() ends itself alone
            outcome = outcome_of(error, run)
        begun = self.settle(outcome, run)
        after = next((one for one in begun if one.in_thread and one.cancelling is None), None)
        self._begin([one for one in begun if one is not after])
        return after

    def _attempt_here(self, run: MemoryRun) -> Attempt:
        _inside.set(run)
        return self._executor_of(run).execute_attempt_sync(self)

    def _executor_of(self, run: MemoryRun) -> TaskExecutor:
        if run.executor is None:
            run.executor = executor_for(self._app, run.message)
        return run.executor

    def message(self, native: MemoryRun) -> TaskMessage:
        """Return what was submitted."""
        return native.message

    def settle(self, outcome: Attempt, native: MemoryRun) -> list[MemoryRun]:
        """End a run or queue it again, and take the runs whose turn it is now."""
        run = native
        with self._lock:
            self._running.discard(run)
            self._loans.end(run)
            again: list[MemoryRun] = []
            if run.ended is not None:
                self._let_go_if_empty()  # it was given up before
            elif outcome.action != "retry":
                self._end(run, outcome)
            elif self.loop is None:
                self._end(run, Attempt("cancel", TaskCancelError(_GAVE_UP)))
            elif run.cancelling is None:
                self._queue.put(run, due_after(outcome.delay))
            else:
                self._running.add(run)
                again = [run]
            return again + self._take()
