"""Tasks as the app's code sees them, and ``ctx``, the context of a run."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NoReturn, Protocol, Self, overload

import attrs

from qtasks_hookspecs import TaskFunc
from qtasks_hookspecs._decisions import check_seconds
from qtasks_hookspecs.exc import TaskCancelError, TaskPluginTriggerError
from qtasks_pluggy._submit.handle import TaskHandle
from qtasks_pluggy._submit.submit import SubmitOptions
from qtasks_pluggy._waiting import ASYNCIO, SYNC, run_to_completion

if TYPE_CHECKING:
    # With defaults, so that ``self: AsyncTask`` alone is a whole annotation.
    from uuid import UUID

    from typing_extensions import ParamSpec, TypeVar

    from qtasks_hookspecs import RunningTask

    P = ParamSpec("P", default=...)
    R_co = TypeVar("R_co", covariant=True, default=Any)
    R = TypeVar("R", default=Any)
    Y = TypeVar("Y", default=Any)
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R_co = TypeVar("R_co", covariant=True)
    R, Y = TypeVar("R"), TypeVar("Y")


class Context:
    """What a task reaches as ``self.ctx``: its own run.

    Args:
        run: The run.
    """

    __slots__ = ("_run",)

    def __init__(self, run: RunningTask) -> None:
        self._run = run

    @property
    def task_name(self) -> str:
        """The task's name."""
        return self._run.task_func.name

    @property
    def uuid(self) -> UUID | str:
        """The run's id."""
        return self._run.task_broker.uuid

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._run.attempt

    @property
    def log(self) -> Any:
        """A structlog logger that names the task, the run and the attempt."""
        return self._run.log

    def plugin_error(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        """Ask the plugins what to do instead of returning a result.

        Args:
            *args: Handed to the plugins as ``e.args``.
            **kwargs: Handed to the plugins as ``e.kwargs``; ``message`` is the error's text.

        Raises:
            TaskPluginTriggerError: Always.
        """
        raise TaskPluginTriggerError(*args, **kwargs)

    def cancel(self, reason: str = "") -> NoReturn:
        """End this run as cancelled; no plugin is asked.

        Args:
            reason: Why.

        Raises:
            TaskCancelError: Always.
        """
        raise TaskCancelError(reason)

    def sleep(self, seconds: float) -> Awaitable[None] | None:
        """Pause: ``await ctx.sleep(1)`` in an async task, ``ctx.sleep(1)`` in the others.

        Args:
            seconds: How long.

        Returns:
            Something to await in an async task, else None.
        """
        if self._run.task_func.is_async:
            return asyncio.sleep(seconds)
        time.sleep(seconds)
        return None


if TYPE_CHECKING:

    class AsyncContext(Context):
        """The ``ctx`` of an async task."""

        def sleep(self, seconds: float) -> Awaitable[None]:
            """Pause; to be awaited."""
            ...

    class SyncContext(Context):
        """The ``ctx`` of a plain task."""

        def sleep(self, seconds: float) -> None:
            """Pause."""


class _Task(Generic[P, R_co]):
    """What both kinds of task share.

    Args:
        task_func: The definition.
        app: The app; None for the view of a run without an app.
        run: The run that this is a view of; None for the task itself.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(
        self, task_func: TaskFunc, app: Any = None, run: RunningTask | None = None
    ) -> None:
        self.task_func: TaskFunc = task_func
        self._app = app
        self._run = run
        self._options: SubmitOptions | None = None
        if run is None:
            _pass_for_function(self, task_func)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task_func.name

    @property
    def func(self) -> Any:
        """The bare function."""
        return self.task_func.func

    @property
    def app(self) -> Any:
        """The app, if there is one."""
        return self._app

    @property
    def ctx(self) -> Context:
        """The context of the run that this is a view of.

        Raises:
            RuntimeError: This is the task itself, not the view of a run.
        """
        if self._run is None:
            msg = (
                f"task {self.name!r} has no ctx outside of a run; declare it with echo=True and"
                " use the ctx of its first parameter"
            )
            raise RuntimeError(msg)
        return self._run.ctx  # type: ignore[return-value]  # always our own Context

    def submit_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]:
        """Submit a run to the app's engine, from plain code.

        Args:
            *args: The function's arguments.
            **kwargs: The function's keyword arguments.

        Returns:
            A handle on the run. If the engine is full, this waits for room first.

        Raises:
            EngineError: The app has no engine, or the engine failed.
            NotRunningError: The app is not started.
            QueueFullError: The engine is full, and waiting for room would never end.
        """
        return run_to_completion(self._own_app()._submit(SYNC, self, args, kwargs))  # noqa: SLF001  # its tasks'

    def submit_async(
        self, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, TaskHandle[R_co]]:
        """Submit a run to the app's engine, from async code; as ``submit_sync`` does."""
        app = self._own_app()
        submitting: Coroutine[Any, Any, TaskHandle[R_co]]
        submitting = app._submit(ASYNCIO, self, args, kwargs)  # noqa: SLF001  # its tasks'
        return submitting

    def with_options(
        self,
        *,
        delay: float | timedelta | None = None,
        priority: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return this task with other options for the runs that it submits.

        Options that are not given keep their values.

        Args:
            delay: Seconds that a run waits before it may begin, or a ``timedelta``.
            priority: Higher runs first.
            metadata: Values that travel with the run, such as a request id or a trace context, for
                plugins to read as ``task_broker.metadata``. They are added to those set before.

        Returns:
            A task to submit with: ``task.with_options(delay=60).submit(...)``.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: ``delay`` is negative or not a number of seconds.
        """
        if delay is not None:
            delay = check_seconds(delay, "with_options(delay=...)")
        if metadata is not None and not isinstance(metadata, Mapping):
            msg = (
                f"task {self.name!r}, with_options(metadata=...): expected a mapping, got"
                f" {type(metadata).__name__}"
            )
            raise TypeError(msg)
        func = self.task_func
        if priority is not None:
            func = attrs.evolve(func, priority=priority)
        before, other = self._options or SubmitOptions(), type(self)(func, self._app)
        other._options = SubmitOptions(  # noqa: SLF001  # a task too
            before.delay if delay is None else delay, {**before.metadata, **(metadata or {})}
        )
        return other

    def _refuse_call(self) -> RuntimeError:
        msg = (
            f"task {self.name!r} with_options() is for submitting, and this is a call here and now,"
            " which has no options; call the task itself, or submit it"
        )
        return RuntimeError(msg)

    def _own_app(self) -> Any:
        if self._app is None:
            msg = f"task {self.name!r} has no app to run it; use TaskExecutor, or call .func"
            raise RuntimeError(msg)
        return self._app

    def __reduce__(self) -> str:
        """Pickle by module and qualified name, as functions are.

        Raises:
            pickle.PicklingError: This is the ``self`` of a run, not the task itself.
        """
        if self._run is not None:
            msg = f"the self of a run of task {self.name!r} cannot be pickled; the task itself can"
            raise pickle.PicklingError(msg)
        return self.__qualname__

    def __repr__(self) -> str:
        """Show the kind and the name."""
        return f"<{type(self).__name__} {self.name!r}>"


class AsyncTask(_Task[P, R_co]):
    """A task whose function is an ``async def``; await it to run it here and now.

    ``await task.submit(...)`` submits a run to the app's engine.

    With ``echo=True`` the function's first argument is another instance: a view of the run.
    """

    if TYPE_CHECKING:

        @property
        def ctx(self) -> AsyncContext:
            """The context of the run that this is a view of."""
            ...

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the task through the executor.

        Args:
            *args: The function's arguments.
            **kwargs: The function's keyword arguments.

        Returns:
            The function's result, or what the plugins made of its error; a list of the items of
            an async generator.

        Raises:
            NotRunningError: The app was stopped.
        """
        if self._options is not None:
            raise self._refuse_call()
        return await self._own_app()._run_async(self, args, kwargs)  # type: ignore[no-any-return]  # noqa: SLF001  # what the function returns

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, TaskHandle[R_co]]:
        """Submit a run to the app's engine; ``submit_async``."""
        return self.submit_async(*args, **kwargs)


class SyncTask(_Task[P, R_co]):
    """A task whose function is a plain ``def``; call it to run it here and now.

    ``task.submit(...)`` submits a run to the app's engine.

    With ``echo=True`` the function's first argument is another instance: a view of the run.
    """

    if TYPE_CHECKING:

        @property
        def ctx(self) -> SyncContext:
            """The context of the run that this is a view of."""
            ...

    # mypy cannot distinguish decorated generators with a view of their run.
    @overload
    def __call__(
        self: SyncTask[P, Iterator[Y]], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Y]: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the task through the executor.

        Args:
            *args: The function's arguments.
            **kwargs: The function's keyword arguments.

        Returns:
            The function's result, or what the plugins made of its error; a list of the items of
            a generator.

        Raises:
            NotRunningError: The app was stopped.
        """
        if self._options is not None:
            raise self._refuse_call()
        return self._own_app()._run_sync(self, args, kwargs)  # noqa: SLF001  # its tasks'

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]:
        """Submit a run to the app's engine; ``submit_sync``."""
        return self.submit_sync(*args, **kwargs)


def _pass_for_function(task: Any, task_func: TaskFunc) -> None:
    """Give a task its function's name, module, docstring, type hints and signature."""
    func = task_func.func
    # Leave out the function's own attributes, which could hide the task's.
    update_wrapper(task, func, updated=())
    name = getattr(func, "__name__", task_func.name)
    task.__name__, task.__qualname__ = name, getattr(func, "__qualname__", name)
    if task_func.echo:
        # Callers do not pass the first parameter. Some built-ins have no signature.
        with suppress(TypeError, ValueError):
            signature = inspect.signature(func)
            parameters = list(signature.parameters.values())[1:]
            task.__signature__ = signature.replace(parameters=parameters)


class Decorator(Protocol):
    """``@app.task(...)``: the task has the function's parameters."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # any return type is the last resort
        self, func: Callable[P, AsyncIterator[Y]], /
    ) -> AsyncTask[P, list[Y]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # any return type is the last resort
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, func: Callable[P, Iterator[Y]], /) -> SyncTask[P, list[Y]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> SyncTask[P, R]: ...


class EchoDecorator(Protocol):
    """``@app.task(echo=True, ...)``: the task has all parameters but the first."""

    @overload
    def __call__(
        self, func: Callable[Concatenate[AsyncTask[..., Any], P], AsyncIterator[Y]], /
    ) -> AsyncTask[P, list[Y]]: ...
    @overload
    def __call__(
        self, func: Callable[Concatenate[AsyncTask[..., Any], P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(
        self, func: Callable[Concatenate[SyncTask[..., Any], P], R], /
    ) -> SyncTask[P, R]: ...
