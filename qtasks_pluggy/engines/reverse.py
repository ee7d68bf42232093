"""What every ``install`` shares: plugins for the tasks of an app that is the engine's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from qtasks_pluggy import QueueTasks, TaskExecutor, TaskFunc, TaskMessage
from qtasks_pluggy.engines import lock_of, prepare
from qtasks_pluggy.engines._installed import INSTALLED


def refuse_other(engine: str, given: Any, kind: type[Any]) -> None:
    """Refuse what ``install`` can do nothing with.

    Raises:
        TypeError: It is no ``kind``.
    """
    if not isinstance(given, kind):
        got = f"{type(given).__module__}.{type(given).__qualname__}"
        msg = (
            f"engine {engine!r}: install() expected a {kind.__module__.partition('.')[0]}"
            f".{kind.__name__}, got a {got}; give it the object that you make with {engine} itself"
        )
        raise TypeError(msg)


class Plugged:
    """The plugins behind an engine's own app, made anew in every process that runs its tasks.

    The engine's own app knows its latest one, so that ``installed_in`` finds it.

    Args:
        native: The engine's own app.
        name: The app's name.
        plugins: As for ``QueueTasks``.
        discover: As for ``QueueTasks``.
        intercept: Exception classes that plugins are asked about.
    """

    def __init__(
        self,
        native: Any,
        name: str,
        plugins: Iterable[Any],
        *,
        discover: bool,
        intercept: type[BaseException] | Iterable[type[BaseException]],
    ) -> None:
        self.name = name
        self.plugins: tuple[Any, ...] = tuple(plugins)
        self.discover = discover
        self.intercept = intercept
        self._lock = lock_of(self)
        self._pid = os.getpid()
        self._funcs: dict[tuple[str, Any], TaskFunc] = {}
        # Made here once, so that faults of the arguments are told where they were given.
        self._app = self._make_app()
        vars(native)[INSTALLED] = self

    @property
    def app(self) -> QueueTasks:
        """The app behind it, this process's own; ``worker_lifespan(app)`` starts its plugins."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._app, self._pid = self._make_app(), os.getpid()
        return self._app

    def executor_for(self, message: TaskMessage, func: Callable[..., Any]) -> TaskExecutor:
        """Make the executor of one attempt.

        Args:
            message: It names the task.
            func: The engine's own task function.
        """
        app = self.app
        prepare(app)
        task = self._funcs.get((message.name, func))
        if task is None:
            task = TaskFunc(message.name, func, intercept=self.intercept, max_retries=None)
            self._funcs[message.name, func] = task
        return TaskExecutor(task, message, plugins=app.plugins)

    def _make_app(self) -> QueueTasks:
        return QueueTasks(
            self.name, plugins=self.plugins, discover=self.discover, intercept=self.intercept
        )
