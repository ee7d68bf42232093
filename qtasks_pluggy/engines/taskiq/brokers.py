"""What each kind of broker can do.

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

from typing import Any, Final

from taskiq import AsyncBroker
from taskiq.result_backends.dummy import DummyResultBackend

from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.engines.taskiq.runs import runs_of
from qtasks_pluggy.exc import CapabilityError

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
