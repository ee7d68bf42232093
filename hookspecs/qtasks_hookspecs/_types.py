"""The parameters of hooks: a task's definition, a run's message, protocols for run and app."""

from __future__ import annotations

import inspect
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

import attrs

from qtasks_hookspecs._decisions import check_whole, in_seconds

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

__all__ = ["RunningApp", "RunningTask", "TaskFunc", "TaskMessage"]

ErrorClasses: TypeAlias = type[BaseException] | Iterable[type[BaseException]] | None


def error_classes(value: ErrorClasses) -> tuple[type[BaseException], ...] | None:
    """Return ``intercept=`` as a tuple of classes; None stays None.

    Raises:
        TypeError: Something in it is not an exception class.
    """
    if value is None:
        return None
    # A string is one wrong value, not its letters; some classes can be iterated over.
    several = isinstance(value, Iterable) and not isinstance(value, (type, str))
    classes: tuple[Any, ...] = tuple(value) if several else (value,)  # type: ignore[arg-type]  # several says so
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            hint = "; give the class itself, not its name" if isinstance(one, str) else ""
            msg = (
                f"intercept=: expected an exception class, several of them or None, got {one!r}"
                f"{hint}"
            )
            raise TypeError(msg)
    return classes


def _positive_seconds(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{attribute.name}=: expected seconds as a number or None, got {value!r}"
        raise TypeError(msg)
    if not (math.isfinite(value) and value > 0):
        msg = f"{attribute.name}=: expected more than 0 seconds, got {value!r}"
        raise ValueError(msg)


def _whole_number(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_whole(value, f"{attribute.name}=")


def _retry_count(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_whole(value, f"{attribute.name}=", 0)


def _string(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        msg = f"{attribute.name}=: expected a string, got {value!r}"
        raise TypeError(msg)


def _callable(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        msg = f"{attribute.name}: expected a function, got {value!r}"
        raise TypeError(msg)


def _any_kind(func: Any, test: Callable[[Any], bool]) -> bool:
    # An object with __call__ is of the kind of its __call__.
    return test(func) or (not inspect.isroutine(func) and test(type(func).__call__))


@attrs.frozen(eq=False)
class TaskFunc:
    """A task's definition, shared by all of its runs.

    Attributes:
        name: The task's name, unique in its app.
        func: The function itself.
        echo: Whether the function takes a view of its run as first argument (``self``).
        priority: Higher runs first, if the app has an engine.
        intercept: Exception classes that plugins are asked about besides
            ``TaskPluginTriggerError``; None for the app's.
        max_retries: The most retries of one run that plugins may cause; None for no bound.
        max_time: Seconds that one attempt may take, or a ``timedelta``; None for no limit.
        tags: Words that plugins can filter by; a string is one of them.
        description: What the task does, for people.
        extra: Any other values that the app gave the task, for plugins to read.
        is_async: Whether ``func`` is an ``async def`` function or an async generator.
        is_generator: Whether ``func`` yields its result item by item.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A number is out of its range.
    """

    name: str = attrs.field(validator=_string)
    func: Callable[..., Any] = attrs.field(validator=_callable)
    echo: bool = attrs.field(default=False, kw_only=True)
    priority: int = attrs.field(default=0, kw_only=True, validator=_whole_number)
    intercept: tuple[type[BaseException], ...] | None = attrs.field(
        default=None, kw_only=True, converter=error_classes
    )
    max_retries: int | None = attrs.field(default=None, kw_only=True, validator=_retry_count)
    max_time: float | None = attrs.field(
        default=None, kw_only=True, converter=in_seconds, validator=_positive_seconds
    )
    tags: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    description: str = attrs.field(default="", kw_only=True)
    extra: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, repr=False)
    is_async: bool = attrs.field(init=False, repr=False)
    is_generator: bool = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Find out the kind of function once, so that no run has to."""
        given: Any = self.tags
        # A string is one tag, and anything that is no iterable one wrong tag.
        several = isinstance(given, Iterable) and not isinstance(given, str)
        tags = tuple(given) if several else (given,)
        if not all(isinstance(tag, str) for tag in tags):
            msg = f"tags=: expected strings, got {tags!r}"
            raise TypeError(msg)
        object.__setattr__(self, "tags", tags)
        is_async_generator = _any_kind(self.func, inspect.isasyncgenfunction)
        is_async = is_async_generator or _any_kind(self.func, inspect.iscoroutinefunction)
        is_generator = is_async_generator or _any_kind(self.func, inspect.isgeneratorfunction)
        object.__setattr__(self, "is_async", is_async)
        object.__setattr__(self, "is_generator", is_generator)


_first_read = threading.Lock()


def _recreate_lock() -> None:  # pragma: no cover  # in processes that are not measured
    globals()["_first_read"] = threading.Lock()


# In a forked process, a thread that was not forked may hold it forever. Windows has no fork.
if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows
    os.register_at_fork(after_in_child=_recreate_lock)


@attrs.frozen(eq=False)
class TaskMessage:
    """The message of one run; hooks receive it as ``task_broker``, its historic name.

    ``uuid`` and ``created_at`` are made when they are first read, pickled or copied, so that runs
    that do not need them do not pay for them.

    Attributes:
        name: The task's name.
        args: The positional arguments of the call.
        kwargs: The keyword arguments of the call.
        priority: Higher runs first; None if the engine does not know.
        attempt: Which attempt this is, from 1; None if the engine does not know.
        queue: The queue that it came from, if any.
        engine: The engine that carried it, if any.
        redelivered: Whether it was delivered before; None if the engine does not know.
        metadata: Other values that travelled with it.
    """

    name: str
    args: tuple[Any, ...] = attrs.field(default=(), converter=tuple, repr=False)
    kwargs: dict[str, Any] = attrs.field(factory=dict, converter=dict, repr=False)
    _uuid: UUID | str | None = attrs.field(default=None, kw_only=True, repr=False, alias="uuid")
    priority: int | None = attrs.field(default=0, kw_only=True)
    _created_at: float | None = attrs.field(
        default=None, kw_only=True, repr=False, alias="created_at"
    )
    attempt: int | None = attrs.field(default=1, kw_only=True)
    queue: str | None = attrs.field(default=None, kw_only=True)
    engine: str | None = attrs.field(default=None, kw_only=True)
    redelivered: bool | None = attrs.field(default=None, kw_only=True)
    metadata: dict[str, Any] = attrs.field(factory=dict, converter=dict, kw_only=True, repr=False)

    @property
    def uuid(self) -> UUID | str:
        """The run's id: a UUID, or the engine's own id."""
        if self._uuid is None:
            from uuid import uuid4  # noqa: PLC0415  # a plugin that never looks need not load it

            with _first_read:
                if self._uuid is None:
                    object.__setattr__(self, "_uuid", uuid4())
        return self._uuid  # type: ignore[return-value]  # set in the lines above

    @property
    def created_at(self) -> float:
        """When the message was made, in seconds since the epoch."""
        if self._created_at is None:
            with _first_read:
                if self._created_at is None:
                    object.__setattr__(self, "_created_at", time.time())
        return self._created_at  # type: ignore[return-value]  # set in the lines above

    def __eq__(self, other: object) -> bool:
        """Messages are equal if they are the same attempt of the same run."""
        if not isinstance(other, TaskMessage):
            return NotImplemented
        return (self.uuid, self.attempt) == (other.uuid, other.attempt)

    def __hash__(self) -> int:
        """Agree with ``==``."""
        return hash((self.uuid, self.attempt))

    def __getstate__(self) -> dict[str, Any]:
        """Fix the id and the time: a copy is the same run."""
        state = {name.name: getattr(self, name.name) for name in attrs.fields(TaskMessage)}
        return state | {"_uuid": self.uuid, "_created_at": self.created_at}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what ``__getstate__`` gave."""
        for name, value in state.items():
            object.__setattr__(self, name, value)


if TYPE_CHECKING:
    # Read by type checkers alone: protocols are slow to make.

    class RunContext(Protocol):
        """What a task reaches as ``self.ctx``, and a hookimpl as ``task_executor.ctx``."""

        @property
        def task_name(self) -> str:
            """The task's name."""
            ...

        @property
        def uuid(self) -> UUID | str:
            """The run's id."""
            ...

        @property
        def attempt(self) -> int:
            """Which attempt this is, from 1."""
            ...

        @property
        def log(self) -> Any:
            """A structlog logger that names the task, the run and the attempt."""
            ...

        def plugin_error(self, /, *args: Any, **kwargs: Any) -> NoReturn:
            """Raise ``TaskPluginTriggerError`` with these arguments."""
            ...

        def cancel(self, reason: str = "") -> NoReturn:
            """Raise ``TaskCancelError(reason)``."""
            ...

        def sleep(self, seconds: float) -> Awaitable[None] | None:
            """Pause; awaited in an async task, called in the others."""
            ...

    class RunRecord(Protocol):
        """One line of a run's trail: what one hookimpl did in one call of its hook."""

        @property
        def plugin(self) -> str:
            """The plugin's name."""
            ...

        @property
        def distribution(self) -> str | None:
            """The distribution that installed it."""
            ...

        @property
        def version(self) -> str | None:
            """That distribution's version."""
            ...

        @property
        def hook(self) -> str:
            """The hook's name."""
            ...

        @property
        def attempt(self) -> int:
            """The attempt of the run, from 1."""
            ...

        @property
        def status(self) -> str:
            """Whether it answered, had no opinion, failed, or was not asked and why."""
            ...

        @property
        def kind(self) -> str | None:
            """The kind of its answer."""
            ...

        @property
        def seconds(self) -> float:
            """How long it took."""
            ...

        @property
        def observed(self) -> bool:
            """Whether its answer was only recorded."""
            ...

        @property
        def won(self) -> bool:
            """Whether its answer was the one used."""
            ...

        @property
        def handler(self) -> str | None:
            """The function's own name."""
            ...


class RunningTask(Protocol):
    """What a hookimpl may read from ``task_executor``: one run, read-only."""

    @property
    def app(self) -> RunningApp | None:
        """The app whose task this is; None for a bare executor."""
        ...

    @property
    def task_func(self) -> TaskFunc:
        """The task's definition."""
        ...

    @property
    def task_broker(self) -> TaskMessage:
        """The run's message."""
        ...

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of this attempt."""
        ...

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments of this attempt."""
        ...

    @property
    def result(self) -> Any:
        """The result so far; None before there is one."""
        ...

    @property
    def yielded(self) -> Sequence[Any]:
        """The items that a generator task has yielded in this attempt."""
        ...

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        ...

    @property
    def max_attempts(self) -> int | None:
        """The most attempts that the task and the app allow; None for no bound."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """While a dead letter is kept, the fingerprint that its outcome will have; else None."""
        ...

    @property
    def trail(self) -> Sequence[RunRecord]:
        """Who was asked so far, and what each answered."""
        ...

    @property
    def log(self) -> Any:
        """A structlog logger that names the task, the run and the attempt."""
        ...

    @property
    def ctx(self) -> RunContext:
        """What the task itself reaches as ``self.ctx``."""
        ...


class RunningApp(Protocol):
    """What a hookimpl may use of ``app``, and of ``task_executor.app``."""

    @property
    def name(self) -> str:
        """The app's name."""
        ...

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The app's tasks by name."""
        ...

    @property
    def engine(self) -> Any:
        """The engine of the app's submitted runs; None if tasks only run in place."""
        ...

    def replay(
        self,
        message: TaskMessage,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        delay: float | timedelta | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> UUID | str | None:
        """Run a message's task again: sent to the engine, or in place here and now.

        Args:
            message: The message of the run to repeat.
            args: Other positional arguments; None for the message's.
            kwargs: Other keyword arguments; None for the message's.
            delay: Seconds before the new run may begin, if the app has an engine.
            metadata: Values to add to those of the message. ``replay_of`` is always set to the id
                of the repeated run.

        Returns:
            The id of the new run; None on the event loop of a Procrastinate or QTasks worker, where
            the engine gives it one afterwards.

        Raises:
            CapabilityError: It cannot be delayed, or the engine cannot send it from here.
            EngineError: The engine failed, or an argument does not travel.
            NotRunningError: The app is not started, or was stopped.
            TaskNameError: The app has no such task; the nearest is named.
            TypeError: An argument has the wrong type.
        """
        ...
