"""An app's runs on a Taskiq broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from weakref import WeakValueDictionary

import attrs
from taskiq import (
    AsyncBroker,
    InMemoryBroker,
    NoResultError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, load_plugins, status_from
from qtasks_pluggy.engines.forward import POLL, Forward, pack_error, unpack_error
from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.engines.taskiq.brokers import (
    PATIENCE,
    can_delay,
    has_results,
    idle_seconds,
    is_safe,
    open_up,
    routing,
    why,
)
from qtasks_pluggy.engines.taskiq.install import OURS, TaskiqNative, take
from qtasks_pluggy.exc import CapabilityError, EngineError, QTasksError

# The label of a stored result that has the run's error, as JSON.
_END: Final = "qtasks_pluggy_end"
# So many looks at a time, of however many that wait.
_LOOKS: Final = 10


@attrs.define(eq=False)
class Ticket:
    """A run that was submitted.

    Attributes:
        task_id: Its id.
        task: The task's name, as far as it is known.
        ended: Its end, once somebody has read it.
    """

    task_id: str
    task: str = "unknown"
    ended: RunResult | None = None


class _Ends(TaskiqMiddleware):
    """Hears of ends in the process that submits: a broker in memory forgets the older ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tickets: WeakValueDictionary[str, Ticket] = WeakValueDictionary()

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Tell whoever holds the run's ticket."""
        ticket = self.tickets.get(message.task_id)
        if ticket is not None and not isinstance(result.error, NoResultError):
            ticket.ended = _ended_of(ticket, result)


class TaskiqEngine(Forward[AsyncBroker], TaskiqNative):
    """Taskiq behind an app.

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
        self._ends: _Ends | None = None
        if isinstance(self.native, InMemoryBroker):
            self._ends = _Ends()
            self.native.add_middlewares(self._ends)

    def cover(self) -> None:
        """Hear of workers; ``declare`` covers the tasks."""
        self.hear_of_workers()

    async def _worker_begins(self, _: Any) -> None:
        # A broker in memory begins both at once, and the client's is the one that starts plugins.
        if self._ends is None:
            await super()._worker_begins(_)

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a task of the broker's, plain or async as the function is; at-least-once."""
        native, name, func = self.native, task_func.name, task_func.func
        if name in native.get_all_tasks():
            msg = "the broker has a task of this name already; give ours another name="
            raise ValueError(msg)
        body: Callable[..., Any]
        # Packed, so that parameters can have any name, and Taskiq makes no other types of them.
        if task_func.is_async:

            async def run_async(args: Any, kwargs: Any) -> Any:
                """Make one attempt on Taskiq's event loop."""
                return await self.work_async(take(name), func, tuple(args), kwargs)

            body = run_async
        else:

            def run_plain(args: Any, kwargs: Any) -> Any:
                """Make one attempt in a thread of Taskiq's pool."""
                return self.work(take(name), func, tuple(args), kwargs)

            body = run_plain
        vars(body)[OURS] = True
        # What plugins decide is not for middlewares to decide again.
        options = {"retry_on_error": False, "ack_type": "when_saved", **routing(native)}
        return native.register_task(body, task_name=name, **options)

    def check(self) -> None:
        """Refuse, in clients and workers, what would be done twice as a matter of course."""
        load_plugins(self.app)
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
        """Connect to broker and results, unless another app of theirs has."""
        super().start(app, workers)
        self.check()
        self._looks = asyncio.Semaphore(_LOOKS)
        if not self._runs.opened:
            await open_up(self.native, app.name)
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
                is_here = self._ends is not None
                closing = AsyncBroker.shutdown(native) if is_here else native.shutdown()
                await asyncio.wait_for(closing, PATIENCE)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Say what Taskiq can do with this broker and these results."""
        native = self.native
        return Capabilities(
            delay=can_delay(native),
            dead_letter=True,
            results=self._ends is not None or has_results(native),
            at_least_once=is_safe(native),
            metadata=True,
        )

    async def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a native message, whose arguments are packed.

        Raises:
            EngineError: An argument does not travel, or the broker failed.
        """
        ticket = Ticket(str(message.uuid), message.name)
        if self._ends is not None:
            self._ends.tickets[ticket.task_id] = ticket
        packed: Any = (list(message.args), dict(message.kwargs))
        try:
            # One in memory can do the run before it returns.
            async with asyncio.timeout(PATIENCE if self._ends is None else None):
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
            error = EngineError(f"engine 'taskiq': the task raised {text_of(error)}")
        told = {"status": status_from(error), "error": pack_error(error)}
        run.message.labels[_END] = json.dumps(told)
        return error

    cancel = dead_letter = fail

    # --- its end

    def ticket_for(self, uuid: str) -> Ticket:
        """Make the ticket of a run that was sent from anywhere."""
        known = None if self._ends is None else self._ends.tickets.get(uuid)
        return Ticket(uuid) if known is None else known

    async def result(self, ticket: Ticket, timeout: float | None) -> RunResult | None:  # type: ignore[override]  # noqa: ASYNC109  # the seam's
        """Wait for the stored end."""
        if not self.keeps(ticket):
            msg = (
                "engine 'taskiq': this broker keeps no results; give it one that does,"
                " broker.with_result_backend(...)"
            )
            raise CapabilityError(msg)
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

    def status(self, ticket: Ticket) -> TaskStatus | None:
        """Tell how a run ended; on an event loop, once somebody has awaited it."""
        loop = self.loop
        if ticket.ended is None and loop is not None and self.keeps(ticket):
            with suppress(RuntimeError):
                asyncio.get_running_loop()
                # Waiting here would hold up an event loop, perhaps this very one.
                return None
            asyncio.run_coroutine_threadsafe(self._look(ticket), loop).result(PATIENCE)
        return None if ticket.ended is None else ticket.ended.status

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
        result = await self.native.result_backend.get_result(ticket.task_id)
        ticket.ended = _ended_of(ticket, result)


def _ended_of(ticket: Ticket, result: TaskiqResult[Any]) -> RunResult:
    """Make an end of what Taskiq has stored."""
    who = f"engine 'taskiq', task {ticket.task!r}"
    if (label := result.labels.get(_END)) is not None:
        told = json.loads(label)
        return RunResult(TaskStatus(told["status"]), error=unpack_error(told["error"], who))
    if not result.is_err:
        return RunResult(TaskStatus.succeeded, result.return_value)
    error = result.error
    if error is None:
        error = EngineError(f"{who}: Taskiq has not kept the error that it raised")
    return RunResult(status_from(error), error=error)
