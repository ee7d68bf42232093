"""Every hook, in the order in which a run meets it.

A hookimpl names only the parameters that it wants. ``None`` is never an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtasks_hookspecs._decisions import Decision
from qtasks_hookspecs._markers import hookspec
from qtasks_hookspecs._types import RunningApp, RunningTask, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import TaskPluginTriggerError


@hookspec
def qtasks_start(app: RunningApp, settings: Mapping[str, Any]) -> None:
    """Get ready before the app's first run.

    When:
        The app starts, in the order of the chain, before the engine behind it.

    Args:
        app: The app that starts.
        settings: This plugin's own section of the settings; empty where there is none.

    Returns:
        Ignored. ``None`` is what it should be.

    Raises:
        Whatever it raises stops the start: the plugins that had started are stopped in reverse
        order, and the app raises ``PluginError`` from the plugin's error.

    Example:
        >>> @hookimpl
        ... def qtasks_start(settings):
        ...     prices.connect(settings.get("url", "localhost"))
    """


@hookspec(pipeline="args, kwargs")
def task_executor_args_replace(
    task_executor: RunningTask, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """Replace the arguments that the task is about to be called with.

    When:
        Before each attempt, retries included.

    Args:
        task_executor: The run.
        args: The positional arguments, as the hookimpl before left them.
        kwargs: The keyword arguments, as the hookimpl before left them.

    Returns:
        A pair ``(args, kwargs)``. ``None`` leaves them as they are.

    Raises:
        An exception is logged with this plugin's name and the arguments stay as they were;
        so for an answer that is no such pair.

    Example:
        >>> @hookimpl
        ... def task_executor_args_replace(args, kwargs):
        ...     return args, {"currency": "EUR", **kwargs}
    """


@hookspec(pipeline="result")
def task_executor_run_task(task_executor: RunningTask, result: Any) -> Any:
    """Replace the result of a task that succeeded.

    When:
        The function has returned, or the generator has yielded its last item. Not after an error,
        and not for a result that a plugin supplied.

    Args:
        task_executor: The run.
        result: The result, as the hookimpl before left it.

    Returns:
        The new result. ``None`` leaves it as it is; ``Replace(None)`` makes it None.

    Raises:
        An exception is logged with this plugin's name and the result stays as it was; so for a
        decision other than ``Replace``.

    Example:
        >>> @hookimpl
        ... def task_executor_run_task(result):
        ...     return round(result, 2) if isinstance(result, float) else None
    """


@hookspec(lastresult=True)
def task_executor_run_task_trigger_error(
    task_executor: RunningTask,
    task_func: TaskFunc,
    task_broker: TaskMessage,
    e: TaskPluginTriggerError,
) -> Decision | Any | None:
    """Decide what happens to a task that failed.

    When:
        The task raised ``TaskPluginTriggerError``, or an exception that it lets plugins intercept;
        at every attempt. Every hookimpl is called, and the last answer wins.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        e: The error; ``e.cause`` is the original of an intercepted one.

    Returns:
        A value to use as the result, or one of ``Replace``, ``Retry``, ``Raise``, ``Cancel`` and
        ``DeadLetter``. ``None`` is no opinion; where all are None, the error goes on.

    Raises:
        An exception is logged with this plugin's name, recorded in the run's trail and noted on
        the task's error; the other hookimpls are asked all the same.

    Example:
        >>> @hookimpl
        ... def task_executor_run_task_trigger_error(task_func, e):
        ...     return Replace(0) if e.kwargs.get("kind") == "empty" else None
    """


@hookspec
def task_executor_task_failed(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage, e: Exception
) -> None:
    """Hear of a run that failed for good.

    When:
        Once for every final failure, whether plugins were asked about it or not; never for a run
        that was cancelled.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        e: The error that the caller will see.

    Returns:
        Ignored. ``None`` is what it should be.

    Raises:
        An exception is logged with this plugin's name and noted on ``e``, which goes on.

    Example:
        >>> @hookimpl
        ... def task_executor_task_failed(task_func, e):
        ...     pager.send(f"{task_func.name} failed: {type(e).__name__}")
    """


@hookspec
def task_executor_task_close(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage
) -> None:
    """Clean up after a run.

    When:
        Once for every run: success, failure and cancellation alike.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.

    Returns:
        Ignored. ``None`` is what it should be.

    Raises:
        An exception is logged with this plugin's name; the outcome of the run stays.

    Example:
        >>> @hookimpl
        ... def task_executor_task_close(task_broker):
        ...     connections.pop(task_broker.uuid, None)
    """


@hookspec
def qtasks_stop(app: RunningApp) -> None:
    """Let go of what ``qtasks_start`` took.

    When:
        The app stops, after the engine behind it; in the reverse of the order of the start.

    Args:
        app: The app that stops.

    Returns:
        Ignored. ``None`` is what it should be.

    Raises:
        An exception is logged with this plugin's name; the other plugins are stopped all the same.

    Example:
        >>> @hookimpl
        ... def qtasks_stop():
        ...     prices.close()
    """
