"""What the plugins' decision means for the run: the attempt's end, for its host to carry out."""

from __future__ import annotations

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

# The status of an attempt by its action; that of ``pass`` depends on the error.
STATUS_OF: Final = {
    "succeed": OutcomeStatus.succeeded,
    "fail": OutcomeStatus.failed,
    "retry": OutcomeStatus.retried,
    "cancel": OutcomeStatus.cancelled,
    "dead_letter": OutcomeStatus.dead_lettered,
}


def attempt_from(decision: Any, error: BaseException) -> Attempt:
    """Translate an answer about a task's own error, or None for no answer."""
    if decision is not None and (type(decision) is Replace or type(decision) not in DECISIONS):
        return Attempt("succeed")
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
    """Add a note to an unrecovered error that says who decided about it."""
    summary = short(entry.to_record() for entry in entries)
    add_note_once(error, f"task_executor_run_task_trigger_error: {summary}")


def reason_for(control: BaseException) -> BaseException:
    """Return the task's own error: what it handled when it raised an engine's control exception."""
    for error in (control.__cause__, control.__context__):
        if error is not None:
            return error
    return control


def chain_cause(error: Exception, cause: BaseException) -> Exception:
    """Set an error's cause, unless it has one or would be its own."""
    seen: set[int] = set()
    ancestor: BaseException | None = cause
    while ancestor is not None and ancestor is not error and id(ancestor) not in seen:
        seen.add(id(ancestor))
        ancestor = ancestor.__context__ if ancestor.__cause__ is None else ancestor.__cause__
    if error.__cause__ is None and ancestor is not error:
        # Bypasses the class's own __setattr__: it may be frozen.
        vars(BaseException)["__cause__"].__set__(error, cause)
    return error


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
