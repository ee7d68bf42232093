"""Every hook, in the order in which a run meets it.

A hookimpl names only the parameters that it wants. ``None`` is never an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtasks_hookspecs._decisions import Decision
from qtasks_hookspecs._markers import hookspec
from qtasks_hookspecs._outcome import Outcome
from qtasks_hookspecs._types import RunningApp, RunningTask, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import TaskPluginTriggerError


@hookspec
def qtasks_start(app: RunningApp, settings: Mapping[str, Any]) -> None:
    """Set up what the plugin needs, before the app's first run.

    When:
        The app starts, before its engine does; plugins are called in their usual order.

    Args:
        app: The app that starts.
        settings: This plugin's own section of the settings, a dict, empty without one; if an attrs
            class is the annotation, an object of that class.

    Returns:
        Ignored. Return ``None``.

    Raises:
        Any exception stops the start: the plugins that have started are stopped in reverse order,
        and the app raises ``PluginError`` from the plugin's error.

    Example:
        >>> @hookimpl
        ... def qtasks_start(settings):
        ...     prices.connect(settings.get("url", "localhost"))
    """


@hookspec(pipeline="args, kwargs")
def task_executor_args_replace(
    task_executor: RunningTask,
    task_func: TaskFunc,
    task_broker: TaskMessage,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """Replace the arguments that the task is about to be called with.

    When:
        Before each attempt, retries included.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        args: The positional arguments, as the previous hookimpl replaced them.
        kwargs: The keyword arguments, as the previous hookimpl replaced them.

    Returns:
        A pair ``(args, kwargs)``. ``None`` leaves them as they are.

    Raises:
        An exception is logged with this plugin's name and the arguments stay as they were;
        so is an answer that is not such a pair.

    Example:
        >>> @hookimpl
        ... def task_executor_args_replace(args, kwargs):
        ...     return args, {"currency": "EUR", **kwargs}
    """


@hookspec(pipeline="result")
def task_executor_run_task(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage, result: Any
) -> Any:
    """Replace the result of a task that succeeded.

    When:
        The function has returned, or the generator has yielded its last item. Not after an error,
        and not for a result that a plugin supplied.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        result: The result, as the previous hookimpl replaced it.

    Returns:
        The new result. ``None`` leaves it as it is; ``Replace(None)`` makes it None.

    Raises:
        An exception is logged with this plugin's name and the result stays as it was; the same
        for a decision other than ``Replace``.

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
        ``DeadLetter``. ``None`` is no opinion; if all are None, the error goes on.

    Raises:
        An exception is logged with this plugin's name, recorded in the run's trail and noted on
        the task's error; the other hookimpls are asked all the same.

    Example:
        >>> @hookimpl
        ... def task_executor_run_task_trigger_error(task_func, e):
        ...     return Replace(0) if e.kwargs.get("kind") == "empty" else None
    """


@hookspec(anytrue=True)
def task_executor_dead_letter(
    task_executor: RunningTask,
    task_func: TaskFunc,
    task_broker: TaskMessage,
    e: Exception,
    reason: str,
) -> bool | None:
    """Keep a dead-lettered run.

    When:
        A plugin decided ``DeadLetter``, before the run ends. Every hookimpl is called.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        e: The task's own error.
        reason: The reason of ``DeadLetter``; may be empty.

    Returns:
        ``True`` for "I have kept it". One is enough: every engine then allows the decision, and the
        engine's own place for dead letters is not used. ``None``, and anything that is not exactly
        ``True``, means "I have not".

    Raises:
        An exception is logged with this plugin's name, and the run counts as not kept by it. A
        hookimpl that exceeds its time limit may still keep the run: keep each ``uuid`` once.

    Example:
        >>> @hookimpl
        ... def task_executor_dead_letter(task_broker, e, reason):
        ...     letters.write(f"{task_broker.uuid} {task_broker.name}: {reason or e}")
        ...     return True
    """


@hookspec
def task_executor_attempt_ended(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage, outcome: Outcome
) -> None:
    """Observe how an attempt ended.

    When:
        Once for every attempt, however it ended, including attempts that the engine itself repeats.
        ``@when(outcome="failed")`` limits the calls to some outcomes; the others
        then cost nothing.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        outcome: How the attempt ended.

    Returns:
        Ignored. Return ``None``.

    Raises:
        An exception is logged with this plugin's name; the outcome stays.

    Example:
        >>> @hookimpl
        ... @when(outcome=("recovered", "failed"))
        ... def task_executor_attempt_ended(task_func, outcome):
        ...     counts[task_func.name, outcome.status, outcome.decided_by] += 1
    """


@hookspec
def task_executor_task_failed(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage, e: BaseException
) -> None:
    """Observe a run that failed for good.

    When:
        Once for every final failure, whether plugins were asked about it or not; never for a run
        that was cancelled. On an engine, ``SystemExit`` and other exceptions outside of
        ``Exception``, such as ``KeyboardInterrupt``, are final failures if they end the run but not
        the worker.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        e: The error that the caller will see.

    Returns:
        Ignored. Return ``None``.

    Raises:
        An exception is logged with this plugin's name and noted on ``e``, which goes on.

    Example:
        >>> @hookimpl
        ... def task_executor_task_failed(task_func, e):
        ...     pager.send(f"{task_func.name} failed: {type(e).__name__}")
    """


@hookspec
def task_executor_task_close(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage, outcome: Outcome
) -> None:
    """Clean up after a run.

    When:
        Once for every run: success, failure and cancellation alike, after all other hooks.

    Args:
        task_executor: The run.
        task_func: The task's definition.
        task_broker: The run's message.
        outcome: How the last attempt ended, and the run with it; its status is never ``retried``.

    Returns:
        Ignored. Return ``None``.

    Raises:
        An exception is logged with this plugin's name; the outcome of the run stays.

    Example:
        >>> @hookimpl
        ... def task_executor_task_close(task_broker):
        ...     connections.pop(task_broker.uuid, None)
    """


@hookspec
def qtasks_stop(app: RunningApp) -> None:
    """Release what ``qtasks_start`` acquired.

    When:
        The app stops, after its engine, in the reverse order of the start.

    Args:
        app: The app that stops.

    Returns:
        Ignored. Return ``None``.

    Raises:
        An exception is logged with this plugin's name; the other plugins are stopped all the same.

    Example:
        >>> @hookimpl
        ... def qtasks_stop():
        ...     prices.close()
    """
