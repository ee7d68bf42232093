"""``at_least_once``, and what the broker and the result backend can do."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend

from qtasks_pluggy.exc import CapabilityError

# The brokers that deliver a killed worker's messages again, with the options that this takes.
_REDELIVER: Final[dict[str, dict[str, int]]] = {
    # A client hears of a message that was not accepted.
    "amqp": {"confirm_publish": True},
    # How often a worker looks for the messages of killed ones: every so many seconds, in every
    # round; the default is more than a minute. A worker killed while it looks blocks the others for
    # so many seconds; the default is five minutes.
    "redis": {
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 30,
    },
}


def at_least_once(native: Celery) -> None:
    """Let runs survive the death of their worker, for all tasks of a Celery app.

    On Redis a message is still lost if its worker is killed in the moment between taking it off
    the list and recording that. RabbitMQ has no such moment.

    Args:
        native: The Celery app; call this where you make it, in clients and workers alike.

    Raises:
        CapabilityError: The broker loses what a killed worker was doing, whatever the settings.
    """
    kind = broker_of(native)
    if kind not in _REDELIVER:
        msg = (
            f"engine 'celery', {native.main}: broker {kind!r} loses what a killed worker was doing;"
            " use RabbitMQ or Redis"
        )
        raise CapabilityError(msg)
    native.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
    )
    given = native.conf.broker_transport_options or {}
    native.conf.broker_transport_options = {**_REDELIVER[kind], **given}


def broker_of(native: Celery) -> str:
    """Return the kind of broker: ``redis``, ``amqp``, ``memory``, ..."""
    # The connection is not opened.
    return str(native.connection_for_write().get_transport_cls().driver_type)


def has_results(native: Celery) -> bool:
    """Return whether any process can read results; ``rpc://`` serves only the submitter."""
    return not isinstance(native.backend, DisabledBackend | RPCBackend)


def has_dead_letters(task: Any) -> bool:
    """Return whether a rejected message of the current run goes to a dead-letter exchange."""
    request = task.request
    if request.is_eager or not task.acks_late:
        return False
    key = (request.delivery_info or {}).get("routing_key")
    queues = [q for q in task.app.amqp.queues.values() if key in {q.name, q.routing_key}]
    named = all("x-dead-letter-exchange" in (q.queue_arguments or {}) for q in queues)
    # Other brokers drop a rejected message, whatever the queue names.
    return bool(queues) and named and broker_of(task.app) == "amqp"
