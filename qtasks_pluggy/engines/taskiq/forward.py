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

# The label of a stored result that has the run's error, as JSON.
_END: Final = "qtasks_pluggy_end"
# How many reads of ends go on at a time, however many handles are awaited.
_LOOKS: Final = 10


@attrs.define(eq=False)
class Ticket:
    """A run that was submitted.

    Attributes:
        task_id: Its id.
        task: The task's name, where it is known.
        ended: Its end, once somebody has read it.
    """

    task_id: str
    task: str = "unknown"
    ended: RunResult | None = None

    def hear(self, result: TaskiqResult[Any]) -> None:
        """Make an end of what Taskiq stores."""
        who, error = f"engine 'taskiq', task {self.task!r}", result.error
        if (label := result.labels.get(_END)) is not None:
            told = json.loads(label)
            error = unpack_error(told["error"], who)
            self.ended = RunResult(TaskStatus(told["status"]), error=error)
        elif not result.is_err:
            self.ended = RunResult(TaskStatus.succeeded, result.return_value)
        else:
            if error is None:
                error = EngineError(f"{who}: Taskiq did not keep the error that it raised")
            self.ended = RunResult(status_from(error), error=error)


class TaskiqEngine(Forward[AsyncBroker], TaskiqNative):
    """Taskiq as an app's engine.

    Args:
        given: The broker.
    """

    worker = "taskiq worker MODULE:BROKER"
    # By these a task would talk to Taskiq, and leave whoever waits without an end.
    control = ()
    blocking = False

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self._looks = asyncio.Semaphore(_LOOKS)
        self._is_in_memory = isinstance(self.native, InMemoryBroker)

    def cover(self) -> None:
        """Hear of workers; ``declare`` covers the tasks."""
        self.hear_of_workers()

    async def _worker_begins(self, _: Any) -> None:
        # A broker in memory begins client and worker at once, and the client starts the plugins.
        if not self._is_in_memory:
            await super()._worker_begins(_)

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a task of the broker's, plain or async as the function is; at-least-once."""
        native, name, func = self.native, task_func.name, task_func.func
        if name in native.get_all_tasks():
            msg = "the broker has a task of this name already; give this one another name="
            raise ValueError(msg)

        # Packed, so that parameters can have any name, and Taskiq makes no other types of them.
        async def run_async(args: Any, kwargs: Any) -> Any:
            """Make one attempt on Taskiq's event loop."""
            return await self.work_async(take(name), func, tuple(args), kwargs)

        def run_plain(args: Any, kwargs: Any) -> Any:
            """Make one attempt in a thread of Taskiq's pool."""
            return self.work(take(name), func, tuple(args), kwargs)

        body: Callable[..., Any] = run_async if task_func.is_async else run_plain
        vars(body)[OURS] = True
        # What plugins decide is not for middlewares to decide again.
        options = {"retry_on_error": False, "ack_type": "when_saved", **routing(native)}
        return native.register_task(body, task_name=name, **options)

    def check(self) -> None:
        """Refuse, in clients and workers, a task that would be done twice whenever it is slow."""
        super().check()
        limit = idle_seconds(self.native)
        for task in self.app.tasks.values():
            func = task.task_func
            if limit is not None and (func.max_time or 0) >= limit:
                msg = (
                    f"engine 'taskiq', task {func.name!r}: with max_time={func.max_time} it would"
                    f" be done twice: the stream gives a message to another worker after {limit}"
                    " seconds; raise the broker's idle_timeout, in milliseconds"
                )
                raise EngineError(msg)

    async def start(self, app: QueueTasks, workers: int | None) -> None:  # type: ignore[override]  # awaited by the seam
        """Connect to broker and results, unless another app on this broker has."""
        super().start(app, workers)
        self.check()
        self._looks = asyncio.Semaphore(_LOOKS)
        if not self._runs.opened:
            await open_up(self.native, app.name)
            # Before Taskiq 0.12 a broker in memory starts no middlewares.
            self._runs.startup()
        self._runs.opened += 1

    async def stop(self) -> None:  # type: ignore[override]  # as above
        """Let go of broker and results, as the last app; runs of this process are finished."""
        native = self.native
        self._runs.opened -= 1
        with suppress(Exception):
            if isinstance(native, InMemoryBroker):
                await native.wait_all()
            if not self._runs.opened:
                # One in memory would give up its threads for good.
                closing = AsyncBroker.shutdown(native) if self._is_in_memory else native.shutdown()
                await asyncio.wait_for(closing, PATIENCE)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Say what Taskiq can do with this broker and these results."""
        return attrs.evolve(super().can(None), dead_letter=True)

    async def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a native message, whose arguments are packed.

        Raises:
            EngineError: An argument does not travel, or the broker failed.
        """
        ticket = Ticket(str(message.uuid), message.name)
        if self._is_in_memory:
            self._runs.waiting[ticket.task_id] = ticket
        packed: Any = (list(message.args), dict(message.kwargs))
        try:
            # One in memory can do the run before it returns.
            async with asyncio.timeout(None if self._is_in_memory else PATIENCE):
                await self.send(attrs.evolve(message, args=packed, kwargs={}), delay)
        except QTasksError:
            raise
        except Exception as error:
            raise self._refused(message, error) from error
        return ticket

    # --- one attempt

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a run at work."""
        return attrs.evolve(super().message(run, args, kwargs), priority=0)

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Put the error where Taskiq's own form of it cannot lose what ours has."""
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
        """Make the ticket of a run that was sent from anywhere."""
        return self._runs.waiting.get(uuid) or Ticket(uuid)

    async def result(self, ticket: Ticket, timeout: float | None) -> RunResult | None:  # type: ignore[override]  # noqa: ASYNC109  # the seam's
        """Wait for the stored end."""
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
        """Say what to do where results are not kept."""
        return "this broker keeps no results; give it one that does, broker.with_result_backend()"

    def read(self, ticket: Ticket) -> RunResult | None:
        """Read a run's end from plain code; on the broker's own loop only one that was awaited."""
        loop = self.loop
        if ticket.ended is None and loop is not None and not is_here(loop):
            asyncio.run_coroutine_threadsafe(self._look(ticket), loop).result(PATIENCE)
        return ticket.ended

    def revoke(self, ticket: Ticket, reason: str) -> bool:  # noqa: ARG002  # the seam's
        """Refuse: brokers take nothing back.

        Raises:
            CapabilityError: Always.
        """
        msg = (
            f"engine 'taskiq' cannot cancel: a broker takes no message back, so run"
            f" {ticket.task_id} of task {ticket.task!r} goes on"
        )
        raise CapabilityError(msg)

    async def _look(self, ticket: Ticket) -> RunResult | None:
        """Read a run's end, if it has one."""
        backend = self.native.result_backend
        try:
            async with self._looks:
                # Another who waits may have read it, and deleted it.
                if ticket.ended is None and await backend.is_result_ready(ticket.task_id):
                    # Who gives up waiting must not lose it for the others.
                    await asyncio.shield(self._read_end(ticket))
        except Exception as error:
            msg = (
                f"engine 'taskiq', task {ticket.task!r}: the result backend failed: {why(error)};"
                " look whether it runs"
            )
            raise EngineError(msg) from error
        return ticket.ended

    async def _read_end(self, ticket: Ticket) -> None:
        ticket.hear(await self.native.result_backend.get_result(ticket.task_id))
