"""What each kind of broker can do, and opening one in a client.

What is private in taskiq-aio-pika, and used here, because there is no public way:

====================================  =======================================================
``_delay_queue``, ``_delay_queue_name``,
``_delayed_message_exchange_plugin``  say that it can delay; versions have different ones
``_declare_queues_kwargs``            says before 0.6 whether its queue is durable
``_task_queues``                      its queues, from 0.6 on
``_label_for_routing``                the label that names a message's queue, from 0.6 on
====================================  =======================================================

One that is not there says nothing: each is read by ``vars(broker).get``.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any, Final

from taskiq import AsyncBroker
from taskiq.result_backends.dummy import DummyResultBackend

from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import CapabilityError, EngineError

# Seconds for a server to answer.
PATIENCE: Final = 9
_DELAYS: Final = ("_delay_queue", "_delay_queue_name", "_delayed_message_exchange_plugin")
_KINDS: Final = {"AioPikaBroker", "PubSubBroker", "RedisStreamBroker"}


def kind_of(broker: AsyncBroker) -> str:
    """Name the kind of broker by its class, whose package need not be installed."""
    names = (kind.__name__ for kind in type(broker).__mro__)
    return next((name for name in names if name in _KINDS), type(broker).__name__)


def queue_of(broker: AsyncBroker, labels: dict[str, Any]) -> str | None:
    """Name the queue of a message; None where that cannot be told."""
    named = labels.get("queue_name") or getattr(broker, "queue_name", None)
    if named is None and len(queues := _queues(broker)) == 1:
        named = queues[0].name
    return None if named is None else str(named)


def can_delay(broker: AsyncBroker) -> bool:
    """Say whether the broker keeps a message until its time."""
    return kind_of(broker) == "AioPikaBroker" and any(map(vars(broker).get, _DELAYS))


def has_results(broker: AsyncBroker) -> bool:
    """Say whether the ends of runs are kept."""
    return not isinstance(broker.result_backend, DummyResultBackend)


def is_safe(broker: AsyncBroker) -> bool:
    """Say whether the broker gives a killed worker's runs to another one.

    A worker takes over those of a Redis stream under a lock, which taskiq-redis before 1.2.2 does
    not let expire: one that is killed then keeps all others from it.
    """
    kind = kind_of(broker)
    if kind == "RedisStreamBroker":
        return hasattr(broker, "unacknowledged_lock_timeout")
    options: Any = vars(broker).get("_declare_queues_kwargs", {"durable": True})
    return (
        kind == "AioPikaBroker"
        and bool(options.get("durable"))
        and all(
            queue.durable
            and not queue.auto_delete
            and not queue.exclusive
            and queue.type.value != "stream"
            for queue in _queues(broker)
        )
    )


def refuse_unsafe(broker: AsyncBroker) -> None:
    """Refuse a broker that loses what a killed worker was doing.

    Raises:
        CapabilityError: It does, whatever is set.
    """
    if is_safe(broker):
        return
    kind = kind_of(broker)
    use = {
        "AioPikaBroker": "queues that are durable, neither exclusive nor auto_delete, no stream",
        "RedisStreamBroker": "taskiq-redis 1.2.2 or later",
    }.get(kind, "AioPikaBroker of taskiq-aio-pika, or RedisStreamBroker")
    msg = f"engine 'taskiq': {kind} loses what a killed worker was doing; use {use}"
    raise CapabilityError(msg)


def idle_seconds(broker: AsyncBroker) -> float | None:
    """Give the seconds after which a stream gives a run away though its worker lives."""
    is_stream = kind_of(broker) == "RedisStreamBroker"
    return vars(broker).get("idle_timeout", 0) / 1000 if is_stream else None


def routing(broker: AsyncBroker) -> dict[str, str]:
    """Make a label of the first queue, for runs of ours where a broker has several."""
    queues, label = _queues(broker), vars(broker).get("_label_for_routing")
    if label is None or len(queues) < 2:  # noqa: PLR2004  # several
        return {}
    return {label: queues[0].routing_key or queues[0].name}


async def open_up(broker: AsyncBroker, app: str) -> None:
    """Connect a client to the broker and its results.

    Raises:
        EngineError: One of them does not answer within 9 seconds, or cannot be used.
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
    return re.sub(r"//[^/@\s]*@", "//...@", text_of(error))


def _queues(broker: AsyncBroker) -> list[Any]:
    """Give the queues of RabbitMQ that a broker was given."""
    queues: list[Any] = vars(broker).get("_task_queues", [])
    return queues
