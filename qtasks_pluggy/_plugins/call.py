"""One call of a hook: what its links are asked with, and what they answered so far."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import Context
from types import TracebackType
from typing import Any, Self

import attrs

from qtasks_pluggy._plugins.answers import pipeline_values
from qtasks_pluggy._plugins.chain import Asked, Hook, Link, Values
from qtasks_pluggy._waiting import Backend


@attrs.frozen(eq=False)
class OpenWrapper:
    """A wrapper that has come to its yield.

    Attributes:
        link: The wrapper.
        generator: What is left of it.
        seconds: How long it has taken so far.
        abandon: Closes it without an answer.
    """

    link: Link
    generator: Generator[None, Any, Any]
    seconds: float
    abandon: Callable[[], None]


class Call:
    """One call of a hook.

    Leaving it as a context manager closes the wrappers of a call that was interrupted. It also
    takes the answers out of the trail: they may hold the error, and by it the whole run.

    Args:
        hook: The hook.
        values: Its parameters by name.
        backend: How the caller waits.

    Raises:
        TypeError: The caller left out a parameter of the hook, or gave one that it lacks.
    """

    __slots__ = (
        "_answered",
        "_winner",
        "attempt",
        "backend",
        "begin",
        "context",
        "entries",
        "hook",
        "open_wrappers",
        "values",
    )

    def __init__(self, hook: Hook, values: Values, backend: Backend) -> None:
        if values.keys() != hook.names:
            msg = (
                f"hook {hook.name!r} takes {sorted(hook.names)}, but was called with"
                f" {sorted(values)}"
            )
            raise TypeError(msg)
        self.hook, self.values, self.backend = hook, values, backend
        subject = None if hook.subject is None else values[hook.subject]
        entries: Any = getattr(subject, "_entries", None)
        self.entries: list[Asked] = entries if type(entries) is list else []
        self.begin = len(self.entries)
        self.attempt: int = getattr(subject, "attempt", 1)
        self.context: Context | None = getattr(subject, "_context", None)
        self.open_wrappers: list[OpenWrapper] = []
        self._answered: list[int] = []
        self._winner: Asked | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Leave no wrapper open, and no answer in the trail."""
        while self.open_wrappers:
            self.open_wrappers.pop().abandon()
        for place in self._answered:
            entry = self.entries[place]
            self.entries[place] = Asked(*entry[:5], won=entry is self._winner)
        self._winner = None

    def open(self, wrapper: OpenWrapper | Asked) -> None:
        """Keep a wrapper for its teardown, or record why it is not open."""
        if isinstance(wrapper, OpenWrapper):
            self.open_wrappers.append(wrapper)
        else:
            self.record(wrapper)

    def record(self, asked: Asked) -> None:
        """Record what became of asking a link, and use its answer if it has one."""
        self.entries.append(asked)
        if asked.status != "answered":
            return
        self._answered.append(len(self.entries) - 1)
        hook = self.hook
        if asked.link.observed:
            return
        if hook.lastresult or hook.pipeline or (hook.anytrue and asked.answer is True):
            self._winner = asked
        if hook.pipeline:
            self.values.update(pipeline_values(hook, asked.answer))

    @property
    def answer(self) -> Any:
        """The answer so far; of a pipeline what it has come to."""
        hook = self.hook
        if hook.pipeline:
            left = tuple(self.values[name] for name in hook.pipeline)
            return left if len(left) > 1 else left[0]
        return None if self._winner is None else self._winner.answer

    @property
    def winner(self) -> Asked | None:
        """What became of the link whose answer is used; None where none is."""
        return self._winner
