"""What a decision of the plugins comes to, as work for the run's host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import (
    CapabilityError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
)
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.chain import DECISIONS, Asked
from qtasks_pluggy._plugins.report import add_note_once
from qtasks_pluggy._plugins.trail import short
from qtasks_pluggy._submit.outcome import Outcome
from qtasks_pluggy._submit.protocol import Host
from qtasks_pluggy._waiting import Backend


def wrap_intercepted(
    task_func: TaskFunc, app: Any, error: Exception
) -> TaskPluginTriggerError | None:
    """Wrap an ordinary error for the plugins, where the task lets them see it."""
    classes = task_func.intercept
    if classes is None:
        classes = getattr(app, "_intercept", None)
    if not classes or isinstance(error, TaskCancelError) or not isinstance(error, classes):
        return None
    asked = TaskPluginTriggerError()
    asked.__cause__ = error
    return asked


def outcome_from(answer: Any, error: Exception, entries: Sequence[Asked]) -> Outcome | Replace:
    """Translate a decision on a task's own error, or that there is none.

    Args:
        answer: What the plugins decided; None for nothing.
        error: The task's own error.
        entries: What they said, for the note where one of them decided, or failed.
    """
    if isinstance(answer, Replace):
        return answer
    if isinstance(answer, Retry):
        return Outcome("retry", error, delay=answer.delay)
    records = [entry.to_record() for entry in entries]
    if answer is not None or any(one.status in {"raised", "timed_out"} for one in records):
        told = short(records)
        add_note_once(error, f"task_executor_run_task_trigger_error: {told}")
    if isinstance(answer, Raise):
        return Outcome("fail", chain_cause(answer.error, error))
    if isinstance(answer, Cancel):
        cancelled = chain_cause(TaskCancelError(answer.reason), error)
        return Outcome("cancel", cancelled, reason=answer.reason)
    if isinstance(answer, DeadLetter):
        letter = chain_cause(TaskDeadLetteredError(answer.reason), error)
        return Outcome("dead_letter", letter, reason=answer.reason)
    if isinstance(error, TaskCancelError):
        return Outcome("cancel", error, reason=error.reason)
    return Outcome("fail", error)


async def deliver_dead_letter(
    message: TaskMessage, outcome: Outcome, app: Any, backend: Backend
) -> None:
    """Hand a dead letter to the app, or else to the log.

    Args:
        message: The run's message.
        outcome: The plugins' decision.
        app: The app, whose ``dead_letter`` may be None.
        backend: How the caller waits.
    """
    ended: Any = outcome.error
    error = ended if ended.__cause__ is None else ended.__cause__
    enqueue = getattr(app, "dead_letter", None)
    known = {"task": message.name, "uuid": str(message.uuid), "reason": outcome.reason}
    if enqueue is not None:
        met = backend.cancellations()
        try:
            taken = enqueue(message, error, outcome.reason)
            if hasattr(type(taken), "__await__"):
                await backend.awaitable(taken)
        except (Exception, asyncio.CancelledError) as failure:
            # The app's own code: whatever is wrong with it, the run has its end.
            if isinstance(failure, asyncio.CancelledError) and backend.cancelled(met):
                raise
            _log.event("error", "dead_letter_failed", **known, exc_info=failure)
        else:
            return
    _log.event("warning", "task_dead_lettered", **known, error=type(error).__name__)


def chain_cause(error: Exception, cause: Exception) -> Exception:
    """Give an error its cause, unless it brought one or would be its own."""
    seen: set[int] = set()
    behind: BaseException | None = cause
    while behind is not None and behind is not error and id(behind) not in seen:
        seen.add(id(behind))
        behind = behind.__context__ if behind.__cause__ is None else behind.__cause__
    has = error.__cause__
    # One that a plugin keeps, to raise it again and again, has the cause of the run before.
    if (has is None or error.__dict__.get(_OURS) == id(has)) and behind is not error:
        # Past the class's own __setattr__, which a frozen one has.
        vars(BaseException)["__cause__"].__set__(error, cause)
        error.__dict__[_OURS] = id(cause)
    return error


# Not the cause itself, which would be pickled with the error, and can be what cannot be.
_OURS: Final = "__qtasks_pluggy_cause_id__"


def check_answer_supported(engine: Host, decision: Any) -> None:
    """Refuse an answer that the run's engine cannot carry out, or cannot store.

    Raises:
        CapabilityError: It cannot carry out the decision.
        EngineError: It cannot store the value.
    """
    if isinstance(decision, Replace) or type(decision) not in DECISIONS:
        engine.check_answer(decision.value if isinstance(decision, Replace) else decision)
        return
    can = engine.capabilities
    if isinstance(decision, Retry) and decision.delay and not can.delay:
        does = f"answered Retry(delay={decision.delay}), and engine {engine.name!r} cannot delay"
        msg = f"{does} a run; answer Retry() to retry at once, or give it what it needs to delay"
    elif isinstance(decision, DeadLetter) and not can.dead_letter:
        does = f"answered DeadLetter, and engine {engine.name!r} has no place for dead letters"
        msg = f"{does}; answer Cancel or Raise instead"
    elif isinstance(decision, Raise) and isinstance(decision.error, engine.control):
        kind = type(decision.error).__name__
        does = f"answered Raise of {kind}, by which tasks tell engine {engine.name!r} what to do"
        msg = f"{does}; answer a decision, Retry, Cancel or DeadLetter, or Raise another error"
    else:
        return
    raise CapabilityError(msg)
