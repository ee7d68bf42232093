"""One call of a hook: its parameters, and the answers so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, Final, Self

import attrs

from qtasks_pluggy._plugins.answers import pipeline_values
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
    """

    __slots__ = ("link",)
    link: Link | None


_running: Final[ContextVar[tuple[Running, ...]]] = ContextVar("qtasks_pluggy_running", default=())


def _enter(running: Running) -> tuple[Running, ...]:
    """Add a call to this context's stack, and return the stack before it."""
    outer = _running.get()
    _running.set((*outer, running))
    return outer


class Call:
    """One call of a hook.

    Leaving it as a context manager closes the wrappers of an interrupted call. It also takes the
    answers out of the trail: they may hold the error and, through it, the whole run.

    Raises:
        TypeError: A parameter of the hook is missing, or one is not the hook's.
    """

    __slots__ = (
        "_answered",
        "_cancel_count",
        "_winner",
        "attempt",
        "backend",
        "context",
        "entries",
        "first",
        "has_failures",
        "hook",
        "open_wrappers",
        "outer",
        "running",
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
        self.entries: list[Asked] = [] if entries is None else entries
        self.first = len(self.entries)
        self.attempt: int = getattr(subject, "_attempt", 0) or getattr(subject, "attempt", 1)
        # An attempt that has a context of its own has its plain hookimpls called there.
        self.context: Context | None = getattr(subject, "_context", None)
        self.outer: tuple[Running, ...] = ()
        self.has_failures = False
        self.open_wrappers: list[OpenWrapper] = []
        self._answered: tuple[int, ...] = ()
        self._winner: Asked | None = None
        self.running = Running()
        self._cancel_count: int | None = None

    def __enter__(self) -> Self:
        """Mark, for an error's hook, which call the hookimpls are in."""
        if self.hook.has_error:
            if self.context is None:
                self.outer = _enter(self.running)
            else:
                self.outer = self.context.run(_enter, self.running)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Close open wrappers, and take the answers out of the trail."""
        while self.open_wrappers:
            self.open_wrappers.pop().abandon()
        self.running.link = None
        if self.hook.has_error:
            if self.context is None:
                _running.set(self.outer)
            else:
                self.context.run(_running.set, self.outer)
        for place in self._answered:
            entry = self.entries[place]
            self.entries[place] = new_asked((*entry[:5], None, entry is self._winner))
        self._winner = None

    def run(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Call a function in the attempt's own context, if it has one."""
        return function(*args) if self.context is None else self.context.run(function, *args)

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

    def open(self, wrapper: OpenWrapper | Asked) -> None:
        """Keep a wrapper for its teardown, or record why it did not open."""
        if isinstance(wrapper, OpenWrapper):
            self.open_wrappers.append(wrapper)
        else:
            self.record(wrapper)

    def record(self, asked: Asked) -> None:
        """Record the result of asking a link, and use its answer if it has one."""
        self.entries.append(asked)
        if asked.status != "answered":
            return
        self._answered += (len(self.entries) - 1,)
        hook = self.hook
        if asked.link.observed:
            return
        if hook.lastresult or hook.pipeline or (hook.anytrue and asked.answer is True):
            self._winner = asked
        if hook.pipeline:
            self.values.update(pipeline_values(hook, asked.answer))

    @property
    def answer(self) -> Any:
        """The answer so far; of a pipeline its current value."""
        hook = self.hook
        if hook.pipeline:
            first, *others = (self.values[name] for name in hook.pipeline)
            return (first, *others) if others else first
        return None if self._winner is None else self._winner.answer

    @property
    def winner(self) -> Asked | None:
        """The entry of the link whose answer is used; None if there is none."""
        return self._winner
