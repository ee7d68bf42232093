"""START HERE: ``install(app)`` adds plugins to the tasks of an engine's own app.

Each engine is a subclass of ``Native`` that implements what is special to it. This module has what
all engines share: ``install``, the app that holds the plugins in each process, their start and
stop in a worker, one attempt in plain or async code, and a retry that cannot be sent.

Engines represent one attempt by a request, a message, or a job; here it is called the ``run``.
An engine implements six methods: ``cover``, ``tasks``, ``message``, ``retry``, ``will_retry`` and
``encode``. The other methods of the first part have defaults that suit most engines. ``retry``,
``cancel``, ``dead_letter``, ``fail`` and ``send`` may be ``async def``: in the run of a plain
function they are awaited on ``loop``.

Only the engine's own app holds the ``Native`` object, so both are freed together.

===================  ===========================================================================
``_life.py``         ``begin`` and ``end``: the life of the plugins in a worker
``_native_app.py``   the ``QueueTasks`` app that plugins see for an engine's own app
``_native_tasks.py`` how engines describe their tasks
``_replays.py``      sending a run again, for ``app.replay``
``_errors.py``       errors on their way out of a run: cut, named, and carried as JSON
===================  ===========================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import TaskExecutor, TaskMessage
from qtasks_pluggy.engines import (
    ASYNCIO_WORKER,
    SYNC,
    Attempt,
    Backend,
    Capabilities,
    Host,
    is_pending,
    leave_behind,
    run_to_completion,
    unwrap,
    wait_for,
)
from qtasks_pluggy.engines._errors import HANDS_OVER, check_storable, named, text_of, unsent
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.engines._life import InWorkers, log_as
from qtasks_pluggy.engines._native_app import NativeApp
from qtasks_pluggy.engines._native_tasks import Importable, attempt_of, declared, header_of
from qtasks_pluggy.engines._replays import SENDING, send_again
from qtasks_pluggy.exc import CapabilityError

# What adapters import from here.
__all__ = [
    "Importable",
    "Native",
    "attempt_of",
    "declared",
    "header_of",
    "log_as",
    "named",
    "text_of",
]

N = TypeVar("N")

# The keys of the current runs: when a task calls itself, that is a plain function call.
_at_work: Final[ContextVar[tuple[Any, ...]]] = ContextVar("qtasks_pluggy_at_work", default=())


class Native(InWorkers, Generic[N]):
    """The plugins of an engine's own app; made by ``install``.

    Args:
        native: The engine's own app.

    Attributes:
        name: The engine's name.
        kind: The class that ``install`` takes.
        control: The engine's own control exceptions; plugins are not asked about these.
        ends_worker: Errors that are not an ``Exception`` and end the worker, not just the run.
        gives_ids: Whether ``send`` returns an id that the engine chose.
        blocking: Whether ``send`` waits for something outside this process.
        in_future: Whether the engine's event loop awaits ``work``. An asyncio future refuses a
            ``StopIteration``, and whoever awaits it would wait forever.
        loop: The event loop that its ``async def`` methods need; None if any will do.
        native: The engine's own app.
        plugins: The plugins, as they were passed.
    """

    kind: ClassVar[type[Any]]
    control: ClassVar[tuple[type[Exception], ...]] = ()
    ends_worker: ClassVar[tuple[type[BaseException], ...]] = (KeyboardInterrupt,)
    gives_ids: ClassVar[bool] = False
    blocking: bool = True
    in_future: ClassVar[bool] = False
    loop: asyncio.AbstractEventLoop | None = None

    # --- what an engine answers

    def cover(self) -> None:
        """Make the workers call ``work`` or ``work_async`` for each task, ``begin`` and ``end``.

        Called once for each native app. Tasks that are declared later must be covered too.
        """
        raise NotImplementedError

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks by name, without those of a ``QueueTasks`` app."""
        raise NotImplementedError

    def count(self) -> int:
        """Count the covered tasks."""
        return len(self.tasks)

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message from what the engine knows about a run; anything unknown is None."""
        raise NotImplementedError

    def retry(self, run: Any, attempt: Attempt, number: int) -> Any:
        """Send a run again.

        Args:
            run: The run.
            attempt: Its ``error`` is the error to retry, after its ``delay`` in seconds.
            number: The number of the next attempt, from 2.

        Returns:
            The exception that tells the engine that the run goes on.

        Raises:
            Exception: It cannot be sent. The run then ends with an ``EngineError``.
        """
        raise NotImplementedError

    def will_retry(self, run: Any, error: BaseException) -> bool:  # noqa: ARG002  # an engine's
        """Return whether the engine itself will repeat the run after this error.

        Args:
            run: The run.
            error: One of ``control``, or an error that no plugin answered.
        """
        return False

    def encode(self, run: Any, value: Any) -> object:
        """Encode a value as the engine would store or send it; raise if that is impossible.

        Args:
            run: The run that a plugin's answer is for; None for an argument of a replay.
            value: The answer, or the argument.
        """

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # an engine's
        """Return what the engine can do for a run, or, for None, for a replay."""
        return Capabilities(delay=True, results=True)

    def cancel(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # an engine's
        """Return the exception that ends a cancelled run."""
        return attempt.error

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # an engine's
        """Return the exception that ends a dead letter; ``attempt.kept`` if a plugin keeps it."""
        return attempt.error

    def fail(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # an engine's
        """Return the exception that ends a failed run."""
        return attempt.error

    def failure(self, error: BaseException) -> BaseException | None:
        """Return the run's error after its task raised one that is not an ``Exception``.

        Returns:
            The error that plugins and callers get; None if it ends the worker.
        """
        return None if isinstance(error, self.ends_worker) else error

    def check_result(self, task: str, value: Any) -> None:
        """Refuse a task's own result that cannot be stored; by default, leave that to the engine.

        Raises:
            EngineError: The result cannot be stored.
        """

    def options(self, run: Any) -> Mapping[str, Any]:  # noqa: ARG002  # an engine's
        """Return the declared options of a run's task that the engine itself does not use.

        ``tags`` become the task's tags, the rest its ``extra``.
        """
        return {}

    def send(self, message: TaskMessage, delay: float | None) -> Any:  # noqa: ARG002  # an engine's
        """Send a message to one of ``tasks``, under the message's own id.

        Raises:
            CapabilityError: The engine cannot send a run again.
        """
        msg = f"engine {self.name!r} cannot send task {message.name!r} again"
        raise CapabilityError(msg)

    def function_of(self, name: str) -> Any:
        """Return the function of one of ``tasks``, for plugins that are asked about a past run."""
        return self.tasks[name]

    @classmethod
    def unwrap(cls, native: Any) -> Any:
        """Return the app itself if ``native`` is a proxy for it."""
        return native

    # --- install

    @classmethod
    def install(
        cls,
        native: N,
        plugins: Iterable[Any] = (),
        *,
        discover: bool = True,
        intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
    ) -> int:
        """Let plugins decide about the errors of an engine's own tasks, including later ones.

        Args:
            native: The engine's own app. Calling this again replaces the app's plugins.
            plugins: As for ``QueueTasks``, or names, ``"module"`` or ``"module:attribute"``.
            discover: As for ``QueueTasks``.
            intercept: The exception classes that plugins are asked about.

        Returns:
            How many tasks are covered now.

        Raises:
            PluginRegistrationError: ``plugins`` have faults.
            TypeError: ``native`` is not the engine's own app.
        """
        one = cls.found_in(native)
        one.take(plugins, discover=discover, intercept=intercept)
        return one.count()

    @classmethod
    def found_in(cls, native: Any) -> Self:
        """Return an app's ``Native`` object, or a new one, which covers nothing before ``take``.

        Raises:
            TypeError: ``native`` is not the engine's own app.
        """
        native = cls.unwrap(native)
        if not isinstance(native, cls.kind):
            package, given = cls.kind.__module__.partition(".")[0], type(native)
            msg = (
                f"engine {cls.name!r}: install() expected a {package}.{cls.kind.__name__}, got a"
                f" {given.__module__}.{given.__qualname__}; pass the object that you create with"
                f" {cls.name} itself"
            )
            raise TypeError(msg)
        one = vars(native).get(INSTALLED)
        return one if isinstance(one, cls) else cls(native)

    def __init__(self, native: N) -> None:
        super().__init__()
        self.native: N = native
        self.plugins: tuple[Any, ...] = ()
        self._options: dict[str, Any] = {}

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Use these plugins; if others are started in this process, stop them and start these.

        Args:
            plugins: As for ``install``.
            options: As for ``install``.

        Raises:
            PluginRegistrationError: ``plugins`` have faults; nothing has changed.
        """
        plugins = tuple(plugins)
        app, is_first = NativeApp(self, plugins=plugins, **options), self._app is None
        with self._lock:
            lifespan, self._lifespan = self._lifespan, None
            self._app, self.plugins, self._options = app, plugins, options
            if lifespan is not None:
                run_to_completion(lifespan.stop(SYNC))
                run_to_completion(self._start(SYNC))
        setattr(self.native, INSTALLED, self)
        if is_first:
            self.cover()

    def forked(self) -> None:
        """Forget, in a forked process, what its parent began."""
        super().forked()
        leave_behind(self.loop)
        if isinstance(self._app, NativeApp):
            # Whatever its plugins opened when they were made belongs to the parent.
            self._app = NativeApp(self, plugins=self.plugins, **self._options)

    # --- one attempt

    def is_at_work(self, key: Any) -> bool:
        """Return whether a call comes from within the run that has this key."""
        return key in _at_work.get()

    def work(
        self,
        run: Any,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Any = None,
    ) -> Any:
        """Make one attempt in plain code, in a copy of the thread's context (R19).

        Args:
            run: The engine's object for the attempt.
            func: The task's function, plain or async.
            args: Its arguments.
            kwargs: Its keyword arguments.
            key: The run's key for ``is_at_work``.

        Returns:
            The result for the engine to store.

        Raises:
            BaseException: The error for the engine, without our frames; or the exception that
                makes the engine carry out what the plugins decided.
        """
        context = copy_context()
        if key is not None:
            context.run(_at_work.set, (*_at_work.get(), key))
        with HANDS_OVER:
            attempt = self._attempt(SYNC, run, func, args, kwargs)
            try:
                return unwrap(context.run(run_to_completion, attempt))
            except StopIteration as error:
                if not self.in_future:
                    raise
                # As Python itself does for async tasks.
                msg = "the task raised StopIteration"
                raise RuntimeError(msg) from error

    async def work_async(
        self,
        run: Any,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Any = None,
    ) -> Any:
        """Make one attempt on this event loop, as ``work`` does, in the caller's context."""
        at_work = _at_work.set((*_at_work.get(), key))
        replays: list[asyncio.Task[None]] = []
        sending = SENDING.set(replays)
        try:
            with HANDS_OVER:
                return unwrap(await self._attempt(ASYNCIO_WORKER, run, func, args, kwargs))
        finally:
            _at_work.reset(at_work)
            SENDING.reset(sending)
            for replay in replays:
                await replay

    async def _attempt(
        self, backend: Backend, run: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Make one attempt and carry out what was decided, in plain or async code.

        Returns:
            The result and the error for the engine, one of them None; see ``unwrap``.
        """
        executor = self._executor_for(run, func, self.message(run, args, kwargs))
        attempt = await self.execute(executor, _Host(self, run), backend)
        if attempt.action == "retry":
            number = executor.attempt + 1
            try:
                return [None, await self._call(backend, "retry", run, attempt, number)]
            except Exception as error:  # noqa: BLE001  # whatever sending raises
                failure = unsent(self.name, executor.task_func.name, attempt.error, error)
            if self.will_retry(run, failure):
                return [None, failure]
            attempt = await executor.give_up(failure, backend)
        if attempt.action in {"succeed", "pass"}:
            return [attempt.result, attempt.error]
        # By ``cancel``, ``dead_letter`` or ``fail``.
        return [None, await self._call(backend, attempt.action, run, attempt)]

    def execute(
        self, executor: TaskExecutor, host: Host, backend: Backend
    ) -> Coroutine[Any, Any, Attempt]:
        """Make the attempt with the executor."""
        return executor.execute_attempt(host, backend)

    async def _call(self, backend: Backend, method: str, *args: Any) -> Any:
        """Call a method that an engine may define as ``async def``, and wait for its answer."""
        answer = getattr(self, method)(*args)
        if is_pending(answer):
            return await wait_for(answer, self, backend, method)  # type: ignore[arg-type]  # of the engine it reads name and loop
        return answer

    def _executor_for(self, run: Any, func: Any, message: TaskMessage) -> TaskExecutor:
        return self._app.executor_of(run, func, message)  # type: ignore[no-any-return]  # a NativeApp's

    # --- replays

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do for a replay."""
        return self.can(None)

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a message, for a replay."""
        return send_again(self, message, delay)


class _Host:
    """An engine during one attempt; see ``Host``."""

    __slots__ = ("_adapter", "_run", "control", "name")

    def __init__(self, adapter: Native[Any], run: Any) -> None:
        self._adapter, self._run = adapter, run
        self.name: str = adapter.name
        self.control: tuple[type[Exception], ...] = adapter.control

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do for this run."""
        return self._adapter.can(self._run)

    def will_retry(self, error: BaseException) -> bool:
        """Return whether the engine itself will repeat the run."""
        return self._adapter.will_retry(self._run, error)

    def failure(self, error: BaseException) -> BaseException | None:
        """Return the run's error after its task raised one that is not an ``Exception``."""
        return self._adapter.failure(error)

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: The answer cannot be encoded.
        """
        check_storable(self._adapter, self._run, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: The result cannot be encoded.
        """
        self._adapter.check_result(run.task_func.name, run.result)
