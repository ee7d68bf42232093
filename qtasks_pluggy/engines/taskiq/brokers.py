"""What each kind of broker can do, and how a client opens one.

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
``_label_for_routing``                which label names the queue       0.6
====================================  ================================  ==================

``test_capabilities_are_those_of_the_broker`` tests those of 0.6, ``test_a_delay_is_kept`` the
label, and ``test_a_broker_of_another_version_does_what_it_can`` those before 0.6.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any, Final

from taskiq import AsyncBroker
from taskiq.result_backends.dummy import DummyResultBackend

from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import EngineError

# The seconds that a server has to answer.
PATIENCE: Final = 9
_DELAYS: Final = ("_delay_queue", "_delay_queue_name", "_delayed_message_exchange_plugin")


def is_a(broker: AsyncBroker, kind: str) -> bool:
    """Return whether a broker's class, or one of its bases, has this name."""
    return any(one.__name__ == kind for one in type(broker).__mro__)


def queue_of(broker: AsyncBroker, labels: dict[str, Any]) -> str | None:
    """Return the name of a message's queue; None if it is unknown."""
    named = labels.get("queue_name") or getattr(broker, "queue_name", None)
    if named is None and len(queues := _queues(broker)) == 1:
        named = queues[0].name
    return None if named is None else str(named)


def can_delay(broker: AsyncBroker) -> bool:
    """Return whether the broker can hold back a message for a delay."""
    return is_a(broker, "AioPikaBroker") and any(map(vars(broker).get, _DELAYS))


def has_results(broker: AsyncBroker) -> bool:
    """Return whether the broker stores results."""
    return not isinstance(broker.result_backend, DummyResultBackend)


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


def idle_seconds(broker: AsyncBroker) -> float | None:
    """Return after how many seconds a stream passes a run to another worker, in any case."""
    timeout = vars(broker).get("idle_timeout")
    return None if timeout is None else timeout / 1000


def routing(broker: AsyncBroker) -> dict[str, str]:
    """Return the label that routes a message to the first of several queues; else nothing."""
    queues, label = _queues(broker), vars(broker).get("_label_for_routing")
    if label is None or len(queues) < 2:  # noqa: PLR2004  # several
        return {}
    return {label: queues[0].routing_key or queues[0].name}


async def open_up(broker: AsyncBroker, app: str) -> None:
    """Connect a client to the broker and its results.

    Raises:
        EngineError: The broker or the result backend does not answer within 9 seconds, or fails.
    """
    if is_a(broker, "PubSubBroker"):
        msg = (
            f"engine 'taskiq', app {app!r}: PubSubBroker sends each run to every worker, and drops"
            " it if there is none; use RedisStreamBroker or ListQueueBroker"
        )
        raise EngineError(msg)
    what, url = "broker", str(getattr(broker, "url", None) or "amqp:")
    try:
        async with asyncio.timeout(PATIENCE):
            if is_a(broker, "AioPikaBroker") and not url.startswith(("amqp:", "amqps:")):
                # Its client would retry forever.
                scheme = url.partition(":")[0]
                msg = f"its URL starts with {scheme!r} instead of 'amqp' or 'amqps'"
                raise ValueError(msg)  # noqa: TRY301  # reported like any other trouble
            if (pool := getattr(broker, "connection_pool", None)) is not None:
                # Brokers on Redis connect only when they send something.
                await pool.release(await pool.get_connection())
            await broker.startup()
            what = "result backend"
            await broker.result_backend.is_result_ready("qtasks_pluggy")
    except Exception as error:
        with suppress(Exception):
            await asyncio.wait_for(broker.shutdown(), 1)
        msg = (
            f"engine 'taskiq', app {app!r}: the {what} of {type(broker).__name__} cannot be used:"
            f" {why(error)}; start it, or correct its URL"
        )
        raise EngineError(msg) from error


def why(error: BaseException) -> str:
    """Return what is wrong with a server, without passwords."""
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE} seconds"
    if error.__cause__ is not None and type(error).__module__.startswith("taskiq"):
        error = error.__cause__
    return re.sub(r"//[^/@\s]*@", "//...@", text_of(error))


def _queues(broker: AsyncBroker) -> list[Any]:
    """Return the RabbitMQ queues that a broker was configured with."""
    queues: list[Any] = vars(broker).get("_task_queues", [])
    return queues
