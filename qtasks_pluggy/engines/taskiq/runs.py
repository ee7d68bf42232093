"""The middleware that follows a broker's runs, and opens and closes the broker for its clients."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakValueDictionary

import attrs
import taskiq
from taskiq import AsyncBroker, InMemoryBroker, NoResultError

from qtasks_pluggy.engines.forward import PATIENCE
from qtasks_pluggy.exc import TaskCancelError

# The label with which a task requeues itself.
REQUEUED: Final = "X-Taskiq-requeue"
# The run whose function Taskiq calls next.
_current: Final[ContextVar[Run | None]] = ContextVar("qtasks_pluggy_taskiq_run", default=None)


@attrs.define(eq=False)
class Run:
    """One attempt.

    Attributes:
        message: Taskiq's own message.
        args: Its arguments as they were sent; Taskiq converts those of the message in place.
        kwargs: Its keyword arguments as they were sent.
        requeued: How often the task had requeued itself when the attempt started.
        taken: Whether its function has been called; any further call is a direct one.
    """

    message: taskiq.TaskiqMessage
    args: list[Any]
    kwargs: dict[str, Any]
    requeued: Any
    taken: bool = False


class Runs(taskiq.TaskiqMiddleware):
    """Knows the current run, how runs end in this process, and whether the broker is open."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        # Who uses the broker, if the first of them opened it.
        self._users: set[object] = set()
        # Whether runs are acknowledged only after they end, whatever the worker's own setting.
        self.keeps_all = False
        # The tickets of this process, by id: a broker in memory forgets older results.
        self.waiting: WeakValueDictionary[str, Any] = WeakValueDictionary()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that has the broker's connections, the client's or the worker's."""
        loop = self._loop
        return None if loop is None or loop.is_closed() else loop

    async def open(self, user: object) -> None:
        """Open the broker for a user, who closes it even if this fails, unless it is open."""
        async with self._opening:
            if self.loop is None:
                self._users = {user}
                await self.broker.startup()
                # Before Taskiq 0.12, a broker in memory does not start middlewares.
                self.startup()
            elif self._users:
                self._users.add(user)

    async def close(self, user: object, patience: float = PATIENCE) -> None:
        """Close the broker after its last user, if the first one opened it."""
        broker: Any = self.broker
        async with self._opening:
            is_last = self._users == {user}
            self._users.discard(user)
            if is_last:
                # The shutdown of a broker in memory would end its thread pool for good.
                is_in_memory = isinstance(broker, InMemoryBroker)
                closing = AsyncBroker.shutdown(broker) if is_in_memory else broker.shutdown()
                with suppress(Exception):
                    await asyncio.wait_for(closing, patience)

    def startup(self) -> None:
        """Remember the event loop."""
        self._loop = asyncio.get_running_loop()

    def shutdown(self) -> None:
        """Forget the event loop."""
        self._loop = None

    def pre_execute(self, message: taskiq.TaskiqMessage) -> taskiq.TaskiqMessage:
        """Remember the run; Taskiq calls its function in the same context."""
        self.startup()
        if self.keeps_all:
            message.labels.setdefault("ack_type", "when_saved")
        requeued = message.labels.get(REQUEUED)
        _current.set(Run(message, list(message.args), dict(message.kwargs), requeued))
        return message

    def on_error(self, message: Any, result: Any, exception: BaseException) -> None:  # noqa: ARG002  # Taskiq's
        """Store the error of a cancelled run, which ``cancel`` hid from Taskiq's log."""
        cause = exception.__cause__
        if isinstance(exception, NoResultError) and isinstance(cause, TaskCancelError):
            result.error = cause

    def post_save(self, message: taskiq.TaskiqMessage, result: taskiq.TaskiqResult[Any]) -> None:
        """Pass the result to a caller that waits for the run in this process."""
        if (waits := self.waiting.get(message.task_id)) is not None:
            waits.hear(result)


def runs_of(broker: AsyncBroker) -> Runs:
    """Return our only middleware of a broker; the first call adds it."""
    for middleware in broker.middlewares:
        if isinstance(middleware, Runs):
            return middleware
    runs = Runs()
    broker.add_middlewares(runs)
    return runs


def take(name: str) -> Run | None:
    """Return the run for which Taskiq now calls a task's function; None for any other call."""
    run = _current.get()
    if run is None or run.taken or run.message.task_name != name:
        return None
    run.taken = True
    return run
