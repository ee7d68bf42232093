"""The project's name, the entry point group, and the marks for hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, TypeVar, overload

import attrs
import pluggy

from qtasks_hookspecs._outcome import OutcomeStatus

F = TypeVar("F", bound=Callable[..., object])
ErrorNames: TypeAlias = type[BaseException] | str | Iterable[type[BaseException] | str]
Statuses: TypeAlias = OutcomeStatus | str | Iterable[OutcomeStatus | str]

PROJECT_NAME: Final = "qtasks_pluggy"
ENTRY_POINT_GROUP: Final = "qtasks_pluggy"

hookimpl: Final[pluggy.HookimplMarker] = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a function as an implementation of the hook that it is named after.

This is pluggy's own marker, so ``pluggy.HookimplMarker("qtasks_pluggy")`` works as well.
``tryfirst=True`` moves it to the front of the chain and ``trylast=True`` to the back. The one
called last has the last word here, so ``trylast`` wins.
"""

_mark_spec: Final[pluggy.HookspecMarker] = pluggy.HookspecMarker(PROJECT_NAME)


@overload
def hookspec(
    function: F, *, lastresult: bool = ..., pipeline: str | None = ..., anytrue: bool = ...
) -> F: ...
@overload
def hookspec(
    function: None = ..., *, lastresult: bool = ..., pipeline: str | None = ..., anytrue: bool = ...
) -> Callable[[F], F]: ...
def hookspec(
    function: F | None = None,
    *,
    lastresult: bool = False,
    pipeline: str | None = None,
    anytrue: bool = False,
) -> F | Callable[[F], F]:
    """Mark a function as a hook specification.

    Wraps pluggy's marker, whose class is final.

    Args:
        function: The specification.
        lastresult: Every hookimpl is called, and the last answer that is not None is the result.
        pipeline: The name of the parameter that each answer replaces for the hookimpls that
            follow; ``"args, kwargs"`` for a pair. The result is the last value.
        anytrue: Every hookimpl is called, and the result is True if one answered exactly True,
            else None.

    Returns:
        The same function, marked.

    Raises:
        ValueError: More than one of the three is used.
    """
    ways = {"lastresult": lastresult, "pipeline": pipeline, "anytrue": anytrue}
    chosen = [f"{name}={value!r}" for name, value in ways.items() if value]
    if len(chosen) > 1:
        msg = f"hookspec: {' and '.join(chosen)} exclude each other; choose one"
        raise ValueError(msg)

    def mark(spec: F) -> F:
        _mark_spec(spec)
        options: dict[str, Any] = getattr(spec, f"{PROJECT_NAME}_spec")
        options |= ways
        return spec

    return mark if function is None else mark(function)


@attrs.frozen
class When:
    """One ``@when``: all of its conditions must hold.

    Attributes:
        error: Classes, or dotted names of classes; one must match the error or its cause.
        task: A glob for the task's name.
        tag: A tag that the task must have.
        outcome: Statuses, of which the attempt must have one.
        replay: True if the run must be a replay, False if it must not; None for either.
        retry: True if the attempt must not be the run's first, False if it must; None for either.
    """

    error: tuple[type[BaseException] | str, ...] | None = None
    task: str | None = None
    tag: str | None = None
    outcome: frozenset[OutcomeStatus] | None = None
    replay: bool | None = None
    retry: bool | None = None


def when(
    *,
    error: ErrorNames | None = None,
    task: str | None = None,
    tag: str | None = None,
    outcome: Statuses | None = None,
    replay: bool | None = None,
    retry: bool | None = None,
) -> Callable[[F], F]:
    """Ask this hookimpl only when the conditions hold; goes on either side of ``@hookimpl``.

    All conditions of one ``@when`` must hold; of several ``@when``, one is enough.

    Args:
        error: One or more exception classes or dotted names. Names are compared with those of the
            error's class and its bases, and looked up in loaded modules; nothing is imported.
            Built-ins need no module prefix.
        task: A glob (``fnmatch``) for the task's name.
        tag: A tag that the task must have.
        outcome: One or more members of ``OutcomeStatus`` or their names, for hooks that have an
            ``outcome``; there, ``error`` is compared with ``outcome.error``.
        replay: True for runs that ``app.replay`` made; False for all others.
        retry: True for attempts after a run's first; False for first attempts.

    Returns:
        A decorator that returns the function itself.

    Raises:
        TypeError: A condition has the wrong type, or none is given.
        ValueError: ``outcome`` is not a status; the nearest one is named.
    """
    errors = None if error is None else _several(error)
    for one in errors or ():
        if not (isinstance(one, str) or (isinstance(one, type) and issubclass(one, BaseException))):
            msg = f"@when(error=...): expected an exception class or its dotted name, got {one!r}"
            raise TypeError(msg)
    for name, value in (("task", task), ("tag", tag)):
        if value is not None and not isinstance(value, str):
            msg = f"@when({name}=...): expected a string, got {value!r}"
            raise TypeError(msg)
    for name, flag in (("replay", replay), ("retry", retry)):
        if not (flag is None or isinstance(flag, bool)):
            msg = f"@when({name}=...): expected True or False, got {flag!r}"
            raise TypeError(msg)
    statuses = None if outcome is None else frozenset(map(_status, _several(outcome)))
    condition = When(errors, task, tag, statuses, replay, retry)
    if condition == When():
        msg = "@when() needs at least one of error=, task=, tag=, outcome=, replay= and retry="
        raise TypeError(msg)

    def mark(function: F) -> F:
        inner = inner_function(function)
        setattr(inner, WHEN_ATTRIBUTE, (condition, *getattr(inner, WHEN_ATTRIBUTE, ())))
        return function

    return mark


def _several(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Iterable) and not isinstance(value, (str, type)):
        return tuple(value)
    return (value,)


def _status(value: object) -> OutcomeStatus:
    if not isinstance(value, str):
        msg = f"@when(outcome=...): expected an OutcomeStatus or its name, got {value!r}"
        raise TypeError(msg)
    try:
        return OutcomeStatus(value)
    except ValueError:
        import difflib  # noqa: PLC0415  # a correct plugin need not load it

        (near,) = difflib.get_close_matches(value.lower(), OutcomeStatus, n=1, cutoff=0)
        msg = f"@when(outcome={value!r}): no attempt ends so; did you mean {str(near)!r}?"
        raise ValueError(msg) from None


def inner_function(function: Any) -> Any:
    """Return the function inside a static or class method, where marks are kept."""
    return function.__func__ if isinstance(function, (staticmethod, classmethod)) else function


def blocking(function: F) -> F:
    """Run this plain hookimpl in a thread of its own; goes on either side of ``@hookimpl``.

    For hookimpls that wait for a lock, a socket or a disk. In async code the event loop goes on
    meanwhile. After its time limit such a hookimpl may go on in its daemon thread.

    Args:
        function: A plain function. An ``async def`` hookimpl does not need this mark.

    Returns:
        The same function, marked.
    """
    setattr(inner_function(function), BLOCKING_ATTRIBUTE, True)
    return function


WHEN_ATTRIBUTE: Final = f"{PROJECT_NAME}_when"
BLOCKING_ATTRIBUTE: Final = f"{PROJECT_NAME}_blocking"
