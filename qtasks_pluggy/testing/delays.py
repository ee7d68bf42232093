"""Retries that do not wait."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs

from qtasks_hookspecs import Retry


class _Shown:
    """One field of ``Retry``, read through a function; what is set is checked as ever.

    Args:
        name: The field's name.
        show: Makes what is read of what was set.
    """

    def __init__(self, name: str, show: Callable[[Any], Any]) -> None:
        self._name = name
        self._show = show
        self._slot = vars(Retry)[name]

    def __get__(self, retry: Any, kind: type | None = None) -> Any:
        return self if retry is None else self._show(self._slot.__get__(retry, kind))

    def __set__(self, retry: Any, value: Any) -> None:
        self._slot.__set__(retry, value)
        # The class checks what it reads of the field, which is what is shown.
        field = getattr(attrs.fields(Retry), self._name)
        field.validator(retry, field, value)


@contextmanager
def no_delays(attempts: int = 10) -> Generator[None]:
    """Make every ``Retry`` immediate, and bound the attempts of a run.

    It holds for all plugins, apps and threads of this process, also for a ``Retry`` that was made
    before. So it covers runs in place, ``memory://``, and engines whose tasks run in this process,
    such as Celery's ``task_always_eager`` and Huey's ``immediate``. It does not cover workers in
    other processes, nor retries of an engine's own, such as Celery's ``autoretry_for``.
    The idea is that of stamina's test mode.

    Args:
        attempts: The most attempts of one run that plugins may cause.

    Raises:
        ValueError: ``attempts`` is below 1.

    Example:
        >>> with no_delays(attempts=2), app:
        ...     price("tea")
    """
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        msg = f"no_delays(attempts={attempts!r}): expected a whole number, 1 or more"
        raise ValueError(msg)
    before = {name: vars(Retry)[name] for name in ("delay", "limit")}
    shown = {
        "delay": _Shown("delay", lambda _: 0.0),
        "limit": _Shown("limit", lambda own: min(own, attempts - 1)),
    }
    try:
        for name, field in shown.items():
            setattr(Retry, name, field)
        yield
    finally:
        for name, field in before.items():
            setattr(Retry, name, field)
