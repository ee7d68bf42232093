"""An app's runs on Huey: on a file, the durable engine with no server, or on a Huey object."""

# Huey has no types, and its tasks carry what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from huey import CancelExecution, Huey
from huey.api import Result, Task
from huey.constants import EmptyData
from huey.exceptions import ResultTimeout, RetryTask
from huey.storage import MemoryStorage, SqliteStorage

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, executor_for
from qtasks_pluggy.engines.huey.ends import PLAIN, check_storable, ended_of, portable, unreadable
from qtasks_pluggy.engines.huey.install import (
    CONTROL,
    HEADER,
    MODULE,
    cancel_execution,
    open_in_workers,
    will_retry,
)
from qtasks_pluggy.engines.huey.ledger import ledger_of
from qtasks_pluggy.engines.huey.send import new_task, serialized
from qtasks_pluggy.engines.huey.storage import reach, sqlite_huey, told
from qtasks_pluggy.engines.huey.unread import Unread
from qtasks_pluggy.engines.huey.worker import WorkerLife
from qtasks_pluggy.engines.servers import HANDS_OVER, attempt_of, cut_by, named
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskCancelError

if TYPE_CHECKING:
    from huey.consumer import Consumer

# Seconds, the most, between two looks whether a run has ended.
_POLL: Final = 0.02
# Seconds between two looks whether somebody else has read its end by this handle.
_SLICE: Final = 0.2


class _Found(Result):  # type: ignore[misc]  # Huey has no types
    """The result of a run that was found by its id: reading it leaves it for others."""


class HueyEngine:
    """Huey behind an app.

    Args:
        given: ``huey+sqlite:///file.db``, four slashes for an absolute path, with ``?ledger=0``
            to go without the ledger; or a ``Huey`` object.

    Raises:
        EngineError: The URL is wrong, or the database cannot be used.
    """

    name = "huey"
    blocking = True

    def __init__(self, given: str | Huey) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.control: tuple[type[Exception], ...] = CONTROL
        self.native: Any = given
        keep = True
        if isinstance(given, str):
            self.native, keep = sqlite_huey(given, MODULE)
        huey = self.native
        durable = isinstance(huey.storage, SqliteStorage) and not huey.immediate
        self._ledger = ledger_of(huey) if keep and durable else None
        self.capabilities: Capabilities = Capabilities(
            delay=not huey.immediate,
            dead_letter=True,
            cancel_queued=True,
            results=bool(huey.results),
            at_least_once=self._ledger is not None,
            priority=isinstance(huey.storage, SqliteStorage | MemoryStorage)
            or getattr(huey.storage, "priority", False),
            metadata=True,
        )
        # Without one, nobody who waits would hear of a None.
        self._bare = PLAIN if huey.store_none else PLAIN - {type(None)}
        self._wrappers: dict[str, Any] = {}
        self._app: QueueTasks | None = None
        self._consumer: Consumer | None = None
        if self._ledger is not None:
            open_in_workers(huey, self._ledger)
        Unread(huey, self._ledger, self._wrappers)
        huey.build_error_result = self._with_our_end(huey.build_error_result)
        huey.signal("revoked", "expired", "canceled")(self._ended_without_us)
        huey.signal("retrying")(self._goes_on)
        WorkerLife(huey, lambda: self._app)

    def will_retry(self, error: BaseException) -> bool:
        """Say whether the task has asked Huey for another attempt."""
        return will_retry(error, 0)

    def failure(self, error: BaseException) -> BaseException | None:
        """Name what ends the task's own run: a task that calls sys.exit() ends itself alone."""
        # How Huey ends a worker in the midst of a run; but no signal reaches a plain thread.
        interrupted = type(threading.current_thread()) is not threading.Thread
        if isinstance(error, KeyboardInterrupt) and interrupted:
            return None
        return named(error, self.name)

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It does not pickle.
        """
        check_storable(self.native, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: It does not pickle.
        """
        check_storable(self.native, f"the result of task {run.task_func.name!r}", run.result)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Make the task known to Huey, under its own name.

        Raises:
            EngineError: Huey has a task of this name, or this is behind another app.
        """
        if self._app is not None and self._app is not app:
            msg = f"engine 'huey' is behind app {self._app.name!r} already; make one for each app"
            raise EngineError(msg)
        self._app = app

        def body(*_: Any, task: Task, **__: Any) -> Any:
            with HANDS_OVER:
                return self._work(app, task)

        body.__module__ = MODULE
        try:
            wrapper = self.native.task(name=task_func.name, context=True)(body)
        except ValueError as error:
            msg = f"engine 'huey': task {task_func.name!r} of app {app.name!r}: {error}"
            raise EngineError(msg) from error
        self._wrappers[task_func.name] = wrapper

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Look whether the storage can be used; do runs in this process, if asked to."""
        reach(self.native, app.name)
        if not workers:
            return
        consumer = self.native.create_consumer(
            workers=workers, periodic=False, initial_delay=0.005, max_delay=0.05
        )
        # The process's signals are the app's.
        consumer._set_signal_handlers = lambda: None  # noqa: SLF001  # no public switch
        consumer.start()
        self._consumer = consumer

    def stop(self) -> None:
        """Finish the runs that this process is doing; those that wait stay in the storage."""
        if self._consumer is not None:
            self._consumer.stop(graceful=True)
            self._consumer = None

    def submit(self, message: TaskMessage, delay: float | None) -> Result:
        """Enqueue a native task, which the ledger has before, so that no crash can lose it."""
        header: dict[str, Any] = {"created_at": message.created_at, "attempt": 1}
        if message.metadata:
            header["metadata"] = message.metadata
        huey = self.native
        kind = self._wrappers[message.name].task_class
        task = new_task(huey, kind, message, header, delay, retries=0)
        serialized(task, message, huey, huey.serialize_task)
        try:
            told(huey, message.name, huey.enqueue, task)
        except BaseException as error:
            if self._ledger is not None:
                # Whoever is told that it is not submitted may submit it again.
                with suppress(Exception):
                    self._ledger.delete(task.id)
            if isinstance(error, OverflowError):
                msg = (
                    f"engine 'huey', task {message.name!r}: the storage does not take its priority,"
                    f" {message.priority}, or its delay, {delay}: {error}; give it smaller ones"
                )
                raise EngineError(msg) from error
            raise
        return Result(huey, task)

    def ticket_for(self, uuid: str) -> Result:
        """Make the ticket of a run that was enqueued from anywhere."""
        return _Found(self.native, Task(id=uuid))

    def result(self, ticket: Result, timeout: float | None) -> RunResult | None:
        """Wait for the stored end."""
        if not self.native.results:
            msg = "engine 'huey': this Huey keeps no results; make it with results=True"
            raise CapabilityError(msg)
        end = None if timeout is None else time.monotonic() + timeout

        def wait() -> Any:
            # A mere look waits for nothing: few threads look, for all that is awaited.
            if timeout == 0 and not ticket.is_ready():
                raise ResultTimeout
            left = _SLICE if end is None else max(_POLL, min(_SLICE, end - time.monotonic()))
            return ticket.get_raw_result(
                blocking=True, timeout=left, max_delay=_POLL, preserve=isinstance(ticket, _Found)
            )

        try:
            while True:
                # In slices, because the first of several who wait takes it out of the storage.
                with suppress(ResultTimeout):
                    ended = ended_of(told(self.native, ticket.task.name, wait))
                    if ended is not None:
                        return ended
                    ticket.reset()
                if end is not None and time.monotonic() >= end:
                    return None
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever reading what others wrote raises
            return unreadable(ticket, error)

    def status(self, ticket: Result) -> TaskStatus | None:
        """Tell how far a run is; without a ledger only whether it has ended."""
        return told(self.native, ticket.task.name, self._status, ticket)  # type: ignore[no-any-return]  # _status's

    def _status(self, ticket: Result) -> TaskStatus | None:
        raw = self.native.get_raw(ticket.id, peek=True)
        if raw is not EmptyData:
            try:
                ended = ended_of(self.native.serializer.deserialize(raw))
                if ended is not None:
                    return ended.status
            except Exception as error:  # noqa: BLE001  # whatever reading what others wrote raises
                return unreadable(ticket, error).status
        entry = None if self._ledger is None else self._ledger.get(ticket.id)
        if entry is None:
            return None
        return TaskStatus.queued if entry.owner is None else TaskStatus.running

    def trail(self, ticket: Result) -> Trail | None:  # noqa: ARG002  # the seam's name
        """Say nothing: the trail comes with the end."""
        return None

    def revoke(self, ticket: Result, reason: str) -> bool:
        """Revoke a run that waits; it ends at once for those who wait for it."""
        return told(self.native, ticket.task.name, self._cancel, ticket, reason)  # type: ignore[no-any-return]  # _cancel's

    def _cancel(self, ticket: Result, reason: str) -> bool:
        huey = self.native
        status = self._status(ticket)
        if status is None:
            # No ledger says where it is, so Huey is asked.
            waits = any(task.id == ticket.id for task in (*huey.pending(), *huey.scheduled()))
            status = TaskStatus.queued if waits else TaskStatus.running
        if status is not TaskStatus.queued:
            return False
        huey.revoke_by_id(ticket.id, revoke_once=True)
        ended = RunResult(TaskStatus.cancelled, error=TaskCancelError(reason))
        # Unless it came to its end meanwhile, which then stands; but not as what Huey dropped.
        if not huey.put_if_empty(ticket.id, ended):
            if self._status(ticket) is not TaskStatus.cancelled:
                return False
            huey.put_result(ticket.id, ended)
        if self._ledger is not None:
            self._ledger.delete(ticket.id)
        return True

    def message(self, native: Task) -> TaskMessage:
        """Make a message of a native task."""
        kwargs = dict(native.kwargs)
        header = kwargs.pop(HEADER, {})
        return TaskMessage(
            native.name,
            native.args,
            kwargs,
            uuid=native.id,
            priority=native.priority or 0,
            created_at=header.get("created_at"),
            attempt=attempt_of(header),
            queue=self.native.name,
            engine=self.name,
            redelivered=getattr(native, "redelivered", None),
            metadata=header.get("metadata", {}),
        )

    def settle(self, outcome: Attempt, native: Task) -> Any:
        """Return what Huey is to store, an end or a bare result, or raise what makes Huey do it."""
        if outcome.action == "pass":
            if isinstance(outcome.error, CancelExecution):
                # Huey tells of its end, and stores it, before it looks whether the task goes on.
                if outcome.error.retry:
                    raise RetryTask from outcome.error
                error = TaskCancelError(str(outcome.error))
                native.our_end = RunResult(TaskStatus.cancelled, error=error)
            raise RetryTask if outcome.error is None else outcome.error
        header = native.kwargs.get(HEADER, {})
        trail = [*header.get("trail", ()), *native.our_trail]
        if outcome.action == "succeed" and not trail and type(outcome.result) in self._bare:
            return outcome.result
        if outcome.action == "retry":
            header = {**header, "attempt": attempt_of(header) + 1, "trail": trail}
            native.kwargs = {**native.kwargs, HEADER: header}
            raise RetryTask(delay=outcome.delay or None)
        ended = RunResult(outcome.status, outcome.result, outcome.error, Trail(trail))
        if ended.error is None:
            return ended
        ended = portable(ended, native.name, self.native.serializer)
        # Read by ``build_error_result``, which Huey asks about the error that is raised here.
        native.our_end = ended
        if ended.status is TaskStatus.failed:
            if isinstance(ended.error, Exception):
                raise ended.error
            # It would end the worker with the run.
            msg = f"task {native.name!r}: {ended.error!r}"
            raise RuntimeError(msg) from ended.error
        raise cancel_execution(str(ended.error))

    def _work(self, app: QueueTasks, task: Task) -> Any:
        # Among its own arguments, where the first of Huey 3 puts it, it would go with a retry.
        task.kwargs = {name: value for name, value in task.kwargs.items() if value is not task}
        executor = executor_for(app, self.message(task))
        try:
            outcome = executor.execute_attempt_sync(self)
        except BaseException as error:  # noqa: BLE001  # what ends the worker is raised again
            outcome = cut_by(error, self)
        task.our_trail = executor.trail
        return self.settle(outcome, task)

    def _with_our_end(self, native: Callable[[Task, Any], Any]) -> Callable[[Task, Any], Any]:
        def build_error_result(task: Task, exception: Any) -> Any:
            ended = getattr(task, "our_end", None)
            try:
                metadata = native(task, exception)
            except Exception:
                # An error whose own repr fails; without an end its caller would wait for ever.
                if ended is None:
                    raise
                metadata = {"error": type(exception).__name__, "retries": 0, "task_id": task.id}
            return metadata if ended is None else {**metadata, HEADER: ended}

        return build_error_result

    def _goes_on(self, _: str, task: Task) -> None:
        """Forget the error of an attempt that is no end: others than this one are to be stored."""
        if task.name in self._wrappers:
            self.native.get_raw(task.id)

    def _ended_without_us(self, signal: str, task: Task, *_: Any) -> None:
        """Give an end to a run that Huey did not begin."""
        if task.name not in self._wrappers or getattr(task, "our_end", None) is not None:
            return
        ended = RunResult(TaskStatus.cancelled, error=TaskCancelError(f"Huey: {signal}"))
        self.native.put_if_empty(task.id, ended)
