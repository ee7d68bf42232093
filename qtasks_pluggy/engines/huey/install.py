"""Plugins for the tasks of an existing Huey app.

This module uses these private names of Huey, because there is no public way:

=========================================  =====================================================
``huey._registry``                         lists its tasks, and registers later ones
``self`` in the frame of a worker          is the consumer that calls the ``on_startup`` hooks
=========================================  =====================================================
"""

# Huey has no types, and we set attributes on its tasks.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import atexit
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, Final

from huey import CancelExecution, Huey
from huey.api import PeriodicTask, Task
from huey.consumer import Consumer
from huey.exceptions import RateLimitExceeded, RetryTask, TaskLockedException, TaskTimeout
from huey.storage import SqliteStorage
from huey.utils import normalize_time

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.huey.ledger import Ledger
from qtasks_pluggy.engines.native import Native, attempt_of, declared, header_of, log_as
from qtasks_pluggy.exc import CapabilityError, TaskNameError

# The keyword argument that carries our header: a Huey message has no other place for it.
HEADER: Final = "_qtasks_pluggy"
# The module name under which a ``QueueTasks`` app registers its tasks with Huey.
MODULE: Final = "qtasks_pluggy"
CONTROL: Final = (RetryTask, CancelExecution, TaskLockedException, RateLimitExceeded, TaskTimeout)
# The attributes that every task has.
_TASK: Final = {*dir(Task), "context"}
_current: Final[ContextVar[Task]] = ContextVar("qtasks_pluggy_huey_task")


def at_least_once(huey: Huey) -> None:
    """Keep each run until it has ended, so that it survives the death of its worker.

    Only one consumer at a time may execute the runs of the file; a second one does not start.

    Args:
        huey: A Huey on SQLite. Call this where you create it.

    Raises:
        CapabilityError: The Huey is not on SQLite, or in immediate mode.
    """
    if not isinstance(huey.storage, SqliteStorage) or huey.immediate:
        kind = type(huey.storage).__name__
        msg = f"engine 'huey': the ledger needs a SqliteHuey, but this Huey uses {kind}"
        raise CapabilityError(msg)
    ledger_of(huey)


def ledger_of(huey: Huey) -> Ledger:
    """Return the only ledger of a Huey on SQLite; the first call creates it."""
    ledger: Ledger | None = getattr(huey, "qtasks_pluggy_ledger", None)
    if ledger is None:
        ledger = huey.qtasks_pluggy_ledger = Ledger(huey)
        huey.on_startup(name=f"{MODULE}-ledger")(partial(_open, ledger, HueyNative(huey)))
        huey.on_shutdown(name=f"{MODULE}-ledger")(ledger.close)
    return ledger


def _open(ledger: Ledger, native: HueyNative) -> None:
    """Open the ledger when a worker starts."""
    log_as("huey")
    try:
        ledger.open()
    except Exception as error:
        raise native.refusal(error) from error


class HueyNative(Native[Huey]):
    """The plugins of a Huey app, asked at every attempt."""

    name = "huey"
    kind = Huey
    control = CONTROL
    # Such an error ends the worker's thread, and Huey stores no result.
    ends_worker: ClassVar[tuple[type[BaseException], ...]] = (BaseException,)

    def cover(self) -> None:
        """Hook into every task and every worker."""
        self.cover_workers()
        registry = self._registry
        for kind in self._kinds():
            self.cover_task(kind, _function_of(kind))
        registry.register = partial(self._register, registry.register)

    def _register(self, native: Callable[[type[Task]], bool], kind: type[Task]) -> bool:
        is_new = native(kind)
        if kind.__module__ != MODULE:
            self.cover_task(kind, _function_of(kind))
        return is_new

    def cover_workers(self) -> None:
        """Hook into every worker; workers are threads or processes."""
        # A Huey can be the engine of several apps, and have plugins for its own tasks.
        name = f"{MODULE}-{id(self)}"
        self.native.on_startup(name=name)(self.begin)
        self.native.on_shutdown(name=name)(self.end)

    def begin(self) -> None:
        """Start the plugins, with our events in Huey's log."""
        log_as("huey")
        super().begin()

    def begin_for_run(self) -> None:
        """Start the plugins before a run that no worker does, in immediate mode, until exit."""
        if not self.is_begun:
            super().begin_for_run()
            if self.is_begun:
                atexit.register(self.end)

    def refusal(self, error: Exception) -> BaseException:
        """Log why a worker cannot start, and end its consumer, which would replace it forever."""
        # First, because a consumer that stops ends this process, if it is a worker's.
        refusal = super().refusal(error)
        frame = inspect.currentframe()
        while frame is not None:
            # Huey does not say which consumer starts a worker.
            if isinstance(consumer := frame.f_locals.get("self"), Consumer):
                consumer.stop_flag.set()
            frame = frame.f_back
        return refusal

    @property
    def app_name(self) -> str:
        """The name of the Huey."""
        return str(self.native.name)

    @property
    def tasks(self) -> Mapping[str, type[Task]]:
        """The classes of the Huey's own tasks by name."""
        return {kind.__name__: kind for kind in self._kinds()}

    def count(self) -> int:
        """Count the Huey's own tasks; several can have the same name."""
        return len(self._kinds())

    @property
    def _registry(self) -> Any:
        return vars(self.native)["_registry"]

    def _kinds(self) -> list[type[Task]]:
        kinds = list(vars(self._registry)["_registry"].values())
        return [kind for kind in kinds if kind.__module__ != MODULE]

    def cover_task(self, kind: type[Task], function: Callable[..., Any]) -> None:
        """Make the executor run the tasks of a class, by this function."""
        # Nobody waits for the result of a periodic task.
        keeps_none = not issubclass(kind, PeriodicTask)

        def execute(task: Task) -> Any:
            if _current.get(None) is task and type(task).execute is not execute:
                # Another one of ours calls it, because the class or its base was covered before.
                return function(*task.args, **task.kwargs)
            self.begin_for_run()
            huey, args, kwargs, header = self.native, task.args, task.kwargs, {}
            if HEADER in kwargs:
                kwargs = dict(kwargs)
                header = header_of(kwargs.pop(HEADER))
            task.our_header, task.keeps_none = header, keeps_none
            token = _current.set(task)
            try:
                value = self.work(task, function, args, kwargs)
            except Exception as error:
                if self.will_retry(task, error):
                    header = {**header, "attempt": attempt_of(header) + 1}
                raise
            finally:
                _current.reset(token)
                # Restore the task's own arguments, for Huey and for the next attempt.
                task.args, task.kwargs = args, {**kwargs, HEADER: header} if header else kwargs
            if value is None and task.keeps_none and huey.results and not huey.store_none:
                # Otherwise the caller would wait forever for what a plugin has answered.
                huey.put_result(task.id, None)
            return value

        kind.execute = execute

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message from a task."""
        return TaskMessage(
            run.name,
            args,
            kwargs,
            uuid=run.id,
            priority=run.priority or 0,
            attempt=attempt_of(run.our_header),
            queue=self.native.name,
            engine=self.name,
            redelivered=getattr(run, "redelivered", None),
            metadata=run.our_header.get("metadata", {}),
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return what a task was declared with that Huey itself does not use."""
        return declared(type(run), _TASK)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # the same for all
        """Return what Huey can do; immediate mode has no delays, because its schedule is unread."""
        huey = self.native
        return Capabilities(delay=not huey.immediate, results=huey.results, metadata=True)

    def will_retry(self, run: Any, error: BaseException) -> bool:
        """Return whether Huey's own rules run a task again."""
        if isinstance(error, CancelExecution):
            return bool(run.retries if error.retry is None else error.retry)
        if isinstance(error, RateLimitExceeded):
            return bool(error.retry or run.retries)
        return isinstance(error, RetryTask) or bool(run.retries)

    def encode(self, run: Any, value: Any) -> object:
        """Serialize an answer or an argument as Huey does, and read it back."""
        if run is not None and not self.native.results:
            return None
        serializer = self.native.serializer
        read: object = serializer.deserialize(serializer.serialize(value))
        return read

    def retry(self, run: Any, attempt: Attempt, number: int) -> Exception:  # noqa: ARG002  # _execute counts
        """Make Huey schedule the task again, without using up one of the task's own retries."""
        if self.native.immediate:
            # The task's own delay would put it into the schedule, which nobody reads.
            run.retry_delay = 0
        # None means the task's own delay, so a plugin's 0 must stay 0 if the task has a delay.
        again: Exception = RetryTask(
            delay=attempt.delay if run.retry_delay else attempt.delay or None
        )
        return again

    def cancel(self, run: Any, attempt: Attempt) -> BaseException:  # noqa: ARG002  # the same for all
        """End the run, whatever retries Huey has left for it."""
        error: BaseException = CancelExecution(retry=False)
        # Huey 3.5 changed the order of the class's arguments.
        error.args = (str(attempt.error),)
        return error

    dead_letter = cancel

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Enqueue a run of the task with this name.

        Raises:
            TaskNameError: Two modules have a task with this name.
        """
        huey, name = self.native, message.name
        kinds = [kind for kind in self._kinds() if kind.__name__ == name]
        if len(kinds) > 1:
            modules = " and ".join(kind.__module__ for kind in kinds)
            msg = (
                f"engine 'huey', {huey.name}: {modules} both have a task {name!r}, and a replay"
                " finds the task by its name only; give one of them another name="
            )
            raise TaskNameError(msg)
        huey.enqueue(task_of(huey, kinds[0], message, delay))


def task_of(huey: Huey, kind: type[Task], message: TaskMessage, delay: float | None) -> Task:
    """Make a Huey task from a message.

    Args:
        huey: The Huey that will run it.
        kind: The task's class.
        message: The message.
        delay: Seconds before it may run; None and 0 for at once.
    """
    header = {HEADER: {"metadata": dict(message.metadata)}} if message.metadata else {}
    return kind(
        message.args,
        {**message.kwargs, **header},
        id=str(message.uuid),
        eta=normalize_time(None, delay, huey.utc) if delay else None,
        priority=message.priority or None,
    )


def _function_of(kind: type[Task]) -> Callable[..., Any]:
    """Make a function that executes the current task, which is of this class."""
    native_execute = kind.execute

    def function(*args: Any, **kwargs: Any) -> Any:
        task = _current.get()
        task.args, task.kwargs = args, kwargs
        value = native_execute(task)
        if value is None:
            task.keeps_none = False
        return value

    return function


install: Final = HueyNative.install
