"""The decisions: what a plugin may answer besides a plain value.

A plugin returns a decision; the executor or the run's engine carries it out, once.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import attrs

__all__ = ["Cancel", "DeadLetter", "Decision", "Raise", "Replace", "Retry"]


def check_seconds(value: Any, what: str) -> float:
    """Return a number of seconds, or a ``timedelta`` as one.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative, not a number, or longer than a system can wait.
    """
    value = in_seconds(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{what}: expected a number of seconds or a timedelta, got {type(value).__name__}"
        raise TypeError(msg)
    # A longer delay than the system can wait would end the run half-way, in the engine's timer.
    if not 0 <= value <= threading.TIMEOUT_MAX:
        shown = repr(value) if isinstance(value, float) else "one out of that range"
        msg = f"{what}: expected seconds from 0 to {threading.TIMEOUT_MAX:.0f}, got {shown}"
        raise ValueError(msg)
    return value


def check_whole(value: object, what: str, least: int | None = None) -> None:
    """Refuse anything but a whole number, of at least ``least``.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is less.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{what}: expected a whole number, got {value!r}"
        raise TypeError(msg)
    if least is not None and value < least:
        msg = f"{what}: expected {least} or more, got {value!r}"
        raise ValueError(msg)


def _seconds(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_seconds(value, f"Retry({attribute.name}=...)")


def in_seconds(value: float | timedelta | None) -> float | None:
    """Return a ``timedelta`` as seconds, and anything else as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def _count(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_whole(value, f"Retry({attribute.name}=...)", 0)


def _text(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        name = type(instance).__name__
        msg = f"{name}({attribute.name}=...): expected a string, got {value!r}"
        raise TypeError(msg)


def _exception(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Exception):
        msg = f"Raise({attribute.name}): expected an instance of an Exception class, got {value!r}"
        raise TypeError(msg)


class _Final:
    """Decisions are compared by their exact class, so there are only these five."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if cls.__bases__ != (_Final,):
            msg = f"{cls.__name__}: a decision cannot be subclassed; make an instance instead"
            raise TypeError(msg)
        super().__init_subclass__(**kwargs)


@attrs.frozen
class Replace(_Final):
    """Use this value as the task's result; the way to recover to ``None``.

    Attributes:
        value: The result.
    """

    value: Any


@attrs.frozen
class Retry(_Final):
    """Run the task again, if the bounds allow.

    The retries of the run are bounded by ``limit``, and in a ``QueueTasks`` app by the task's and
    the app's ``max_retries``. Past a bound the answer counts as no opinion, so an earlier plugin's
    answer can win.

    Attributes:
        delay: Seconds to wait before the next attempt, or a ``timedelta``; None leaves it to the
            engine (in place: 0).
        limit: The most retries of one run that this answer may cause.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is negative, not finite, or longer than a system can wait.
    """

    delay: float | None = attrs.field(default=None, converter=in_seconds, validator=_seconds)
    limit: int = attrs.field(default=3, validator=_count)


@attrs.frozen
class Raise(_Final):
    """Let the run fail with this error instead of the task's own, which becomes its cause.

    Attributes:
        error: The exception to raise, as that very object. The task's own error means no opinion.

    Raises:
        TypeError: ``error`` is not an instance of an ``Exception`` class.
    """

    error: Exception = attrs.field(validator=_exception)


@attrs.frozen
class Cancel(_Final):
    """End the run as cancelled.

    Attributes:
        reason: Why, for people.
    """

    reason: str = attrs.field(default="", validator=_text)


@attrs.frozen
class DeadLetter(_Final):
    """End the run as dead-lettered, for somebody to look at.

    Attributes:
        reason: Why, for people.
    """

    reason: str = attrs.field(default="", validator=_text)


Decision = Replace | Retry | Raise | Cancel | DeadLetter
