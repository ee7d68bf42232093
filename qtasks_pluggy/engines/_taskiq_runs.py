"""The runs at work in a process that Taskiq's receivers do, and the plugins' life there."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from multiprocessing import current_process, parent_process
from typing import Any, Final

import attrs
from taskiq import (
    AsyncBroker,
    AsyncTaskiqTask,
    InMemoryBroker,
    NoResultError,
    TaskiqEvents,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.labels import prepare_label
from taskiq.utils import maybe_awaitable

from qtasks_pluggy import QueueTasks, TaskMessage, TaskStatus
from qtasks_pluggy.engines import RunResult, is_started, log_event, worker_lifespan
from qtasks_pluggy.engines._taskiq_brokers import PATIENCE, open_up, queue_of
from qtasks_pluggy.engines._taskiq_ends import END, ended_of, packed
from qtasks_pluggy.exc import EngineError

# By which our own functions are known among those of native tasks.
OURS: Final = "qtasks_pluggy_task"


@attrs.define(eq=False)
class Run:
    """One attempt that a receiver makes.

    Attributes:
        message: What Taskiq handed over.
        args: The arguments of it as they travel, which Taskiq makes the function's types of.
        kwargs: Likewise, by keyword.
        outer: The run in whose midst this one is done, by a broker that does it in place.
        host: The asyncio task that makes the attempt.
        taken: Whether its function has been called.
        ended: What Taskiq cannot say of its end.
    """

    message: TaskiqMessage
    outer: Run | None = None
    host: int = 0
    taken: bool = False
    ended: RunResult | None = None
    args: list[Any] = attrs.Factory(list)
    kwargs: dict[str, Any] = attrs.Factory(dict)


class Ticket(AsyncTaskiqTask[Any]):
    """A run that was submitted; Taskiq's own kind of object.

    Args:
        task_id: The run's id.
        task_name: The task's name; empty where only the id is known.
        broker: What it is submitted to.
    """

    def __init__(self, task_id: str, task_name: str, broker: AsyncBroker) -> None:
        super().__init__(task_id, broker.result_backend)
        self.task_name = task_name
        self.ended: RunResult | None = None
        # Set by a broker that does the run in this process.
        self.native: TaskiqResult[Any] | None = None
        self.is_over: asyncio.Event = asyncio.Event()

    @property
    def is_known(self) -> bool:
        """Whether this app submitted the run: a broker in this process then says when it ends."""
        return bool(self.task_name)

    async def read(self) -> None:
        """Read the stored end."""
        self.ended = ended_of(await self.get_result(), self.result_backend)


class Runs(TaskiqMiddleware):
    """Knows which run a function is called for, and hears of its end."""

    def __init__(self) -> None:
        super().__init__()
        # Of runs that this process does itself and somebody here may ask about.
        self.tickets: weakref.WeakValueDictionary[str, Ticket] = weakref.WeakValueDictionary()
        # Whether native tasks too are acknowledged only when they are over.
        self.keeps_all = False
        # Whether an app opens the broker now, and the event loops of those that did.
        self.is_opening = False
        self._opened: list[asyncio.AbstractEventLoop | None] = []

    async def open(self, app: str) -> None:
        """Connect the broker for an app, unless another one on this loop has.

        Raises:
            EngineError: The broker, or its results, does not answer.
        """
        here = asyncio.get_running_loop()
        if here not in self._opened:
            self.is_opening = True
            try:
                await open_up(self.broker, app)
            finally:
                self.is_opening = False
        self._opened.append(here)

    async def close(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Disconnect the broker when the last of its apps on a loop stops."""
        if loop in self._opened:
            self._opened.remove(loop)
        if loop not in self._opened:
            with suppress(Exception):
                await asyncio.wait_for(self.broker.shutdown(), PATIENCE)

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Remember the run; called in the context in which its function will be called."""
        if self.keeps_all:
            message.labels.setdefault("ack_type", "when_saved")
        host, outer = id(asyncio.current_task()), _current.get()
        if outer is not None and outer.host != host:
            # It belongs to whoever sent this one, and would hold on to all that came before.
            outer = None
        _current.set(Run(message, outer, host))
        if not isinstance(self.broker.middlewares[-1], _Last):
            # Behind those that were added since, which can give the run another message.
            self.broker.add_middlewares(_Last())
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Put what is ours of the end where Taskiq's goes."""
        run = _current.get()
        while run is not None and run.message.task_id != message.task_id:
            run = run.outer
        _current.set(None if run is None else run.outer)
        if run is not None and run.ended is not None:
            backend = self.broker.result_backend
            result.labels = {**result.labels, END: packed(run.ended, backend)}
        ticket = self.tickets.get(message.task_id)
        if ticket is not None and not isinstance(result.error, NoResultError):
            ticket.native = result
            if run is not None and run.ended is not None and run.ended.error is not None:
                ticket.ended = run.ended
            ticket.is_over.set()


class _Last(TaskiqMiddleware):
    """Hears which message a run has in the end: a middleware may replace it."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Correct what was remembered of the run."""
        run = _current.get()
        if run is not None and run.message.task_id == message.task_id:
            run.message = message
            run.args, run.kwargs = list(message.args), dict(message.kwargs)
        return message


def runs_of(broker: AsyncBroker) -> Runs:
    """Give the one middleware of ours that a broker has."""
    for middleware in broker.middlewares:
        if isinstance(middleware, Runs):
            return middleware
    runs = Runs()
    broker.add_middlewares(runs)
    return runs


def take(task_name: str) -> Run | None:
    """Give the run for which a receiver calls this task's function now; None for other calls."""
    run = _current.get()
    if run is None or run.taken or run.message.task_name != task_name:
        return None
    run.taken = True
    return run


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have receivers await what a plain function returns, as they do an ``async def``'s."""
    mark: Callable[[Any], Any] | None = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        return mark(function)  # type: ignore[no-any-return]  # its own argument
    # What Python 3.11 has in its place.
    vars(function)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
    return function


def message_of(broker: AsyncBroker, native: TaskiqMessage, **known: Any) -> TaskMessage:
    """Make a message of what Taskiq knows of a run; what it does not know is None."""
    return TaskMessage(
        native.task_name,
        tuple(native.args),
        native.kwargs,
        uuid=native.task_id,
        queue=queue_of(broker, native.labels),
        engine="taskiq",
        redelivered=None,
        **known,
    )


async def send_again(broker: AsyncBroker, run: Run, delay: float | None, **labels: Any) -> None:
    """Send a run's next attempt, under its own id and with its labels, as Taskiq sends a first.

    Args:
        broker: Where it came from.
        run: Which run.
        delay: Seconds before it; where the broker can.
        labels: What changes.
    """
    message = run.message
    labels = {**message.labels, **labels}
    prepared = {name: prepare_label(value) for name, value in labels.items()}
    again = message.model_copy(
        update={
            "labels": {name: text for name, (text, _) in prepared.items()},
            "labels_types": {name: kind for name, (_, kind) in prepared.items()},
            # Not what was made of them, of which not all can be made again. Middlewares may write
            # to them, and this attempt is not over.
            "args": list(run.args),
            "kwargs": dict(run.kwargs),
        }
    )
    for middleware in broker.middlewares:
        if type(middleware).pre_send is not TaskiqMiddleware.pre_send:
            again = await maybe_awaitable(middleware.pre_send(again))
    native = broker.formatter.dumps(again)
    # For the broker alone: what the task's own label says is for its first attempt.
    native.labels = {name: value for name, value in again.labels.items() if name != "delay"}
    if delay:
        native.labels["delay"] = str(delay)
    await broker.kick(native)
    for middleware in reversed(broker.middlewares):
        if type(middleware).post_send is not TaskiqMiddleware.post_send:
            try:
                await maybe_awaitable(middleware.post_send(again))
            except Exception as error:  # noqa: BLE001  # it is sent, whatever they make of it
                log_event("error", "task_post_send_failed", task=message.task_name, exc_info=error)


class WorkerLife:
    """Starts an app's plugins before a worker's process takes a run, and stops them at its end.

    Args:
        broker: Its workers say when they begin and end.
        app: Gives the app; an error of it refuses the worker.
        name: Whose worker it is.
        submits: Whether the app is started by those who submit, too.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        app: Callable[[], QueueTasks],
        name: str,
        *,
        submits: bool = False,
    ) -> None:
        self._submits = submits
        self._broker = broker
        self._app = app
        self._name = name
        self._life: Any = None
        # The event loop of this process's runs.
        self.loop: asyncio.AbstractEventLoop | None = None
        broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, self._begin)
        broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, self._end)

    async def _begin(self, _: Any) -> None:
        try:
            if "--use-process-pool" in sys.argv and self._broker.is_worker_process:
                msg = (
                    f"engine 'taskiq', {self._name}: plugins decide in the worker's process, so"
                    " plain functions cannot be sent to a pool of others; start it without"
                    " --use-process-pool, and with more --workers"
                )
                raise EngineError(msg)  # noqa: TRY301  # refused as whatever is wrong with the app
            app = self._app()
            # In the process that submits it is started already, or will be when it submits, and is
            # not ours to stop.
            if not is_started(app) and not (self._submits and runs_of(self._broker).is_opening):
                life = worker_lifespan(app)
                await life.__aenter__()
                self._life = life
        except Exception as error:
            log_event("error", "worker_cannot_start", app=self._name, exc_info=error)
            if isinstance(self._broker, InMemoryBroker):
                raise
            parent = parent_process()
            if parent is not None and current_process().name.startswith("worker-"):
                # The command would replace this process for ever.
                os.kill(parent.pid or os.getppid(), signal.SIGTERM)
            # Not an Exception, which a receiver logs, and begins again.
            raise SystemExit(str(error)) from error
        if not isinstance(self._broker, InMemoryBroker):
            self.loop = asyncio.get_running_loop()

    async def _end(self, _: Any) -> None:
        life, self._life, self.loop = self._life, None, None
        if life is not None:
            await life.__aexit__(None, None, None)


_current: Final[ContextVar[Run | None]] = ContextVar("qtasks_pluggy_taskiq_run", default=None)


def say_what_is_unknown(broker: AsyncBroker) -> None:
    """Give runs an end whose task a worker does not have: Taskiq would drop them."""
    native = broker.find_task

    def find_task(task_name: str) -> AsyncTaskiqDecoratedTask[Any, Any] | None:
        task = native(task_name)
        if task is None and broker.is_worker_process:
            return _unknown(broker, task_name)
        return task

    broker.find_task = find_task  # type: ignore[method-assign]  # the one place that is asked


def _unknown(broker: AsyncBroker, name: str) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """Make a task that says that there is none."""

    async def body(*_: Any, **__: Any) -> None:
        """End the run in an error."""
        error = EngineError(
            f"engine 'taskiq', task {name!r}: the worker has no such task. It must import every"
            " module that declares tasks, and run the same code as those who submit"
        )
        run = take(name)
        if run is not None:
            run.message.labels["retry_on_error"] = False
            run.ended = RunResult(TaskStatus.failed, error=error)
        raise error

    return AsyncTaskiqDecoratedTask(broker, name, body, {})
