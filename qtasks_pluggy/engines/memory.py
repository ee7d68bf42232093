"""``memory://``: submitted runs are executed in this process, and lost when it ends.

A run is in one place at a time: in ``_outside`` while it waits for room in the queue, in
``_queued`` while it waits for its time or its turn, and in ``_running`` during an attempt.
``_dispatch`` moves them on; it is called after every change.

In an app started by ``async with``, an attempt is an asyncio task on that event loop. In an app
started by ``with``, async tasks use the background event loop, and plain ones use threads of this
module. These are daemon threads, because Python joins the threads of a ``ThreadPoolExecutor`` at
exit, so that a task that hangs would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from heapq import heappop, heappush
from typing import Any, Final

import attrs

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskExecutor, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import (
    ASYNCIO_WORKER,
    SYNC,
    Attempt,
    Backend,
    Capabilities,
    Elsewhere,
    NoRoomError,
    RunResult,
    background,
    executor_for,
    is_here,
    lock_of,
    log_event,
    run_to_completion,
    url_options,
)
from qtasks_pluggy.engines.native import named
from qtasks_pluggy.exc import EngineError, NotRunningError, QueueFullError, TaskCancelError

_GAVE_UP: Final = "the app stopped before the run ended"
# Seconds that cancelled runs have to clean up when the app stops; slower ones are abandoned.
_CLEANUP_SECONDS: Final = 1.0
# How many of the runs that a stop gives up are listed; thousands may wait.
_MOST_LISTED: Final = 20

# The engine that executes the current code: its runs must not wait for room in its queue.
_current_engine: Final[contextvars.ContextVar[MemoryEngine | None]] = contextvars.ContextVar(
    "qtasks_pluggy_memory_engine", default=None
)


@attrs.define(eq=False, repr=False, weakref_slot=False)
class MemoryRun:
    """One submitted run."""

    message: TaskMessage
    is_plain: bool
    due: float  # in seconds of time.monotonic()
    executor: TaskExecutor | None = None  # from its first attempt on
    # What the event loop has of it: a timer until it is due, a task during an attempt.
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
    capabilities = Capabilities(
        delay=True, dead_letter=True, cancel_queued=True, results=True, priority=True, metadata=True
    )
    blocking = False
    control: tuple[type[Exception], ...] = ()
    loop: asyncio.AbstractEventLoop | None = None
    _app: QueueTasks
    _is_open = False

    def __init__(self, url: str) -> None:
        if url.partition("?")[0] != "memory://":
            # The URL is not shown: it may contain a password.
            msg = (
                "engine 'memory': its URL has no host and no path, so nothing can stand between"
                " 'memory://' and '?'; write memory:// or memory://?workers=8&size=10000&grace=10"
            )
            raise EngineError(msg)
        options = url_options(url, {"workers": 8, "size": 10_000, "grace": 10.0})
        self.workers, self.size, self.grace = options.values()
        self._lock = lock_of(self)

    async def start(self, app: QueueTasks, workers: int | None) -> None:
        """Start executing runs; those that need an event loop use the running one.

        Raises:
            EngineError: The engine executes the runs of another app.
        """
        if self._is_open:
            msg = (
                f"engine 'memory' already executes the runs of app {self._app.name!r}; give app"
                f" {app.name!r} an engine of its own"
            )
            raise EngineError(msg)
        hint = "submitted runs are lost when this process ends"
        log_event("info", "memory_engine_keeps_nothing", app=app.name, hint=hint)
        self.workers = workers or self.workers
        self._app = app
        self._context = contextvars.copy_context()
        self._context.run(_current_engine.set, self)
        self._outside: deque[tuple[MemoryRun, Future[MemoryRun]]] = deque()
        self._queued: set[MemoryRun] = set()
        # The queued runs that are due, in order of arrival, by priority.
        self._due: dict[int, OrderedDict[MemoryRun, None]] = {}
        self._priorities: list[int] = []  # a heap of its keys, negated
        self._running: set[MemoryRun] = set()
        self._all_ended: Future[None] = Future()
        self._to_threads: queue.SimpleQueue[MemoryRun | None] = queue.SimpleQueue()
        self._uses_threads = background.in_loop_thread()  # plain code started the app
        self._threads = 0
        self.loop = asyncio.get_running_loop()
        self._is_open = True

    def stop(self) -> Future[None] | None:
        """Accept no more runs, wait ``grace`` seconds for those there are, and cancel the rest."""
        with self._lock:
            self._is_open = False
            if self.loop is None:
                return None
            for run, room in self._outside:
                if room.set_running_or_notify_cancel():
                    room.set_exception(_not_running(run.message))
            self._outside.clear()
        return Elsewhere(self._wind_down(), self.loop)

    async def _wind_down(self) -> None:
        all_ended = asyncio.wrap_future(self._all_ended)
        self._give_up(due_after=time.monotonic() + self.grace)
        try:
            await asyncio.wait({all_ended}, timeout=self.grace)
        finally:
            # At once if the wait is interrupted: the app's stop was cancelled, or Ctrl-C pressed.
            self._give_up()
            await asyncio.wait({all_ended}, timeout=_CLEANUP_SECONDS)
            with self._lock:
                for run in [*self._running]:
                    # It swallowed its cancellation, or its thread hangs: free who waits for it.
                    self._end(run, Attempt("cancel", TaskCancelError(_GAVE_UP)))
            self.loop = None
            for _ in range(self._threads):
                self._to_threads.put(None)

    def _give_up(self, *, due_after: float = 0.0) -> None:
        """Cancel the runs that are due after some time, and name the first in one warning."""
        with self._lock:
            runs = [run for run in (*self._queued, *self._running) if run.due >= due_after]
            known = [f"{run.message.name} {run.message.uuid} {self.status(run)}" for run in runs]
            for run in runs:
                self._cancel(run, _GAVE_UP)
            self._dispatch()
        if known:
            known, count = known[:_MOST_LISTED], len(known)
            log_event(
                "warning", "memory_engine_gave_up", app=self._app.name, count=count, runs=known
            )

    def submit(self, message: TaskMessage, delay: float | None) -> MemoryRun:
        """Queue a run.

        Raises:
            NoRoomError: The queue is full, and the caller has to wait.
            NotRunningError: The engine is stopping or has stopped.
            QueueFullError: The queue is full, and the caller is a run of this engine.
        """
        with self._lock:
            if not self._is_open:
                raise _not_running(message)
            is_plain = not self._app.tasks[message.name].task_func.is_async
            run = MemoryRun(message, is_plain, time.monotonic() + (delay or 0.0))
            if len(self._queued) < self.size and not self._outside:
                self._put(run)
                self._dispatch()
                return run
            if _current_engine.get() is self:
                msg = (
                    f"engine 'memory' is full, and a run submits task {message.name!r}; runs never"
                    " wait for room, because all of them could be waiting: raise the limit, as by"
                    f" memory://?size={2 * self.size}"
                )
                raise QueueFullError(msg)
            room: Future[MemoryRun] = Future()
            self._outside.append((run, room))
            raise NoRoomError(room)

    def result(self, ticket: MemoryRun, timeout: float | None) -> RunResult | Future[RunResult]:  # noqa: ARG002  # the caller does the waiting
        """Return how a run ended, or a future that will say so."""
        ticket.seen = True
        with self._lock:
            if ticket.ended is not None:
                return ticket.ended
            self._refuse_if_left_behind(ticket)
            ticket.future = ticket.future or Future()
            return ticket.future

    def status(self, ticket: MemoryRun) -> TaskStatus:
        """Return how far a run is."""
        if ticket.ended is not None:
            return ticket.ended.status
        return TaskStatus.queued if ticket in self._queued else TaskStatus.running

    def trail(self, ticket: MemoryRun) -> Trail:
        """Return who was asked about a run's errors so far."""
        executor = ticket.executor  # a worker may clear it meanwhile
        return Trail() if executor is None else executor.trail

    def revoke(self, ticket: MemoryRun, reason: str) -> bool:
        """Cancel a run that is queued, or whose function runs on the event loop."""
        with self._lock:
            self._refuse_if_left_behind(ticket)
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

    def left_behind(self) -> None:
        """Forget, in a forked process, the runs: only its parent executes them."""
        self.loop, self._is_open = None, False
        self._queued, self._running = set(), set()

    # From here on, the caller of a method that does not take the lock holds it.

    def _refuse_if_left_behind(self, run: MemoryRun) -> None:
        """Refuse to wait for a run that only the parent of this forked process can end."""
        if not (run.ended is not None or run in self._queued or run in self._running):
            msg = (
                "engine 'memory' executes this run in the process that this one was forked from;"
                " start the app in this process, and submit it here"
            )
            raise EngineError(msg)

    def _put(self, run: MemoryRun) -> None:
        """Queue a run, whether there is room or not."""
        self._queued.add(run)
        if run.due > time.monotonic():
            self._on_loop(self._watch, run)
            return
        priority = run.message.priority or 0
        if priority not in self._due:
            self._due[priority] = OrderedDict()
            heappush(self._priorities, -priority)
        self._due[priority][run] = None

    def _watch(self, run: MemoryRun) -> None:
        """Set the timer of a queued run, or let it take its turn if it is due."""
        with self._lock:
            if run not in self._queued:
                return  # it was cancelled just now
            run.on_loop, wait = None, run.due - time.monotonic()
            if wait > 0:
                # In the engine's context: a timer keeps its context alive, and all that is in it.
                run.on_loop = asyncio.get_running_loop().call_later(
                    wait, self._watch, run, context=self._context
                )
            else:
                self._put(run)
                self._dispatch()

    def _dispatch(self) -> None:
        """Begin the runs whose turn it is, and let others into the room that they leave."""
        while True:
            while self._outside and len(self._queued) < self.size:
                run, room = self._outside.popleft()
                if room.set_running_or_notify_cancel():
                    self._put(run)
                    room.set_result(run)
            if not self._due or len(self._running) >= self.workers:
                break
            line = self._due[-self._priorities[0]]
            if line:
                run, _ = line.popitem(last=False)
                self._queued.remove(run)
                self._begin(run)
            else:  # all runs of this priority have begun or were cancelled
                del self._due[-heappop(self._priorities)]
        if not (self._is_open or self._queued or self._running or self._all_ended.done()):
            self._all_ended.set_result(None)

    def _cancel(self, run: MemoryRun, reason: str) -> bool:
        """Cancel a run; return False if it has ended or is being cancelled."""
        if run.ended is not None or run.cancelling is not None:
            return False
        run.cancelling = reason
        if run.on_loop is not None:
            self._on_loop(run.on_loop.cancel)
        if run in self._queued:
            self._queued.remove(run)
            if (line := self._due.get(run.message.priority or 0)) is not None:
                line.pop(run, None)
            if run.executor is None:
                self._end(run, Attempt("cancel", TaskCancelError(reason)))
            else:
                # Plugins saw an earlier attempt, so they see the end as well.
                self._begin(run)
            self._dispatch()
        return True

    def _begin(self, run: MemoryRun) -> None:
        """Start an attempt, or the end of a cancelled run."""
        self._running.add(run)
        if not (run.is_plain and self._uses_threads) or run.cancelling is not None:
            self._on_loop(self._task_of, run)
            return
        if self._threads < len(self._running):
            name, args = "qtasks-pluggy-memory", (self._to_threads,)
            try:
                threading.Thread(target=self._work, args=args, name=name, daemon=True).start()
            except RuntimeError as error:  # the system has no more threads
                # Its traceback holds the run, and the run holds the error.
                self._end(run, Attempt("fail", error.with_traceback(None)))
                return
            self._threads += 1
        self._to_threads.put(run)

    def _task_of(self, run: MemoryRun) -> asyncio.Task[None]:
        """Make an attempt's task, where it is known that something runs it."""
        # Not by the loop's factory: an eager one would begin here, with the lock held.
        return asyncio.Task(self._attempt(run, ASYNCIO_WORKER), context=self._context.copy())

    def _on_loop(self, call: Callable[..., Any], *args: Any) -> None:
        """Call a function on the engine's event loop: now, if this is the loop's thread."""
        if is_here(self.loop):
            call(*args)
        elif self.loop is not None:
            self.loop.call_soon_threadsafe(call, *args)

    def _work(self, runs: queue.SimpleQueue[MemoryRun | None]) -> None:
        """Make attempts in this thread, until the app stops."""
        for run in iter(runs.get, None):
            self._context.copy().run(run_to_completion, self._attempt(run, SYNC))
            # While the thread waits for the next run, nothing may keep this one alive.
            del run

    async def _attempt(self, run: MemoryRun, backend: Backend) -> None:
        """Make an attempt, or end a cancelled run."""
        if backend.on_loop:
            # Not earlier: a task that is cancelled before its first step never makes that step.
            run.on_loop = asyncio.current_task()
        try:
            run.executor = run.executor or executor_for(self._app, run.message)
            if run.cancelling is None:
                attempt = await run.executor.execute_attempt(self, backend)
            else:
                attempt = await run.executor.give_up(TaskCancelError(run.cancelling), backend)
        except (asyncio.CancelledError, GeneratorExit):
            why = run.cancelling or "the task was cancelled"
            attempt = Attempt("cancel", TaskCancelError(why))
        except BaseException as error:
            is_usual = isinstance(error, Exception)
            attempt = Attempt("fail", error if is_usual else named(error, self.name))
            if backend.on_loop and isinstance(error, KeyboardInterrupt):
                self._settle(run, attempt)
                raise
        self._settle(run, attempt)
        # The error's traceback can reach this frame, and the run holds the error.
        del run, attempt

    def _settle(self, run: MemoryRun, attempt: Attempt) -> None:
        """End a run after an attempt, or arrange for its next one."""
        with self._lock:
            run.on_loop = None
            if run.ended is not None:
                return  # the app's stop has given it up
            if attempt.action != "retry":
                self._end(run, attempt)
            elif run.cancelling is not None:
                self._begin(run)
            else:
                self._running.remove(run)
                run.due = time.monotonic() + (attempt.delay or 0.0)
                self._put(run)
            self._dispatch()

    def _end(self, run: MemoryRun, attempt: Attempt) -> None:
        """End a run, and tell those who wait for it."""
        self._running.discard(run)
        run.ended = RunResult(attempt.status, attempt.result, attempt.error)
        if run.executor is not None and not run.executor.has_trail:
            run.executor = None  # only its trail is still read
        if run.future is not None:
            run.future.set_result(run.ended)


def _not_running(message: TaskMessage) -> NotRunningError:
    msg = f"engine 'memory' has stopped or is stopping, so it does not accept task {message.name!r}"
    return NotRunningError(msg)
