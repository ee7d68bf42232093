"""What every ``install`` shares: plugins for the tasks of an app that is the engine's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor, TaskFunc, TaskMessage
from qtasks_pluggy.engines import Capabilities, lock_of, prepare
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.exc import CapabilityError


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


class Sender(Protocol):
    """What runs of an engine's own tasks are sent again by.

    Attributes:
        name: The engine's name.
        native: The engine's own app.
        blocking: True: sending waits for something outside of this process.
        loop: None: it needs no event loop.
    """

    name: str
    native: Any
    blocking: bool
    loop: None

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do for such a run."""
        ...

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks by name."""
        ...

    def function_of(self, name: str) -> Callable[..., Any]:
        """Return the function of one of them, for plugins to read."""
        ...

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a message to one of them, as ``Engine.submit`` does."""
        ...


class NativeApp(QueueTasks):
    """An engine's own app as its plugins see it.

    Args:
        name: Its name.
        sender: Sends its runs again; None where that cannot be done yet.
        options: As for ``QueueTasks``.
    """

    # The engine's own app, which sends them, needs no start.
    _sends_unstarted = True

    def __init__(self, name: str, sender: Sender | None, **options: Any) -> None:
        super().__init__(name, **options)
        self._sender = sender

    @property
    def engine(self) -> Sender | None:
        """What sends its runs again, whose ``native`` is the engine's own app."""
        return self._sender

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks by name."""
        return {} if self._sender is None else self._sender.tasks

    def _executor_for(self, message: TaskMessage) -> TaskExecutor:
        """Make an executor by which plugins are asked about a run that happened elsewhere."""
        if message.name not in self.tasks or self._sender is None:
            return super()._executor_for(message)
        self._ensure_loaded()
        func = TaskFunc(message.name, self._sender.function_of(message.name))
        kind = AsyncTask if func.is_async else SyncTask
        return TaskExecutor(kind(func, self), message, plugins=self.plugins)

    def replay(self, message: TaskMessage, **options: Any) -> Any:
        """Send a run of one of the engine's own tasks again, as ``QueueTasks.replay`` does.

        Raises:
            CapabilityError: For this engine that cannot be done yet.
        """
        if self._sender is None:
            msg = (
                f"app {self.name!r}, install(): a run of task {message.name!r} cannot be sent again"
                " on this engine; send it as your own code does"
            )
            raise CapabilityError(msg)
        return super().replay(message, **options)


class Plugged:
    """The plugins behind an engine's own app, made anew in every process that runs its tasks.

    The engine's own app knows its latest one, so that ``installed_in`` finds it.

    Args:
        native: The engine's own app.
        name: The app's name.
        plugins: As for ``QueueTasks``.
        discover: As for ``QueueTasks``.
        intercept: Exception classes that plugins are asked about.
        sender: Sends runs again; None where that cannot be done yet.
    """

    def __init__(
        self,
        native: Any,
        name: str,
        plugins: Iterable[Any],
        *,
        discover: bool,
        intercept: type[BaseException] | Iterable[type[BaseException]],
        sender: Sender | None = None,
    ) -> None:
        self.name = name
        self.plugins: tuple[Any, ...] = tuple(plugins)
        self.discover = discover
        self.intercept = intercept
        self._sender = sender
        self._lock = lock_of(self)
        self._pid = os.getpid()
        self._tasks: dict[tuple[str, Any], AsyncTask[..., Any] | SyncTask[..., Any]] = {}
        # Made here once, so that faults of the arguments are told where they were given.
        self._app = self._make_app()
        vars(native)[INSTALLED] = self

    @property
    def app(self) -> QueueTasks:
        """The app behind it, this process's own; ``worker_lifespan(app)`` starts its plugins."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._app, self._tasks = self._make_app(), {}
                    self._pid = os.getpid()
        return self._app

    def executor_for(self, message: TaskMessage, func: Callable[..., Any]) -> TaskExecutor:
        """Make the executor of one attempt.

        Args:
            message: It names the task.
            func: The engine's own task function.
        """
        app = self.app
        prepare(app)
        task = self._tasks.get((message.name, func))
        if task is None:
            task_func = TaskFunc(message.name, func, intercept=self.intercept, max_retries=None)
            kind = AsyncTask if task_func.is_async else SyncTask
            task = self._tasks[message.name, func] = kind(task_func, app)
        return TaskExecutor(task, message, plugins=app.plugins)

    def _make_app(self) -> QueueTasks:
        return NativeApp(
            self.name,
            self._sender,
            plugins=self.plugins,
            discover=self.discover,
            intercept=self.intercept,
        )
