"""What an attempt without a result comes to: the plugins' decision, as work for the run's host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import TaskCancelError, TaskDeadLetteredError, TaskPluginTriggerError
from qtasks_pluggy import _log
from qtasks_pluggy._chain import Entry, record_of
from qtasks_pluggy._report import note
from qtasks_pluggy._trail import short
from qtasks_pluggy._waiting import Waiting


@attrs.frozen(eq=False)
class Outcome:
    """How an attempt ended that has no result, for the host of the run to carry out.

    Attributes:
        action: What is to be done.
        error: What the caller will see; for a retry, the error that it answers.
        delay: Seconds before the next attempt; None leaves it to the host.
        limit: The most retries that the decision allows.
        reason: Why, for people.
    """

    action: Literal["fail", "retry", "cancel", "dead_letter"]
    error: Exception
    delay: float | None = None
    limit: int | None = None
    reason: str = ""


def intercepted(task_func: TaskFunc, error: Exception) -> TaskPluginTriggerError | None:
    """Wrap an ordinary error for the plugins, where the task lets them see it."""
    classes = task_func.intercept
    if not classes or isinstance(error, TaskCancelError) or not isinstance(error, classes):
        return None
    asked = TaskPluginTriggerError()
    asked.__cause__ = error
    return asked


def outcome_of(answer: Any, error: Exception, entries: Sequence[Entry]) -> Outcome | Replace:
    """Translate a decision on a task's own error, or that there is none.

    Args:
        answer: What the plugins decided; None for nothing.
        error: The task's own error.
        entries: What they said, for the note on an error that is not recovered.
    """
    if isinstance(answer, Replace):
        return answer
    if isinstance(answer, Retry):
        return Outcome("retry", error, delay=answer.delay, limit=answer.limit)
    if entries:
        told = short(map(record_of, entries))
        note(error, f"task_executor_run_task_trigger_error: {told}")
    if isinstance(answer, Raise):
        return Outcome("fail", _caused(answer.error, error))
    if isinstance(answer, Cancel):
        cancelled = _caused(TaskCancelError(answer.reason), error)
        return Outcome("cancel", cancelled, reason=answer.reason)
    if isinstance(answer, DeadLetter):
        letter = _caused(TaskDeadLetteredError(answer.reason), error)
        return Outcome("dead_letter", letter, reason=answer.reason)
    if isinstance(error, TaskCancelError):
        return Outcome("cancel", error, reason=error.reason)
    return Outcome("fail", error)


async def set_aside(message: TaskMessage, outcome: Outcome, app: Any, waiting: Waiting) -> None:
    """Hand a dead letter to the app, or else to the log.

    Args:
        message: The run's message.
        outcome: The plugins' decision.
        app: The app, whose ``dead_letter`` may be None.
        waiting: How the caller waits.
    """
    error = outcome.error if outcome.error.__cause__ is None else outcome.error.__cause__
    hand_over = getattr(app, "dead_letter", None)
    known = {"task": message.name, "uuid": str(message.uuid), "reason": outcome.reason}
    if hand_over is not None:
        try:
            taken = hand_over(message, error, outcome.reason)
            if hasattr(type(taken), "__await__"):
                await waiting.awaitable(taken)
        except (Exception, asyncio.CancelledError) as failure:
            # The app's own code: whatever is wrong with it, the run has its end.
            if isinstance(failure, asyncio.CancelledError) and waiting.cancelled():
                raise
            _log.event("error", "dead_letter_failed", **known, exc_info=failure)
        else:
            return
    _log.event("warning", "task_dead_lettered", **known, error=type(error).__name__)


def _caused(error: Exception, cause: Exception) -> Exception:
    """Give an error its cause, unless it has one or would be its own."""
    seen: set[int] = set()
    behind: BaseException | None = cause
    while behind is not None and behind is not error and id(behind) not in seen:
        seen.add(id(behind))
        behind = behind.__context__ if behind.__cause__ is None else behind.__cause__
    if error.__cause__ is None and behind is not error:
        # Past the class's own __setattr__, which a frozen one has.
        vars(BaseException)["__cause__"].__set__(error, cause)
    return error
