"""QTasks: plugins for the tasks of a QTasks app, the library that the idea came from.

``install(app)`` makes QTasks' executor call each task through ours, in plain and async apps.
QTasks' own plugins still see the errors that ours do not answer, and its middlewares, dependencies
and models still prepare the arguments first.

This module uses these private names of QTasks, because there are no public ones; tests check them
with the oldest and the newest supported version:

===========================  ===================================================================
``executor._args, _kwargs``  the arguments that its plugins and middlewares have prepared
``worker._tasks``            all tasks, with routers' and shared ones, and their own executors
===========================  ===================================================================
"""

# QTasks' types describe its own plugins only.
# pyright: reportMissingTypeStubs=false, reportMissingTypeArgument=false, reportAssignmentType=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from json import dumps
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("qtasks", "1.6")

from qtasks.asyncio import QueueTasks as AsyncApp
from qtasks.base.qtasks import BaseQueueTasks
from qtasks.exc import TaskCancelError as NativeCancelError
from qtasks.exc import TaskPluginTriggerError as NativeTriggerError
from qtasks.plugins.base import BasePlugin

from qtasks_pluggy import BasePlugin as PluginOfItsShape
from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines._native_app import resolved
from qtasks_pluggy.engines.in_place import InPlace, Run, calling
from qtasks_pluggy.engines.native import log_as
from qtasks_pluggy.exc import TaskPluginTriggerError

__all__ = ["install"]


class AppPlugins(InPlace[Any]):
    """The plugins of a QTasks app; a run is a QTasks executor that calls a task."""

    name = "qtasks"
    kind = BaseQueueTasks
    control = (NativeCancelError,)
    ends_worker = ()
    gives_ids = True

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Use these plugins; QTasks plugins are wrapped in our ``BasePlugin``."""
        given = map(resolved, plugins)
        super().take(
            [_Adapted(one) if isinstance(one, BasePlugin) else one for one in given], **options
        )

    def cover(self) -> None:
        """Replace the worker's executor, and add a plugin that hears when the worker starts."""
        worker = self.native.worker
        self.is_async = isinstance(self.native, AsyncApp)
        worker.task_executor = self._around(worker.task_executor)
        self.native.add_plugin(_Life(self), ["worker_start", "worker_stop"], component="worker")

    def cover_own_executors(self) -> None:
        """Replace the executors of tasks that have their own."""
        for task in self.native.worker._tasks.values():  # noqa: SLF001  # also those of routers
            if task.executor is not None:
                task.executor = self._around(task.executor)

    def _around(self, kind: type[Any]) -> type[Any]:
        if issubclass(kind, _Plugged):
            return kind
        return type(kind.__name__, (_Plugged, kind), {"plugged": self, "__module__": __name__})

    @property
    def app_name(self) -> str:
        """The app's name."""
        return str(self.native.name)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's tasks by name."""
        return dict(self.native.tasks)

    def message(self, run: _Run, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from QTasks' own."""
        sent = run.executor.task_broker
        return TaskMessage(
            sent.name,
            args,
            kwargs,
            uuid=str(sent.uuid),
            priority=sent.priority,
            created_at=sent.created_at,
            attempt=run.attempt,
            engine=self.name,
        )

    def options(self, run: _Run) -> Mapping[str, Any]:
        """Return a task's tags, and its declared options that QTasks itself does not use."""
        task = run.executor.task_func
        return {**(task.extra or {}), "tags": tuple(task.tags or ())}

    def can(self, run: _Run | None) -> Capabilities:
        """Return what QTasks can do: it has neither delays nor dead letters of its own."""
        return Capabilities(delay=run is not None, results=True)

    def cancel(self, run: _Run, attempt: Attempt) -> Any:  # noqa: ARG002  # the same for all
        """Return QTasks' own error for a cancelled run."""
        cancelled = NativeCancelError(attempt.reason)
        cancelled.__cause__ = attempt.error
        return cancelled

    def encode(self, run: _Run | None, value: Any) -> object:
        """Encode a value as JSON, as QTasks does, unless the task has its own ``decode``."""
        if run is not None and run.executor.task_func.decode is not None:
            return None
        # QTasks stores a pydantic model as a dictionary of its fields.
        return dumps(value.model_dump() if hasattr(value, "model_dump") else value)

    def send(self, message: TaskMessage, delay: float | None) -> Any:  # noqa: ARG002  # none
        """Add a task to the app's broker, and return the id that the broker chose."""
        sent = self.native.broker.add(
            task_name=message.name,
            priority=message.priority or 0,
            args=tuple(message.args),
            kwargs=dict(message.kwargs),
        )
        return self._id_of(sent) if self.is_async else str(sent.uuid)

    async def _id_of(self, sent: Any) -> str:
        return str((await sent).uuid)


class _Run(Run):
    """A run of a task.

    Args:
        executor: QTasks' executor of the run; it has prepared the arguments.
        run_task: The executor's own step that calls the function.
    """

    def __init__(self, executor: Any, run_task: Callable[[], Any]) -> None:
        self.executor = executor
        self._run_task = run_task
        self._prepared = [*(executor._args or ())], {**(executor._kwargs or {})}  # noqa: SLF001  # no other way

    @property
    def sent(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they were sent."""
        message = self.executor.task_broker
        return tuple(message.args), dict(message.kwargs)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the task's function; arguments that plugins left unchanged go as QTasks prepared."""
        executor, (own, named) = self.executor, self._prepared
        if (args, kwargs) != self.sent:
            echo = own[:1] if executor.task_func.echo else []
            injected = {name: value for name, value in named.items() if name not in self.sent[1]}
            own, named = [*echo, *args], injected | kwargs
        executor._args, executor._kwargs = [*own], {**named}  # noqa: SLF001  # no other way
        if executor.plugged.is_async:
            return self._call_async()
        with _trigger_errors_as_ours():
            return self._run_task()

    async def _call_async(self) -> Any:
        with _trigger_errors_as_ours():
            return await self._run_task()


@contextmanager
def _trigger_errors_as_ours() -> Generator[None]:
    try:
        yield
    except NativeTriggerError as error:
        raise TaskPluginTriggerError(*error.args, **error.kwargs) from error


class _Plugged:
    """A QTasks executor that calls its task through ours."""

    plugged: AppPlugins
    task_func: Any

    def run_task(self) -> Any:
        """Call the task; in an async app, return an awaitable."""
        run = _Run(self, super().run_task)  # type: ignore[misc]  # an executor's
        func = calling(self.task_func.func, is_async=self.plugged.is_async)
        return self._run_async(run, func) if self.plugged.is_async else self._run(run, func)

    def _run(self, run: _Run, func: Callable[..., Any]) -> Any:
        try:
            return self.plugged.make_attempts(run, func, *run.sent)
        except TaskPluginTriggerError as error:
            unanswered = _native(error)
        # QTasks' own plugins may have an answer.
        raise unanswered

    async def _run_async(self, run: _Run, func: Callable[..., Any]) -> Any:
        try:
            return await self.plugged.make_attempts_async(run, func, *run.sent)
        except TaskPluginTriggerError as error:
            unanswered = _native(error)
        raise unanswered


def _native(error: TaskPluginTriggerError) -> BaseException:
    """Return the QTasks error that a trigger error wraps, with its notes."""
    native: BaseException | None = error.__cause__
    if native is None or not isinstance(native, NativeTriggerError):
        return error
    for note in getattr(error, "__notes__", ()):
        native.add_note(note)
    return native


class _Adapted(PluginOfItsShape):
    """A plugin that was written for QTasks."""

    def __init__(self, native: Any) -> None:
        super().__init__(native.name or type(native).__name__)
        vars(self).update(start=native.start, stop=native.stop, trigger=native.trigger)
        if isinstance(getattr(native, "handlers", None), dict):
            self.handlers = native.handlers


def _as_component(record: logging.LogRecord) -> bool:
    """Set the component name that QTasks' log format shows."""
    record.subname = "qtasks_pluggy"
    return True


class _Life(BasePlugin):  # type: ignore[misc]  # without types
    """Starts and stops the plugins with QTasks' worker; an async worker awaits the results."""

    def __init__(self, plugged: AppPlugins) -> None:
        super().__init__(None)
        self._plugged = plugged

    def start(self, *_: Any, **__: Any) -> Any:
        """Do nothing: QTasks does not call this for every plugin."""
        return self.trigger("")

    stop = start

    def trigger(self, name: str, *_: Any, **__: Any) -> Any:
        """Start or stop the plugins when the worker starts or stops."""
        plugged = self._plugged
        if plugged.is_async:
            return self._trigger_async(name)
        if name == "worker_start":
            with self._refused():
                plugged.begin()
        elif name == "worker_stop":
            plugged.end()
        return None

    async def _trigger_async(self, name: str) -> None:
        plugged = self._plugged
        if name == "worker_start":
            plugged.loop = asyncio.get_running_loop()
            with self._refused():
                await plugged.begin_async()
        elif name == "worker_stop":
            await plugged.end_async()

    @contextmanager
    def _refused(self) -> Generator[None]:
        """End a worker that cannot start, and write the reason to QTasks' log."""
        logging.getLogger("qtasks_pluggy").addFilter(_as_component)
        log_as(self._plugged.app_name)
        try:
            self._plugged.cover_own_executors()
            yield
        except Exception as error:
            raise self._plugged.refusal(error) from error


install: Final = AppPlugins.install
