"""Filters: ``@when`` selects the errors, ends and tasks that a hookimpl is asked about."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from qtasks_hookspecs import OutcomeStatus, _hooks
from qtasks_hookspecs._markers import When
from qtasks_hookspecs.exc import is_named
from qtasks_pluggy._text import closest_match

REPLAY_OF: Final = "replay_of"
"""The key in a message's metadata for the id of the run that this one repeats, if it does."""
_BUILTIN_ERRORS: Final = frozenset(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)
# A success has no error, so no filter by error matches it.
_WITH_ERROR: Final = frozenset(OutcomeStatus) - {OutcomeStatus.succeeded}


class FilterKey(NamedTuple):
    """All that filters look at, and so the key under which their result is cached.

    Attributes:
        errors: The classes of the error and of its cause.
        status: How the attempt ended, on hooks that have an outcome.
        task: The task's name.
        tags: The task's tags.
        is_replay: Whether the run repeats another one.
        is_retry: Whether the attempt is not the run's first.
        modules: How many modules are loaded: a name can come to mean a class once its module is.
    """

    errors: tuple[type[BaseException], ...] = ()
    status: OutcomeStatus | None = None
    task: str | None = None
    tags: tuple[str, ...] = ()
    is_replay: bool = False
    is_retry: bool = False
    modules: int = 0


def filter_key(values: Mapping[str, Any]) -> FilterKey:
    """Return what filters look at in one call of a hook."""
    outcome = values.get("outcome")
    error: BaseException | None = values.get("e") if outcome is None else outcome.error
    errors: tuple[type[BaseException], ...] = ()
    if error is not None:
        cause = error.__cause__
        errors = (type(error),) if cause is None else (type(error), type(cause))
    task_func, run = values.get("task_func"), values.get("task_executor")
    return FilterKey(
        errors,
        None if outcome is None else outcome.status,
        getattr(task_func, "name", None),
        getattr(task_func, "tags", ()),
        is_replay(values.get("task_broker")),
        getattr(run, "attempt", 1) > 1,
        len(sys.modules),
    )


def is_replay(message: Any) -> bool:
    """Return whether a run's message says that it repeats another one."""
    return REPLAY_OF in getattr(message, "metadata", ())


def matches(conditions: Iterable[When], key: FilterKey) -> bool:
    """Return whether one of a hookimpl's ``@when`` conditions holds."""
    return any(
        (one.error is None or any(_is_subclass(error, one.error) for error in key.errors))
        and (one.task is None or (key.task is not None and fnmatchcase(key.task, one.task)))
        and (one.tag is None or one.tag in key.tags)
        and (one.outcome is None or key.status in one.outcome)
        and (one.replay is None or key.is_replay is one.replay)
        and (one.retry is None or key.is_retry is one.retry)
        for one in conditions
    )


def possible_statuses(conditions: Iterable[When]) -> frozenset[OutcomeStatus] | None:
    """Return the ends of an attempt that can match the conditions; None for all."""
    possible: frozenset[OutcomeStatus] = frozenset()
    for one in conditions:
        if one.outcome is None and one.error is None:
            return None
        possible |= _WITH_ERROR if one.outcome is None else one.outcome
    return possible or None


def _is_subclass(error: type[BaseException], wanted: tuple[type[BaseException] | str, ...]) -> bool:
    return any(
        is_named(error, one) if isinstance(one, str) else issubclass(error, one) for one in wanted
    )


def why_unmatchable(condition: When, hook: str, parameters: frozenset[str]) -> str | None:
    """Return why a ``@when`` condition can never hold, or None if it can."""
    # Parameters of a hook that an app added mean nothing here, whatever their names.
    if not hasattr(_hooks, hook) or "task_executor" not in parameters:
        return "@when is on a hook that is not called for a task; take it off"
    if condition.outcome is not None:
        fault = _why_outcome_unmatchable(condition, hook, parameters)
        if fault:
            return fault
    if condition.error is not None and not parameters & {"e", "outcome"}:
        return "@when(error=...) is on a hook without an error; filter by task= or tag="
    if condition.task == "" or condition.tag == "":
        return "@when with an empty task= or tag= matches nothing; name one"
    return None if condition.error is None else _why_error_unmatchable(condition.error)


def _why_outcome_unmatchable(condition: When, hook: str, parameters: frozenset[str]) -> str | None:
    """Return why no attempt ends as a condition wants, or None if one can."""
    if "outcome" not in parameters:
        return "@when(outcome=...) is on a hook without an outcome; filter by error=, task= or tag="
    if not condition.outcome:
        return "@when(outcome=()) names no status; name one"
    if hook == "task_executor_task_close" and condition.outcome == frozenset(
        {OutcomeStatus.retried}
    ):
        return (
            "@when(outcome='retried') is on a hook that is called when the run is over, and a"
            " retried one is not; put it on task_executor_attempt_ended"
        )
    if condition.error is not None and condition.outcome == frozenset({OutcomeStatus.succeeded}):
        return "@when(outcome='succeeded', error=...) matches nothing: success has no error"
    return None


def _why_error_unmatchable(wanted: tuple[type[BaseException] | str, ...]) -> str | None:
    """Return why a condition names no class of an error, or None if it does."""
    if not wanted:
        return "@when(error=()) names no class; name one"
    for one in wanted:
        if not isinstance(one, str):
            continue
        if not all(part.isidentifier() for part in one.replace("<locals>", "locals").split(".")):
            return f"@when(error={one!r}) is not the dotted name of a class"
        if "." not in one and one not in _BUILTIN_ERRORS:
            return (
                f"@when(error={one!r}) is not a built-in exception; did you mean"
                f" {closest_match(one, _BUILTIN_ERRORS)!r}, or a name with its module,"
                f" 'package.{one}'?"
            )
    return None
