"""What Taskiq's brokers can do, and the settings with which they lose nothing."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any, Final

from taskiq import AsyncBroker, InMemoryBroker

from qtasks_pluggy.engines._taskiq_streams import Reclaim
from qtasks_pluggy.engines.servers import in_the_middle
from qtasks_pluggy.exc import CapabilityError, EngineError

# Seconds for a server to answer.
PATIENCE: Final = 9
# Where taskiq-aio-pika has what it delays messages with; before 0.6 there is always a queue for it.
_DELAYS: Final = ("_delay_queue", "_delay_queue_name", "_delayed_message_exchange_plugin")
_LOCK_EXPIRES: Final = "unacknowledged_lock_timeout"
# A worker takes so many messages of a stream at once; the others are for other workers.
_BATCH: Final = 10


def kind_of(broker: AsyncBroker) -> str:
    """Name the kind of broker by its class; other packages have them, which need not be here."""
    for kind in type(broker).__mro__:
        if kind.__name__ in {
            "AioPikaBroker",
            "ListQueueBroker",
            "PubSubBroker",
            "RedisStreamBroker",
        }:
            return kind.__name__
    return type(broker).__name__


def queue_of(broker: AsyncBroker, labels: dict[str, Any]) -> str | None:
    """Name the queue of a message; None where that cannot be told."""
    named = labels.get("queue_name") or getattr(broker, "queue_name", None)
    if named is None and len(queues := _queues(broker)) == 1:
        named = queues[0].name
    return None if named is None else str(named)


def can_delay(broker: AsyncBroker) -> bool:
    """Say whether the broker keeps a message until its time."""
    return kind_of(broker) == "AioPikaBroker" and any(map(vars(broker).get, _DELAYS))


def is_safe(broker: AsyncBroker) -> bool:
    """Say whether the broker gives every one of a killed worker's runs to another one.

    A worker takes over those of a Redis stream under a lock, which taskiq-redis before 1.2.2 does
    not let expire: one that is killed then keeps all others from it.
    """
    is_stream = kind_of(broker) == "RedisStreamBroker"
    return gives_back(broker) and (not is_stream or hasattr(broker, _LOCK_EXPIRES))


def gives_back(broker: AsyncBroker) -> bool:
    """Say whether the broker gives a killed worker's runs to another one, as a rule."""
    kind = kind_of(broker)
    return kind == "RedisStreamBroker" or (
        kind == "AioPikaBroker"
        and _durable_by_its_options(broker)
        and all(
            queue.durable
            and not queue.auto_delete
            and not queue.exclusive
            and queue.type.value != "stream"
            for queue in _queues(broker)
        )
    )


def make_safe(broker: AsyncBroker) -> None:
    """Let runs survive the death of their worker.

    Raises:
        CapabilityError: The broker loses what a killed worker was doing, whatever is set.
    """
    kind = kind_of(broker)
    if not gives_back(broker):
        msg = f"engine 'taskiq': {kind} loses what a killed worker was doing; use"
        if kind == "AioPikaBroker":
            msg = f"{msg} queues that are durable, neither exclusive nor auto_delete, and no stream"
        else:
            msg = f"{msg} RedisStreamBroker, or AioPikaBroker of taskiq-aio-pika"
        raise CapabilityError(msg)
    if kind == "RedisStreamBroker" and "qtasks_pluggy_reclaim" not in vars(broker):
        stream: Any = broker
        if stream.consumer_id == "$":
            # Else nobody gets what was sent before the first worker, or client, began.
            stream.consumer_id = "0"
        stream.count = min(stream.count or _BATCH, _BATCH)
        stream.qtasks_pluggy_reclaim = Reclaim(stream)


def longest(broker: AsyncBroker) -> float | None:
    """Give the seconds after which a run is done again though its worker lives; None for never."""
    if kind_of(broker) != "RedisStreamBroker":
        return None
    timeout: float = getattr(broker, "idle_timeout", 0)
    return timeout / 1000


def most_priority(broker: AsyncBroker) -> int | None:
    """Give the broker's highest priority; None where it has none."""
    return min((queue.max_priority or 0 for queue in _queues(broker)), default=0) or None


def native_priority(broker: AsyncBroker, priority: int, task: str) -> dict[str, int]:
    """Make a label of a priority, of which higher ones run first, and 0 is in the middle.

    Raises:
        CapabilityError: The broker has not so many.
    """
    most = most_priority(broker)
    if most is None:
        return {}
    return {vars(broker)["_label_for_priority"]: in_the_middle("taskiq", task, priority, most)}


def routing(broker: AsyncBroker) -> dict[str, str]:
    """Make a label of the queue for our runs: the first, where a broker has several."""
    queues = _queues(broker)
    if len(queues) < 2:  # noqa: PLR2004  # several
        return {}
    return {vars(broker)["_label_for_routing"]: queues[0].routing_key or queues[0].name}


async def open_up(broker: AsyncBroker, app: str) -> None:
    """Connect a client to the broker and its results.

    Raises:
        EngineError: One of them does not answer, within 9 seconds.
    """
    if kind_of(broker) == "PubSubBroker":
        msg = (
            f"engine 'taskiq', app {app!r}: PubSubBroker gives a run to every worker there is, and"
            " to nobody where there is none; use RedisStreamBroker or ListQueueBroker"
        )
        raise EngineError(msg)
    scheme = str(getattr(broker, "url", None) or "amqp://").partition("://")[0]
    if kind_of(broker) == "AioPikaBroker" and scheme not in {"amqp", "amqps"}:
        msg = (
            f"engine 'taskiq', app {app!r}: the broker of AioPikaBroker cannot be used: its URL"
            f" begins with {scheme!r}; expected amqp:// or amqps://"
        )
        raise EngineError(msg)
    what = "broker"
    try:
        async with asyncio.timeout(PATIENCE):
            if (pool := getattr(broker, "connection_pool", None)) is not None:
                # Most of these connect only when there is something to send.
                connection = await pool.get_connection()
                await pool.release(connection)
            await broker.startup()
            what = "result backend"
            await broker.result_backend.is_result_ready("qtasks_pluggy")
    except Exception as error:
        with suppress(Exception):
            await asyncio.wait_for(broker.shutdown(), 1)
        msg = (
            f"engine 'taskiq', app {app!r}: the {what} of {type(broker).__name__} cannot be used:"
            f" {why(error)}; start it, or look at its URL"
        )
        raise EngineError(msg) from error


def why(error: BaseException) -> str:
    """Say what is wrong with a server, without passwords."""
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE} seconds"
    if error.__cause__ is not None and type(error).__module__.startswith("taskiq"):
        error = error.__cause__
    text = re.sub(r"//[^/@\s]*@", "//...@", str(error))
    return f"{type(error).__name__}: {text}"


def unsent_retry(task: str, attempt: int, failure: Exception) -> EngineError:
    """Say that a run's next attempt could not be sent."""
    return EngineError(
        f"engine 'taskiq', task {task!r}: attempt {attempt} cannot be sent: {why(failure)}; look"
        " whether the broker runs"
    )


def does_runs_here(broker: AsyncBroker) -> bool:
    """Say whether whoever submits does the runs, too."""
    return isinstance(broker, InMemoryBroker)


def _durable_by_its_options(broker: AsyncBroker) -> bool:
    """Say whether the one queue is durable that a broker makes which is not given any.

    So does taskiq-aio-pika before 0.6, by options that later ones do not have.
    """
    options: dict[str, Any] | None = vars(broker).get("_declare_queues_kwargs")
    return options is None or bool(options.get("durable"))


def _queues(broker: AsyncBroker) -> list[Any]:
    """Give the queues of RabbitMQ that a broker was given."""
    queues: list[Any] = getattr(broker, "_task_queues", [])
    return queues
