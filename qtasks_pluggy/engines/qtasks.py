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
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from json import dumps
from pkgutil import resolve_name
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
from qtasks_pluggy.engines import Attempt, Capabilities, run_to_completion
from qtasks_pluggy.engines._native_tasks import passes_first, passing
from qtasks_pluggy.engines.in_place import InPlace
from qtasks_pluggy.engines.native import log_as
from qtasks_pluggy.exc import TaskPluginTriggerError

__all__ = ["install"]


class QTasksNative(InPlace):
    """The plugins of a QTasks app; a run is a QTasks executor that calls a task."""

    name = "qtasks"
    kind = BaseQueueTasks
    control = (NativeCancelError,)
    ends_worker = ()
    gives_ids = True

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Use these plugins; QTasks plugins are wrapped in our ``BasePlugin``."""
        super().take([_adapted(one) for one in plugins], **options)

    def cover(self) -> None:
        """Replace the worker's executor, and add a plugin that hears when the worker starts."""
        self.through_qtasks = cache(passes_first)
        worker = self.native.worker
        self.is_async = isinstance(self.native, AsyncApp)
        worker.task_executor = self._around(worker.task_executor)
        self.native.add_plugin(_Life(self), ["worker_start", "worker_stop"], component="worker")

    async def follow(self, trigger: str) -> None:
        """Start the plugins when the worker starts, and stop them when it stops."""
        if trigger == "worker_stop":
            await self.end_async() if self.is_async else self.end()
        if trigger != "worker_start":
            return
        logging.getLogger("qtasks_pluggy").addFilter(_as_component)
        log_as(self.app_name)
        for task in self.native.worker._tasks.values():  # noqa: SLF001  # also those of routers
            if task.executor is not None:
                task.executor = self._around(task.executor)
        if self.is_async:
            self.loop = asyncio.get_running_loop()
            await self.begin_async()
        else:
            self.begin()

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
        """The functions of the app's tasks by name."""
        return {name: task.func for name, task in self.native.tasks.items()}

    def message(self, run: Any, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from QTasks' own."""
        sent = run.task_broker
        return TaskMessage(
            sent.name,
            args,
            kwargs,
            uuid=str(sent.uuid),
            priority=sent.priority,
            created_at=sent.created_at,
            engine=self.name,
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return a task's tags, and its declared options that QTasks itself does not use."""
        return {**run.task_func.extra, "tags": run.task_func.tags or ()}

    def can(self, run: Any) -> Capabilities:
        """Return what QTasks can do: it has neither delays nor dead letters of its own."""
        return Capabilities(delay=run is not None, results=True)

    def cancel(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # the same for all
        """Return QTasks' own error for a cancelled run."""
        cancelled = NativeCancelError(attempt.reason)
        cancelled.__cause__ = attempt.error  # whose own cause is the task's error
        return cancelled

    def fail(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # the same for all
        """Return QTasks' own trigger error for ours, so that its own plugins are asked too."""
        error: Any = attempt.error
        native = error.__cause__
        if not (type(error) is TaskPluginTriggerError and isinstance(native, NativeTriggerError)):
            return error
        for note in getattr(error, "__notes__", ()):
            native.add_note(note)
        return native

    def encode(self, run: Any, value: Any) -> object:
        """Encode a value as JSON, as QTasks does, unless the task has its own ``decode``."""
        if run is not None and run.task_func.decode is not None:
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
        return _id_of(sent) if self.is_async else str(sent.uuid)


async def _id_of(sent: Any) -> str:
    return str((await sent).uuid)


class _Plugged:
    """A QTasks executor that calls its task through ours."""

    def run_task(self: Any) -> Any:
        """Call the task; in an async app, return an awaitable."""
        plugged, task, sent = self.plugged, self.task_func, self.task_broker
        self._prepared = self._args or [], self._kwargs or {}
        call = _Plugged._call_async if plugged.is_async else _Plugged._call
        # Plugins see neither the ``self`` of an ``echo`` task nor its parameter.
        func = plugged.through_qtasks(task.func, call, hides=task.echo)
        given = self, func, tuple(sent.args), sent.kwargs
        if plugged.is_async:
            return self._run_async(*given)
        with passing(self):
            return plugged.work(*given)

    async def _run_async(self: Any, *given: Any) -> Any:
        with passing(self):
            return await self.plugged.work_async(*given)

    def _call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._pass_on(args, kwargs)
        with _trigger_errors_of_ours():
            return super().run_task()  # type: ignore[misc]  # an executor's

    async def _call_async(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._pass_on(args, kwargs)
        with _trigger_errors_of_ours():
            return await super().run_task()  # type: ignore[misc]  # an executor's

    def _pass_on(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the arguments; those that plugins left unchanged are as QTasks prepared them."""
        sent, (own, named) = self.task_broker, self._prepared
        if (args, kwargs) != (tuple(sent.args), sent.kwargs):
            echo = own[:1] if self.task_func.echo else []
            injected = {name: value for name, value in named.items() if name not in sent.kwargs}
            own, named = [*echo, *args], injected | kwargs
        self._args, self._kwargs = own, named


@contextmanager
def _trigger_errors_of_ours() -> Generator[None]:
    """Raise our trigger error for QTasks' own, with the task's frames, which failures show."""
    try:
        yield
    except NativeTriggerError as error:
        ours = TaskPluginTriggerError(*error.args, **error.kwargs)
        raise ours.with_traceback(error.__traceback__) from error


def _adapted(plugin: Any) -> Any:
    """Return a plugin that was written for QTasks as our ``BasePlugin``, any other as it is."""
    if isinstance(plugin, str):
        with suppress(Exception):  # of whatever an import raises; registering reports it
            plugin = resolve_name(plugin)
    if not isinstance(plugin, BasePlugin):
        return plugin
    ours = PluginOfItsShape(plugin.name or type(plugin).__name__)
    vars(ours).update(start=plugin.start, stop=plugin.stop, trigger=plugin.trigger)
    vars(ours).update(handlers=getattr(plugin, "handlers", None))
    return ours


class _Life:
    """A plugin of QTasks that tells ours of the worker's start and stop."""

    name = "qtasks_pluggy"

    def __init__(self, plugged: QTasksNative) -> None:
        self._plugged = plugged

    def trigger(self, name: str = "", **_: Any) -> Any:
        """Follow the worker; an async one awaits that."""
        followed = self._plugged.follow(name)
        return followed if self._plugged.is_async else run_to_completion(followed)

    # QTasks calls these for some plugins, when the worker has not started or has stopped.
    start = stop = trigger


def _as_component(record: logging.LogRecord) -> bool:
    """Set the component name that QTasks' log format shows."""
    record.subname = "qtasks_pluggy"
    return True


install: Final = QTasksNative.install
