"""The ``QueueTasks`` app that plugins see for an engine's own app."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor, TaskFunc, TaskMessage


class NativeApp(QueueTasks):
    """The ``QueueTasks`` app that plugins see for an engine's own app.

    Args:
        adapter: The ``Native`` object, which sends replays.
        options: As for ``QueueTasks``.
    """

    # The engine's own app sends the runs, and it needs no start.
    _sends_unstarted = True

    def __init__(self, adapter: Any, **options: Any) -> None:
        super().__init__(adapter.app_name, **options)
        self._adapter = adapter
        self._described: dict[str, Any] = {}

    @property
    def engine(self) -> Any:
        """The adapter; its ``native`` is the engine's own app."""
        return self._adapter

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks by name."""
        return self._adapter.tasks  # type: ignore[no-any-return]  # a Native object's

    def executor_of(self, run: Any, func: Callable[..., Any], message: TaskMessage) -> TaskExecutor:
        """Make the executor of one attempt.

        Args:
            run: The engine's object for the attempt.
            func: The task's function; an engine may make a new one for each run.
            message: The run's message.
        """
        task = self._described.get(message.name)
        if task is None or task.func != func:
            extra = dict(self._adapter.options(run))
            given: Any = extra.pop("tags", ())
            tags = [given] if isinstance(given, str) else given
            is_list = isinstance(tags, (tuple, list, set, frozenset))
            if not is_list or not all(isinstance(tag, str) for tag in tags):
                extra["tags"], tags = given, ()
            task_func = TaskFunc(message.name, func, tags=tuple(tags), extra=extra)
            task = self._described[message.name] = self._task(task_func)
        return super()._executor_for(message, task)

    def _executor_for(self, message: TaskMessage, task: Any = None) -> TaskExecutor:
        """Make an executor that asks the plugins about a past run."""
        name = message.name
        if name in self.tasks:
            task = self._task(TaskFunc(name, self._adapter.function_of(name)))
        return super()._executor_for(message, task)

    def _task(self, task_func: TaskFunc) -> Any:
        return (AsyncTask if task_func.is_async else SyncTask)(task_func, self)
