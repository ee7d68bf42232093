"""Huey as the engine of a ``QueueTasks`` app: on a SQLite file, or on a Huey object.

Huey has no hook for some things, so this module replaces methods. On the Huey it replaces
``build_error_result``, to keep an error's class and arguments, and ``deserialize_task``, to end a
run that no worker can read. On a consumer in this process it replaces ``_set_signal_handlers``,
because the app handles the process's signals.
"""

# Huey has no types, and we set attributes on its tasks.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
from huey import CancelExecution, Huey
from huey.api import Task
from huey.constants import EmptyData
from huey.exceptions import HueyException, RetryTask
from huey.storage import MemoryStorage, SqliteStorage
from huey.utils import Error

from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, log_event
from qtasks_pluggy.engines.forward import Forward, pack_error, unpack_error
from qtasks_pluggy.engines.huey.install import (
    HEADER,
    MODULE,
    HueyNative,
    cancel_execution,
    open_in_workers,
    task_of,
)
from qtasks_pluggy.engines.huey.ledger import ledger_of
from qtasks_pluggy.engines.huey.storage import sqlite_huey, told
from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import EngineError, TaskCancelError

if TYPE_CHECKING:
    from huey.consumer import Consumer

_STATUS: Final = {"cancel": TaskStatus.cancelled, "dead_letter": TaskStatus.dead_lettered}


@attrs.define(eq=False)
class Ticket:
    """A submitted run, or one found by its id.

    Attributes:
        id: The run's id.
        name: The task's name; empty if the run was found by its id.
        ended: Its outcome, once it was read.
    """

    id: str
    name: str = ""
    ended: RunResult | None = None


class HueyEngine(Forward[Huey], HueyNative):
    """Huey as the engine of an app.

    Args:
        given: ``huey+sqlite:///file.db``, with four slashes for an absolute path, and ``?ledger=0``
            to switch the ledger off; or a ``Huey`` object.

    Raises:
        EngineError: The URL is wrong, or the database cannot be used.
    """

    worker = "huey_consumer MODULE.HUEY"
    # A task that calls sys.exit() ends its own run only.
    ends_worker: ClassVar = ()

    def __init__(self, given: Any) -> None:
        keep = True
        if isinstance(given, str):
            given, keep = sqlite_huey(given, MODULE)
        super().__init__(given)
        huey = self.native
        durable = isinstance(huey.storage, SqliteStorage) and not huey.immediate
        self._ledger = ledger_of(huey) if keep and durable else None
        if self._ledger is not None:
            open_in_workers(huey, self._ledger)
        self._functions_of_ours: dict[type[Task], Callable[..., Any]] = {}
        self._consumer: Consumer | None = None

    def cover(self) -> None:
        """Hook into runs and workers, and keep more of a run's outcome than Huey does."""
        huey = self.native
        # A Huey can be the engine of several apps.
        self._hook(f"{MODULE}-{id(self)}")
        huey.signal("revoked", "expired", "canceled")(self._ended_without_us)
        huey.signal("retrying")(self._forget_error)
        huey.build_error_result = self._with_end(huey.build_error_result)
        huey.deserialize_task = self._telling(huey.deserialize_task)

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a Huey task whose own body never runs."""

        def body(*_: Any, **__: Any) -> Any:
            msg = f"task {task_func.name!r} runs only through its app"
            raise RuntimeError(msg)

        body.__module__ = MODULE
        kind: type[Task] = self.native.task(name=task_func.name)(body).task_class
        self._functions_of_ours[kind] = task_func.func
        return kind

    def function_for(self, kind: type[Task]) -> Callable[..., Any] | None:
        """Return the function of one of the app's tasks."""
        return self._functions_of_ours.get(kind)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # the same for all
        """Return what this Huey can do."""
        huey: Any = self.native
        ordered = isinstance(huey.storage, SqliteStorage | MemoryStorage)
        return Capabilities(
            delay=not huey.immediate,
            dead_letter=True,
            cancel_queued=True,
            results=bool(huey.results),
            at_least_once=self._ledger is not None,
            priority=ordered or getattr(huey.storage, "priority", False),
            metadata=True,
        )

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Check that the storage works, and start workers in this process if any are asked for."""
        super().start(app, None)
        if workers:
            consumer: Any = self.native.create_consumer(
                workers=workers, periodic=False, initial_delay=0.005, max_delay=0.05
            )
            # The app handles the process's signals.
            consumer._set_signal_handlers = lambda: None  # noqa: SLF001  # no public switch
            consumer.start()
            self._consumer = consumer

    def reach(self) -> None:
        """Read from the storage once.

        Raises:
            EngineError: The storage cannot be used.
        """
        told(self.native, self.app.name, self.native.pending_count)

    def stop(self) -> None:
        """Finish this process's running runs; queued ones stay in the storage."""
        if self._consumer is not None:
            self._consumer.stop(graceful=True)
            self._consumer = None

    def send(self, message: TaskMessage, delay: float | None) -> Ticket:
        """Enqueue a run.

        Raises:
            EngineError: An argument cannot be stored, or the storage cannot be used.
        """
        huey, kind = self.native, self.tasks[message.name]
        header = {HEADER: {"metadata": dict(message.metadata)}} if message.metadata else {}
        task = task_of(huey, kind, message, header, delay, retries=0)
        # Refuse now what a worker could not read later.
        self.encode(None, (task.args, task.kwargs))
        try:
            told(huey, message.name, huey.enqueue, task)
        except OverflowError as error:
            msg = (
                f"engine 'huey', task {message.name!r}: the storage rejected its priority,"
                f" {message.priority}, or its delay, {delay}: {error}; use smaller values"
            )
            raise EngineError(msg) from error
        return Ticket(task.id, message.name)

    # --- one attempt

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message from a Huey task."""
        message = super().message(run, args, kwargs)
        return attrs.evolve(message, priority=message.priority or 0)

    def _execute(self, task: Task, function: Callable[..., Any]) -> Any:
        task.our_end = None
        try:
            value = super()._execute(task, function)
        except CancelExecution as error:
            # Huey reports and stores a task's end before it checks whether to repeat the task.
            if error.retry:
                raise RetryTask from error
            if task.our_end is None:
                task.our_end = _packed(TaskStatus.cancelled, TaskCancelError(str(error)))
            raise
        if value is None:
            self.store_none(task)
        return value

    def failure(self, error: BaseException) -> BaseException | None:
        """Wrap the error, unless it comes from a signal; signals never reach a plain thread."""
        in_thread = type(threading.current_thread()) is threading.Thread
        if isinstance(error, KeyboardInterrupt) and not in_thread:
            return None
        return super().failure(error)

    def fail(self, run: Any, attempt: Attempt) -> BaseException | None:
        """Keep the error's class and arguments in addition to what Huey stores."""
        run.our_end = _packed(TaskStatus.failed, attempt.error)
        return attempt.error

    def cancel(self, run: Any, attempt: Attempt) -> BaseException:
        """Keep the run's outcome, and end the run even if Huey has retries left for it."""
        run.our_end = _packed(_STATUS[attempt.action], attempt.error)
        return cancel_execution(str(attempt.error))

    dead_letter = cancel

    def _with_end(self, native: Callable[[Task, Any], Any]) -> Callable[[Task, Any], Any]:
        def build_error_result(task: Task, exception: Any) -> Any:
            ended = getattr(task, "our_end", None)
            if ended is None:
                return native(task, exception)
            try:
                metadata = native(task, exception)
            except Exception:  # noqa: BLE001  # whatever an error's own methods raise
                # Without a stored result, the caller would wait forever.
                metadata = {"error": type(exception).__name__, "retries": 0, "task_id": task.id}
            return {**metadata, HEADER: ended}

        return build_error_result

    def _forget_error(self, _: str, task: Task) -> None:
        """Delete the error of an attempt that will be retried; Huey before 3.5 stores it."""
        if type(task) in self._functions_of_ours:
            self.native.get_raw(task.id)

    def _ended_without_us(self, signal: str, task: Task, *_: Any) -> None:
        """Store the outcome of a run that Huey dropped."""
        if type(task) in self._functions_of_ours and getattr(task, "our_end", None) is None:
            self._put_end(task.id, TaskStatus.cancelled, TaskCancelError(f"Huey: {signal}"))

    def _put_end(self, uuid: str, status: TaskStatus, error: Exception) -> bool:
        """Store a run's outcome, unless it has one."""
        metadata = {"error": repr(error), "retries": 0, "task_id": uuid}
        ended = Error({**metadata, HEADER: _packed(status, error)})
        return bool(self.native.put_if_empty(uuid, ended))

    def _telling(self, native: Callable[[bytes], Task]) -> Callable[[bytes], Task]:
        """End a run whose message a worker cannot read; Huey has already deleted the message."""

        def deserialize_task(data: bytes) -> Task:
            try:
                return native(data)
            except Exception as error:
                if self._workers:
                    self._end_unread(data, error)
                raise

        return deserialize_task

    def _end_unread(self, data: bytes, error: Exception) -> None:
        uuid = task = None
        with suppress(Exception):
            sent = self.native.serializer.deserialize(data)
            uuid, task = sent.id, sent.name.removeprefix(f"{MODULE}.")
        why = text_of(error)
        if isinstance(error, HueyException):
            why = f"this worker has no task {task!r}; its tasks are {', '.join(self.tasks)}"
        msg = (
            f"engine 'huey', task {task or '?'!r}: the message cannot be read: {why}. A worker must"
            " import every module that declares tasks, and run the same code as the clients"
        )
        log_event("error", "task_unreadable", task=task, uuid=uuid, why=msg)
        if uuid is not None:
            self._put_end(uuid, TaskStatus.failed, EngineError(msg))
            if self._ledger is not None:
                self._ledger.delete(uuid)

    # --- its end

    def ticket_for(self, uuid: str) -> Ticket:
        """Make a ticket for any run; reading with it does not delete the stored outcome."""
        return Ticket(uuid)

    def no_results(self) -> str:
        """Return what to do if results are not stored."""
        return "this Huey does not store results; create it with results=True"

    def read(self, ticket: Ticket) -> RunResult | None:
        """Read the stored outcome; the ticket of the submitted run also deletes it from storage."""
        huey = self.native
        if ticket.ended is None:
            raw = told(huey, ticket.name, huey.get_raw, ticket.id, peek=True)
            if raw is EmptyData:
                # Another thread may just have read it.
                return ticket.ended
            ticket.ended = _ended_of(ticket, huey.serializer.deserialize(raw))
            if ticket.ended is not None and ticket.name:
                told(huey, ticket.name, huey.get_raw, ticket.id)
        return ticket.ended

    def status(self, ticket: Ticket) -> TaskStatus | None:
        """Return how far a run is; without the ledger, only how it ended."""
        ended = super().status(ticket)
        if ended is None and self._ledger is not None:
            entry = told(self.native, ticket.name, self._ledger.get, ticket.id)
            if entry is not None:
                return TaskStatus.queued if entry.owner is None else TaskStatus.running
        return ended

    def revoke(self, ticket: Ticket, reason: str) -> bool:
        """Revoke a queued run; callers who wait for it return at once."""
        return bool(told(self.native, ticket.name, self._revoke, ticket, reason))

    def _revoke(self, ticket: Ticket, reason: str) -> bool:
        huey = self.native
        status = self.status(ticket)
        if status is None:
            # No ledger knows the run, so ask Huey.
            waits = any(task.id == ticket.id for task in (*huey.pending(), *huey.scheduled()))
            status = TaskStatus.queued if waits else TaskStatus.running
        if status is not TaskStatus.queued:
            return False
        huey.revoke_by_id(ticket.id, revoke_once=True)
        # If the run has ended meanwhile, its outcome stands, unless Huey itself dropped the run.
        if not self._put_end(ticket.id, TaskStatus.cancelled, TaskCancelError(reason)):
            ended = self.read(ticket)
            if ended is None or ended.status is not TaskStatus.cancelled:
                return False
            ticket.ended = RunResult(TaskStatus.cancelled, error=TaskCancelError(reason))
        if self._ledger is not None:
            self._ledger.delete(ticket.id)
        return True


def _packed(status: TaskStatus, error: BaseException | None) -> dict[str, Any]:
    failure = EngineError("without an error") if error is None else error
    return {"status": str(status), "error": pack_error(failure)}


def _ended_of(ticket: Ticket, stored: Any) -> RunResult | None:
    """Return the outcome that Huey stored; None if it is an error that Huey will retry."""
    if not isinstance(stored, Error):
        return RunResult(TaskStatus.succeeded, stored)
    told_of: Mapping[str, Any] | None = stored.metadata.get(HEADER)
    who = f"engine 'huey', task {ticket.name or 'unknown'!r}"
    if told_of is not None:
        return RunResult(TaskStatus(told_of["status"]), error=unpack_error(told_of["error"], who))
    if stored.metadata.get("retries"):
        return None
    return RunResult(TaskStatus.failed, error=EngineError(f"{who}: {stored.metadata['error']}"))
