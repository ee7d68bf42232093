"""Taskiq as the engine of a ``QueueTasks`` app."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Final

import attrs
from taskiq import AsyncBroker, InMemoryBroker, NoResultError, TaskiqResult

from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, is_here, is_running, pauses
from qtasks_pluggy.engines._replays import refused
from qtasks_pluggy.engines.forward import PATIENCE, POLL, Forward, pack_error, unpack_error
from qtasks_pluggy.engines.native import named, text_of
from qtasks_pluggy.engines.taskiq.brokers import Run, is_a, routing
from qtasks_pluggy.engines.taskiq.install import OURS, TaskiqNative
from qtasks_pluggy.exc import EngineError

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
        who = f"engine 'taskiq', task {self.task!r}"
        if (label := result.labels.get(_END)) is not None:
            end = json.loads(label)
            self.ended = RunResult(TaskStatus(end["status"]), error=unpack_error(end["error"], who))
        elif result.is_err:
            # It did not end in an attempt of ours: its worker was stopped, for example.
            error = EngineError(f"{who}: {text_of(result.error)}")
            self.ended = RunResult(TaskStatus.failed, error=error)
        else:
            self.ended = RunResult(TaskStatus.succeeded, result.return_value)


class TaskiqEngine(Forward[AsyncBroker], TaskiqNative):
    """Taskiq as an app's engine.

    Args:
        given: The broker.
    """

    worker = "taskiq worker MODULE:BROKER"
    control = ()
    blocking = False

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self._looks = asyncio.Semaphore(_LOOKS)

    def cover(self) -> None:
        """Watch for workers; ``declare`` covers the tasks."""
        # A broker in memory is client and worker at once, and the client starts the plugins.
        if not isinstance(self.native, InMemoryBroker):
            self.hear_of_workers()

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a task of the broker, plain or async like the function, and at-least-once."""
        native, name = self.native, task_func.name
        if name in native.get_all_tasks():
            msg = "the broker has a task with this name; give this one another name="
            raise ValueError(msg)
        body = self.around(name, task_func.func, is_async=task_func.is_async)
        vars(body)[OURS] = True
        # Middlewares must not decide again what plugins have decided.
        options = {"retry_on_error": False, "ack_type": "when_saved", **routing(native)}
        return native.register_task(body, task_name=name, **options)

    def check(self) -> None:
        """Refuse, in clients and workers, what would do a run more than once."""
        super().check()
        who = f"engine 'taskiq', app {self.app_name!r}"
        if is_a(self.native, "PubSubBroker"):
            msg = f"{who}: PubSubBroker sends each run to every worker; use RedisStreamBroker"
            raise EngineError(msg)
        # After so many milliseconds, a stream passes a run to another worker in any case.
        idle: int | None = getattr(self.native, "idle_timeout", None)
        for task in self.app.tasks.values():
            limit = task.task_func.max_time or 0
            if idle is not None and limit * 1000 >= idle:
                msg = (
                    f"{who}: task {task.name!r} could run twice: its max_time, {limit} seconds, is"
                    f" not below the broker's idle_timeout, {idle} milliseconds; raise that"
                )
                raise EngineError(msg)

    async def start(self, app: QueueTasks, workers: int | None) -> None:  # type: ignore[override]  # the app awaits it
        """Connect to the broker and the result backend; open the broker unless it is open."""
        super().start(app, workers)
        self.check()
        self._looks = asyncio.Semaphore(_LOOKS)
        native, what = self.native, "broker"
        try:
            async with asyncio.timeout(PATIENCE):
                await self._runs.open(self)
                if (pool := getattr(native, "connection_pool", None)) is not None:
                    # Brokers on Redis connect only when they send something.
                    await pool.release(await pool.get_connection())
                what = "result backend"
                await native.result_backend.is_result_ready("qtasks_pluggy")
        except BaseException as error:
            await self._runs.close(self, 1)
            if not isinstance(error, Exception):
                raise
            is_late = isinstance(error, TimeoutError)
            why = f"no answer within {PATIENCE:g} seconds" if is_late else text_of(error)
            msg = (
                f"engine 'taskiq', app {self.app_name!r}: the {what} of {type(native).__name__}"
                f" cannot be used: {why}; start it, or correct its URL"
            )
            raise EngineError(msg) from error

    async def stop(self) -> None:  # type: ignore[override]  # as above
        """Finish this process's runs; the last app closes the broker if an app opened it."""
        try:
            while isinstance(self.native, InMemoryBroker):
                # It stops at the first error of another middleware, which is not the app's.
                with suppress(Exception):
                    await self.native.wait_all()
                    break
                # Let the broker forget the run.
                await asyncio.sleep(0)
        finally:
            await self._runs.close(self)

    def can(self, run: Any) -> Capabilities:
        """Return what the broker can do; a dead letter is an end like others."""
        return attrs.evolve(super().can(run), dead_letter=True)

    async def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a native message with packed arguments.

        Parameters can then have any name, and Taskiq does not convert their types.

        Raises:
            EngineError: An argument cannot be serialized, or the broker failed.
        """
        ticket = Ticket(str(message.uuid), message.name)
        if isinstance(self.native, InMemoryBroker):
            self._runs.waiting[ticket.task_id] = ticket
        packed: Any = (list(message.args), dict(message.kwargs))
        try:
            await self.send(attrs.evolve(message, args=packed, kwargs={}), delay)
        except Exception as error:
            raise refused(self, message, error) from error
        return ticket

    # --- one attempt

    def call_of(self, run: Run, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:  # noqa: ARG002  # as ``submit`` packs them
        """Return the function and its unpacked arguments."""
        return func, tuple(args[0]), args[1]

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Store the error in a label too, because Taskiq's own form of it can lose parts."""
        error: Any = attempt.error
        if isinstance(error, NoResultError):
            # Taskiq would store nothing, and callers would wait forever.
            error = named(error, self.name)
        end = {"status": attempt.status, "error": pack_error(error)}
        run.message.labels[_END] = json.dumps(end)
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
        for pause in pauses(*POLL, timeout):
            if (ended := await self._look(ticket)) is not None:
                return ended
            await asyncio.sleep(pause)
        return await self._look(ticket)

    def read(self, ticket: Ticket) -> RunResult | None:
        """Read a run's outcome from plain code; on the broker's loop, only one already awaited."""
        loop = self.loop
        if ticket.ended is None and loop is not None and is_running(loop) and not is_here(loop):
            asyncio.run_coroutine_threadsafe(self._look(ticket), loop).result(PATIENCE)
        return ticket.ended

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
            who = f"engine 'taskiq', task {ticket.task!r}"
            msg = f"{who}: the result backend failed: {text_of(error)}; check that it is running"
            raise EngineError(msg) from error
        return ticket.ended

    async def _read_end(self, ticket: Ticket) -> None:
        ticket.hear(await self.native.result_backend.get_result(ticket.task_id))
