"""Plugins for the tasks of a Huey.

What is private in Huey, and used here, because there is no public way:

=========================================  =====================================================
``huey._registry``                         lists its tasks
``self`` in the frame of a worker          is the consumer that calls what ``on_startup`` was given
=========================================  =====================================================
"""

# Huey has no types, and its tasks carry what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Final

from huey import CancelExecution, Huey
from huey.api import PeriodicTask, Task
from huey.consumer import Consumer
from huey.exceptions import RateLimitExceeded, RetryTask, TaskLockedException, TaskTimeout
from huey.storage import SqliteStorage
from huey.utils import normalize_time

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.huey.ledger import Ledger, ledger_of
from qtasks_pluggy.engines.native import Native, attempt_of, declared, log_as
from qtasks_pluggy.exc import CapabilityError, TaskNameError

# The keyword of a message that has what is ours: Huey has no other place.
HEADER: Final = "_qtasks_pluggy"
# The module of the native tasks of an app of ours, under which Huey knows them.
MODULE: Final = "qtasks_pluggy"
CONTROL: Final = (RetryTask, CancelExecution, TaskLockedException, RateLimitExceeded, TaskTimeout)
# What every task has, and nobody gave it.
_TASK: Final = {*dir(Task), "context"}
_current: Final[ContextVar[Task]] = ContextVar("qtasks_pluggy_huey_task")


def at_least_once(huey: Huey) -> None:
    """Let runs survive the death of their worker, also those of a Huey's own tasks.

    One consumer at a time may do the runs of the file; a second one is refused.

    Args:
        huey: One on SQLite; call this where it is made, in clients and workers alike.

    Raises:
        CapabilityError: It is not on SQLite.
    """
    if not isinstance(huey.storage, SqliteStorage) or huey.immediate:
        kind = type(huey.storage).__name__
        msg = f"engine 'huey': the ledger is for SqliteHuey, and this Huey is on {kind}"
        raise CapabilityError(msg)
    open_in_workers(huey, ledger_of(huey))


def open_in_workers(huey: Huey, ledger: Ledger) -> None:
    """Have each worker open the ledger when it begins; one that cannot ends its consumer."""

    def begin() -> None:
        try:
            ledger.open()
        except Exception as error:
            refusal = HueyNative(huey).refusal(error)
            stop_consumer()
            raise refusal from error

    huey.on_startup(name=f"{MODULE}-ledger")(begin)


class HueyNative(Native[Huey]):
    """Plugins for the tasks of a Huey, asked at every attempt."""

    name = "huey"
    kind = Huey
    control = CONTROL
    # It ends the worker's thread, and Huey stores no end.
    ends_worker: ClassVar[tuple[type[BaseException], ...]] = (BaseException,)

    def cover(self) -> None:
        """Hear of every run, and of workers, which are threads or processes."""
        self._functions: dict[type[Task], Callable[..., Any]] = {}
        self.native.pre_execute(name=f"{MODULE}-install")(self._wrap)
        self.native.on_startup(name=f"{MODULE}-install")(self._worker_begins)
        self.native.on_shutdown(name=f"{MODULE}-install")(self.end)

    @property
    def app_name(self) -> str:
        """The Huey's own name."""
        return str(self.native.name)

    @property
    def tasks(self) -> Mapping[str, type[Task]]:
        """The classes of the Huey's own tasks by name."""
        return {kind.__name__: kind for kind in self._kinds()}

    def count(self) -> int:
        """Count its own tasks, of which several can have one name."""
        return len(self._kinds())

    def _kinds(self) -> list[type[Task]]:
        registry: Any = vars(self.native)["_registry"]
        kinds = list(vars(registry)["_registry"].values())
        return [kind for kind in kinds if kind.__module__ != MODULE]

    def function_of(self, name: str) -> Callable[..., Any]:
        """Give the function of one of them."""
        kind = self.tasks[name]
        return lambda *args, **kwargs: kind(args, kwargs).execute()

    def _worker_begins(self) -> None:
        try:
            log_as("huey")
            self.begin()
        except Exception as error:
            refusal = self.refusal(error)
            stop_consumer()
            raise refusal from error

    def _wrap(self, task: Task) -> None:
        """Have the executor run a task that is about to be run."""
        function = self.function_for(type(task))
        if function is None:
            return
        storable = getattr(task, "storable", None)

        def execute() -> Any:
            value = self._execute(task, function)
            return value if storable is None else storable(value)

        task.execute = execute

    def function_for(self, kind: type[Task]) -> Callable[..., Any] | None:
        """Give the function of a task of the Huey's own."""
        if kind.__module__ == MODULE:
            return None
        function = self._functions.get(kind)
        if function is None:
            function = self._functions[kind] = _function_of(kind)
        return function

    def _execute(self, task: Task, function: Callable[..., Any]) -> Any:
        args, kwargs = task.args, dict(task.kwargs)
        header = kwargs.pop(HEADER, {})
        task.our_header, number = header, attempt_of(header)
        token = _current.set(task)
        try:
            return self.work(task, function, args, kwargs)
        except Exception as error:
            if self.will_retry(task, error):
                header = {**header, "attempt": number + 1}
            raise
        finally:
            _current.reset(token)
            # What the task was given, for Huey and for the next attempt, which counts on.
            task.args, task.kwargs = args, {**kwargs, HEADER: header} if header else kwargs

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a task."""
        return TaskMessage(
            run.name,
            args,
            kwargs,
            uuid=run.id,
            priority=run.priority,
            attempt=attempt_of(run.our_header),
            queue=self.native.name,
            engine=self.name,
            redelivered=getattr(run, "redelivered", None),
            metadata=run.our_header.get("metadata", {}),
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Give what a task was declared with that Huey knows nothing of."""
        return declared(type(run), _TASK)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Say what Huey can do; in immediate mode nobody reads its schedule."""
        huey = self.native
        results = bool(huey.results)
        return Capabilities(delay=not huey.immediate, results=results, metadata=True)

    def will_retry(self, run: Any, error: BaseException) -> bool:
        """Say whether Huey runs a task again, by the rules of its own, after this error."""
        return will_retry(error, run.retries)

    def encode(self, run: Any, value: Any) -> object:
        """Pickle an answer or an argument as Huey does, and read it again."""
        serializer = self.native.serializer
        if run is not None and not self.native.results:
            return None
        try:
            read: object = serializer.deserialize(serializer.serialize(value))
        except SystemExit as error:
            raise TypeError(str(error)) from error
        return read

    def answered(self, run: Any, value: Any) -> Any:
        """Store a None, which Huey may not: whoever waits would wait for ever."""
        huey = self.native
        if value is None and huey.results and not isinstance(run, PeriodicTask):
            huey.put_result(run.id, None)
        return value

    def retry(self, run: Any, attempt: Attempt, number: int) -> Exception:  # noqa: ARG002  # _execute counts
        """Have Huey put the task into its schedule, beside its own retries."""
        if self.native.immediate:
            # Nobody reads its schedule, in which the task's own delay would put it.
            run.retry_delay = 0
        # None is the task's own delay, of which a plugin's 0 is none.
        again: Exception = RetryTask(
            delay=attempt.delay if run.retry_delay else attempt.delay or None
        )
        return again

    def cancel(self, run: Any, attempt: Attempt) -> BaseException:  # noqa: ARG002  # of all the same
        """Have Huey's own retries not repeat it."""
        return cancel_execution(str(attempt.error))

    dead_letter = cancel

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Enqueue a run of the task that has this name.

        Raises:
            TaskNameError: Two modules have a task of this name.
        """
        huey, name = self.native, message.name
        kinds = [kind for kind in self._kinds() if kind.__name__ == name]
        if len(kinds) > 1:
            modules = " and ".join(kind.__module__ for kind in kinds)
            msg = (
                f"engine 'huey', {huey.name}: {modules} both have a task {name!r}, and a run is"
                " known by that name alone; give one of them another name="
            )
            raise TaskNameError(msg)
        task = kinds[0](
            message.args,
            {**message.kwargs, HEADER: {"metadata": message.metadata}},
            id=str(message.uuid),
            eta=normalize_time(None, delay, huey.utc) if delay else None,
            priority=message.priority or None,
        )
        huey.enqueue(task)


def will_retry(error: BaseException, retries: int) -> bool:
    """Say whether Huey runs a task again, by the rules of its own, after this error."""
    if isinstance(error, CancelExecution):
        return bool(retries if error.retry is None else error.retry)
    if isinstance(error, RateLimitExceeded):
        return bool(error.retry or retries)
    return isinstance(error, RetryTask) or bool(retries)


def cancel_execution(text: str) -> Exception:
    """Make what ends a Huey task for good.

    Huey 3.5 changed the order of its arguments.
    """
    error: Exception = CancelExecution(retry=False)
    error.args = (text,)
    return error


def stop_consumer() -> None:
    """End the consumer whose worker cannot begin: it would replace that one for ever."""
    frame = inspect.currentframe()
    while frame is not None:
        # Huey calls what is to be done when a worker begins, and does not say whose worker it is.
        consumer = frame.f_locals.get("self")
        if isinstance(consumer, Consumer):
            consumer.stop_flag.set()
        frame = frame.f_back


def _function_of(kind: type[Task]) -> Callable[..., Any]:
    """Make the function of a task's class, which runs the task that is at work here."""
    native_execute = kind.execute

    def function(*args: Any, **kwargs: Any) -> Any:
        task = _current.get()
        task.args, task.kwargs = args, kwargs
        return native_execute(task)

    return function


install: Final = HueyNative.install
