"""``memory://``: submitted runs are executed in this process, and lost when it ends.

A run is in one place at a time: in ``_outside`` while it waits for room in the queue, in
``_queued`` while it waits for its time or its turn, and in ``_running`` during an attempt.
``_dispatch`` starts the runs whose turn it is; it is called after every change.

In an app started by ``async with``, an attempt is an asyncio task on that event loop. In an app
started by ``with``, async tasks use the background event loop, and plain ones use threads of this
module. These are daemon threads, because Python joins the threads of a ``ThreadPoolExecutor`` at
exit, so that a task that hangs would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final

import attrs

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import TaskExecutor, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import (
    Attempt,
    Capabilities,
    NoRoomError,
    RunResult,
    background,
    executor_for,
    is_here,
    log_event,
    url_options,
)
from qtasks_pluggy.engines.native import named
from qtasks_pluggy.exc import EngineError, NotRunningError, QueueFullError, TaskCancelError

if TYPE_CHECKING:
    from qtasks_pluggy import QueueTasks

_GAVE_UP: Final = "the app stopped before the run ended"
# Seconds that cancelled runs have to clean up when the app stops; slower ones are abandoned.
_CLEANUP_SECONDS: Final = 1.0

# The engine that executes the current code: its runs must not wait for room in its queue.
_current_engine: Final[contextvars.ContextVar[MemoryEngine | None]] = contextvars.ContextVar(
    "qtasks_pluggy_memory_engine", default=None
)


@attrs.define(eq=False, repr=False, weakref_slot=False)
class MemoryRun:
    """One submitted run."""

    message: TaskMessage
    is_plain: bool
    due: float  # in seconds of time.monotonic(); 0 once it may begin
    executor: TaskExecutor | None = None  # from its first attempt on
    # Its handle on the event loop: a timer until it is due, a task during an attempt.
    on_loop: asyncio.TimerHandle | asyncio.Task[None] | None = None
    cancelling: str | None = None  # the reason, once it is being cancelled
    ended: RunResult | None = None
    future: Future[RunResult] | None = None  # once somebody waits for the end
    seen: bool = False  # whether anybody asked for the end

    def __del__(self) -> None:
        """Log an error that nobody asked for, as asyncio does."""
        ended = self.ended
        if ended is not None and ended.status is TaskStatus.failed and not self.seen:
            known = {"task": self.message.name, "uuid": str(self.message.uuid)}
            log_event("error", "task_error_never_seen", **known, exc_info=ended.error)


class MemoryEngine:
    """Executes submitted runs in this process, the highest priority first.

    Args:
        url: ``memory://``, optionally with ``?workers=8&size=10000&grace=10``: the number of runs
            at a time, the number that may be queued, and the seconds that a stop waits for them.

    Raises:
        EngineError: The URL contains anything else.
    """

    name = "memory"
    native = None
    capabilities: Capabilities = Capabilities(
        delay=True, dead_letter=True, cancel_queued=True, results=True, priority=True, metadata=True
    )
    blocking = False
    control: tuple[type[Exception], ...] = ()

    def __init__(self, url: str) -> None:
        if url.partition("?")[0] != "memory://":
            # The URL is not shown: it may contain a password.
            msg = (
                "engine 'memory': its URL has no host and no path, so nothing can stand between"
                " 'memory://' and '?'; write memory:// or memory://?workers=8&size=10000&grace=10"
            )
            raise EngineError(msg)
        options = url_options(url, {"workers": 8, "size": 10_000, "grace": 10.0})
        self.workers: int = options["workers"]
        self.size: int = options["size"]
        self.grace: float = options["grace"]
        self.loop: asyncio.AbstractEventLoop | None = None
        self._app: QueueTasks
        self._pid: int
        self._has_warned = False

    async def start(self, app: QueueTasks, workers: int | None) -> None:
        """Start executing runs; those that need an event loop use the running one.

        Raises:
            EngineError: The engine executes the runs of another app.
        """
        if self.loop is not None and not self.loop.is_closed() and self._pid == os.getpid():
            msg = (
                f"engine 'memory' already executes the runs of app {self._app.name!r}; give app"
                f" {app.name!r} an engine of its own"
            )
            raise EngineError(msg)
        if not self._has_warned:
            self._has_warned = True
            hint = "submitted runs are lost when this process ends"
            log_event("info", "memory_engine_keeps_nothing", app=app.name, hint=hint)
        self.workers = workers or self.workers
        self._app = app
        self._pid = os.getpid()
        self._uses_threads = background.in_loop_thread()
        self._context = contextvars.copy_context()
        self._context.run(_current_engine.set, self)
        self._lock = threading.RLock()
        self._outside: deque[tuple[MemoryRun, Future[MemoryRun]]] = deque()
        self._queued: set[MemoryRun] = set()
        # The queued runs that are due, by priority and then by arrival, and cancelled ones.
        self._ready: list[tuple[int, int, MemoryRun]] = []
        self._numbers = itertools.count()
        self._running: set[MemoryRun] = set()
        self._threads = 0
        self._to_threads: queue.SimpleQueue[MemoryRun | None] = queue.SimpleQueue()
        self._is_stopping = False
        self._all_ended: Future[None] = Future()
        self.loop = asyncio.get_running_loop()

    def stop(self) -> Future[None] | None:
        """Accept no more runs, wait ``grace`` seconds for those there are, and cancel the rest."""
        loop = self.loop
        if loop is None or self._pid != os.getpid():
            self.loop = None
            return None
        with self._lock:
            self._is_stopping = True
            for run, room in self._outside:
                if room.set_running_or_notify_cancel():
                    room.set_exception(_not_running(run.message))
            self._outside.clear()
        return asyncio.run_coroutine_threadsafe(self._wind_down(), loop)

    async def _wind_down(self) -> None:
        self._give_up(due_after=time.monotonic() + self.grace)
        self._dispatch()
        all_ended = asyncio.wrap_future(self._all_ended)
        try:
            await asyncio.wait({all_ended}, timeout=self.grace)
        finally:
            # At once if the wait is interrupted: the app's stop was cancelled, or Ctrl-C pressed.
            self._give_up()
            await asyncio.wait({all_ended}, timeout=_CLEANUP_SECONDS)
            for run in self._unfinished():
                # It swallowed its cancellation, or its thread hangs: free whoever waits for it.
                self._settle(run, Attempt("cancel", TaskCancelError(_GAVE_UP)))
            self.loop = None
            self._ready.clear()
            for _ in range(self._threads):
                self._to_threads.put(None)

    def _unfinished(self) -> list[MemoryRun]:
        with self._lock:
            return [*self._queued, *self._running]

    def _give_up(self, *, due_after: float = 0.0) -> None:
        """Cancel the runs that are due after some time, and list them in one warning."""
        with self._lock:
            runs = [run for run in self._unfinished() if run.due >= due_after]
            known = [f"{run.message.name} {run.message.uuid} {self.status(run)}" for run in runs]
            for run in runs:
                self._cancel(run, _GAVE_UP)
        if known:
            log_event("warning", "memory_engine_gave_up", app=self._app.name, runs=known)

    def submit(self, message: TaskMessage, delay: float | None) -> MemoryRun:
        """Queue a run.

        Raises:
            EngineError: This process was forked from the one that executes the runs.
            NoRoomError: The queue is full, and the caller has to wait.
            NotRunningError: The engine is stopping or has stopped.
            QueueFullError: The queue is full, and the caller is a run of this engine.
        """
        if self.loop is None:
            raise _not_running(message)
        self._refuse_in_a_fork()
        is_plain = not self._app.tasks[message.name].task_func.is_async
        run = MemoryRun(message, is_plain, _due_after(delay))
        with self._lock:
            if self._is_stopping:
                raise _not_running(message)
            if self._outside or len(self._queued) >= self.size:
                if _current_engine.get() is self:
                    msg = (
                        f"engine 'memory' is full: {len(self._queued)} runs are queued. A run"
                        f" submits task {message.name!r}, and runs never wait for room, because all"
                        " of them could be waiting; raise the limit with memory://?size=..."
                    )
                    raise QueueFullError(msg)
                room: Future[MemoryRun] = Future()
                self._outside.append((run, room))
                raise NoRoomError(room)
            self._put(run)
        self._dispatch()
        return run

    def result(self, ticket: MemoryRun, timeout: float | None) -> RunResult | Future[RunResult]:  # noqa: ARG002  # the caller does the waiting
        """Return how a run ended, or a future that will say so."""
        ticket.seen = True
        if ticket.ended is not None:
            return ticket.ended
        self._refuse_in_a_fork()
        with self._lock:
            if ticket.ended is not None:
                return ticket.ended
            if ticket.future is None:
                ticket.future = Future()
            return ticket.future

    def status(self, ticket: MemoryRun) -> TaskStatus:
        """Return how far a run is."""
        if ticket.ended is not None:
            return ticket.ended.status
        return TaskStatus.queued if ticket in self._queued else TaskStatus.running

    def trail(self, ticket: MemoryRun) -> Trail:
        """Return who was asked about a run's errors so far."""
        return Trail() if ticket.executor is None else ticket.executor.trail

    def revoke(self, ticket: MemoryRun, reason: str) -> bool:
        """Cancel a run that is queued, or whose function runs on the event loop."""
        self._refuse_in_a_fork()
        with self._lock:
            # A function that runs in a thread cannot be interrupted.
            return (not ticket.is_plain or ticket in self._queued) and self._cancel(ticket, reason)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Do nothing: the app knows its tasks."""

    def will_retry(self, error: BaseException) -> bool:  # noqa: ARG002  # the protocol's parameter
        """Return False: only plugins cause retries."""
        return False

    def failure(self, error: BaseException) -> BaseException | None:
        """Return the error of a run that raised ``SystemExit`` or the like; only that run ends.

        A ``KeyboardInterrupt`` on the event loop goes on, because it is meant for the process.
        """
        if isinstance(error, KeyboardInterrupt) and is_here(self.loop):
            return None
        return named(error, self.name)

    def check_answer(self, value: Any) -> None:
        """Accept any answer: it stays in this process."""

    def check_result(self, run: RunningTask) -> None:
        """Accept any result: it stays in this process."""

    def _refuse_in_a_fork(self) -> None:
        if self._pid != os.getpid():
            msg = (
                "engine 'memory' executes its runs in the process that this one was forked from;"
                " start the app in this process"
            )
            raise EngineError(msg)

    def _put(self, run: MemoryRun) -> None:
        """Queue a run, whether there is room or not; the caller holds the lock."""
        self._queued.add(run)
        if run.due:
            self._on_loop(self._set_timer, run)
        else:
            heappush(self._ready, (-(run.message.priority or 0), next(self._numbers), run))

    def _set_timer(self, run: MemoryRun) -> None:
        with self._lock:
            if run in self._queued:
                # In the engine's context: a timer keeps its context alive, and all that is in it.
                run.on_loop = asyncio.get_running_loop().call_later(
                    run.due - time.monotonic(), self._fall_due, run, context=self._context
                )

    def _fall_due(self, run: MemoryRun) -> None:
        with self._lock:
            run.on_loop, run.due = None, 0.0
            if run in self._queued:
                self._put(run)
        self._dispatch()

    def _take(self) -> MemoryRun | None:
        """Move the run whose turn it is to ``_running``, if there is one and a worker is free."""
        with self._lock:
            while self._ready and len(self._running) < self.workers:
                run = heappop(self._ready)[2]
                if run in self._queued:  # else it was cancelled
                    self._move_to_running(run)
                    return run
            is_over = self._is_stopping and not self._queued and not self._running
            if is_over and not self._all_ended.done():
                self._all_ended.set_result(None)
            return None

    def _move_to_running(self, run: MemoryRun) -> None:
        """Take a run out of the queue, and admit runs from outside; the caller holds the lock."""
        self._queued.remove(run)
        self._running.add(run)
        while self._outside and len(self._queued) < self.size:
            other, room = self._outside.popleft()
            if room.set_running_or_notify_cancel():
                self._put(other)
                room.set_result(other)

    def _cancel(self, run: MemoryRun, reason: str) -> bool:
        """Cancel a run; return False if it has ended or is being cancelled."""
        with self._lock:
            if run.ended is not None or run.cancelling is not None:
                return False
            run.cancelling = reason
            if run.on_loop is not None:
                self._on_loop(run.on_loop.cancel)
            if run in self._queued:
                self._move_to_running(run)
                if run.executor is None:
                    self._settle(run, Attempt("cancel", TaskCancelError(reason)))
                else:
                    # Plugins saw an earlier attempt, so they see the end as well.
                    self._begin(run)
                # Its entry stays until its turn comes, unless there are many like it.
                if len(self._ready) > 2 * len(self._queued) + 100:
                    self._ready = [entry for entry in self._ready if entry[2] in self._queued]
                    heapify(self._ready)
        self._dispatch()
        return True

    def _dispatch(self) -> None:
        """Start the runs whose turn it is."""
        while (run := self._take()) is not None:
            self._begin(run)

    def _begin(self, run: MemoryRun) -> None:
        """Start an attempt, or the end of a cancelled run."""
        if not (run.is_plain and self._uses_threads) or run.cancelling is not None:
            self._on_loop(self._make_task, run)
            return
        with self._lock:
            if self._threads < len(self._running):
                try:
                    threading.Thread(
                        target=self._context.copy().run,
                        args=(self._work, self._to_threads),
                        name="qtasks-pluggy-memory",
                        daemon=True,
                    ).start()
                except RuntimeError as error:  # the system has no more threads
                    self._settle(run, Attempt("fail", error))
                    return
                self._threads += 1
        self._to_threads.put(run)

    def _on_loop(self, call: Callable[..., Any], *args: Any) -> None:
        """Call a function on the engine's event loop: now, if this is the loop's thread."""
        loop = self.loop
        if is_here(loop):
            call(*args)
        elif loop is not None:
            loop.call_soon_threadsafe(call, *args)

    def _make_task(self, run: MemoryRun) -> None:
        context = self._context.copy()
        # The loop holds the task until its first step, and from then on the run does.
        _ = asyncio.get_running_loop().create_task(self._attempt(run), context=context)

    async def _attempt(self, run: MemoryRun) -> None:
        """Make an attempt on the event loop, or end a cancelled run."""
        # Not earlier: a task that is cancelled before its first step never makes that step.
        run.on_loop = asyncio.current_task()
        try:
            run.executor = run.executor or executor_for(self._app, run.message)
            if run.cancelling is None:
                attempt = await run.executor.execute_attempt(self)
            else:
                attempt = await run.executor.give_up(TaskCancelError(run.cancelling))
        except KeyboardInterrupt as error:
            self._settle(run, _attempt_from(error, run))
            self._dispatch()
            raise
        except BaseException as error:  # noqa: BLE001  # ends the run
            attempt = _attempt_from(error, run)
        self._settle(run, attempt)
        self._dispatch()
        # The error's traceback can reach this frame, and the run holds the error.
        del run, attempt

    def _work(self, runs: queue.SimpleQueue[MemoryRun | None]) -> None:
        for run in iter(runs.get, None):
            self._attempt_in_thread(run)
            # While the thread waits for the next run, nothing may keep this one alive.
            del run

    def _attempt_in_thread(self, run: MemoryRun) -> None:
        """Make an attempt in this thread; a cancelled run ends on the event loop."""
        try:
            run.executor = run.executor or executor_for(self._app, run.message)
            attempt = run.executor.execute_attempt_sync(self)
        except BaseException as error:  # noqa: BLE001  # ends the run
            attempt = _attempt_from(error, run)
        self._settle(run, attempt)
        self._dispatch()
        del run, attempt  # as above

    def _settle(self, run: MemoryRun, attempt: Attempt) -> None:
        """End a run, or queue it for its next attempt."""
        with self._lock:
            self._running.discard(run)
            run.on_loop = None
            if run.ended is not None:  # the app's stop has given it up
                return
            if attempt.action != "retry":
                run.ended = RunResult(attempt.status, attempt.result, attempt.error)
                if run.future is not None:
                    run.future.set_result(run.ended)
            elif run.cancelling is None:
                run.due = _due_after(attempt.delay)
                self._put(run)
            else:
                self._running.add(run)
                self._begin(run)


def _attempt_from(error: BaseException, run: MemoryRun) -> Attempt:
    """Return the end of a run for an error that its executor did not handle."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return Attempt("cancel", TaskCancelError(run.cancelling or "the task was cancelled"))
    if isinstance(error, Exception):
        # The frames of its traceback hold the run: the two must not form a cycle.
        return Attempt("fail", error.with_traceback(None))
    return Attempt("fail", named(error, "memory"))


def _due_after(delay: float | None) -> float:
    return time.monotonic() + delay if delay else 0.0


def _not_running(message: TaskMessage) -> NotRunningError:
    msg = f"engine 'memory' has stopped or is stopping, so it does not accept task {message.name!r}"
    return NotRunningError(msg)
