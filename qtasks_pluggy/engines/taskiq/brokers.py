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

_DELAYS: Final = ("_delay_queue", "_delay_queue_name", "_delayed_message_exchange_plugin")


def is_a(broker: AsyncBroker, kind: str) -> bool:
    """Return whether a broker's class, or one of its bases, has this name."""
    return any(one.__name__ == kind for one in type(broker).__mro__)


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


def routing(broker: AsyncBroker) -> dict[str, str]:
    """Return the label that routes a message to the first of a RabbitMQ broker's queues."""
    queues, label = _queues(broker), vars(broker).get("_label_for_routing", "queue_name")
    return {label: queues[0].routing_key or queues[0].name} if queues else {}


def _queues(broker: AsyncBroker) -> list[Any]:
    """Return the RabbitMQ queues that a broker was configured with."""
    queues: list[Any] = vars(broker).get("_task_queues", [])
    return queues
