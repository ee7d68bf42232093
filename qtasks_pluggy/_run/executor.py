"""START HERE: the life of one run, from its arguments to its result.

``_attempt_once`` makes one attempt, for plain and async code alike: the arguments, the function,
what the plugins make of its result or decide about its error, and the hook for its end. It returns
an ``Attempt``, which the run's host carries out. In place, the host is ``_run``, which attempts
until the run is over; on an engine, the host is the engine, which calls ``execute_attempt`` once
for each attempt. Every run ends in ``_end``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, overload

import attrs

from qtasks_hookspecs import Outcome, OutcomeStatus, Replace, TaskFunc, TaskMessage
from qtasks_hookspecs._outcome import Origin
from qtasks_hookspecs.exc import (
    PluginError,
    TaskCancelError,
    TaskPluginTriggerError,
    wrap_intercepted,
)
from qtasks_pluggy import _log
from qtasks_pluggy._plugins.chain import DECISIONS, Values, decided_by
from qtasks_pluggy._plugins.filters import is_replay
from qtasks_pluggy._plugins.manager import PluginManager
from qtasks_pluggy._run.decisions import (
    STATUS_OF,
    attempt_from,
    note_decision,
    reason_for,
)
from qtasks_pluggy._run.function import call_function
from qtasks_pluggy._run.view import RunView
from qtasks_pluggy._submit.outcome import Attempt
from qtasks_pluggy._submit.protocol import Host
from qtasks_pluggy._task import AsyncTask, SyncTask
from qtasks_pluggy._waiting import (
    ASYNCIO,
    ASYNCIO_WORKER,
    SYNC,
    Backend,
    Raised,
    reraise,
    run_to_completion,
)

if TYPE_CHECKING:
    # With a default, so that ``TaskExecutor`` alone is a whole annotation.
    from typing_extensions import TypeVar as TypeVarWithDefault

    R = TypeVarWithDefault("R", default=Any)
else:
    R = TypeVar("R")
T = TypeVar("T")
Plugins: TypeAlias = "PluginManager | list[Any] | tuple[Any, ...] | None"

_NO_PLUGINS: Final = PluginManager()


class TaskExecutor(RunView, Generic[R]):
    """The life of one run: one executor, one run.

    Args:
        task_func: The task: its definition, the task itself, or a plain function.
        task_broker: The message of the run; without one it is made when first read.
        args: The positional arguments, without a message.
        kwargs: The keyword arguments, without a message.
        plugins: A manager, or plugins for a manager of this run's own; nothing is discovered.
            None means those of the task's app, if it has one, including installed ones.

    Raises:
        NotRunningError: The task's app was stopped.
        TypeError: Both a message and arguments are passed.
        PluginRegistrationError: ``plugins`` have faults.
    """

    __slots__ = (
        "_backend",
        "_cancellations",
        "_consented_only",
        "_original_arguments",
        "_started",
    )
    _backend: Backend | None
    # How many cancellations the caller had when the run began.
    _cancellations: int
    # Whether to ask only handlers that name the error's class.
    _consented_only: bool
    # When the attempt began, if a plugin has a hook for its end.
    _started: float | None

    @overload
    def __init__(
        self: TaskExecutor[T],
        task_func: AsyncTask[..., T] | SyncTask[..., T],
        task_broker: TaskMessage | None = ...,
        *,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        plugins: Plugins = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: TaskExecutor[Any],
        task_func: TaskFunc,
        task_broker: TaskMessage | None = ...,
        *,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        plugins: Plugins = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: TaskExecutor[T],
        task_func: Callable[..., Coroutine[Any, Any, T]],
        task_broker: TaskMessage | None = ...,
        *,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        plugins: Plugins = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: TaskExecutor[T],
        task_func: Callable[..., T],
        task_broker: TaskMessage | None = ...,
        *,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        plugins: Plugins = ...,
    ) -> None: ...
    def __init__(
        self,
        task_func: Any,
        task_broker: TaskMessage | None = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        plugins: Plugins = None,
    ) -> None:
        self._task: Any = None
        func: Any = task_func
        if type(task_func) is not TaskFunc:
            if isinstance(task_func, (AsyncTask, SyncTask)):
                self._task = task_func
                func = task_func.task_func
            else:
                func = TaskFunc(getattr(task_func, "__name__", repr(task_func)), func)
        self._task_func: TaskFunc = func
        self._message = task_broker
        if task_broker is None:
            self._args = args if type(args) is tuple else tuple(args)
            self._kwargs: Mapping[str, Any] = kwargs or {}
            self._attempt = 1
        elif args or kwargs:
            msg = (
                f"TaskExecutor for task {func.name!r} got a message and args= or kwargs=;"
                " the message has the arguments, pass one or the other"
            )
            raise TypeError(msg)
        else:
            self._args = task_broker.args
            # A copy: changes that hookimpls make to the message must not reach the function.
            self._kwargs = dict(task_broker.kwargs) if task_broker.kwargs else {}
            self._attempt = task_broker.attempt or 1
        manager: Any = plugins
        if plugins is None:
            manager = _NO_PLUGINS if self._task is None else _plugins_of(self.app)
        elif not isinstance(plugins, PluginManager):
            manager = PluginManager(plugins)
        self._plugins = manager
        self._entries = []
        self._result = self._yielded = self._engine = self._backend = None
        self._started = None
        self._consented_only = False

    def execute(self) -> Coroutine[Any, Any, R]:
        """Run the task from async code; a ``def`` task runs in a worker thread.

        Returns:
            The result, to be awaited: the function's, or what the plugins made of its error.

        Raises:
            RuntimeError: This executor has run already.
            TaskCancelError: The run was cancelled on purpose.
            TaskDeadLetteredError: The run was dead-lettered.
            PluginError: A plugin failed, and the settings say ``strict``.
        """
        return self._run(ASYNCIO)

    def execute_sync(self) -> R:
        """Run the task from plain code; an ``async def`` task runs on the background loop.

        Returns:
            The result: the function's, or what the plugins made of its error.

        Raises:
            RuntimeError: This executor has run already.
            TaskCancelError: The run was cancelled on purpose.
            TaskDeadLetteredError: The run was dead-lettered.
            PluginError: A plugin failed, and the settings say ``strict``.
        """
        result = run_to_completion(self._run(SYNC))
        if type(result) is Raised:
            raise result.error
        return result  # type: ignore[no-any-return]  # the function's, or a plugin's answer

    async def execute_attempt(self, engine: Host, backend: Backend | None = None) -> Attempt:
        """Make one attempt for an engine; again after a retry.

        Args:
            engine: Its ``capabilities`` and ``control`` apply; it settles the attempt.
            backend: How the attempt waits; None for the event loop of its caller.

        Returns:
            What the engine is to do. The hooks for the end were called, unless the run goes on.

        Raises:
            RuntimeError: This executor has run already.
        """
        self._prepare(backend or ASYNCIO_WORKER)
        if self._engine is not None:
            self._next_attempt()
        self._engine = engine
        try:
            attempt = await self._attempt_once()
        except GeneratorExit as abandoned:
            attempt = self._without_decision(abandoned)
        if attempt is None and not self._hears_of_success():
            return Attempt("succeed", result=self._result)
        if attempt is not None and attempt.will_retry:
            self._backend = None
            return attempt
        return await self._end_for_engine(attempt)

    def execute_attempt_sync(self, engine: Host) -> Attempt:
        """Make one attempt for an engine, from plain code, as ``execute_attempt`` does.

        It runs in a copy of the thread's context, because the thread's next run must not see the
        context variables that this one sets (R19).
        """
        return copy_context().run(run_to_completion, self.execute_attempt(engine, SYNC))

    async def give_up(self, error: BaseException, backend: Backend | None = None) -> Attempt:
        """End a run that can have no further attempt.

        Args:
            error: What the caller gets: why the engine could not arrange the attempt, or a
                ``TaskCancelError`` if the run was cancelled before it.
            backend: How the hooks wait; None for the event loop of their caller.

        Returns:
            What the engine is to do. The hooks for the end were called.
        """
        self._backend = backend or ASYNCIO_WORKER
        self._started = None
        attempt = attempt_from(None, error)
        return await self._end_for_engine(self._conclude(attempt, error, is_final=True))

    def give_up_sync(self, error: BaseException) -> Attempt:
        """End a run from plain code, as ``give_up`` does."""
        return run_to_completion(self.give_up(error, SYNC))

    def ask_about(self, error: Exception) -> Coroutine[Any, Any, Outcome]:
        """Ask the plugins about an error as if the task had raised it, and do nothing about it.

        From async code. The trigger's hook is called by the rules of a run: who is shown the error,
        filters, order, time limits, observed plugins. The function is not called, no decision is
        carried out, and no other hook is called; quarantines are neither obeyed nor counted. The
        attempt is that of the message.

        Args:
            error: The error.

        Returns:
            How the attempt would have ended, to be awaited; ``trail`` says who was asked.

        Raises:
            RuntimeError: This executor has run already.
            PluginError: A plugin failed, and the settings say ``strict``.
        """
        return self._ask_about(error, ASYNCIO)

    def ask_about_sync(self, error: Exception) -> Outcome:
        """Ask the plugins about an error from plain code, as ``ask_about`` does."""
        return run_to_completion(self._ask_about(error, SYNC))

    async def _ask_about(self, error: Exception, backend: Backend) -> Outcome:
        self._prepare(backend)
        hook = self._plugins.hook.task_executor_run_task_trigger_error
        asked = None if hook.chain is None else self._shown_error(error, hook)
        answer = None
        if asked is not None:
            run: Values = {"task_executor": self, "task_func": self._task_func}
            run |= {"task_broker": self.task_broker, "e": asked}
            answer = await hook.call_apart(backend, run)
        decider = None if answer is None else decided_by(self._entries)
        outcome = self._conclude(attempt_from(answer, error), error, decider).outcome
        assert outcome is not None  # noqa: S101  # _conclude has added it
        return outcome

    async def _run(self, backend: Backend) -> Any:
        """Attempt until the run is over, in place, and end it."""
        self._prepare(backend)
        try:
            attempt = await self._attempt_once()
            while attempt is not None and attempt.will_retry:
                if attempt.delay:
                    await backend.sleep(attempt.delay)
                self._next_attempt()
                attempt = await self._attempt_once()
        except BaseException as cut:  # noqa: BLE001  # raised after the hooks for the end
            attempt = self._without_decision(cut)
        if attempt is not None or self._hears_of_success():
            attempt = await self._end(attempt)
            if attempt.error is not None:
                error, attempt = attempt.error, None
                if isinstance(error, StopIteration) and not backend.on_loop:
                    return Raised(error)
                try:
                    reraise(error)
                finally:
                    # A traceback holds this frame; this frame must not hold the error.
                    del error
        return self._result

    async def _end_for_engine(self, attempt: Attempt | None) -> Attempt:
        """End a run; raise an error that is the worker's, not the run's."""
        attempt = await self._end(attempt)
        error = attempt.error
        try:
            if error is None:
                return attrs.evolve(attempt, result=self._result)
            if attempt.action == "pass" and not isinstance(error, Exception):
                reraise(error)
            return attempt
        finally:
            # A traceback holds this frame; this frame must not hold the error.
            del error, attempt

    def _prepare(self, backend: Backend) -> None:
        """Check that the executor is new, and count the cancellations of its caller so far.

        Later ones are the run's own (R16).

        Raises:
            RuntimeError: This executor has run already.
        """
        if self._backend is not None:
            msg = f"this executor has run task {self._task_func.name!r} already; make a new one"
            raise RuntimeError(msg)
        self._backend, self._cancellations = backend, backend.cancellations()

    async def _attempt_once(self) -> Attempt | None:
        """Make one attempt, up to the hook for its end.

        Returns:
            What the host is to do; None for a result whose end no plugin wants.
        """
        plugins = self._plugins
        hooks = plugins.hook
        # One check instead of one for each hook: most plugins are only interested in errors.
        asks_on_success = plugins._asked_on_repeats and self._asks_on_success()  # noqa: SLF001  # ours
        self._started = perf_counter() if plugins._times_attempts else None  # noqa: SLF001  # ours
        attempt: Attempt | None = None
        error: BaseException | None = None
        try:
            if asks_on_success and hooks.task_executor_args_replace.chain is not None:
                await self._replace_arguments()
            try:
                result = await self.run_task()
                if type(result) is Raised:
                    error = result.error
                else:
                    self._result = result
            except BaseException as raised:  # noqa: BLE001  # whatever it is, it ends the attempt
                error = raised
            if error is not None:
                attempt = await self._decide(error)
            elif asks_on_success and hooks.task_executor_run_task.chain is not None:
                self._result = await self._call(
                    hooks.task_executor_run_task, {"result": self._result}
                )
            if self._engine is not None and (attempt is None or attempt.error is None):
                self._engine.check_result(self)
        except BaseException as cut:  # noqa: BLE001  # a plugin's under strict, a cancellation ...
            attempt = self._without_decision(cut, error)
        finally:
            # A traceback holds this frame; this frame must not hold the error.
            error = result = None
        try:
            unasked = attempt is None and not asks_on_success
            if unasked or not hooks.task_executor_attempt_ended.listens(_status_of(attempt)):
                return attempt
            if attempt is None:
                attempt = self._conclude(Attempt("succeed"), None)
            return await self._notify(
                hooks.task_executor_attempt_ended, attempt, outcome=attempt.outcome
            )
        finally:
            attempt = None

    async def _decide(self, error: BaseException) -> Attempt | None:
        """Let the plugins decide about the task's own error.

        Returns:
            The attempt's end; None for a result whose end no plugin wants.
        """
        if not isinstance(error, Exception):
            return self._without_decision(error, error)
        if self._engine is not None and isinstance(error, self._engine.control):
            return self._conclude(Attempt("pass", error), reason_for(error))
        # Nothing is decided after the run was cancelled (R16).
        if self._is_cancelled():
            return self._conclude(Attempt("fail", error), error)
        begin, answer = len(self._entries), None
        hook = self._plugins.hook.task_executor_run_task_trigger_error
        asked = None if hook.chain is None else self._shown_error(error, hook)
        if asked is not None:
            answer = await self._call(hook, {"e": asked})
            if answer is not None and self._is_cancelled():
                answer = None
        is_result = type(answer) is Replace or not (answer is None or type(answer) in DECISIONS)
        if is_result:
            self._result = answer.value if type(answer) is Replace else answer
            if self._started is None:
                return None
        entries = self._entries[begin:]
        decider = None if answer is None else decided_by(entries)
        attempt = attempt_from(answer, error)
        if decider is not None and attempt.action not in {"retry", "succeed"}:
            note_decision(error, entries)
        if attempt.action == "dead_letter":
            return await self._keep_dead_letter(attempt, error, decider)
        return self._conclude(attempt, error, decider)

    def _shown_error(self, error: Exception, hook: Any) -> TaskPluginTriggerError | None:
        """Return the task's own error as plugins may see it; None if they may not.

        If plugins may see it only because handlers name its class, only those handlers are asked.
        """
        self._consented_only = False
        if isinstance(error, TaskPluginTriggerError):
            return error
        if isinstance(error, TaskCancelError):
            return None
        classes = self._task_func.intercept
        if classes is None:
            classes = getattr(self.app, "_intercept", None)
        if classes and isinstance(error, classes):
            return wrap_intercepted(error)
        if classes != () and hook.consents(error):
            self._consented_only = True
            return wrap_intercepted(error)
        return None

    def _is_cancelled(self) -> bool:
        """Return whether the run was cancelled since it began (R16)."""
        return (self._backend or ASYNCIO).cancelled(self._cancellations)

    async def _keep_dead_letter(
        self, attempt: Attempt, error: Exception, decider: str | None
    ) -> Attempt:
        """Let the plugins keep a dead letter.

        Returns:
            The attempt's end, ``kept`` if a plugin keeps it. If neither a plugin nor the engine can
            keep it, the run fails with the task's own error, and nobody has decided.
        """
        engine, reason = self._engine, attempt.reason
        hook = self._plugins.hook.task_executor_dead_letter
        if hook.chain is not None:
            # Made before the call: a plugin that raises the error again lengthens its traceback.
            kept = self._conclude(attrs.evolve(attempt, kept=True), error, decider)
            assert kept.outcome is not None  # noqa: S101  # it was just made
            self._fingerprint = kept.outcome.fingerprint
            if await self._call(hook, {"e": error, "reason": reason}):
                return kept
        known = {
            "task": self._task_func.name,
            "uuid": str(self.task_broker.uuid),
            "reason": reason,
            "error": type(error).__name__,
        }
        if engine is not None and not engine.capabilities.dead_letter:
            _log.event("error", "dead_letter_refused", plugin=decider, engine=engine.name, **known)
            return self._conclude(Attempt("fail", error), error)
        _log.event("warning", "task_dead_lettered", **known)
        return self._conclude(attempt, error, decider)

    def _without_decision(self, cut: BaseException, own: BaseException | None = None) -> Attempt:
        """Return the attempt's end for an error that plugins are not asked about.

        For example a plugin's under ``strict``, an engine's refusal, a cancellation, or anything
        else that is not an ``Exception``; ``own`` is the task's own error, if there was one.
        """
        if isinstance(cut, PluginError):
            return self._conclude(Attempt("fail", cut), cut if own is None else own)
        if isinstance(cut, Exception):
            return self._conclude(Attempt("fail", cut), cut)
        failure = None
        if self._engine is not None and cut is own and not self._is_cancellation(cut):
            failure = self._engine.failure(cut)
        return self._conclude(
            Attempt("pass", cut) if failure is None else Attempt("fail", failure), cut
        )

    def _conclude(
        self,
        attempt: Attempt,
        own: BaseException | None,
        decider: str | None = None,
        *,
        is_final: bool = False,
    ) -> Attempt:
        """Add the outcome to an attempt, and whether the run goes on.

        ``own`` is the task's own error, if there was one. ``is_final`` ends the run even if the
        engine would repeat it.
        """
        error, engine = attempt.error, self._engine
        will_retry = attempt.action == "retry" or (
            engine is not None
            and not is_final
            and isinstance(error, Exception)
            and attempt.action in {"fail", "pass"}
            and engine.will_retry(error)
        )
        if will_retry:
            status = OutcomeStatus.retried
        elif attempt.action == "pass":
            stops = isinstance(own, Exception) or self._is_cancellation(own)
            status = OutcomeStatus.cancelled if stops else OutcomeStatus.failed
        elif attempt.action == "succeed" and own is not None:
            status = OutcomeStatus.recovered
        else:
            status = STATUS_OF[attempt.action]
        started, is_raised = self._started, attempt.action == "fail" and decider is not None
        outcome = Outcome(
            status=status,
            error=error if is_raised else own,
            decided_by=decider,
            reason=attempt.reason,
            delay=attempt.delay,
            seconds=0.0 if started is None else perf_counter() - started,
            attempt=self._attempt,
            origin=None if own is None else Origin(self._task_func, own, own.__traceback__),
        )
        return attrs.evolve(attempt, outcome=outcome, will_retry=will_retry)

    def _is_cancellation(self, error: BaseException | None) -> bool:
        """Return whether an error cancels the run, or disposes of it unfinished."""
        abandoned = self._backend is not SYNC and isinstance(error, GeneratorExit)
        return abandoned or isinstance(error, asyncio.CancelledError)

    def _hears_of_success(self) -> bool:
        """Return whether a plugin wants to hear of the end of a successful run."""
        plugins = self._plugins
        return (
            plugins._asked_on_repeats  # noqa: SLF001  # ours
            and self._asks_on_success()
            and plugins.hook.task_executor_task_close.listens(OutcomeStatus.succeeded)
        )

    def _asks_on_success(self) -> bool:
        """Return whether a plugin takes part in this attempt even if it meets no error."""
        on_success: bool = self._plugins._asked_on_success  # noqa: SLF001  # ours
        return on_success or self._attempt > 1 or is_replay(self._message)

    async def _end(self, attempt: Attempt | None) -> Attempt:
        """Call the hooks for a failure and for the end of the run.

        Returns:
            The attempt that the hooks got, or a failed one if a plugin failed under ``strict``.
        """
        if attempt is None:
            attempt = self._conclude(Attempt("succeed"), None)
        hooks = self._plugins.hook
        if attempt.action in {"fail", "dead_letter"}:
            try:
                attempt = await self._notify(
                    hooks.task_executor_task_failed, attempt, e=attempt.error
                )
            except GeneratorExit as abandoned:
                attempt = self._without_decision(abandoned)
        return await self._notify(hooks.task_executor_task_close, attempt, outcome=attempt.outcome)

    async def _notify(self, hook: Any, attempt: Attempt, **values: Any) -> Attempt:
        """Call a hook whose answers are ignored.

        Returns:
            The attempt, or another one if this is interrupted or a plugin fails under ``strict``.
        """
        if hook.chain is None:
            return attempt
        error = attempt.error
        try:
            if isinstance(error, GeneratorExit) and self._is_cancellation(error):
                # Start the hook, but do not wait for anything.
                call = self._call(hook, values)
                with suppress(Exception):
                    call.send(None)
                call.close()
            else:
                await self._call(hook, values)
        except PluginError as strict:
            if error is None or isinstance(error, Exception):
                ended: Any = attempt.outcome
                strict.task_error = None if error is None else ended.error
                return self._failed_by(strict, attempt)
        except BaseException as cut:  # noqa: BLE001  # raised after the hooks for the end
            return self._without_decision(cut)
        finally:
            # A traceback holds this frame; this frame must not hold the error.
            del error, values
        try:
            return attempt
        finally:
            del attempt

    @staticmethod
    def _failed_by(strict: PluginError, attempt: Attempt) -> Attempt:
        """Return a failed attempt, after a plugin failed under ``strict`` in a hook for its end."""
        ended: Any = attempt.outcome
        outcome = attrs.evolve(
            ended,
            status=OutcomeStatus.failed,
            error=strict if ended.error is None else ended.error,
            decided_by=None,
            delay=None,
        )
        return Attempt("fail", strict, outcome=outcome)

    def _call(self, hook: Any, values: Values) -> Coroutine[Any, Any, Any]:
        """Call a hook of the run with its own values and those that all hooks of a run get."""
        values["task_executor"], values["task_func"] = self, self._task_func
        values["task_broker"] = self.task_broker
        return hook.call(self._backend or ASYNCIO, values)  # type: ignore[no-any-return]  # one of our hooks

    def run_task(self) -> Awaitable[Any]:
        """Call the function: the step of a run that is the task itself.

        Returns:
            What it returns, to be awaited; of a generator the list of its items.

        Raises:
            TaskTimeoutError: The task's ``max_time`` is over.
        """
        func = self._task_func
        args = (self._echo_task(), *self._args) if func.echo else self._args
        backend = self._backend or ASYNCIO
        if func.is_async and func.max_time is None and not func.is_generator and backend.on_loop:
            return func.func(*args, **self._kwargs)  # type: ignore[no-any-return]  # a coroutine
        items: list[Any] = []
        self._yielded = items
        call = partial(func.func, *args, **self._kwargs)
        return call_function(func, call, items, backend)

    async def _replace_arguments(self) -> None:
        """Let the plugins replace the arguments of this attempt."""
        # Each attempt starts with the run's original arguments. Only the first attempt sets the
        # slot, so it costs nothing in runs without this hook.
        if not hasattr(self, "_original_arguments"):
            self._original_arguments = self._args, self._kwargs
        args, kwargs = self._original_arguments
        self._args, self._kwargs = await self._call(
            self._plugins.hook.task_executor_args_replace, {"args": args, "kwargs": dict(kwargs)}
        )

    def _next_attempt(self) -> None:
        """Count a further attempt, and give it its own message."""
        self._attempt += 1
        self._result = self._yielded = None
        message = self.task_broker
        self._message = attrs.evolve(
            message, uuid=message.uuid, created_at=message.created_at, attempt=self._attempt
        )

    def _echo_task(self) -> Any:
        """Make the ``self`` of an echo task: the task, as a view of this run."""
        kind = AsyncTask if self._task_func.is_async else SyncTask
        return kind(self._task_func, getattr(self._task, "app", None), self)


def _status_of(attempt: Attempt | None) -> OutcomeStatus:
    """Return how an attempt ended; one without an outcome succeeded."""
    if attempt is None or attempt.outcome is None:
        return OutcomeStatus.succeeded
    return attempt.outcome.status


def _plugins_of(app: Any) -> PluginManager:
    """Return an app's plugins, with the installed ones loaded; without an app, none."""
    if hasattr(app, "_ensure_loaded"):
        app._ensure_loaded()  # noqa: SLF001  # ours
    return getattr(app, "plugins", _NO_PLUGINS)
