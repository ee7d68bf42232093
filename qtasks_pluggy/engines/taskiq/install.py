"""Plugins for the tasks of a Taskiq broker.

Nothing here is private in Taskiq: ``decorator_class`` wraps the functions of tasks, a middleware
says for which message a function is called, and ``AsyncKicker`` sends a retry, as it does in
Taskiq's own middlewares. ``brokers.py`` lists what is private in the brokers' packages.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import signal
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from copy import copy
from multiprocessing import current_process, parent_process
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

import attrs
from pydantic import TypeAdapter
from taskiq import (
    AsyncBroker,
    InMemoryBroker,
    NoResultError,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqEvents,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.brokers.shared_broker import AsyncSharedBroker
from taskiq.exceptions import SendTaskError, TaskRejectedError
from taskiq.kicker import AsyncKicker

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.engines.taskiq.brokers import (
    PATIENCE,
    can_delay,
    has_results,
    is_a,
    is_safe,
    queue_of,
    why,
)
from qtasks_pluggy.exc import CapabilityError, EngineError

# Marks functions that are covered, and names the label for metadata that no label can hold.
OURS: Final = "qtasks_pluggy"
# The labels that count the retries of plugins, and those of Taskiq's own middlewares.
_RETRIES: Final = "qtasks_pluggy_retries"
_NATIVE_RETRIES: Final = "_retries"
# The label by which a task sends itself again.
_REQUEUED: Final = "X-Taskiq-requeue"
# The labels of one attempt, or of one sending, which are nobody's metadata.
_PASSING: Final = {OURS, _RETRIES, _NATIVE_RETRIES, _REQUEUED, "delay"}
# What Taskiq keeps as it is in a label.
_LABELS: Final = (str, int, float, bool, bytes)
_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)
# The run whose function Taskiq calls next.
_current: Final[ContextVar[Run | None]] = ContextVar("qtasks_pluggy_taskiq_run", default=None)


@attrs.define(eq=False)
class Run:
    """One attempt.

    Attributes:
        message: Taskiq's own.
        args: Its arguments as they travelled; Taskiq converts those of the message in place.
        kwargs: Its keyword arguments as they travelled.
        requeued: How often the task had sent itself again when the attempt began.
        taken: Whether its function has been called; any further call is a direct one.
    """

    message: TaskiqMessage
    args: list[Any]
    kwargs: dict[str, Any]
    requeued: Any
    taken: bool = False


class CancelledRunError(NoResultError):
    """Ends a cancelled run without an error in Taskiq's log; its cause is what is stored."""


class Runs(TaskiqMiddleware):
    """Knows which run is at work, how runs end here, and which event loop its broker is on."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None
        # Held while a client's broker is open for one message alone.
        self.sending = asyncio.Lock()
        # How many apps have this client's broker open.
        self.opened = 0
        # Whether runs are acknowledged when they have ended, whatever the worker's own setting.
        self.keeps_all = False
        # Who waits in this process: a broker in memory forgets the older ends.
        self.waiting: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def startup(self) -> None:
        """Know the loop that has the broker's connections."""
        if not self.sending.locked():
            self.loop = asyncio.get_running_loop()

    def shutdown(self) -> None:
        """Forget it."""
        self.loop = None

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Remember the run; called in the context in which its function will be called."""
        self.loop = asyncio.get_running_loop()
        if self.keeps_all:
            message.labels.setdefault("ack_type", "when_saved")
        requeued = message.labels.get(_REQUEUED)
        _current.set(Run(message, list(message.args), dict(message.kwargs), requeued))
        return message

    def on_error(
        self,
        message: TaskiqMessage,  # noqa: ARG002  # Taskiq's
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        """Have the end of a cancelled run stored."""
        if isinstance(exception, CancelledRunError):
            result.error = exception.__cause__

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Tell whoever waits for the run."""
        waits = self.waiting.get(message.task_id)
        if waits is not None and not isinstance(result.error, NoResultError):
            waits.hear(result)


def runs_of(broker: AsyncBroker) -> Runs:
    """Give the one middleware of ours that a broker has."""
    for middleware in broker.middlewares:
        if isinstance(middleware, Runs):
            return middleware
    runs = Runs()
    broker.add_middlewares(runs)
    return runs


def take(name: str) -> Run | None:
    """Give the run for which Taskiq calls a task's function now; None for any other call."""
    run = _current.get()
    if run is None or run.taken or run.message.task_name != name:
        return None
    run.taken = True
    return run


def at_least_once(broker: AsyncBroker) -> None:
    """Let runs survive the death of their worker, for all tasks of a broker.

    On a Redis stream Taskiq looks for such runs only when a further message comes.

    Args:
        broker: The Taskiq broker; call this where it is made, in clients and workers alike.

    Raises:
        CapabilityError: The broker loses what a killed worker was doing, whatever is set.
    """
    if not is_safe(broker):
        msg = (
            f"engine 'taskiq': {type(broker).__name__} loses what a killed worker was doing; use"
            " AioPikaBroker with durable queues, or RedisStreamBroker of taskiq-redis 1.2.2 or"
            " later"
        )
        raise CapabilityError(msg)
    runs_of(broker).keeps_all = True
    stream: Any = broker
    if is_a(broker, "RedisStreamBroker") and stream.consumer_id == "$":
        # Else nobody gets what was sent before the first worker, or client, began.
        stream.consumer_id = "0"


class TaskiqNative(Native[AsyncBroker]):
    """Plugins for the tasks of a broker, asked at every attempt; a run is a ``Run``."""

    name = "taskiq"
    kind = AsyncBroker
    control: ClassVar[tuple[type[Exception], ...]] = (NoResultError, TaskRejectedError)
    hint = (
        "name the modules that declare them after the broker: taskiq worker MODULE:BROKER MODULES"
    )

    def __init__(self, native: AsyncBroker) -> None:
        if isinstance(native, AsyncSharedBroker):
            msg = (
                f"engine 'taskiq': install() got the shared broker, a {type(native).__name__},"
                " which runs nothing; call it with each broker that runs the shared tasks"
            )
            raise EngineError(msg)
        super().__init__(native)
        self._runs = runs_of(native)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:  # type: ignore[override]  # it comes and goes
        """The event loop that has the broker's connections: the client's, or the worker's."""
        loop = self._runs.loop
        return None if loop is None or loop.is_closed() else loop

    # --- install

    def cover(self) -> None:
        """Have Taskiq wrap the functions of tasks that it makes, and hear of workers."""
        self.hear_of_workers()
        native_class: Any = self.native.decorator_class
        wrap = self._wrapped

        class Covered(native_class):  # type: ignore[misc]  # known at run time only
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                task: Any = self
                task.original_func = wrap(task.task_name, task.original_func)

        Covered.__name__ = Covered.__qualname__ = native_class.__name__
        self.native.decorator_class = Covered

    def hear_of_workers(self) -> None:
        """Hear when a worker begins and ends."""
        self.native.add_event_handler(TaskiqEvents.WORKER_STARTUP, self._worker_begins)
        self.native.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, self._worker_ends)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The broker's own tasks by name, shared ones too."""
        every = self.native.get_all_tasks()
        return {name: task for name, task in every.items() if _mark_of(task) is not True}

    def count(self) -> int:
        """Cover the tasks that were there before ``install``, and count all."""
        tasks, local = self.tasks, self.native.local_task_registry
        for name, task in tasks.items():
            if _mark_of(task) is None:
                # Other brokers run a shared one too, and know nothing of these plugins.
                own = local[name] = task if name in local else copy(task)
                own.original_func = self._wrapped(name, task.original_func)
        return len(tasks)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Put plugins around a task's function, which stays of its kind: Taskiq runs it as before.

        A plain one runs in the pool of threads that Taskiq has for those, and so do its plugins.
        """
        if hasattr(function, OURS):
            return function
        wrapper: Callable[..., Any]
        if inspect.iscoroutinefunction(function):

            async def call_async(*args: Any, **kwargs: Any) -> Any:
                if (run := take(name)) is None:
                    return await function(*args, **kwargs)
                func, kwargs = _without_found(function, kwargs, run)
                return await self.work_async(run, func, args, kwargs)

            wrapper = call_async
        else:

            def call_plain(*args: Any, **kwargs: Any) -> Any:
                if (run := take(name)) is None:
                    return function(*args, **kwargs)
                func, kwargs = _without_found(function, kwargs, run)
                return self.work(run, func, args, kwargs)

            wrapper = call_plain
        functools.update_wrapper(wrapper, function)
        vars(wrapper)[OURS] = self
        return wrapper

    # --- one attempt

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of Taskiq's; the labels that its task does not have are its metadata."""
        labels, declared = run.message.labels, self.options(run)
        metadata = {
            name: value
            for name, value in labels.items()
            # They travel as text where they are no plain values.
            if name not in _PASSING and str(value) != str(declared.get(name))
        }
        return TaskMessage(
            run.message.task_name,
            args,
            kwargs,
            uuid=run.message.task_id,
            priority=labels.get("priority"),
            attempt=1 + _count(labels, _NATIVE_RETRIES) + _count(labels, _RETRIES),
            queue=queue_of(self.native, labels),
            engine=self.name,
            redelivered=None,
            metadata={**metadata, **_hidden(labels.get(OURS))},
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Give the labels that a task was declared with."""
        task = self.native.find_task(run.message.task_name)
        return {} if task is None else task.labels

    def can(self, run: Any) -> Capabilities:
        """Say what the broker can do; a task's own result is stored, or nobody asks for it."""
        native = self.native
        results = run is not None or has_results(native)
        return Capabilities(
            delay=can_delay(native), results=results, at_least_once=is_safe(native), metadata=True
        )

    def will_retry(self, run: Any, error: BaseException) -> bool:
        """Say whether Taskiq runs the task again."""
        labels = run.message.labels
        if isinstance(error, NoResultError):
            # A task that requeues itself; the retry middlewares ignore this error.
            return bool(labels.get(_REQUEUED) != run.requeued)
        declared = self.options(run).get("types_of_exceptions")
        number = _count(labels, _NATIVE_RETRIES) + 1
        for one in self.native.middlewares:
            if isinstance(one, (SimpleRetryMiddleware, SmartRetryMiddleware)):
                is_wanted = str(labels.get("retry_on_error", one.default_retry_label)).lower()
                most = int(labels.get("max_retries", one.default_retry_count))
                # The first versions have no classes of their own.
                kinds = declared or getattr(one, "types_of_exceptions", None) or (Exception,)
                if is_wanted == "true" and number < most and isinstance(error, tuple(kinds)):
                    return True
        return False

    def encode(self, run: Any, value: Any) -> object:  # noqa: ARG002  # the same for both
        """Make JSON of an answer or an argument, as Taskiq's own formatter does."""
        dumped: object = _ANY.dump_python(value, mode="json")
        return dumped

    async def retry(self, run: Any, attempt: Attempt, number: int) -> Exception:  # noqa: ARG002  # Taskiq's retries count too
        """Send the message again, as Taskiq's own middlewares do, beside their retries."""
        labels = {**run.message.labels, _RETRIES: _count(run.message.labels, _RETRIES) + 1}
        labels.pop("delay", None)
        if attempt.delay:
            labels["delay"] = attempt.delay
        name, task_id = run.message.task_name, run.message.task_id
        await self._kick(name, labels, task_id, run.args, run.kwargs)
        return NoResultError()

    def cancel(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # the same for all
        """End the run in its ``TaskCancelError``, which Taskiq neither logs nor retries."""
        cancelled = CancelledRunError()
        cancelled.__cause__ = attempt.error
        return cancelled

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:
        """Let the run fail, and keep Taskiq's own middlewares from retrying it."""
        run.message.labels["retry_on_error"] = False
        return attempt.error

    async def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a run with its metadata as labels; a broker that is not open is opened for it."""
        labels = dict(self.tasks[message.name].labels)
        hidden: dict[str, Any] = {}
        for name, value in message.metadata.items():
            is_label = name not in _PASSING and type(value) in _LABELS
            (labels if is_label else hidden)[name] = value
        if hidden:
            labels[OURS] = json.dumps(hidden)
        if delay:
            labels["delay"] = delay
        run = message.name, labels, str(message.uuid), message.args, message.kwargs
        if self.loop is not None or isinstance(self.native, InMemoryBroker):
            return await self._kick(*run)
        async with self._runs.sending, asyncio.timeout(PATIENCE):
            await self.native.startup()
            try:
                return await self._kick(*run)
            finally:
                await self.native.shutdown()

    async def _kick(
        self, name: str, labels: dict[str, Any], task_id: str, args: Any, kwargs: Any
    ) -> None:
        kicker: AsyncKicker[Any, Any] = AsyncKicker(name, self.native, labels)
        try:
            await kicker.with_task_id(task_id).kiq(*args, **kwargs)
        except SendTaskError as error:
            # Its cause says what happened.
            msg = (
                f"engine 'taskiq', task {name!r}: the broker failed: {why(error)}; look whether it"
                " runs"
            )
            raise EngineError(msg) from error

    # --- the plugins' life in a worker

    async def _worker_begins(self, _: Any) -> None:
        middlewares = self.native.middlewares
        # Last, because others may give a run another message.
        middlewares.remove(self._runs)
        middlewares.append(self._runs)
        try:
            await self.begin_async()
        except Exception as error:
            refusal = self.refusal(error)
            if isinstance(self.native, InMemoryBroker):
                raise
            if parent_process() is not None and current_process().name.startswith("worker-"):
                # The command would replace this process for ever.
                os.kill(os.getppid(), signal.SIGTERM)
            raise refusal from error

    async def _worker_ends(self, _: Any) -> None:
        await self.end_async()


def _mark_of(task: Any) -> Any:
    """Give the mark of a task's function: True for a ``QueueTasks`` app's, None for a bare one."""
    return getattr(task.original_func, OURS, None)


def _without_found(
    function: Callable[..., Any], kwargs: dict[str, Any], run: Run
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Bind the dependencies that Taskiq has found: plugins see what the message has."""
    sent = {name: value for name, value in kwargs.items() if name in run.message.kwargs}
    found = {name: value for name, value in kwargs.items() if name not in sent}
    return (functools.partial(function, **found) if found else function), sent


def _hidden(label: Any) -> dict[str, Any]:
    """Read the metadata that no label can carry as it is; anybody may have written it."""
    try:
        given = json.loads(label)
    except (TypeError, ValueError):
        return {}
    return given if isinstance(given, dict) else {}


def _count(labels: Mapping[str, Any], name: str) -> int:
    # Labels come with the message, and this one bounds the retries.
    try:
        return max(int(labels.get(name, 0)), 0)
    except (TypeError, ValueError):
        return 0


install: Final = TaskiqNative.install
