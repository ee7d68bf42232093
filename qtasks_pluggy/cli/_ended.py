"""How a run ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import attrs

from qtasks_pluggy import QueueTasks, TaskExecutor, TaskHandle, Trail, TrailRecord
from qtasks_pluggy._console.load import Task
from qtasks_pluggy._text import safe_str
from qtasks_pluggy.cli._records import Record
from qtasks_pluggy.exc import TaskCancelError, TaskDeadLetteredError

Status: TypeAlias = Literal["succeeded", "failed", "cancelled", "dead_lettered"]

_TRIGGER: Final = "task_executor_run_task_trigger_error"


@attrs.frozen
class Ended:
    """How a run ended.

    Attributes:
        line: The line of the record that it was for; None without one.
        uuid: The run's id; None for a record that was no call.
        status: The word for it.
        result: What it returned, or what a plugin made of its error.
        decided: The trail's record of the plugin that decided about its error, if one did.
        error: The error that it ended in, or why the record was no call.
        trail: Who was asked.
    """

    line: int | None
    uuid: str | None
    status: Status
    result: Any = None
    decided: TrailRecord | None = None
    error: BaseException | str | None = None
    trail: Trail = attrs.field(factory=Trail)

    @property
    def plugin(self) -> str | None:
        """The name of the plugin that decided about its error, if one did."""
        return None if self.decided is None else self.decided.plugin

    @property
    def kind(self) -> str:
        """The error in one word."""
        return "not a record" if isinstance(self.error, str) else type(self.error).__name__

    @property
    def why(self) -> str:
        """The error's own text."""
        return self.error if isinstance(self.error, str) else safe_str(self.error)


def run(app: QueueTasks, task: Task, record: Record, begun: Callable[[str], None]) -> Ended:
    """Run a task in this thread, whatever comes of it.

    Args:
        app: The app, started.
        task: Its task.
        record: The arguments.
        begun: Told the run's id before the function is called.

    Returns:
        How it ended.
    """
    executor = TaskExecutor(task, args=record.args, kwargs=record.kwargs, plugins=app.plugins)
    uuid = str(executor.task_broker.uuid)
    begun(uuid)
    try:
        result = executor.execute_sync()
    except BaseException as error:  # noqa: BLE001  # a task that calls sys.exit() ends itself alone
        return _ended(executor, record, uuid, error=error)
    return _ended(executor, record, uuid, result=result)


async def run_async(
    app: QueueTasks, task: Task, record: Record, begun: Callable[[str], None]
) -> Ended:
    """Run a task on this event loop, whatever comes of it.

    Args:
        app: The app, started.
        task: Its task.
        record: The arguments.
        begun: Told the run's id before the function is called.

    Returns:
        How it ended.
    """
    executor = TaskExecutor(task, args=record.args, kwargs=record.kwargs, plugins=app.plugins)
    uuid = str(executor.task_broker.uuid)
    begun(uuid)
    try:
        result = await executor.execute()
    except BaseException as error:  # noqa: BLE001  # a task that calls sys.exit() ends itself alone
        return _ended(executor, record, uuid, error=error)
    return _ended(executor, record, uuid, result=result)


def submit(_: QueueTasks, task: Task, record: Record, begun: Callable[[str], None]) -> Ended:
    """Submit a run to the app's engine and wait for it, whatever comes of it.

    Args:
        task: The app's task.
        record: The arguments.
        begun: Told the run's id once it is submitted.

    Returns:
        How it ended.
    """
    handle: TaskHandle[Any] | None = None
    try:
        handle = task.submit_sync(*record.args, **record.kwargs)
        begun(str(handle.uuid))
        result = handle.result()
    except BaseException as error:  # noqa: BLE001  # a task that calls sys.exit() ends itself alone
        return _ended_elsewhere(handle, record, error=error)
    return _ended_elsewhere(handle, record, result=result)


async def submit_async(
    _: QueueTasks, task: Task, record: Record, begun: Callable[[str], None]
) -> Ended:
    """Submit a run to the app's engine and wait for it on this event loop.

    Args:
        task: The app's task.
        record: The arguments.
        begun: Told the run's id once it is submitted.

    Returns:
        How it ended.
    """
    handle: TaskHandle[Any] | None = None
    try:
        handle = await task.submit_async(*record.args, **record.kwargs)
        begun(str(handle.uuid))
        result = await handle
    except BaseException as error:  # noqa: BLE001  # a task that calls sys.exit() ends itself alone
        return _ended_elsewhere(handle, record, error=error)
    return _ended_elsewhere(handle, record, result=result)


def not_a_call(record: Record) -> Ended:
    """Say how a record ends that is no call.

    Args:
        record: One with a problem.

    Returns:
        A failed run.
    """
    return Ended(record.line, None, "failed", error=record.problem)


def _ended(executor: TaskExecutor, record: Record, uuid: str, **end: Any) -> Ended:
    return _told(executor.trail, executor.attempt, record, uuid, **end)


def _ended_elsewhere(handle: TaskHandle[Any] | None, record: Record, **end: Any) -> Ended:
    # No run was begun without a handle; and not every engine carries the trail.
    trail = Trail() if handle is None else handle.trail or Trail()
    attempt = max((one.attempt for one in trail if one.hook == _TRIGGER), default=1)
    return _told(trail, attempt, record, None if handle is None else str(handle.uuid), **end)


def _told(
    trail: Trail,
    last_attempt: int,
    record: Record,
    uuid: str | None,
    *,
    result: Any = None,
    error: BaseException | None = None,
) -> Ended:
    decided = next((one for one in reversed(trail) if one.won and one.hook == _TRIGGER), None)
    if error is None:
        return Ended(record.line, uuid, "succeeded", result, decided, None, trail)
    if decided is not None and decided.attempt != last_attempt:
        # It was retried, and then nobody had an answer.
        decided = None
    status: Status = "failed"
    if isinstance(error, (TaskCancelError, asyncio.CancelledError)):
        status = "cancelled"
    elif isinstance(error, TaskDeadLetteredError):
        status = "dead_lettered"
    return Ended(record.line, uuid, status, None, decided, error, trail)
