"""What a broker can do, whether it is open, and the runs that it hands over.

This module recognizes brokers by class name, so the brokers' packages need not be installed. It
reads these private attributes of taskiq-aio-pika, which has no public equivalent; an attribute that
a version lacks counts as not set:

====================================  ================================  ==================
attribute                             what it says                      taskiq-aio-pika
====================================  ================================  ==================
``_delay_queue_name``                 that the broker can delay         before 0.6
``_delay_queue``                      that the broker can delay         0.6
``_delayed_message_exchange_plugin``  that the broker can delay         0.5 and 0.6
``_declare_queues_kwargs``            whether its queue is durable      before 0.6
``_task_queues``                      its queues                        0.6
``_label_for_routing``                which label names a queue         0.6
====================================  ================================  ==================

``test_capabilities_are_those_of_the_broker`` tests those of 0.6, ``test_a_delay_is_kept`` the
label, and ``test_a_broker_of_another_version_does_what_it_can`` those before 0.6.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakValueDictionary

import attrs
import taskiq
from taskiq import AsyncBroker, InMemoryBroker, NoResultError
from taskiq.result_backends.dummy import DummyResultBackend

from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.engines.forward import PATIENCE
from qtasks_pluggy.exc import CapabilityError, TaskCancelError

# The label with which a task requeues itself.
REQUEUED: Final = "X-Taskiq-requeue"
# The run whose function Taskiq calls next.
_current: Final[ContextVar[Run | None]] = ContextVar("qtasks_pluggy_taskiq_run", default=None)
_DELAYS: Final = ("_delay_queue", "_delay_queue_name", "_delayed_message_exchange_plugin")


def is_a(broker: AsyncBroker, kind: str) -> bool:
    """Return whether a broker's class, or one of its bases, has this name."""
    return any(one.__name__ == kind for one in type(broker).__mro__)


def abilities_of(broker: AsyncBroker) -> Capabilities:
    """Return what a broker can do."""
    return Capabilities(
        delay=is_a(broker, "AioPikaBroker") and any(map(vars(broker).get, _DELAYS)),
        results=not isinstance(broker.result_backend, DummyResultBackend),
        at_least_once=is_safe(broker),
        metadata=True,
    )


def is_safe(broker: AsyncBroker) -> bool:
    """Return whether the broker passes a killed worker's runs to another worker.

    On a Redis stream, a worker takes over such runs while it holds a lock. Before taskiq-redis
    1.2.2, that lock never expires: if its holder is killed, no other worker can take them over.
    """
    if is_a(broker, "RedisStreamBroker"):
        return hasattr(broker, "unacknowledged_lock_timeout")
    options: Any = vars(broker).get("_declare_queues_kwargs", {"durable": True})
    lasting = (
        one.durable and not (one.auto_delete or one.exclusive) and one.type.value != "stream"
        for one in _queues(broker)
    )
    return is_a(broker, "AioPikaBroker") and bool(options.get("durable")) and all(lasting)


def routing(broker: AsyncBroker) -> dict[str, str]:
    """Return the label that routes a message to the first of a RabbitMQ broker's queues."""
    queues, label = _queues(broker), vars(broker).get("_label_for_routing", "queue_name")
    return {label: queues[0].routing_key or queues[0].name} if queues else {}


def _queues(broker: AsyncBroker) -> list[Any]:
    """Return the RabbitMQ queues that a broker was configured with."""
    queues: list[Any] = vars(broker).get("_task_queues", [])
    return queues


def at_least_once(broker: AsyncBroker) -> None:
    """Let runs survive the death of their worker, for all tasks of a broker.

    On a Redis stream, Taskiq looks for such runs only when a further message arrives.

    Args:
        broker: The Taskiq broker. Call this where you create it, in clients and workers alike.

    Raises:
        CapabilityError: The broker always loses the runs of a killed worker.
    """
    if not is_safe(broker):
        msg = (
            f"engine 'taskiq': {type(broker).__name__} loses the runs of a killed worker; use"
            " AioPikaBroker with durable queues, or RedisStreamBroker of taskiq-redis 1.2.2 or"
            " later"
        )
        raise CapabilityError(msg)
    runs_of(broker).keeps_all = True
    stream: Any = broker
    if getattr(stream, "consumer_id", None) == "$":
        # Otherwise what was sent before the first worker or client started would be lost.
        stream.consumer_id = "0"


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
