"""Plugins for the tasks of a Taskiq broker that is there already."""

from __future__ import annotations

import functools
import inspect
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from copy import copy
from threading import BoundedSemaphore
from typing import Any, Final

from taskiq import AsyncBroker, NoResultError, SimpleRetryMiddleware, SmartRetryMiddleware
from taskiq.brokers.shared_broker import AsyncSharedBroker
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.exceptions import TaskRejectedError

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import Attempt, Capabilities, lock_of
from qtasks_pluggy.engines._taskiq_brokers import can_delay, is_safe, make_safe, unsent_retry
from qtasks_pluggy.engines._taskiq_ends import check_storable
from qtasks_pluggy.engines._taskiq_runs import (
    OURS,
    Run,
    WorkerLife,
    awaited,
    message_of,
    runs_of,
    send_again,
    take,
)
from qtasks_pluggy.engines.reverse import Plugged, refuse_other
from qtasks_pluggy.engines.servers import HANDS_OVER
from qtasks_pluggy.exc import EngineError

CONTROL: Final = (NoResultError, TaskRejectedError)
# The label that counts the retries of plugins, beside those of Taskiq's own middlewares.
_RETRIES: Final = "qtasks_pluggy_retries"
# The label by which a task sends itself again.
_REQUEUED: Final = "X-Taskiq-requeue"


class CancelledRunError(TaskRejectedError):
    """How a native run ends that a plugin cancelled.

    Args:
        reason: Why.
    """

    __template__ = "{reason}"
    reason: str = ""

    def __init__(self, reason: str = "") -> None:
        given = {"reason": reason}
        # By a keyword that checkers cannot see.
        super().__init__(**given)


def install(
    broker: AsyncBroker,
    plugins: Iterable[Any] = (),
    *,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> int:
    """Let plugins decide about the errors of a broker's own tasks, those declared later too.

    Args:
        broker: The Taskiq broker.
        plugins: As for ``QueueTasks``.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, at every attempt.

    Returns:
        How many tasks are covered now.

    Raises:
        EngineError: It is the shared broker, which runs nothing.
        PluginRegistrationError: Faults of ``plugins``.
        TypeError: It is no Taskiq broker.
    """
    refuse_other("taskiq", broker, AsyncBroker)
    if isinstance(broker, AsyncSharedBroker):
        msg = (
            f"engine 'taskiq': install() got the shared broker, a {type(broker).__name__}, which"
            " runs nothing; call it with every broker that runs the shared tasks: it covers them"
        )
        raise EngineError(msg)
    plugged = Plugged(broker, "taskiq", plugins, discover=discover, intercept=intercept)
    native: _Native | None = vars(broker).get(_INSTALLED)
    if native is None:
        native = vars(broker)[_INSTALLED] = _Native(broker, plugged)
    native.plugged = plugged
    return native.cover()


def at_least_once(broker: AsyncBroker) -> None:
    """Let runs survive the death of their worker, for all tasks of a broker.

    Args:
        broker: The Taskiq broker; call this where it is made, in clients and workers alike.

    Raises:
        CapabilityError: It loses what a killed worker was doing, whatever is set.
    """
    make_safe(broker)
    runs_of(broker).keeps_all = True


class _Native:
    """A broker with plugins for its own tasks."""

    def __init__(self, broker: AsyncBroker, plugged: Plugged) -> None:
        self.broker = broker
        self.plugged = plugged
        self._lock = lock_of(self)
        self._semaphore: BoundedSemaphore | None = None
        runs_of(broker)
        WorkerLife(broker, self._app, "install()")
        wrap = self._wrapped
        # Of which a project may have its own, not generic any more.
        native_class: Any = broker.decorator_class

        class Covered(native_class):  # type: ignore[misc]  # known at run time only
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                task: AsyncTaskiqDecoratedTask[Any, Any] = self
                task.original_func = wrap(task.task_name, task.original_func)

        Covered.__name__ = Covered.__qualname__ = native_class.__name__
        broker.decorator_class = Covered

    def cover(self) -> int:
        """Wrap the functions of the tasks that are there; count those that are covered."""
        covered = 0
        for name, task in self.broker.get_all_tasks().items():
            if getattr(task.original_func, OURS, None) is True:
                continue
            covered += 1
            function = self._wrapped(name, task.original_func)
            if function is task.original_func:
                continue
            if name in self.broker.local_task_registry:
                task.original_func = function
            else:
                # Other brokers run it too, and know nothing of these plugins.
                own: AsyncTaskiqDecoratedTask[Any, Any] = copy(task)
                own.original_func = function
                self.broker.local_task_registry[name] = own
        return covered

    def _app(self) -> QueueTasks:
        """Give the app behind it; refuse a worker that would do without plugins."""
        if not self.cover():
            msg = (
                "engine 'taskiq': install() covers no task; name the modules that declare them"
                " behind the broker: taskiq worker MODULE:BROKER MODULES"
            )
            raise EngineError(msg)
        return self.plugged.app

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Let the executor call a native task's function, when it is called for a run."""
        if hasattr(function, OURS):
            return function
        call = self._with_dependencies(function)

        async def work(run: Run, kwargs: dict[str, Any]) -> Any:
            with HANDS_OVER:
                return await self._work(run, call, kwargs)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            run = take(name)
            return function(*args, **kwargs) if run is None else work(run, kwargs)

        vars(wrapper)[OURS] = "installed"
        return awaited(wrapper)

    def _with_dependencies(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function that adds what Taskiq has found for this run: it is in no message."""
        if inspect.iscoroutinefunction(function):

            async def call_async(*args: Any, **kwargs: Any) -> Any:
                return await function(*args, **{**_dependencies.get(), **kwargs})

            call: Callable[..., Any] = call_async
        else:

            def call_plain(*args: Any, **kwargs: Any) -> Any:
                with self._places:
                    return function(*args, **{**_dependencies.get(), **kwargs})

            call = call_plain
        # Not ``wraps``: a plugin that asks is to hear what is called, not what that looks like.
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(call, attribute, getattr(function, attribute, None))
        return call

    @property
    def _places(self) -> BoundedSemaphore:
        """As many plain functions at a time as in Taskiq's own pool of threads."""
        with self._lock:
            if self._semaphore is None:
                self._semaphore = BoundedSemaphore(self._threads)
            return self._semaphore

    @property
    def _threads(self) -> int:
        pool: Any = getattr(self.broker, "executor", None)
        if pool is None:
            # Its worker's pool is known to nobody else.
            options = ArgumentParser(add_help=False)
            options.add_argument("--max-threadpool-threads", type=int)
            given, _ = options.parse_known_args(sys.argv[1:])
            pool = ThreadPoolExecutor(given.max_threadpool_threads)
        return int(vars(pool)["_max_workers"])

    async def _work(self, run: Run, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        native = run.message
        _dependencies.set({k: v for k, v in kwargs.items() if k not in native.kwargs})
        message = message_of(
            self.broker,
            native,
            priority=native.labels.get("priority"),
            attempt=1 + _count(native.labels, "_retries") + _count(native.labels, _RETRIES),
        )
        executor = self.plugged.executor_for(message, call)
        attempt = _Attempt(self.broker, run)
        outcome = await executor.execute_attempt(attempt)
        if outcome.action == "retry":
            retries = _count(native.labels, _RETRIES) + 1
            try:
                await send_again(self.broker, run, outcome.delay, **{_RETRIES: retries})
            except Exception as failure:  # noqa: BLE001  # the run has its own error, which is told
                unsent = unsent_retry(message.name, executor.attempt + 1, failure)
                unsent.__cause__ = outcome.error
                # What Taskiq's own middlewares would retry is no end yet.
                outcome = Attempt("fail", unsent)
                if not attempt.will_retry(unsent):
                    outcome = await executor.give_up(unsent)
            else:
                raise NoResultError
        if outcome.action == "succeed":
            return outcome.result
        error = outcome.error
        if outcome.action == "cancel":
            # Else Taskiq's own middlewares would retry it.
            native.labels["retry_on_error"] = False
            raise CancelledRunError(outcome.reason) from error
        raise NoResultError if error is None else error


class _Attempt:
    """Taskiq as the executor of one attempt sees it."""

    name = "taskiq"
    control = CONTROL

    def __init__(self, broker: AsyncBroker, run: Run) -> None:
        self._broker = broker
        self._message = run.message
        self._requeued = run.message.labels.get(_REQUEUED)

    @property
    def capabilities(self) -> Capabilities:
        """What the broker can do."""
        return Capabilities(
            delay=can_delay(self._broker), results=True, at_least_once=is_safe(self._broker)
        )

    def failure(self, error: BaseException) -> BaseException | None:
        """Say what Taskiq makes of an error that is no ``Exception``: as of any other."""
        return None if isinstance(error, KeyboardInterrupt) else error

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It has no form in JSON.
        """
        check_storable("the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Do nothing: what the task itself returns is Taskiq's affair."""

    def will_retry(self, error: BaseException) -> bool:
        """Say whether Taskiq runs the task again."""
        if isinstance(error, NoResultError):
            # It sends the message again itself, and its middlewares leave that alone.
            return bool(self._labels.get(_REQUEUED) != self._requeued)
        return any(
            isinstance(error, _retried(one, self._broker, self._message.task_name, self._labels))
            for one in self._broker.middlewares
            if isinstance(one, SimpleRetryMiddleware | SmartRetryMiddleware)
        )

    @property
    def _labels(self) -> dict[str, Any]:
        return self._message.labels


def _retried(
    middleware: SimpleRetryMiddleware | SmartRetryMiddleware,
    broker: AsyncBroker,
    name: str,
    labels: dict[str, Any],
) -> tuple[type[BaseException], ...]:
    """Say which errors one of Taskiq's middlewares answers with another attempt."""
    wanted = labels.get("retry_on_error")
    if isinstance(wanted, str):
        wanted = wanted.lower() == "true"
    if wanted is None:
        wanted = middleware.default_retry_label
    most = int(labels.get("max_retries", middleware.default_retry_count))
    if not wanted or _count(labels, "_retries") + 1 >= most:
        return ()
    task = broker.find_task(name)
    kinds = None if task is None else task.labels.get("types_of_exceptions")
    return tuple(kinds or middleware.types_of_exceptions or (Exception,))


def _count(labels: dict[str, Any], name: str) -> int:
    # They come with the message, and bound the retries.
    return max(int(labels.get(name, 0)), 0)


_INSTALLED: Final = "qtasks_pluggy_installed"
_dependencies: Final[ContextVar[dict[str, Any]]] = ContextVar("qtasks_pluggy_taskiq_dependencies")
