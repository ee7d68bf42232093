"""Filters: which links of a chain are asked about an error, by its class and by the task."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from qtasks_hookspecs import OutcomeStatus
from qtasks_pluggy._text import closest_match

if TYPE_CHECKING:
    from qtasks_hookspecs._markers import When

_BUILTIN_ERRORS = frozenset(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)


def matches_(
    conditions: Iterable[When],
    errors: Iterable[type[BaseException]],
    task: str | None,
    tags: Iterable[str],
) -> bool:
    """Say whether one of the conditions holds.

    Args:
        conditions: The ``@when`` marks of a hookimpl.
        errors: The classes of the error and of its cause.
        task: The task's name.
        tags: The task's tags.
    """
    return any(
        (one.error is None or any(_is_a(error, one.error) for error in errors))
        and (one.task is None or (task is not None and fnmatchcase(task, one.task)))
        and (one.tag is None or one.tag in tags)
        for one in conditions
    )


def _is_a(error: type[BaseException], wanted: tuple[type[BaseException] | str, ...]) -> bool:
    return any(
        one in _names(error) if isinstance(one, str) else issubclass(error, one) for one in wanted
    )


def _names(error: type[BaseException]) -> set[str]:
    """Return what the classes along an error's hierarchy are called; built-in ones also bare."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in error.__mro__}
    return names | {cls.__qualname__ for cls in error.__mro__ if cls.__module__ == "builtins"}


def never_matches(condition: When, parameters: frozenset[str]) -> str | None:
    """Say why a condition can never hold, or None where it can.

    Args:
        condition: The ``@when`` mark.
        parameters: The parameters of the hook.
    """
    if condition.error is not None and "e" not in parameters:
        return "@when(error=...) is on a hook without an error; filter by task= or tag="
    if "task_executor" not in parameters:
        return "@when is on a hook that is not called for a task; take it off"
    if condition.error == ():
        return "@when(error=()) names no class; name one"
    if condition.task == "" or condition.tag == "":
        return "@when with an empty task= or tag= matches nothing; name one"
    for one in condition.error or ():
        if not isinstance(one, str):
            continue
        if not all(part.isidentifier() for part in one.replace("<locals>", "locals").split(".")):
            return f"@when(error={one!r}) is no dotted name of a class"
        if "." not in one and one not in _BUILTIN_ERRORS:
            return (
                f"@when(error={one!r}) is no built-in exception; did you mean"
                f" {closest_match(one, _BUILTIN_ERRORS)!r}, or a name with its module,"
                f" 'package.{one}'?"
            )
    return None


def filter_key(values: dict[str, Any]) -> tuple[tuple[type, ...], str | None, tuple[str, ...]]:
    """Return what filters look at, hashable: classes of the error, task name, tags."""
    error = values.get("e")
    errors: tuple[type, ...] = ()
    if error is not None:
        cause = error.__cause__
        errors = (type(error),) if cause is None else (type(error), type(cause))
    task_func = values.get("task_func") or getattr(values.get("task_executor"), "task_func", None)
    return errors, getattr(task_func, "name", None), tuple(getattr(task_func, "tags", ()))


FilterKey = tuple[tuple[type, ...], str | None, tuple[str, ...]]


def matches(conditions: Iterable[When], key: FilterKey) -> bool:
    """Say whether one of the conditions holds."""
    return matches_(conditions, *key)


def possible_statuses(conditions: Iterable[When]) -> frozenset[OutcomeStatus] | None:  # noqa: ARG001  # until outcomes are filtered
    """Say which ends of an attempt the conditions let through; None for all."""
    return None
