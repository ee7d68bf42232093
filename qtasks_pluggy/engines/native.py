"""START HERE: plugins for the tasks of an engine's own app, by one line, ``install(app)``.

An engine is a subclass of ``Native``. It says what is its own; what all engines do alike is
written here once: ``install``, the app of plugins in each process, its life in a worker, one
attempt in plain and in async code, a retry that cannot be sent, replays, and how an error is
handed over.

What an engine knows one attempt by, a request, a message, a job, is called ``run`` here. The six
answers of an engine:

==================  ============================================================================
``cover``           once: have its workers call ``work`` for each task, ``begin`` and ``end``
``tasks``           its own tasks by name; ``count`` counts them, without importing more
``message``         a ``TaskMessage`` of what it knows of a run
``retry``           send a run again, and give the exception by which it hears of that
``will_retry``      whether it repeats a run by itself after an error
``encode``          raise for an answer that it cannot store as a result
==================  ============================================================================

It may say more, where what is here does not suit it: ``can`` (what it can do), ``cancel`` and
``dead_letter`` (how such a run ends), ``answered``, ``options`` (what a task was declared with),
``send`` (for replays), ``app_name``, and the constants ``control``, ``ends_worker``, ``gives_ids``
and ``hint``. Each of ``retry``, ``cancel``, ``dead_letter`` and ``send`` may be ``async def``: in a
plain function's run it is awaited on ``loop``.

The object lives on the engine's own app and nowhere else, so it goes with it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import attrs

from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor, TaskFunc, TaskMessage
from qtasks_pluggy.engines import (
    ASYNCIO_WORKER,
    SYNC,
    Attempt,
    Backend,
    Capabilities,
    is_pending,
    load_plugins,
    lock_of,
    log_event,
    prepare,
    run_to_completion,
    wait_for,
)
from qtasks_pluggy.engines._errors import HANDS_OVER, PLAIN, named, text_of, unstorable
from qtasks_pluggy.engines._host import Host
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.engines._life import Life, log_as
from qtasks_pluggy.engines._native_app import NativeApp, resolved
from qtasks_pluggy.engines._native_tasks import Importable, attempt_of, declared
from qtasks_pluggy.engines._replays import SENDING, refused, send_again
from qtasks_pluggy.exc import CapabilityError, EngineError

__all__ = [
    "HANDS_OVER",
    "PLAIN",
    "Host",
    "Importable",
    "Native",
    "attempt_of",
    "declared",
    "log_as",
    "named",
    "text_of",
    "unstorable",
]

N = TypeVar("N")

# The runs at work here, so that a task that calls itself calls a function.
_at_work: Final[ContextVar[frozenset[Any]]] = ContextVar(
    "qtasks_pluggy_at_work", default=frozenset()
)


@attrs.frozen
class _Raise:
    """An error on its way out of a coroutine, which cannot raise every one."""

    error: BaseException


class Native(Generic[N]):
    """Plugins for an engine's own app; made by ``install``.

    Args:
        native: The engine's own app.

    Attributes:
        name: The engine's name.
        kind: The class of what ``install`` takes.
        control: The engine's own exceptions, about which no plugin is asked.
        ends_worker: The exceptions, of those that are no ``Exception``, that end the worker and
            not only the run.
        hint: What to do when ``install`` covers no task.
        gives_ids: Whether runs get ids of the engine's own, which ``send`` returns.
        blocking: Whether ``send`` waits for something outside of this process.
        loop: The event loop that its ``async def`` methods need; None if any will do.
        native: The engine's own app.
        plugins: The plugins, as they were given.
    """

    name: ClassVar[str]
    kind: ClassVar[type[Any]]
    control: ClassVar[tuple[type[Exception], ...]] = ()
    ends_worker: ClassVar[tuple[type[BaseException], ...]] = (KeyboardInterrupt,)
    hint: ClassVar[str] = "import the modules that declare them before the worker starts"
    gives_ids: ClassVar[bool] = False
    blocking: bool = True
    loop: asyncio.AbstractEventLoop | None = None

    # --- what an engine says

    def cover(self) -> None:
        """Have the workers call ``work`` or ``work_async`` for each task, ``begin`` and ``end``.

        Called once for each native app; tasks that are declared later are to be covered too.
        """
        raise NotImplementedError

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks by name, those that are not an app's of ours."""
        raise NotImplementedError

    def count(self) -> int:
        """Count the tasks that are covered."""
        return len(self.tasks)

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of what the engine knows of a run; what it does not know is None."""
        raise NotImplementedError

    def retry(self, run: Any, attempt: Attempt, number: int) -> Any:
        """Have a run made again.

        Args:
            run: The run.
            attempt: Its ``error`` is what is retried, after its ``delay``.
            number: The number of the next attempt, from 2.

        Returns:
            The exception to raise, by which the engine hears that this attempt is no end.

        Raises:
            Exception: It cannot be sent; the run ends in an ``EngineError`` that says so.
        """
        raise NotImplementedError

    def will_retry(self, run: Any, error: BaseException) -> bool:  # noqa: ARG002  # an engine's
        """Say whether the engine makes the run again by itself after this error.

        Args:
            run: The run.
            error: One of ``control``, or an error about which no plugin had an opinion.
        """
        return False

    def encode(self, run: Any, value: Any) -> object:
        """Encode what the engine would store or send; raise for what it cannot.

        Args:
            run: The run whose result a plugin's answer would be; None for an argument of a replay.
            value: The answer, or the argument.
        """

    def answered(self, run: Any, value: Any) -> Any:  # noqa: ARG002  # an engine's
        """Give what the engine is to store where a plugin had a say in the result."""
        return value

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # an engine's
        """Say what the engine can do for a run; of None, for the replay of one."""
        return Capabilities(delay=True, results=True)

    def cancel(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # an engine's
        """End a run that a plugin cancelled, or the task itself.

        Returns:
            The exception to raise.
        """
        return attempt.error

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # an engine's
        """End a run that a plugin dead-lettered; where ``attempt.kept``, a plugin has a copy.

        Returns:
            The exception to raise.
        """
        return attempt.error

    def fail(self, run: Any, attempt: Attempt) -> Any:  # noqa: ARG002  # an engine's
        """End a run that failed.

        Returns:
            The exception to raise.
        """
        return attempt.error

    def failure(self, error: BaseException) -> BaseException | None:
        """Say what a run fails in whose task raised an error that is no ``Exception``.

        Returns:
            The error for plugins and callers; None where it ends the worker.
        """
        return None if isinstance(error, self.ends_worker) else error

    def check_result(self, task: str, value: Any) -> None:
        """Refuse a result of the task itself; by default that is the engine's own affair.

        Raises:
            EngineError: It cannot be stored.
        """

    def options(self, run: Any) -> Mapping[str, Any]:  # noqa: ARG002  # an engine's
        """Give what a run's task was declared with that is not the engine's own.

        ``tags`` become the task's tags; the rest is its ``extra``.
        """
        return {}

    def send(self, message: TaskMessage, delay: float | None) -> Any:  # noqa: ARG002  # an engine's
        """Send a message to one of ``tasks``, under the message's own id.

        Raises:
            CapabilityError: The engine has no way to send one.
        """
        msg = (
            f"app {self.app.name!r}, install(): a run of task {message.name!r} cannot be sent again"
            " on this engine; send it as your own code does"
        )
        raise CapabilityError(msg)

    def function_of(self, name: str) -> Callable[..., Any]:
        """Give the function of one of ``tasks``, for plugins that are asked about a past run."""
        function: Callable[..., Any] = self.tasks[name]
        return function

    @property
    def app_name(self) -> str:
        """What the app of plugins is called."""
        return self.name

    @classmethod
    def unwrap(cls, native: Any) -> Any:
        """Give the app itself, where the engine has stand-ins for it."""
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
        """Let plugins decide about the errors of an engine's own tasks, those declared later too.

        Args:
            native: The engine's own app. Called again, it gives that app other plugins.
            plugins: As for ``QueueTasks``, or names, ``"module"`` or ``"module:attribute"``.
            discover: As for ``QueueTasks``.
            intercept: The exception classes that plugins are asked about.

        Returns:
            How many tasks are covered now.

        Raises:
            PluginRegistrationError: Faults of ``plugins``.
            TypeError: ``native`` is not the engine's own app.
        """
        one = cls.found_in(native)
        one.take(plugins, discover=discover, intercept=intercept)
        return one.count()

    @classmethod
    def found_in(cls, native: Any) -> Self:
        """Give the one that an app has, or a new one, which covers nothing before ``take``.

        Raises:
            TypeError: It is not the engine's own app.
        """
        native = cls.unwrap(native)
        if not isinstance(native, cls.kind):
            package = cls.kind.__module__.partition(".")[0]
            got = type(native)
            msg = (
                f"engine {cls.name!r}: install() expected a {package}.{cls.kind.__name__}, got a"
                f" {got.__module__}.{got.__qualname__}; give it the object that you make with"
                f" {cls.name} itself"
            )
            raise TypeError(msg)
        one = vars(native).get(INSTALLED)
        return one if isinstance(one, cls) else cls(native)

    def __init__(self, native: N) -> None:
        self.native: N = native
        self.plugins: tuple[Any, ...] = ()
        self._options: dict[str, Any] = {}
        self._app: NativeApp | None = None
        self._tasks: dict[str, AsyncTask[..., Any] | SyncTask[..., Any]] = {}
        self._made_in = 0
        self._life = Life()
        self._lock = lock_of(self)
        self._hears_of_answers = type(self).answered is not Native.answered

    def take(self, plugins: Iterable[Any], **options: Any) -> None:
        """Have these plugins; where others have been started here, they are stopped for these.

        Args:
            plugins: As for ``install``.
            options: As for ``install``.

        Raises:
            PluginRegistrationError: Faults of ``plugins``; nothing has changed.
        """
        plugins = tuple(map(resolved, plugins))
        app = NativeApp(self, plugins=plugins, **options)
        with self._lock:
            is_first = self._app is None
            self._life.replace(None if self._app is None else app)
            self.plugins, self._options = plugins, options
            self._app, self._tasks, self._made_in = app, {}, os.getpid()
        setattr(self.native, INSTALLED, self)
        if is_first:
            self.cover()

    @property
    def app(self) -> QueueTasks:
        """The app of plugins, this process's own."""
        if self._made_in != os.getpid():
            with self._lock:
                if self._made_in != os.getpid():
                    self._app = NativeApp(self, plugins=self.plugins, **self._options)
                    self._tasks, self._made_in = {}, os.getpid()
        app: Any = self._app
        return app  # type: ignore[no-any-return]  # there since ``take``

    # --- the plugins' life in a worker

    def check(self) -> None:
        """Refuse a worker that would do without plugins, or whose plugins do not load.

        Raises:
            EngineError: No task is covered.
            PluginRegistrationError: Faults of the installed plugins.
            SettingsError: Faults of the settings.
        """
        if not self.count():
            msg = f"engine {self.name!r}, {self.app.name}: install() covers no task; {self.hint}"
            raise EngineError(msg)
        load_plugins(self.app)

    def begin(self, *, is_checked: bool = False) -> None:
        """Start the plugins in this process, for one of its workers.

        Args:
            is_checked: Whether ``check`` was called, as in this one's parent process.

        Raises:
            Exception: As of ``check``, or a plugin does not start; ``refusal`` says so.
        """
        with self._lock:
            self._life.begin(self._given if is_checked else self._first)
            self._life.workers += 1

    async def begin_async(self) -> None:
        """Start the plugins on this event loop, as ``begin`` does."""
        await self._life.begin_async(self._first)
        self._life.workers += 1

    def begin_for_run(self) -> None:
        """Start the plugins where no worker said that it begins, before a run."""
        if not self._life.is_begun:
            with self._lock:
                self._life.begin(self._given)

    def end(self) -> None:
        """Stop the plugins after the last of this process's workers."""
        with self._lock:
            self._life.end()

    async def end_async(self) -> None:
        """Stop the plugins on this event loop, as ``end`` does."""
        await self._life.end_async()

    def refusal(self, error: BaseException) -> SystemExit:
        """Say why a worker cannot start.

        Returns:
            What to raise: no ``Exception``, which engines log, and go on to take runs.
        """
        log_event("error", "worker_cannot_start", app=self.app_name, exc_info=error)
        return SystemExit(str(error))

    def _first(self) -> QueueTasks:
        self.check()
        return self.app

    def _given(self) -> QueueTasks:
        return self.app

    # --- one attempt

    def is_at_work(self, key: Any) -> bool:
        """Say whether a call comes from within the run that has this key."""
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
            run: What the engine knows it by.
            func: The task's function, plain or async.
            args: Its arguments.
            kwargs: Its keyword arguments.
            key: By which ``is_at_work`` knows the run.

        Returns:
            The result for the engine to store.

        Raises:
            BaseException: The error for the engine, our frames cut; or what makes it do what the
                plugins decided.
        """
        with HANDS_OVER:
            ended = copy_context().run(self._work_here, run, func, args, kwargs, key)
            if type(ended) is _Raise:
                raise ended.error
            return ended

    def _work_here(self, run: Any, func: Any, args: Any, kwargs: Any, key: Any) -> Any:
        _at_work.set(_at_work.get() | {key})
        return run_to_completion(self._attempt(SYNC, run, func, args, kwargs))

    async def work_async(
        self,
        run: Any,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Any = None,
    ) -> Any:
        """Make one attempt on this event loop, as ``work`` does, in the caller's context."""
        token = _at_work.set(_at_work.get() | {key})
        sending: list[asyncio.Task[Any]] = []
        replays = SENDING.set(sending)
        try:
            with HANDS_OVER:
                ended = await self._attempt(ASYNCIO_WORKER, run, func, args, kwargs)
                if type(ended) is _Raise:
                    raise ended.error
                return ended
        finally:
            _at_work.reset(token)
            SENDING.reset(replays)
            for one in sending:
                await one

    async def _attempt(
        self, backend: Backend, run: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make one attempt, and settle it: written once for plain and for async code.

        Returns:
            The result, or a ``_Raise``.
        """
        executor = self._executor_for(run, func, self.message(run, args, kwargs))
        attempt = await self.execute(executor, Host(self, run), backend)
        if attempt.action == "retry":
            try:
                return _Raise(await self._answer(backend, self.retry, run, attempt, executor))
            except Exception as failure:  # noqa: BLE001  # whatever sending raises
                unsent = self._unsent(executor, attempt, failure)
            if self.will_retry(run, unsent):
                return _Raise(unsent)
            attempt = await executor.give_up(unsent, backend)
        if attempt.action == "succeed":
            if self._hears_of_answers and any(record.won for record in executor.trail):
                return self.answered(run, attempt.result)
            return attempt.result
        ends = {"cancel": self.cancel, "dead_letter": self.dead_letter, "fail": self.fail}
        end = ends.get(attempt.action)
        error = attempt.error
        if end is not None:
            error = await self._answer(backend, end, run, attempt)
        # No error's truth is asked for.
        return _Raise(EngineError(attempt.reason) if error is None else error)

    def execute(
        self, executor: TaskExecutor, host: Host, backend: Backend
    ) -> Coroutine[Any, Any, Attempt]:
        """Have the executor make the attempt."""
        return executor.execute_attempt(host, backend)

    async def _answer(
        self,
        backend: Backend,
        method: Callable[..., Any],
        run: Any,
        attempt: Attempt,
        executor: TaskExecutor | None = None,
    ) -> Any:
        """Call a method of the engine's, plain or async."""
        more = () if executor is None else (executor.attempt + 1,)
        answer = method(run, attempt, *more)
        if is_pending(answer):
            answer = await wait_for(answer, self, backend, method.__name__)  # type: ignore[arg-type]  # of the engine it reads name and loop
        return answer

    def _unsent(self, executor: TaskExecutor, attempt: Attempt, failure: Exception) -> EngineError:
        """Say that a retry could not be sent; its cause is the task's own error."""
        unsent = failure
        if not isinstance(unsent, EngineError):
            unsent = EngineError(
                f"engine {self.name!r}, task {executor.task_func.name!r}: a retry was decided, and"
                f" the broker did not take it: {text_of(failure)}; look whether it runs, and has"
                " room"
            )
        unsent.__cause__ = attempt.error
        return unsent

    def _executor_for(self, run: Any, func: Any, message: TaskMessage) -> TaskExecutor:
        """Make the executor of one attempt."""
        app = self.app
        prepare(app)
        task = self._tasks.get(message.name)
        if task is None or task.task_func.func != func:
            task_func = self._described(run, message.name, func)
            kind = AsyncTask if task_func.is_async else SyncTask
            task = self._tasks[message.name] = kind(task_func, app)
        return TaskExecutor(task, message, plugins=app.plugins)

    def _described(self, run: Any, name: str, func: Any) -> TaskFunc:
        """Describe a task: by its own options too, which may be anything."""
        extra = dict(self.options(run))
        given: Any = extra.get("tags", ())
        given = (given,) if isinstance(given, str) else given
        several = isinstance(given, (tuple, list, set, frozenset))
        tags: tuple[str, ...] = ()
        if several and all(isinstance(tag, str) for tag in given):
            tags = tuple(given)
            extra.pop("tags", None)
        return TaskFunc(name, func, intercept=self._options["intercept"], tags=tags, extra=extra)

    # --- replays

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do for a replay."""
        return self.can(None)

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a message, for a replay."""
        return send_again(self, message, delay)

    def _refused(self, message: TaskMessage, error: Exception) -> EngineError:
        """Say why a message could not be sent."""
        return refused(self, message, error)
