"""Django tasks: plugins for the tasks of a backend of Django 6 or django-tasks.

Set ``TASKS = {"default": {"BACKEND": "shop.backend.Backend"}}``, and write in ``shop/backend.py``
``Backend = install("django.tasks.backends.immediate.ImmediateBackend")``. Django has no retries, so
a retry happens in the worker that runs the task. A call is a backend's run if Django's signal
``task_started`` announced it; any other ``task.call()`` is a plain function call.
"""

# Django has no types, and no tasks before version 6.
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

import atexit
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, copy_context
from datetime import timedelta
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
from qtasks_pluggy.engines.in_place import InPlace, Run, calling
from qtasks_pluggy.engines.native import HANDS_OVER, Importable
from qtasks_pluggy.exc import QTasksError

if find_spec("django.tasks"):
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task
    from django.tasks.signals import task_started
    from django.utils.json import normalize_json
else:
    require("django-tasks", "0.11")
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task
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
    BackendPlugins.install(made, plugins, discover=discover, intercept=intercept)
    return made


# The run that Django has announced in this context but not yet called.
_announced: Final[ContextVar[Any]] = ContextVar("qtasks_pluggy_announced", default=None)


def _announce(task_result: Any, **_: Any) -> None:
    _announced.set(task_result)


task_started.connect(_announce, dispatch_uid="qtasks_pluggy")


class _Run(Run):
    """A run of a task.

    Args:
        result: Django's record of it.
        context: The first argument of a task that takes a context; otherwise empty.
    """

    def __init__(self, result: Any, context: tuple[Any, ...]) -> None:
        self.result, self.context = result, context

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the task's function."""
        return self.result.task.func(*self.context, *args, **kwargs)


class BackendPlugins(InPlace[type[Any]]):
    """The plugins of a backend's class."""

    name = "django"
    kind = type
    gives_ids = True

    def cover(self) -> None:
        """Replace the class of the backend's tasks with one that asks plugins."""
        kind = self.native.task_class
        namespace = {"__slots__": (), "__module__": __name__, "plugged": self}
        self.native.task_class = type(kind.__name__, (_PluggedTask, kind), namespace)

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Every importable task, by its dotted name."""
        return Importable(lambda found: isinstance(found, Task))

    def count(self) -> int:
        """Return 1: a backend has no list of tasks to count."""
        return 1

    def run_of(self, task: Any, args: tuple[Any, ...]) -> _Run | None:
        """Return the run that Django has announced; None for a plain function call."""
        result = _announced.get()
        if result is None or result.task.func is not task.func:
            return None
        _announced.set(None)
        return _Run(result, args[:1] if task.takes_context else ())

    def carry_out(self, run: _Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the attempts of a run, plain or async, in a copy of the worker's context (R19)."""
        if not self.is_begun:
            try:
                self.begin_for_run()
            except Exception as error:
                self.refusal(error)
                raise
            atexit.register(self.end)
        function = run.result.task.func
        make = self.make_attempts
        if iscoroutinefunction(function):
            make = async_to_sync(self.make_attempts_async)
        return copy_context().run(make, run, calling(function), args, kwargs)

    def message(self, run: _Run, args: Any, kwargs: Any) -> TaskMessage:
        """Make a message from Django's record of a run."""
        result = run.result
        return TaskMessage(
            result.task.module_path,
            args,
            kwargs,
            uuid=str(result.id),
            priority=int(result.task.priority),
            created_at=result.enqueued_at.timestamp(),
            attempt=run.attempt,
            queue=result.task.queue_name,
            engine=self.name,
        )

    def can(self, run: _Run | None) -> Capabilities:
        """Return what the backend can do: if it keeps results, it keeps failed runs too."""
        keeps = self.native.supports_get_result
        is_delayed = run is not None or self.native.supports_defer
        return Capabilities(delay=is_delayed, dead_letter=keeps, results=keeps)

    def encode(self, run: _Run | None, value: Any) -> object:  # noqa: ARG002  # the same for all
        """Encode a value as JSON, as Django does."""
        return normalize_json(value)

    def send(self, message: TaskMessage, delay: float | None) -> str:
        """Enqueue a task on its own backend and return the id that Django chose."""
        task = self.tasks[message.name]
        if delay:
            task = task.using(run_after=timezone.now() + timedelta(seconds=delay))
        return str(task.enqueue(*message.args, **message.kwargs).id)


class _PluggedBackend:
    """A backend that asks plugins about the errors of its tasks."""

    qtasks_pluggy_app: BackendPlugins

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
    plugged: BackendPlugins

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; in a backend's run, with plugins around it."""
        run = self.plugged.run_of(self, args)
        if run is None:
            return super().call(*args, **kwargs)  # type: ignore[misc]  # a task's
        with HANDS_OVER:
            return self.plugged.carry_out(run, args[len(run.context) :], kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function from async code, as ``call`` does."""
        if _announced.get() is None:
            return await super().acall(*args, **kwargs)  # type: ignore[misc]  # a task's
        return await sync_to_async(self.call)(*args, **kwargs)
