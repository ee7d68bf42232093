"""``on_error``: the short form of the hook that most plugins use."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Final, TypeVar

import attrs

from qtasks_hookspecs._markers import PROJECT_NAME, When, hookimpl, inner_function, when
from qtasks_hookspecs.exc import TaskCancelError

F = TypeVar("F", bound=Callable[..., Any])

TRIGGER: Final = "task_executor_run_task_trigger_error"
SHORT_NAMES: Final = frozenset({"error", "run"})
_ATTRIBUTE: Final = f"{PROJECT_NAME}_on_error"
_numbers: Final = count(1)
_MARKS: Final = ("tryfirst", "trylast", "wrapper", "hookwrapper", "optionalhook")


@attrs.frozen
class OnError:
    """What ``on_error`` records about a handler.

    Attributes:
        classes: The classes that it names; empty for all errors that plugins may see.
        number: Its place in the order of decoration.
    """

    classes: tuple[type[Exception], ...]
    number: int


def on_error(
    *classes: type[Exception], task: str | None = None, tag: str | None = None, **marks: Any
) -> Callable[[F], F]:
    """Ask this function about the errors of tasks.

    Short for ``hookimpl(specname="task_executor_run_task_trigger_error")`` with ``@when``. The
    function may have any name. Its parameters may be ``error``, the task's own exception, ``run``,
    the executor, and the parameters of the hook. A module may have several such functions; they are
    asked in the order of decoration.

    Naming a class is consent: every app that loads the function asks it about errors of that class,
    even if ``intercept`` does not list the class. Only an explicit ``intercept=()`` refuses.

    A further ``@when`` or ``on_error`` on the function does not narrow it: one match is enough.

    Args:
        *classes: The exception classes; without any, all errors that the app shows to plugins.
        task: A glob (``fnmatch``) for the task's name.
        tag: A tag that the task must have.
        **marks: As for ``hookimpl``: ``tryfirst``, ``trylast``.

    Returns:
        A decorator that returns the function itself.

    Raises:
        TypeError: An argument is not an exception class that plugins can be asked about, or there
            is no such keyword.
    """
    for one in classes:
        _check_class(one)
    for name in marks:
        _check_mark(name)

    def mark(function: F) -> F:
        if classes or task is not None or tag is not None:
            when(error=classes or None, task=task, tag=tag)(function)
        inner = inner_function(function)
        known = on_error_mark(inner)
        named = (*classes, *known.classes) if known else classes
        setattr(inner, _ATTRIBUTE, OnError(named, known.number if known else next(_numbers)))
        hookimpl(specname=TRIGGER, **marks)(function)
        return function

    return mark


def _check_class(one: Any) -> None:
    if isinstance(one, type) and issubclass(one, Exception):
        if not issubclass(one, TaskCancelError):
            return
        why = "a task that cancels itself is not asked about"
    elif isinstance(one, type) and issubclass(one, BaseException):
        why = "plugins are never asked about it; name classes of Exception"
    elif callable(one) and not isinstance(one, type):
        why = "write the decorator with parentheses, @on_error()"
    elif isinstance(one, (tuple, list)):
        why = "name the classes one by one, @on_error(KeyError, ValueError)"
    else:
        why = (
            "name the exception class itself; for a dotted name write"
            f" @hookimpl(specname={TRIGGER!r}) with @when(error=...) instead"
        )
    shown = one.__name__ if isinstance(one, type) or callable(one) else repr(one)
    msg = f"@on_error(...): expected exception classes, got {shown}: {why}"
    raise TypeError(msg)


def _check_mark(name: str) -> None:
    if name in _MARKS:
        return
    if name == "error":
        why = "name the classes first, @on_error(KeyError)"
    elif name in {field.name for field in attrs.fields(When)} - {"task", "tag"}:
        why = f"write @hookimpl(specname={TRIGGER!r}) with @when({name}=...) instead"
    else:
        import difflib  # noqa: PLC0415  # a correct plugin need not load it

        (near,) = difflib.get_close_matches(name, ("task", "tag", *_MARKS), n=1, cutoff=0)
        why = f"did you mean {near}=?"
    msg = f"@on_error(...): unexpected argument {name}=: {why}"
    raise TypeError(msg)


def on_error_mark(function: Any) -> OnError | None:
    """Return the ``on_error`` mark of a function, or None."""
    mark: OnError | None = getattr(function, _ATTRIBUTE, None)
    return mark
