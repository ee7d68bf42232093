"""One call of a hook: what its links are asked with, and what they answered so far."""

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


class Running:
    """Which hookimpl a call of a hook is in at the moment, seen from inside of it.

    An asyncio task that the hookimpl leaves behind keeps it for as long as it lives, so it holds
    nothing else.
    """

    __slots__ = ("link",)
    link: Link | None


_running: Final[ContextVar[tuple[Running, ...]]] = ContextVar("qtasks_pluggy_running", default=())


def _enter(running: Running) -> tuple[Running, ...]:
    """Note what is running in this context, and return what was before."""
    outer = _running.get()
    _running.set((*outer, running))
    return outer


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
        """Let the hookimpls of an error's hook know where they are called."""
        if self.hook.has_error:
            if self.context is None:
                self.outer = _enter(self.running)
            else:
                self.outer = self.context.run(_enter, self.running)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Leave no wrapper open, and no answer in the trail."""
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
        """Call a function in the context that plain hookimpls are to see."""
        return function(*args) if self.context is None else self.context.run(function, *args)

    async def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Wait for what a hookimpl has begun; a cancellation in between can be the run's own."""
        self._cancel_count = self.backend.cancellations()
        result = await awaitable
        self._cancel_count = None
        return result

    def is_cancelled(self) -> bool:
        """Say whether a ``CancelledError`` is the run's own, asked for since the wait began."""
        count, self._cancel_count = self._cancel_count, None
        return count is not None and self.backend.cancelled(count)

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
        """The answer so far; of a pipeline what it has come to."""
        hook = self.hook
        if hook.pipeline:
            first, *others = (self.values[name] for name in hook.pipeline)
            return (first, *others) if others else first
        return None if self._winner is None else self._winner.answer

    @property
    def winner(self) -> Asked | None:
        """What became of the link whose answer is used; None where none is."""
        return self._winner
