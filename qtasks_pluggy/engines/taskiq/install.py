"""Plugins for the tasks of a Taskiq broker.

This module uses only public parts of Taskiq: ``decorator_class`` wraps the functions of tasks, a
middleware remembers the message for which a function is called, and ``AsyncKicker`` sends a retry,
as in Taskiq's own middlewares.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import signal
from collections.abc import Callable, Mapping
from copy import copy
from multiprocessing import current_process
from typing import Any, ClassVar, Final

import taskiq
from pydantic import TypeAdapter
from taskiq import AsyncBroker, InMemoryBroker, NoResultError, TaskiqEvents
from taskiq.brokers.shared_broker import AsyncSharedBroker
from taskiq.exceptions import SendTaskError, TaskRejectedError
from taskiq.kicker import AsyncKicker

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.forward import PATIENCE
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.engines.taskiq.brokers import REQUEUED, Run, abilities_of, runs_of, take
from qtasks_pluggy.exc import EngineError

# Marks covered functions, and names the label for metadata that a label of its own cannot hold.
OURS: Final = "qtasks_pluggy"
# The labels that count retries by plugins and by Taskiq's own middlewares.
_RETRIES: Final = "qtasks_pluggy_retries"
_NATIVE_RETRIES: Final = "_retries"
# Labels of one attempt or one message, which are not metadata.
_PASSING: Final = {OURS, _RETRIES, _NATIVE_RETRIES, REQUEUED, "delay"}
# The types that Taskiq keeps unchanged in a label.
_LABELS: Final = (str, int, float, bool, bytes)
_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)


class TaskiqNative(Native[AsyncBroker]):
    """Plugins for the tasks of a broker, asked at every attempt; a run is a ``Run``."""

    name = "taskiq"
    kind = AsyncBroker
    control: ClassVar[tuple[type[Exception], ...]] = (NoResultError, TaskRejectedError)
    in_future = True
    hint = "name the modules that declare them: taskiq worker MODULE:BROKER MODULES"

    def __init__(self, native: AsyncBroker) -> None:
        if isinstance(native, AsyncSharedBroker):
            who = "engine 'taskiq': install() got an AsyncSharedBroker"
            msg = f"{who}, which runs no tasks; call it with each broker that runs the shared tasks"
            raise EngineError(msg)
        super().__init__(native)
        self._runs = runs_of(native)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:  # type: ignore[override]  # it comes and goes
        """The event loop that has the broker's connections."""
        return self._runs.loop

    # --- install

    def cover(self) -> None:
        """Make Taskiq wrap the functions of new tasks, and watch for workers."""
        self.hear_of_workers()
        native: Any = self.native
        task_class = native.decorator_class
        native.decorator_class = lambda **given: self._cover(task_class(**given))

    def hear_of_workers(self) -> None:
        """Start and stop the plugins when a worker starts and stops."""
        self.native.add_event_handler(TaskiqEvents.WORKER_STARTUP, self._worker_begins)
        self.native.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, lambda _: self.end_async())

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The broker's own tasks by name, shared ones too."""
        return {
            name: task
            for name, task in self.native.get_all_tasks().items()
            # Those of a ``QueueTasks`` app have a mark of their own.
            if getattr(task.original_func, OURS, None) is not True
        }

    def count(self) -> int:
        """Cover the tasks that were declared before ``install``, and count all tasks."""
        tasks, local = self.tasks, self.native.local_task_registry
        for name, task in tasks.items():
            # Other brokers, without these plugins, may run a shared task too.
            local[name] = self._cover(task if name in local else copy(task))
        return len(tasks)

    def _cover(self, task: Any) -> Any:
        """Put plugins around a task's function, unless it has some."""
        function = task.original_func
        if not hasattr(function, OURS):
            is_async = inspect.iscoroutinefunction(function)
            wrapper = self.around(task.task_name, function, is_async=is_async)
            vars(wrapper)[OURS] = self
            task.original_func = functools.update_wrapper(wrapper, function)
        return task

    def around(
        self, name: str, function: Callable[..., Any], *, is_async: bool
    ) -> Callable[..., Any]:
        """Return a function that makes an attempt of each run; a direct call stays one."""

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            """Make an attempt on Taskiq's event loop."""
            if (run := take(name)) is None:
                return await function(*args, **kwargs)
            return await self.work_async(run, *self.call_of(run, function, args, kwargs))

        def call_plain(*args: Any, **kwargs: Any) -> Any:
            """Make an attempt, and ask its plugins, in a thread of Taskiq's pool."""
            if (run := take(name)) is None:
                return function(*args, **kwargs)
            return self.work(run, *self.call_of(run, function, args, kwargs))

        return call_async if is_async else call_plain

    # --- one attempt

    def call_of(self, run: Run, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Bind the dependencies that Taskiq injected, so that plugins see only what was sent."""
        sent = {name: value for name, value in kwargs.items() if name in run.message.kwargs}
        found = {name: value for name, value in kwargs.items() if name not in sent}
        return (functools.partial(func, **found) if found else func), args, sent

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message from Taskiq's; labels that the task was not declared with are metadata."""
        labels, declared = run.message.labels, self.options(run)
        metadata = {
            name: value
            for name, value in labels.items()
            # Values of other types are sent as text.
            if name not in _PASSING and str(value) != str(declared.get(name))
        }
        return TaskMessage(
            run.message.task_name,
            args,
            kwargs,
            uuid=run.message.task_id,
            priority=labels.get("priority"),
            attempt=1 + _count(labels, _NATIVE_RETRIES) + _count(labels, _RETRIES),
            queue=labels.get("queue_name") or getattr(self.native, "queue_name", None),
            engine=self.name,
            metadata={**metadata, **_hidden(labels.get(OURS))},
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return the labels that a task was declared with."""
        task = self.native.find_task(run.message.task_name)
        return {} if task is None else task.labels

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Return what the broker can do."""
        return abilities_of(self.native)

    def will_retry(self, run: Any, error: BaseException) -> bool:
        """Return whether Taskiq will run the task again."""
        labels = run.message.labels
        if isinstance(error, NoResultError):
            # A task that requeues itself; the retry middlewares ignore this error.
            return bool(labels.get(REQUEUED) != run.requeued)
        declared = self.options(run).get("types_of_exceptions")
        number = _count(labels, _NATIVE_RETRIES) + 1
        for one in self.native.middlewares:
            if isinstance(one, (taskiq.SimpleRetryMiddleware, taskiq.SmartRetryMiddleware)):
                is_wanted = str(labels.get("retry_on_error", one.default_retry_label)).lower()
                most = int(labels.get("max_retries", one.default_retry_count))
                # The first versions of these middlewares have no such attribute.
                kinds = declared or getattr(one, "types_of_exceptions", None) or (Exception,)
                if is_wanted == "true" and number < most and isinstance(error, tuple(kinds)):
                    return True
        return False

    def encode(self, run: Any, value: Any) -> object:  # noqa: ARG002  # the same for both
        """Encode an answer or an argument as JSON, as Taskiq's own formatter does."""
        return _ANY.dump_python(value, mode="json")

    async def retry(self, run: Any, attempt: Attempt, number: int) -> Exception:  # noqa: ARG002  # Taskiq's retries count too
        """Send the message again, as Taskiq's own middlewares do, without counting as theirs."""
        message = run.message
        labels = {**message.labels, _RETRIES: _count(message.labels, _RETRIES) + 1}
        kicker = self._kicker(message.task_name, message.task_id, labels, attempt.delay)
        await _kick(kicker, run.args, run.kwargs)
        return NoResultError()

    def cancel(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # the same for all
        """End the run with its ``TaskCancelError``, which Taskiq neither logs nor retries."""
        cancelled = NoResultError()
        cancelled.__cause__ = attempt.error
        return cancelled

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:
        """Fail the run, and stop Taskiq's own middlewares from retrying it."""
        run.message.labels["retry_on_error"] = False
        return attempt.error

    async def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a run with its metadata as labels; open the broker for it if it is not open."""
        labels = dict(self.tasks[message.name].labels)
        hidden: dict[str, Any] = {}
        for name, value in message.metadata.items():
            is_label = name not in _PASSING and type(value) in _LABELS
            (labels if is_label else hidden)[name] = value
        if hidden:
            labels[OURS] = json.dumps(hidden)
        kicker = self._kicker(message.name, str(message.uuid), labels, delay)
        if isinstance(self.native, InMemoryBroker):
            # It may execute the run before it returns.
            return await _kick(kicker, message.args, message.kwargs)
        async with asyncio.timeout(PATIENCE):
            try:
                await self._runs.open(kicker)
                return await _kick(kicker, message.args, message.kwargs)
            finally:
                await self._runs.close(kicker)

    def _kicker(self, name: str, uuid: str, labels: dict[str, Any], delay: float | None) -> Any:
        labels.pop("delay", None)
        if delay:
            labels["delay"] = delay
        return AsyncKicker[Any, Any](name, self.native, labels).with_task_id(uuid)

    # --- the plugins' life in a worker

    async def _worker_begins(self, _: Any) -> None:
        middlewares = self.native.middlewares
        # Ours comes last, because others may replace a run's message.
        middlewares.remove(self._runs)
        middlewares.append(self._runs)
        await self.begin_async()

    def refusal(self, error: Exception) -> BaseException:
        """Log why a worker cannot start, and end its command, which would replace it forever."""
        super().refusal(error)
        if current_process().name.startswith("worker-"):
            os.kill(os.getppid(), signal.SIGTERM)
        # With a broker in memory, the worker is the client's own process.
        return error


async def _kick(kicker: AsyncKicker[Any, Any], args: Any, kwargs: Any) -> None:
    try:
        await kicker.kiq(*args, **kwargs)
    except SendTaskError as error:
        # Only its cause says what happened; a middleware may raise one without.
        raise error.__cause__ or error from None


def _hidden(label: Any) -> dict[str, Any]:
    """Read the metadata that a label of its own cannot hold; anybody may have written it."""
    try:
        return {**json.loads(label)}
    except (TypeError, ValueError):
        return {}


def _count(labels: Mapping[str, Any], name: str) -> int:
    # Anybody may have written the labels of a message, and this one limits the retries.
    try:
        return max(int(labels.get(name, 0)), 0)
    except (TypeError, ValueError):
        return 0


install: Final = TaskiqNative.install
