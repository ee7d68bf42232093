"""A plugin that records the calls of its hooks."""

from __future__ import annotations

from typing import Any

import attrs

from qtasks_hookspecs import Outcome, RunningApp, RunningTask, hookimpl, on_error


@attrs.frozen
class Heard:
    """One call of a hook.

    Attributes:
        hook: The hook's name.
        task: The task's name; None for the hooks of an app.
        attempt: The attempt of the run, from 1; None for the hooks of an app.
        value: What the hook was about: the arguments as a pair, the result, the task's own error,
            or the outcome; for the hooks of an app, the app.
    """

    hook: str
    task: str | None
    attempt: int | None
    value: Any


class RecordingPlugin:
    """A plugin without opinions that records each call of its hooks, in order.

    It has every hook but ``task_executor_dead_letter``: having that one changes what an engine
    allows. ``outcomes`` tells dead letters too.

    Args:
        name: The plugin's name.

    Attributes:
        heard: The calls.
    """

    def __init__(self, name: str = "recording") -> None:
        self.name: str = name
        self.heard: list[Heard] = []

    @property
    def hooks(self) -> list[str]:
        """The names of the hooks that were called, in order."""
        return [one.hook for one in self.heard]

    @property
    def asked(self) -> list[BaseException]:
        """The tasks' own errors that plugins were asked about."""
        return self._values("task_executor_run_task_trigger_error")

    @property
    def outcomes(self) -> list[Outcome]:
        """How each attempt ended."""
        return self._values("task_executor_attempt_ended")

    @property
    def failed(self) -> list[BaseException]:
        """The errors of the runs that failed for good, as their callers got them."""
        return self._values("task_executor_task_failed")

    @property
    def closed(self) -> list[Outcome]:
        """How each run ended."""
        return self._values("task_executor_task_close")

    def _values(self, hook: str) -> list[Any]:
        return [one.value for one in self.heard if one.hook == hook]

    def _hear(self, hook: str, run: RunningTask, value: Any) -> None:
        self.heard.append(Heard(hook, run.task_func.name, run.attempt, value))

    @hookimpl
    def qtasks_start(self, app: RunningApp) -> None:
        """Record it."""
        self.heard.append(Heard("qtasks_start", None, None, app))

    @hookimpl
    def qtasks_stop(self, app: RunningApp) -> None:
        """Record it."""
        self.heard.append(Heard("qtasks_stop", None, None, app))

    @hookimpl
    def task_executor_args_replace(
        self, task_executor: RunningTask, args: Any, kwargs: Any
    ) -> None:
        """Record it."""
        self._hear("task_executor_args_replace", task_executor, (args, dict(kwargs)))

    @hookimpl
    def task_executor_run_task(self, task_executor: RunningTask, result: Any) -> None:
        """Record it."""
        self._hear("task_executor_run_task", task_executor, result)

    @on_error()
    def hear_error(self, run: RunningTask, error: BaseException) -> None:
        """Record it."""
        self._hear("task_executor_run_task_trigger_error", run, error)

    @hookimpl
    def task_executor_attempt_ended(self, task_executor: RunningTask, outcome: Outcome) -> None:
        """Record it."""
        self._hear("task_executor_attempt_ended", task_executor, outcome)

    @hookimpl
    def task_executor_task_failed(self, task_executor: RunningTask, e: BaseException) -> None:
        """Record it."""
        self._hear("task_executor_task_failed", task_executor, e)

    @hookimpl
    def task_executor_task_close(self, task_executor: RunningTask, outcome: Outcome) -> None:
        """Record it."""
        self._hear("task_executor_task_close", task_executor, outcome)
