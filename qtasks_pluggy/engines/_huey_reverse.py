"""Plugins for the tasks of a Huey app that is there already."""

# Huey has no types, and its tasks carry what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final

from huey import CancelExecution, Huey
from huey.api import PeriodicTask, Task
from huey.exceptions import RateLimitExceeded, RetryTask, TaskLockedException, TaskTimeout
from huey.storage import SqliteStorage

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskMessage
from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.engines._huey_ends import cancel_execution, check_storable
from qtasks_pluggy.engines._huey_ledger import HEADER, ledger_of
from qtasks_pluggy.engines._huey_send import MODULE, HueySender, own_tasks
from qtasks_pluggy.engines._huey_worker import WorkerLife
from qtasks_pluggy.engines.reverse import Plugged, refuse_other
from qtasks_pluggy.engines.servers import HANDS_OVER, attempt_of, is_answered
from qtasks_pluggy.exc import CapabilityError, EngineError

CONTROL: Final = (
    RetryTask,
    CancelExecution,
    TaskLockedException,
    RateLimitExceeded,
    TaskTimeout,
)


def install(
    huey: Huey,
    plugins: Iterable[Any] = (),
    *,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> int:
    """Let plugins decide about the errors of a Huey app's own tasks, those declared later too.

    Args:
        huey: The app's Huey.
        plugins: As for ``QueueTasks``.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, at every attempt.

    Returns:
        How many tasks are covered now.

    Raises:
        PluginRegistrationError: Faults of ``plugins``.
        TypeError: It is no Huey.
    """
    refuse_other("huey", huey, Huey)
    plugged = Plugged(
        huey,
        huey.name,
        plugins,
        discover=discover,
        intercept=intercept,
        sender=HueySender(huey),
    )
    adapter = _Native(huey, plugged)
    huey.pre_execute(name=f"{MODULE}-install")(adapter.wrap)
    return adapter.covered


def at_least_once(huey: Huey) -> None:
    """Let runs survive the death of their worker, also those of a Huey app's own tasks.

    Args:
        huey: One on SQLite; call this where it is made, in clients and workers alike.

    Raises:
        CapabilityError: It is not on SQLite.
    """
    if not isinstance(huey.storage, SqliteStorage) or huey.immediate:
        kind = type(huey.storage).__name__
        msg = f"engine 'huey': the ledger is for SqliteHuey, and this Huey is on {kind}"
        raise CapabilityError(msg)
    ledger_of(huey)


_current: Final[ContextVar[Task]] = ContextVar("qtasks_pluggy_huey_task")


class _Native:
    """Huey as the executors of its own tasks see it."""

    name = "huey"
    control = CONTROL

    def __init__(self, huey: Huey, plugged: Plugged) -> None:
        self.native = huey
        self._plugged = plugged
        self._functions: dict[type[Task], Callable[..., Any]] = {}
        WorkerLife(huey, self._app, f"{MODULE}-install")

    @property
    def capabilities(self) -> Capabilities:
        """What Huey can do; in immediate mode, which can begin later, nobody reads its schedule."""
        return Capabilities(delay=not self.native.immediate, results=True)

    def failure(self, error: BaseException) -> None:  # the seam's name
        """Say nothing: it ends the worker's thread, and Huey stores no end."""

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It does not pickle.
        """
        check_storable(self.native, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Do nothing: what the task itself returns is Huey's affair."""

    def will_retry(self, error: BaseException) -> bool:
        """Say whether Huey runs the task at work again."""
        return will_retry(error, _current.get().retries)

    @property
    def covered(self) -> int:
        """How many tasks are the app's own."""
        return sum(1 for _ in own_tasks(self.native))

    def _app(self) -> QueueTasks:
        """Give the app behind it; refuse a worker that would do without plugins."""
        if not self.covered:
            msg = (
                f"engine 'huey', {self.native.name}: install() covers no task; import the modules"
                " that declare them before the worker starts"
            )
            raise EngineError(msg)
        return self._plugged.app

    def wrap(self, task: Task) -> None:
        """Let the executor run a native task that is about to be run."""
        if type(task).__module__ == MODULE:
            return
        kind = type(task)
        if kind not in self._functions:
            self._functions[kind] = _function_of(kind)
        function = self._functions[kind]

        def execute() -> Any:
            with HANDS_OVER:
                return self._work(task, function)

        task.execute = execute

    def _work(self, task: Task, function: Callable[..., Any]) -> Any:
        kwargs = dict(task.kwargs)
        header = kwargs.pop(HEADER, {})
        message = TaskMessage(
            task.name,
            task.args,
            kwargs,
            uuid=task.id,
            priority=task.priority,
            attempt=attempt_of(header),
            queue=self.native.name,
            engine=self.name,
            redelivered=getattr(task, "redelivered", None),
            metadata=header.get("metadata", {}),
        )
        token = _current.set(task)
        try:
            executor = self._plugged.executor_for(message, function)
            outcome = executor.execute_attempt_sync(self)
            counts_on = outcome.action == "retry" or (
                outcome.error is not None
                and outcome.action in {"fail", "pass"}
                and self.will_retry(outcome.error)
            )
        finally:
            _current.reset(token)
        # What the task was given, for Huey and for the next attempt, which counts on.
        task.args, task.kwargs = message.args, dict(message.kwargs)
        if counts_on:
            task.kwargs[HEADER] = {**header, "attempt": executor.attempt + 1}
        if outcome.action == "succeed":
            huey = self.native
            if (
                outcome.result is None
                and is_answered(executor)
                and huey.results
                and not isinstance(task, PeriodicTask)
            ):
                # By itself Huey may store none, and whoever waits would wait for ever.
                huey.put_result(task.id, None)
            return outcome.result
        if outcome.action == "retry":
            if self.native.immediate:
                # Nobody reads its schedule, in which the task's own delay would put it.
                task.retry_delay = 0
            # None is the task's own delay, of which a plugin's 0 is none.
            raise RetryTask(delay=outcome.delay if task.retry_delay else outcome.delay or None)
        if outcome.action == "cancel":
            raise cancel_execution(str(outcome.error))
        raise CancelExecution(retry=False) if outcome.error is None else outcome.error


def will_retry(error: BaseException, retries: int) -> bool:
    """Say whether Huey runs a task again, by the rules of its own, after this error."""
    if isinstance(error, CancelExecution):
        return bool(retries if error.retry is None else error.retry)
    if isinstance(error, RateLimitExceeded):
        return bool(error.retry or retries)
    return isinstance(error, RetryTask) or bool(retries)


def _function_of(kind: type[Task]) -> Callable[..., Any]:
    """Make the function of a task's class, which runs the task that is at work here."""
    native_execute = kind.execute

    def function(*args: Any, **kwargs: Any) -> Any:
        task = _current.get()
        task.args, task.kwargs = args, kwargs
        return native_execute(task)

    return function
