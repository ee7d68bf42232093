"""START HERE: the life of one run, from its arguments to its result.

``_life`` is the whole story, once for plain and for async code: attempts, what the plugins say to
an error, and the end. ``_attempt_once`` is one attempt; whoever hosts the run carries out the
``Outcome`` that it may end with. In place that is ``_life``; behind an engine it is the engine,
which makes one attempt by ``attempt_on``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

import attrs

from qtasks_hookspecs import Replace, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import EngineError, PluginError, TaskPluginTriggerError
from qtasks_pluggy._plugins.chain import DECISIONS
from qtasks_pluggy._plugins.manager import PluginManager
from qtasks_pluggy._run.decisions import deliver_dead_letter, outcome_from, wrap_intercepted
from qtasks_pluggy._run.function import call_function
from qtasks_pluggy._run.view import RunView
from qtasks_pluggy._submit.outcome import Outcome
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

Runnable: TypeAlias = "TaskFunc | AsyncTask[..., Any] | SyncTask[..., Any] | Callable[..., Any]"

_NO_PLUGINS: Final = PluginManager()


class TaskExecutor(RunView):
    """The life of one run: one executor, one run.

    Args:
        task_func: The task: its definition, the task itself, or a plain function.
        task_broker: The message that asked for the run; made when it is first read, if not given.
        args: The arguments, where there is no message.
        kwargs: The keyword arguments, where there is no message.
        plugins: A manager, or plugins for a manager of this run's own; nothing is discovered.
            None means those of the task's app, if it has one.

    Raises:
        TypeError: A message and arguments are given both.
        PluginRegistrationError: Faults of ``plugins``.
    """

    __slots__ = ("_backend", "_given", "_hooks", "_met", "_task")

    def __init__(
        self,
        task_func: Runnable,
        task_broker: TaskMessage | None = None,
        *,
        args: tuple[Any, ...] | list[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        plugins: PluginManager | list[Any] | tuple[Any, ...] | None = None,
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
                " the message has the arguments, give one or the other"
            )
            raise TypeError(msg)
        else:
            self._args = task_broker.args
            # A copy: what hookimpls do to the message's must not reach the function.
            self._kwargs = dict(task_broker.kwargs) if task_broker.kwargs else {}
            self._attempt = task_broker.attempt or 1
        manager: Any = plugins
        if plugins is None:
            manager = getattr(getattr(self._task, "app", None), "plugins", _NO_PLUGINS)
        elif not isinstance(plugins, PluginManager):
            manager = PluginManager(plugins)
        self._hooks: Any = manager.hook
        self._result = self._yielded = None
        self._entries = []
        self._backend: Backend | None = None
        self._engine = None

    def execute(self) -> Coroutine[Any, Any, Any]:
        """Run the task from async code; a ``def`` task runs in a worker thread.

        Returns:
            The result, to be awaited: the function's, or what the plugins made of its error.

        Raises:
            RuntimeError: This executor has run already.
            TaskCancelError: The run was cancelled on purpose.
            TaskDeadLetteredError: The run was set aside.
            PluginError: A plugin failed, and the settings say ``strict``.
        """
        return self._run(ASYNCIO)

    def execute_sync(self) -> Any:
        """Run the task from plain code; an ``async def`` task runs on the background loop.

        Returns:
            The result: the function's, or what the plugins made of its error.

        Raises:
            RuntimeError: This executor has run already.
            TaskCancelError: The run was cancelled on purpose.
            TaskDeadLetteredError: The run was set aside.
            PluginError: A plugin failed, and the settings say ``strict``.
        """
        result = run_to_completion(self._run(SYNC))
        if type(result) is Raised:
            raise result.error
        return result

    def attempt_on(self, engine: Host) -> Coroutine[Any, Any, Outcome]:
        """Make one attempt for an engine, from async code; again after a retry.

        Args:
            engine: Its ``capabilities`` and ``control`` hold; it is to carry out the outcome.

        Returns:
            What the engine is to do, to be awaited. The plugins have been told of a failure and
            of the end, unless the run goes on.

        Raises:
            RuntimeError: This executor has run already.
        """
        return self._attempt_for(engine, ASYNCIO_WORKER)

    def attempt_on_sync(self, engine: Host) -> Outcome:
        """Make one attempt for an engine, from plain code, as ``attempt_on`` does."""
        return run_to_completion(self._attempt_for(engine, SYNC))

    def give_up(self, error: BaseException) -> Coroutine[Any, Any, Outcome]:
        """End a run, from async code, whose next attempt the engine could not arrange.

        Args:
            error: What the caller is to see.

        Returns:
            What the engine is to do, to be awaited. The plugins have been told.
        """
        return self._end(Outcome("fail", error), ASYNCIO_WORKER)

    def give_up_sync(self, error: BaseException) -> Outcome:
        """End a run from plain code, as ``give_up`` does."""
        return run_to_completion(self._end(Outcome("fail", error), SYNC))

    async def _run(self, backend: Backend) -> Any:
        """Attempt until there is a result or a final failure, then close."""
        if self._backend is not None:
            msg = f"this executor has run task {self._task_func.name!r} already; make a new one"
            raise RuntimeError(msg)
        self._backend = backend
        try:
            while (outcome := await self._attempt_task(backend)) is not None:
                if outcome.action != "retry":
                    reraise(await self._final_error(outcome))
                if outcome.delay:
                    await backend.sleep(outcome.delay)
                self._next_attempt()
        except BaseException as error:
            # A traceback holds this frame; this frame must not hold the error.
            outcome = None
            await self.close(error)
            if isinstance(error, StopIteration) and not backend.on_loop:
                return Raised(error)
            raise
        if self._hooks.task_executor_task_close.chain is not None:
            await self.close(None)
        return self._result

    async def _attempt_for(self, engine: Host, backend: Backend) -> Outcome:
        """Attempt once, then close, unless the engine is to make another attempt."""
        if self._backend is not None:
            msg = f"this executor has run task {self._task_func.name!r} already; make a new one"
            raise RuntimeError(msg)
        if self._engine is not None:
            self._next_attempt()
        self._engine = engine
        self._met = backend.cancellations()
        try:
            outcome = await self._attempt_task(backend)
            if outcome is None:
                outcome = Outcome("succeed", result=self._result)
                try:
                    engine.check_result(self)
                except EngineError as error:
                    outcome = Outcome("fail", error)
            if outcome.action == "retry" or (
                outcome.error is not None
                and outcome.action in {"fail", "pass"}
                and engine.goes_on(outcome.error)
            ):
                self._backend = None
                return outcome
        except BaseException as error:
            # On an event loop nobody steps a run again that is thrown a GeneratorExit.
            gone = GeneratorExit if backend.on_loop else asyncio.CancelledError
            cut = isinstance(error, (Exception, asyncio.CancelledError, gone))
            failure = None if cut else engine.failure(error)
            if failure is None:
                await self.close(error)
                raise
            outcome = Outcome("fail", failure)
            if engine.goes_on(failure):
                self._backend = None
                return outcome
        return await self._end(outcome, backend)

    async def _end(self, outcome: Outcome, backend: Backend) -> Outcome:
        """Tell the plugins of a failure and of the end; what they are told is what is returned."""
        self._backend = backend
        try:
            if outcome.action not in {"succeed", "pass"}:
                outcome = attrs.evolve(outcome, error=await self._final_error(outcome))
        except BaseException as error:
            await self.close(error)
            raise
        try:
            await self.close(outcome.error)
        except PluginError as strict:
            return Outcome("fail", strict)
        return outcome

    async def _attempt_task(  # noqa: PLR0912  # one attempt, top to bottom
        self, backend: Backend
    ) -> Outcome | None:
        """Make one attempt.

        Args:
            backend: How the caller waits.

        Returns:
            None when there is a result, in ``self.result``; else what the host is to do.
        """
        self._backend = backend
        hooks = self._hooks
        asked: TaskPluginTriggerError | None = None
        failure: Exception | None = None
        outcome: Outcome | Replace | None = None
        try:
            if hooks.task_executor_args_replace.chain is not None:
                await self._replace_arguments()
            try:
                result = await self.run_task()
                if type(result) is Raised:
                    raise result.error  # noqa: TRY301  # it could not come out by itself
                self._result = result
            except TaskPluginTriggerError as error:
                asked = failure = error
            except Exception as error:  # noqa: BLE001  # any error of a task can be asked about
                if self._engine is not None and isinstance(error, self._engine.control):
                    return Outcome("pass", error)
                failure = error
                app = getattr(self._task, "app", None)
                asked = wrap_intercepted(self._task_func, app, error)
            if failure is None:
                if hooks.task_executor_run_task.chain is not None:
                    hook = hooks.task_executor_run_task
                    self._result = await self._call(hook, result=self._result)
                return None
            if self._engine is not None and backend.cancelled(self._met):
                # Whoever cancelled the run wants no other end than that of its clean-up.
                return Outcome("fail", failure)
            answer = None
            begin = len(self._entries)
            hook = hooks.task_executor_run_task_trigger_error
            if asked is not None and hook.chain is not None:
                call = hook.call_async if backend.on_loop else hook
                answer = call(
                    task_executor=self,
                    task_func=self._task_func,
                    task_broker=self._message or self.task_broker,
                    e=asked,
                )
                if backend.on_loop:
                    answer = await answer
            if answer is not None and type(answer) not in DECISIONS:
                self._result = answer
                return None
            outcome = outcome_from(answer, failure, self._entries[begin:])
            if isinstance(outcome, Replace):
                self._result = outcome.value
                return None
            return outcome  # noqa: TRY300  # the try is about every line above
        except PluginError as strict:
            return Outcome("fail", strict)
        finally:
            # A traceback holds this frame; this frame must not hold the error.
            asked = failure = outcome = answer = result = None

    def run_task(self) -> Awaitable[Any]:
        """Call the function: the step of a run that is the task itself.

        Returns:
            What it returns, to be awaited; of a generator the list of its items.

        Raises:
            TaskTimeoutError: The task's ``max_time`` is over.
        """
        func = self._task_func
        args = (self._echo_task(), *self._args) if func.echo else self._args
        backend = self._backend
        if func.is_async and func.max_time is None and not func.is_generator:
            running: Awaitable[Any] = func.func(*args, **self._kwargs)
            return SYNC.awaitable(running) if backend is SYNC else running
        items: list[Any] = []
        self._yielded = items
        call = partial(func.func, *args, **self._kwargs)
        return call_function(func, call, items, backend or ASYNCIO)

    async def _final_error(self, outcome: Outcome) -> BaseException:
        """Carry out a final outcome, and tell the plugins of a failure.

        Args:
            outcome: Any but a retry.

        Returns:
            The error that the caller is to see.
        """
        error: Any = outcome.error
        if outcome.action == "dead_letter":
            app = getattr(self._task, "app", None)
            await deliver_dead_letter(self.task_broker, outcome, app, self._backend or ASYNCIO)
        hook = self._hooks.task_executor_task_failed
        if outcome.action != "cancel" and hook.chain is not None:
            try:
                await self._call(hook, **self._hook_arguments(), e=error)
            except PluginError as strict:
                error = strict
        return error  # type: ignore[no-any-return]  # only a success has none

    async def close(self, error: BaseException | None) -> None:
        """Tell the plugins that the run is over.

        Args:
            error: The error that is on its way to the caller, if one is.

        Raises:
            PluginError: A plugin failed and the settings say ``strict``; never over a cancellation.
        """
        hook = self._hooks.task_executor_task_close
        if hook.chain is None:
            return
        if isinstance(error, GeneratorExit):
            # Nobody will step this run again: what can be started is, and nothing is waited for.
            closing = hook.call_async(task_executor=self, **self._hook_arguments())
            with suppress(Exception):
                closing.send(None)
            closing.close()
            return
        try:
            await self._call(hook, **self._hook_arguments())
        except PluginError as strict:
            if error is not None and not isinstance(error, Exception):
                return
            strict.task_error = error
            raise

    def _hook_arguments(self) -> dict[str, Any]:
        return {"task_func": self._task_func, "task_broker": self.task_broker}

    async def _call(self, hook: Any, **values: Any) -> Any:
        if (self._backend or ASYNCIO).on_loop:
            return await hook.call_async(task_executor=self, **values)
        return hook(task_executor=self, **values)

    async def _replace_arguments(self) -> None:
        # Each attempt begins with the arguments that the run was given; a slot that is not set yet
        # says that this is the first one, and costs no other run anything.
        if not hasattr(self, "_given"):
            self._given = self._args, self._kwargs
        args, kwargs = self._given
        self._args, self._kwargs = await self._call(
            self._hooks.task_executor_args_replace, args=args, kwargs=dict(kwargs)
        )

    def _next_attempt(self) -> None:
        self._attempt += 1
        self._result = self._yielded = None
        message = self.task_broker
        self._message = attrs.evolve(
            message, uuid=message.uuid, created_at=message.created_at, attempt=self._attempt
        )

    def _echo_task(self) -> Any:
        kind = AsyncTask if self._task_func.is_async else SyncTask
        return kind(self._task_func, getattr(self._task, "app", None), self)
