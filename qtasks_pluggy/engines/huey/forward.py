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
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import attrs
from huey import CancelExecution, Huey
from huey.api import Task
from huey.constants import EmptyData
from huey.storage import SqliteStorage
from huey.utils import Error

from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, log_event, status_from
from qtasks_pluggy.engines.forward import Forward, pack_error, unpack_error
from qtasks_pluggy.engines.huey.install import HEADER, MODULE, HueyNative, ledger_of, task_of
from qtasks_pluggy.engines.huey.ledger import id_of
from qtasks_pluggy.engines.huey.storage import explained, sqlite_huey
from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import EngineError, TaskCancelError


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
    no_results: ClassVar[str] = "create it with results=True"
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
        self._consumer: Any = None

    def cover(self) -> None:
        """Hook into runs and workers, and keep more of a run's outcome than Huey does."""
        self.cover_workers()
        huey = self.native
        huey.signal("revoked", "expired", "canceled")(self._ended_without_us)
        huey.signal("retrying")(self._forget_error)
        huey.build_error_result = partial(self._build_error_result, huey.build_error_result)
        huey.deserialize_task = partial(self._deserialize_task, huey.deserialize_task)

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a Huey task whose own body never runs."""

        def body() -> None:
            # ``cover_task`` replaces ``execute``; Huey takes only the names from here.
            raise NotImplementedError

        body.__module__ = MODULE
        kind: type[Task] = self.native.task(name=task_func.name)(body).task_class
        self.cover_task(kind, task_func.func)
        return kind

    def _has(self, task: Task) -> bool:
        return self._declared.get(task.name) is type(task)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # the same for all
        """Return what this Huey can do."""
        huey: Any = self.native
        return Capabilities(
            delay=not huey.immediate,
            dead_letter=True,
            cancel_queued=True,
            results=bool(huey.results),
            at_least_once=self._ledger is not None,
            priority=huey.storage.priority,
            metadata=True,
        )

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Check that the storage works, and start workers in this process if any are asked for.

        Raises:
            EngineError: The storage cannot be used, or another consumer is running.
        """
        super().start(app, None)
        if not workers:
            return
        consumer: Any = self.native.create_consumer(
            workers=workers, periodic=False, initial_delay=0.005, max_delay=0.05
        )
        # The app handles the process's signals.
        consumer._set_signal_handlers = lambda: None  # noqa: SLF001  # no public switch
        try:
            if self._ledger is not None:
                # A worker that fails to open it could only log that.
                with self._explained(f"app {app.name!r}"):
                    self._ledger.open(self)
            consumer.start()
        except BaseException:
            # Some of its threads may have started.
            consumer.stop()
            self._release()
            raise
        self._consumer = consumer

    def _release(self) -> None:
        """Allow another consumer when this one's workers have ended."""
        if self._ledger is not None:
            self._ledger.close(self)

    def reach(self) -> None:
        """Read from the storage once.

        Raises:
            EngineError: The storage cannot be used.
        """
        with self._explained(f"app {self.app.name!r}"):
            self.native.pending_count()

    def stop(self) -> None:
        """Finish this process's running runs; queued ones stay in the storage."""
        if self._consumer is not None:
            self._consumer.stop(graceful=True)
            self._consumer = None
            self._release()

    def send(self, message: TaskMessage, delay: float | None) -> Ticket:
        """Enqueue a run.

        Raises:
            EngineError: The storage cannot be used.
            Exception: An argument cannot be serialized.
        """
        task = task_of(self.native, self.tasks[message.name], message, delay)
        # Refuse now what a worker could not read later.
        self.encode(None, (task.args, task.kwargs))
        with self._explained(f"task {message.name!r}"):
            self.native.enqueue(task)
        return Ticket(task.id, message.name)

    def _explained(self, who: str) -> AbstractContextManager[None]:
        storage: Any = self.native.storage
        return explained(getattr(storage, "filename", type(storage).__name__), who)

    # --- the end of a run

    def failure(self, error: BaseException) -> BaseException | None:
        """Wrap the error, unless it comes from a signal; signals never reach a plain thread."""
        in_thread = type(threading.current_thread()) is threading.Thread
        if isinstance(error, KeyboardInterrupt) and not in_thread:
            return None
        return super().failure(error)

    def cancel(self, run: Any, attempt: Attempt) -> BaseException:
        """Keep the run's error, and end the run even if Huey has retries left for it."""
        run.our_error = attempt.error
        return super().cancel(run, attempt)

    dead_letter = cancel

    def _build_error_result(self, native: Callable[..., Any], task: Task, error: Any) -> Any:
        if task.retries or not self._has(task):
            return native(task, error)
        if isinstance(error, CancelExecution):
            error = getattr(task, "our_error", TaskCancelError(str(error)))
        # Not Huey's own, because an error's ``repr`` may fail, and the caller would wait forever.
        return _metadata(task.id, error)

    def _forget_error(self, _: str, task: Task) -> None:
        """Delete the error of an attempt that will be retried; Huey before 3.5 stores it."""
        if self._has(task):
            self.native.get_raw(task.id)

    def _ended_without_us(self, signal: str, task: Task, *_: Any) -> None:
        """Store the outcome of a run that Huey dropped before it began."""
        if self._has(task) and not hasattr(task, "our_header"):
            self._put_end(task.id, TaskCancelError(f"Huey: {signal}"))

    def _put_end(self, uuid: str, error: Exception) -> bool:
        """Store a run's error, unless the run has ended."""
        return bool(self.native.put_if_empty(uuid, Error(_metadata(uuid, error))))

    def _deserialize_task(self, native: Callable[[bytes], Task], data: bytes) -> Task:
        try:
            return native(data)
        except Exception as error:
            if self._workers:
                self._end_unread(data, text_of(error))
            raise

    def _end_unread(self, data: bytes, why: str) -> None:
        """End a run whose message a worker cannot read."""
        msg = (
            f"engine 'huey': the message cannot be read: {why}. A worker must import every module"
            " that declares tasks, and run the same code as the clients"
        )
        uuid = id_of(self.native, data)
        log_event("error", "task_unreadable", uuid=uuid, why=msg)
        if uuid is not None:
            self._put_end(uuid, EngineError(msg))
            if self._ledger is not None:
                self._ledger.drop(data)

    # --- its handle

    def ticket_for(self, uuid: str) -> Ticket:
        """Make a ticket for any run; reading with it does not delete the stored outcome."""
        return Ticket(uuid)

    def read(self, ticket: Ticket) -> RunResult | None:
        """Read the stored outcome; the ticket of the submitted run also deletes it from storage."""
        huey = self.native
        if ticket.ended is None:
            with self._explained(f"task {ticket.name!r}"):
                raw = huey.get_raw(ticket.id, peek=True)
            # Empty, too, if another thread has just read it.
            if raw is not EmptyData:
                ticket.ended = _ended_of(ticket, huey.serializer.deserialize(raw))
                if ticket.name and ticket.ended is not None:
                    with self._explained(f"task {ticket.name!r}"):
                        huey.get_raw(ticket.id)
        return ticket.ended

    def revoke(self, ticket: Ticket, reason: str) -> bool:
        """Revoke a queued run; callers who wait for it return at once."""
        huey = self.native
        with self._explained(f"task {ticket.name!r}"):
            if self.read(ticket) is not None:
                return False
            # First, so that no worker executes a run that waits after this.
            huey.revoke_by_id(ticket.id, revoke_once=True)
            if not self._waits(ticket.id):
                huey.restore_by_id(ticket.id)
            elif self._put_end(ticket.id, TaskCancelError(reason)):
                return True
            # A worker may have dropped it meanwhile.
            ended = self.read(ticket)
            if ended is None or ended.status is not TaskStatus.cancelled:
                return False
            ticket.ended = RunResult(TaskStatus.cancelled, error=TaskCancelError(reason))
            return True

    def _waits(self, uuid: str) -> bool:
        """Return whether a run is in the queue or in the schedule."""
        storage: Any = self.native.storage
        messages = [*storage.enqueued_items(), *storage.scheduled_items()]
        # Reading one is slow; unless they are compressed, the first is the one that we look for.
        messages.sort(key=lambda data: uuid.encode() not in data)
        return any(id_of(self.native, data) == uuid for data in messages)


def _metadata(uuid: str, error: Any) -> dict[str, Any]:
    """Return what Huey stores about an error, and what ``_ended_of`` reads."""
    ended = {"status": str(status_from(error)), "error": pack_error(error)}
    return {"error": text_of(error), "traceback": "", "retries": 0, "task_id": uuid, HEADER: ended}


def _ended_of(ticket: Ticket, stored: Any) -> RunResult | None:
    """Return the outcome that Huey stored; None if it is an error that Huey will retry."""
    if not isinstance(stored, Error):
        return RunResult(TaskStatus.succeeded, stored)
    ended = stored.metadata.get(HEADER)
    who = f"engine 'huey', task {ticket.name or 'unknown'!r}"
    if ended is not None:
        return RunResult(TaskStatus(ended["status"]), error=unpack_error(ended["error"], who))
    if stored.metadata.get("retries"):
        return None
    return RunResult(TaskStatus.failed, error=EngineError(f"{who}: {stored.metadata['error']}"))
