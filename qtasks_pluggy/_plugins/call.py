"""One call of a hook: its parameters, and the answers so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

import attrs

from qtasks_pluggy._plugins.answers import PLAIN_KINDS, pipeline_values
from qtasks_pluggy._plugins.chain import Asked, Hook, Link, Values, new_asked
from qtasks_pluggy._waiting import Backend


@attrs.frozen(eq=False)
class OpenWrapper:
    """A wrapper that waits at its yield.

    Attributes:
        link: The wrapper.
        generator: Its suspended generator.
        seconds: How long it has taken so far.
        abandon: Closes it without an answer.
    """

    link: Link
    generator: Generator[None, Any, Any]
    seconds: float
    abandon: Callable[[], None]


class Running:
    """Which hookimpl a call of a hook is in, as seen from inside that hookimpl.

    An asyncio task that outlives its hookimpl keeps this in its context for as long as it lives, so
    it holds nothing else.

    Attributes:
        link: The hookimpl; None before the first one, and after the last.
        outer: The same of the call around this one, if there is one.
    """

    __slots__ = ("link", "outer")
    link: Link | None
    outer: Running | None

    def is_inside(self, link: Link) -> bool:
        """Return whether a hookimpl is running around this call, at any depth."""
        outer = self.outer
        while outer is not None and (outer.link is None or outer.link.impl is not link.impl):
            outer = outer.outer
        return outer is not None


_running: Final[ContextVar[Running | None]] = ContextVar("qtasks_pluggy_running", default=None)
_NONE: Final[frozenset[type]] = frozenset()


class Call:
    """One call of a hook.

    Leaving it as a context manager closes the wrappers of an interrupted call.
    """

    __slots__ = (
        "_cancel_count",
        "_winner",
        "answer",
        "attempt",
        "backend",
        "entries",
        "first",
        "has_failures",
        "hook",
        "open_wrappers",
        "plain_kinds",
        "running",
        "values",
    )

    def __init__(self, hook: Hook, values: Values, backend: Backend) -> None:
        self.hook, self.values, self.backend = hook, values, backend
        subject: Any = values[hook.subject] if hook.subject else None
        self.entries: list[Asked]
        self.attempt: int
        try:
            self.entries, self.attempt = subject._entries, subject._attempt  # noqa: SLF001  # ours
            engine = subject._engine  # noqa: SLF001  # ours
        except AttributeError:  # a hook that an app added, or a stand-in for a run
            self.entries, self.attempt = [], getattr(subject, "attempt", 1)
            engine = getattr(subject, "engine", None)
        self.first = len(self.entries)
        # Answers of these classes count without a check: nothing has to store them.
        self.plain_kinds = PLAIN_KINDS if hook.lastresult and engine is None else _NONE
        self.running = running = Running()
        running.link = running.outer = None
        self.has_failures = False
        self.open_wrappers: list[OpenWrapper] = []
        # The answer so far; of a pipeline its current value.
        self.answer: Any = self._pipelined() if hook.pipeline else None
        self._winner: int | None = None
        self._cancel_count: int | None = None

    def __enter__(self) -> Self:
        """Mark, for an error's hook, which call the hookimpls are in."""
        if self.hook.has_error:
            outer = _running.get()
            # Past the calls that are over: to skip them is cheaper than to reset the variable.
            while outer is not None and outer.link is None:
                outer = outer.outer
            self.running.outer = outer
            _running.set(self.running)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Close open wrappers, and mark the call as over."""
        while self.open_wrappers:
            self.open_wrappers.pop().abandon()
        self.running.link = None

    async def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Await a hookimpl's work; a cancellation meanwhile can be the run's own."""
        self._cancel_count = self.backend.cancellations()
        result = await awaitable
        self._cancel_count = None
        return result

    def is_cancelled(self) -> bool:
        """Return whether a ``CancelledError`` is the run's own, requested since the wait began."""
        count, self._cancel_count = self._cancel_count, None
        return count is not None and self.backend.cancelled(count)

    def record(self, asked: Asked) -> None:
        """Record a link without an answer."""
        self.entries.append(asked)

    def use(self, link: Link, answer: Any, seconds: float) -> None:
        """Record an answer, and let it win over those before it, unless the hook ignores it."""
        hook, entries = self.hook, self.entries
        wins = not link.observed and (
            hook.lastresult or (hook.anytrue and answer is True) or hook.pipeline != ()
        )
        if wins:
            if self._winner is not None:
                entries[self._winner] = entries[self._winner]._replace(won=False)
            self._winner, self.answer = len(entries), answer
            if hook.pipeline:
                self.values.update(pipeline_values(hook, answer))
                self.answer = self._pipelined()
        kind = None if answer is None else type(answer)
        entries.append(new_asked((link, self.attempt, "answered", kind, seconds, wins)))

    def _pipelined(self) -> Any:
        """Return a pipeline's current value."""
        current = [self.values[name] for name in self.hook.pipeline]
        return current[0] if len(current) == 1 else tuple(current)
