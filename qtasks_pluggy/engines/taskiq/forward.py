"""Taskiq as the engine of a ``QueueTasks`` app."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs
from taskiq import AsyncBroker, InMemoryBroker, NoResultError, TaskiqResult

from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, is_here, status_from
from qtasks_pluggy.engines.forward import POLL, Forward, pack_error, unpack_error
from qtasks_pluggy.engines.native import named
from qtasks_pluggy.engines.taskiq.brokers import PATIENCE, idle_seconds, open_up, routing, why
from qtasks_pluggy.engines.taskiq.install import OURS, TaskiqNative, take
from qtasks_pluggy.exc import CapabilityError, EngineError, QTasksError

# The label of a stored result that holds the run's error, as JSON.
_END: Final = "qtasks_pluggy_end"
# How many results are read at a time, however many handles are awaited.
_LOOKS: Final = 10


@attrs.define(eq=False)
class Ticket:
    """A submitted run.

    Attributes:
        task_id: The run's id.
        task: The task's name, if it is known.
        ended: The run's outcome, once it was read.
    """

    task_id: str
    task: str = "unknown"
    ended: RunResult | None = None

    def hear(self, result: TaskiqResult[Any]) -> None:
        """Set the run's outcome from a result of Taskiq's."""
        who, error = f"engine 'taskiq', task {self.task!r}", result.error
        if (label := result.labels.get(_END)) is not None:
            told = json.loads(label)
            error = unpack_error(told["error"], who)
            self.ended = RunResult(TaskStatus(told["status"]), error=error)
        elif not result.is_err:
            self.ended = RunResult(TaskStatus.succeeded, result.return_value)
        else:
            if error is None:
                error = EngineError(f"{who}: Taskiq did not store the error that it raised")
            self.ended = RunResult(status_from(error), error=error)


class TaskiqEngine(Forward[AsyncBroker], TaskiqNative):
    """Taskiq as an app's engine.

    Args:
        given: The broker.
    """

    worker = "taskiq worker MODULE:BROKER"
    # A task that raised Taskiq's own control exceptions would leave callers waiting forever.
    control = ()
    blocking = False

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self._looks = asyncio.Semaphore(_LOOKS)
        self._is_in_memory = isinstance(self.native, InMemoryBroker)

    def cover(self) -> None:
        """Watch for workers; ``declare`` covers the tasks."""
        self.hear_of_workers()

    async def _worker_begins(self, _: Any) -> None:
        # A broker in memory is client and worker at once, and the client starts the plugins.
        if not self._is_in_memory:
            await super()._worker_begins(_)

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a task of the broker, plain or async like the function, and at-least-once."""
        native, name, func = self.native, task_func.name, task_func.func
        if name in native.get_all_tasks():
            msg = "the broker already has a task with this name; give this one another name="
            raise ValueError(msg)

        # Packed, so that parameters can have any name, and Taskiq does not convert their types.
        async def run_async(args: Any, kwargs: Any) -> Any:
            """Make one attempt on Taskiq's event loop."""
            return await self.work_async(take(name), func, tuple(args), kwargs)

        def run_plain(args: Any, kwargs: Any) -> Any:
            """Make one attempt in a thread of Taskiq's pool."""
            return self.work(take(name), func, tuple(args), kwargs)

        body: Callable[..., Any] = run_async if task_func.is_async else run_plain
        vars(body)[OURS] = True
        # Middlewares must not decide again what plugins have decided.
        options = {"retry_on_error": False, "ack_type": "when_saved", **routing(native)}
        return native.register_task(body, task_name=name, **options)

    def check(self) -> None:
        """Refuse, in clients and workers, a task that could run twice if it is slow."""
        super().check()
        limit = idle_seconds(self.native)
        for task in self.app.tasks.values():
            func = task.task_func
            if limit is not None and (func.max_time or 0) >= limit:
                msg = (
                    f"engine 'taskiq', task {func.name!r}: with max_time={func.max_time} it could"
                    f" run twice: the stream passes a message to another worker after {limit}"
                    " seconds; raise the broker's idle_timeout, in milliseconds"
                )
                raise EngineError(msg)

    async def start(self, app: QueueTasks, workers: int | None) -> None:  # type: ignore[override]  # the app awaits it
        """Connect to the broker and the result backend, unless another app already has."""
        super().start(app, workers)
        self.check()
        self._looks = asyncio.Semaphore(_LOOKS)
        if not self._runs.opened:
            await open_up(self.native, app.name)
            # Before Taskiq 0.12, a broker in memory does not start middlewares.
            self._runs.startup()
        self._runs.opened += 1

    async def stop(self) -> None:  # type: ignore[override]  # as above
        """Finish this process's runs; the last app also closes broker and result backend."""
        native = self.native
        self._runs.opened -= 1
        with suppress(Exception):
            if isinstance(native, InMemoryBroker):
                await native.wait_all()
            if not self._runs.opened:
                # The shutdown of a broker in memory would end its thread pool for good.
                closing = AsyncBroker.shutdown(native) if self._is_in_memory else native.shutdown()
                await asyncio.wait_for(closing, PATIENCE)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Return what Taskiq can do with this broker and result backend."""
        return attrs.evolve(super().can(None), dead_letter=True)

    async def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a native message with packed arguments.

        Raises:
            EngineError: An argument cannot be serialized, or the broker failed.
        """
        ticket = Ticket(str(message.uuid), message.name)
        if self._is_in_memory:
            self._runs.waiting[ticket.task_id] = ticket
        packed: Any = (list(message.args), dict(message.kwargs))
        try:
            # A broker in memory may execute the run before it returns.
            async with asyncio.timeout(None if self._is_in_memory else PATIENCE):
                await self.send(attrs.evolve(message, args=packed, kwargs={}), delay)
        except QTasksError:
            raise
        except Exception as error:
            raise self._refused(message, error) from error
        return ticket

    # --- one attempt

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message from a run."""
        return attrs.evolve(super().message(run, args, kwargs), priority=0)

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Store the error in a label too, because Taskiq's own form of it can lose parts."""
        error: Any = attempt.error
        if isinstance(error, NoResultError):
            error = named(error, self.name)
        told = {"status": status_from(error), "error": pack_error(error)}
        run.message.labels[_END] = json.dumps(told)
        return error

    dead_letter = fail

    def cancel(self, run: Any, attempt: Attempt) -> Any:
        """End it as cancelled."""
        self.fail(run, attempt)
        return super().cancel(run, attempt)

    # --- its end

    def ticket_for(self, uuid: str) -> Ticket:
        """Make the ticket of a run that any process may have sent."""
        return self._runs.waiting.get(uuid) or Ticket(uuid)

    async def result(self, ticket: Ticket, timeout: float | None) -> RunResult | None:  # type: ignore[override]  # noqa: ASYNC109  # the seam's
        """Wait for the stored outcome."""
        if not self.keeps(ticket):
            return super().result(ticket, timeout)
        clock = asyncio.get_running_loop().time
        end = None if timeout is None else clock() + timeout
        pause, most = POLL
        while (ended := await self._look(ticket)) is None:
            left = most if end is None else end - clock()
            if left <= 0:
                return None
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, most)
        return ended

    def no_results(self) -> str:
        """Return what to do if results are not stored."""
        return "this broker stores no results; call broker.with_result_backend()"

    def read(self, ticket: Ticket) -> RunResult | None:
        """Read a run's outcome from plain code; on the broker's loop, only one already awaited."""
        loop = self.loop
        if ticket.ended is None and loop is not None and not is_here(loop):
            asyncio.run_coroutine_threadsafe(self._look(ticket), loop).result(PATIENCE)
        return ticket.ended

    def revoke(self, ticket: Ticket, reason: str) -> bool:  # noqa: ARG002  # the seam's
        """Refuse: brokers cannot take a message back.

        Raises:
            CapabilityError: Always.
        """
        msg = (
            f"engine 'taskiq' cannot cancel: a broker cannot take a message back, so run"
            f" {ticket.task_id} of task {ticket.task!r} goes on"
        )
        raise CapabilityError(msg)

    async def _look(self, ticket: Ticket) -> RunResult | None:
        """Read a run's outcome, if it has one."""
        backend = self.native.result_backend
        try:
            async with self._looks:
                # Another caller may have read and deleted it.
                if ticket.ended is None and await backend.is_result_ready(ticket.task_id):
                    # A caller that stops waiting must not lose it for the others.
                    await asyncio.shield(self._read_end(ticket))
        except Exception as error:
            msg = (
                f"engine 'taskiq', task {ticket.task!r}: the result backend failed: {why(error)};"
                " check that it is running"
            )
            raise EngineError(msg) from error
        return ticket.ended

    async def _read_end(self, ticket: Ticket) -> None:
        ticket.hear(await self.native.result_backend.get_result(ticket.task_id))
