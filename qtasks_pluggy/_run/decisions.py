"""What a decision of the plugins comes to, as work for the run's host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from qtasks_hookspecs import Cancel, DeadLetter, OutcomeStatus, Raise, Replace, Retry
from qtasks_hookspecs.exc import (
    CapabilityError,
    TaskCancelError,
    TaskDeadLetteredError,
)
from qtasks_pluggy._plugins.chain import DECISIONS, Asked
from qtasks_pluggy._plugins.report import add_note_once
from qtasks_pluggy._plugins.trail import short
from qtasks_pluggy._submit.outcome import Attempt
from qtasks_pluggy._submit.protocol import Host

# How an attempt has ended whose host is to do this; what ``pass`` means, the error says.
STATUS_OF: Final = {
    "succeed": OutcomeStatus.succeeded,
    "fail": OutcomeStatus.failed,
    "retry": OutcomeStatus.retried,
    "cancel": OutcomeStatus.cancelled,
    "dead_letter": OutcomeStatus.dead_lettered,
}


def attempt_from(decision: Any, error: BaseException) -> Attempt:
    """Translate a decision on a task's own error, or that there is none.

    Args:
        decision: What the plugins decided, but no result; None for nothing.
        error: The task's own error.
    """
    if isinstance(decision, Retry):
        return Attempt("retry", error, delay=decision.delay)
    if isinstance(decision, Raise):
        return Attempt("fail", chain_cause(decision.error, error))
    if isinstance(decision, Cancel):
        cancelled = chain_cause(TaskCancelError(decision.reason), error)
        return Attempt("cancel", cancelled, reason=decision.reason)
    if isinstance(decision, DeadLetter):
        letter = chain_cause(TaskDeadLetteredError(decision.reason), error)
        return Attempt("dead_letter", letter, reason=decision.reason)
    if isinstance(error, TaskCancelError):
        return Attempt("cancel", error, reason=error.reason)
    return Attempt("fail", error)


def note_decision(error: Exception, entries: Sequence[Asked]) -> None:
    """Note on an error that is not recovered who decided about it."""
    story = short(entry.to_record() for entry in entries)
    add_note_once(error, f"task_executor_run_task_trigger_error: {story}")


def chain_cause(error: Exception, cause: BaseException) -> Exception:
    """Give an error its cause, unless it brought one or would be its own."""
    seen: set[int] = set()
    behind: BaseException | None = cause
    while behind is not None and behind is not error and id(behind) not in seen:
        seen.add(id(behind))
        behind = behind.__context__ if behind.__cause__ is None else behind.__cause__
    if error.__cause__ is None and behind is not error:
        # Past the class's own __setattr__, which a frozen one has.
        vars(BaseException)["__cause__"].__set__(error, cause)
    return error


def came_of_cancellation(error: BaseException) -> bool:
    """Say whether an error was raised while a cancellation was handled."""
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, asyncio.CancelledError):
            return True
        seen.add(id(behind))
        behind = behind.__context__
    return False


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
        msg = (
            f"{does}; add a plugin that keeps them (hook task_executor_dead_letter), or answer"
            " Cancel or Raise instead"
        )
    elif isinstance(decision, Raise) and isinstance(decision.error, engine.control):
        kind = type(decision.error).__name__
        does = f"answered Raise of {kind}, by which tasks tell engine {engine.name!r} what to do"
        msg = f"{does}; answer a decision, Retry, Cancel or DeadLetter, or Raise another error"
    else:
        return
    raise CapabilityError(msg)
