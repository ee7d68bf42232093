"""The ``QueueTasks`` app that plugins see for an engine's own app."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor, TaskFunc, TaskMessage
from qtasks_pluggy.engines import prepare
from qtasks_pluggy.exc import PluginRegistrationError


class NativeApp(QueueTasks):
    """The ``QueueTasks`` app that plugins see for an engine's own app.

    Args:
        native: The engine, which sends replays.
        options: As for ``QueueTasks``.
    """

    # The engine's own app sends the runs, and it needs no start.
    _sends_unstarted = True

    def __init__(self, native: Any, **options: Any) -> None:
        super().__init__(native.app_name, **options)
        self._native = native

    @property
    def engine(self) -> Any:
        """The engine; its ``native`` is the engine's own app."""
        return self._native

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks by name."""
        tasks: Mapping[str, Any] = self._native.tasks
        return tasks

    def _executor_for(self, message: TaskMessage) -> TaskExecutor:
        """Make an executor that asks the plugins about a past run."""
        if message.name not in self.tasks:
            return super()._executor_for(message)
        prepare(self)
        func = TaskFunc(message.name, self._native.function_of(message.name))
        kind = AsyncTask if func.is_async else SyncTask
        return TaskExecutor(kind(func, self), message, plugins=self.plugins)


def resolved(plugin: Any) -> Any:
    """Return a plugin, importing it if it is a name.

    Raises:
        PluginRegistrationError: The name cannot be imported.
    """
    if not isinstance(plugin, str):
        return plugin
    try:
        return resolve_name(plugin)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"install(): plugin {plugin!r} cannot be imported: {error}; write 'module:attribute'"
        raise PluginRegistrationError(msg) from error
