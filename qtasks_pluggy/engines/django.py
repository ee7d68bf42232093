"""Django tasks: plugins for the tasks of a backend of Django 6 or django-tasks.

Set ``TASKS = {"default": {"BACKEND": "shop.backend.Backend"}}``, and write in ``shop/backend.py``
``Backend = install("django.tasks.backends.immediate.ImmediateBackend")``. Django has no retries, so
a retry happens in the worker that runs the task. A call is a backend's run if Django's signal
``task_started`` announced it; any other ``task.call()`` is a plain function call.
"""

# Django has no types, and no tasks before version 6.
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from inspect import iscoroutinefunction
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("django", "5.2")

from asgiref.sync import async_to_sync, sync_to_async
from django.core import checks
from django.utils import timezone
from django.utils.module_loading import import_string

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Capabilities, load_plugins
from qtasks_pluggy.engines._native_tasks import passes_first, passing
from qtasks_pluggy.engines.in_place import InPlace
from qtasks_pluggy.engines.native import Importable
from qtasks_pluggy.exc import QTasksError

if find_spec("django.tasks"):
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.signals import task_started
    from django.utils.json import normalize_json
else:
    require("django-tasks", "0.11")
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.signals import task_started
    from django_tasks.utils import normalize_json

__all__ = ["install"]


def install(
    backend: type[Any] | str,
    plugins: Iterable[Any] = (),
    *,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> type[Any]:
    """Make a backend that asks plugins about the errors of its tasks.

    Args:
        backend: The backend's class, or its dotted name, as in the setting ``TASKS``.
        plugins: As for ``QueueTasks``, or names, ``"module"`` or ``"module:attribute"``.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, at every attempt.

    Returns:
        The new backend class; set ``BACKEND`` in ``TASKS`` to its dotted name.

    Raises:
        ImportError: There is no such backend.
        PluginRegistrationError: ``plugins`` have faults.
        TypeError: ``backend`` is not a task backend.
    """
    native: Any = import_string(backend) if isinstance(backend, str) else backend
    if not (isinstance(native, type) and issubclass(native, BaseTaskBackend)):
        msg = f"engine 'django': install() expected a task backend class, got {native!r}"
        raise TypeError(msg)
    made = type(native.__name__, (_PluggedBackend, native), {"__module__": __name__})
    DjangoNative.install(made, plugins, discover=discover, intercept=intercept)
    return made


# The run that Django has announced in this context but not yet called.
_announced: Final[ContextVar[Any]] = ContextVar("qtasks_pluggy_announced", default=None)


def _announce(task_result: Any, **_: Any) -> None:
    _announced.set(task_result)


task_started.connect(_announce)


class DjangoNative(InPlace):
    """The plugins of a backend's class; a run is Django's ``TaskResult``."""

    name = "django"
    kind = type
    gives_ids = True

    def cover(self) -> None:
        """Replace the class of the backend's tasks with one that asks plugins."""
        kind = self.native.task_class
        namespace = {"__slots__": (), "__module__": __name__, "plugged": self}
        self.passes_context = cache(passes_first)
        self.native.task_class = type(kind.__name__, (_PluggedTask, kind), namespace)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Every importable task that asks plugins, by its dotted name."""
        return Importable(lambda found: isinstance(found, _PluggedTask))

    def function_of(self, name: str) -> Callable[..., Any]:
        """Return the function of a task."""
        return self.tasks[name].func  # type: ignore[no-any-return]  # a task's

    def begin_for_run(self) -> None:
        """Start the plugins before a process's first run, and stop them when it exits."""
        if self.is_begun:
            return
        try:
            super().begin_for_run()
        except Exception as error:
            self.refusal(error)
            raise
        atexit.register(self.end)

    def message(self, run: Any, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from Django's record of a run."""
        return TaskMessage(
            run.task.module_path,
            args,
            kwargs,
            uuid=run.id,
            priority=run.task.priority,
            created_at=run.enqueued_at.timestamp(),
            queue=run.task.queue_name,
            engine=self.name,
        )

    def can(self, run: Any) -> Capabilities:
        """Return what the backend can do: if it keeps results, it keeps failed runs too."""
        keeps = self.native.supports_get_result
        is_delayed = run is not None or self.native.supports_defer
        return Capabilities(delay=is_delayed, dead_letter=keeps, results=keeps)

    def encode(self, run: Any, value: Any) -> object:  # noqa: ARG002  # the same for all
        """Encode a value as JSON, as Django does."""
        return normalize_json(value)

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Enqueue a task on its own backend and return the id that Django chose."""
        task = self.tasks[message.name]
        if delay:
            task = task.using(run_after=timezone.now() + timedelta(seconds=delay))
        return task.enqueue(*message.args, **message.kwargs).id


class _PluggedBackend:
    """A backend that asks plugins about the errors of its tasks."""

    qtasks_pluggy_app: DjangoNative

    def check(self, **options: Any) -> Iterable[checks.CheckMessage]:
        """Also report the plugins' faults, before a worker or a server starts."""
        yield from super().check(**options)  # type: ignore[misc]  # a backend's
        try:
            load_plugins(self.qtasks_pluggy_app.app)
        except QTasksError as error:
            yield checks.Error(str(error), id="qtasks_pluggy.E001")


class _PluggedTask:
    """A task that asks plugins about its errors."""

    __slots__ = ()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the function; in the run that Django has announced, with plugins around it."""
        if iscoroutinefunction(self.func):
            # Django's own way: a cancelled client cancels the task.
            return async_to_sync(self.acall)(*args, **kwargs)
        with _taken(self, args) as run:
            if run is None:
                return super().call(*args, **kwargs)  # type: ignore[misc]  # a task's
            self.plugged.begin_for_run()
            return self.plugged.work(*run, kwargs)

    async def acall(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the function from async code, as ``call`` does."""
        if not iscoroutinefunction(self.func):
            return await sync_to_async(self.call)(*args, **kwargs)
        with _taken(self, args) as run:
            if run is None:
                return await super().acall(*args, **kwargs)  # type: ignore[misc]  # a task's
            if not self.plugged.is_begun:
                # This waits for the plain task that is running, if any.
                await sync_to_async(self.plugged.begin_for_run)()
            # An asyncio task has a copy of the context.
            return await asyncio.create_task(self.plugged.work_async(*run, kwargs))


@contextmanager
def _taken(task: Any, args: tuple[Any, ...]) -> Generator[tuple[Any, Any, tuple[Any, ...]] | None]:
    """Take the run that Django has announced for a task, if it has.

    Yields:
        The run, the function, and its arguments; plugins do not see Django's context.
    """
    run = _announced.get()
    if run is None or run.task.func is not task.func:
        yield None
        return
    _announced.set(None)
    if not task.takes_context:
        yield run, task.func, args
        return
    with passing(args[0]):
        yield run, task.plugged.passes_context(task.func), args[1:]
