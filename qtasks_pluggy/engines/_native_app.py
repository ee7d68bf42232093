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
    _start_hint = (
        "the engine's worker calls qtasks_start; code that runs tasks itself does so inside"
        " 'with installed_in(app):', of qtasks_pluggy.engines"
    )

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
            func: The task's function, the same for all of its runs.
            message: The run's message.
        """
        task = self._described.get(message.name)
        if task is None or task.func != func:
            tags, extra = _tags_and_extra(self._adapter.options(run))
            task_func = TaskFunc(message.name, func, tags=tags, extra=extra)
            task = self._described[message.name] = self._task(task_func)
        return self._executor(task, message)

    def _executor_for(self, message: TaskMessage) -> TaskExecutor:
        """Make an executor that asks the plugins about a past run."""
        name = message.name
        if name not in self.tasks:
            return super()._executor_for(message)
        return self._executor(self._task(TaskFunc(name, self._adapter.function_of(name))), message)

    def _task(self, task_func: TaskFunc) -> Any:
        return (AsyncTask if task_func.is_async else SyncTask)(task_func, self)


def _tags_and_extra(options: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Split a task's declared options; ``tags`` that are not strings are an option like others."""
    extra = dict(options)
    given: Any = extra.pop("tags", ())
    tags = [given] if isinstance(given, str) else given
    is_list = isinstance(tags, (tuple, list, set, frozenset))
    if is_list and all(isinstance(tag, str) for tag in tags):
        return tuple(tags), extra
    return (), {**extra, "tags": given}
