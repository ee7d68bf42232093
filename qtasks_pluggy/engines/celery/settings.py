"""The settings that let runs survive a killed worker, and what broker and results can do."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.local import Proxy
from kombu.utils.url import maybe_sanitize_url

from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import CapabilityError, EngineError

# The brokers that deliver a killed worker's messages again: RabbitMQ all of them; Redis those that
# the worker has recorded, a moment after it took them off the list.
_REDELIVER: Final = {"amqp", "redis"}
_REDELIVERS_ALL: Final = "amqp"
# On Redis, how often a worker looks for the messages of killed ones: every so many seconds, in
# every round; the default is more than a minute. A worker killed while it looks blocks the others
# for so many seconds; the default is five minutes.
_REDIS: Final = {
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 30,
}


def itself(native: Any) -> Any:
    """Return the Celery app itself, also for a proxy like ``current_app``."""
    return native._get_current_object() if isinstance(native, Proxy) else native  # noqa: SLF001  # no public way


def at_least_once(native: Celery) -> None:
    """Let runs survive the death of their worker, for all tasks of a Celery app.

    On Redis a message is still lost if its worker is killed in the moment between taking it off
    the list and recording that. RabbitMQ has no such moment.

    Args:
        native: The Celery app; call this where you make it, in clients and workers alike.

    Raises:
        CapabilityError: The broker loses what a killed worker was doing, whatever the settings.
    """
    native = itself(native)
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
    # On RabbitMQ, so that a client hears of a message that was not accepted.
    missing = _REDIS if kind == "redis" else {"confirm_publish": True}
    native.conf.broker_transport_options = {
        **missing,
        **(native.conf.broker_transport_options or {}),
    }


def broker_of(native: Celery) -> str:
    """Return the kind of broker: ``redis``, ``amqp``, ``memory``, ..."""
    # The connection is not opened.
    return str(native.connection_for_write().transport.driver_type)


def is_safe(native: Celery) -> bool:
    """Return whether the broker delivers every message of a killed worker again."""
    return not native.conf.task_always_eager and broker_of(native) == _REDELIVERS_ALL


def has_results(native: Celery) -> bool:
    """Return whether any process can read results; ``rpc://`` serves only the submitter."""
    return not isinstance(native.backend, DisabledBackend | RPCBackend)


def has_dead_letters(task: Any) -> bool:
    """Return whether a rejected message of this task goes to a dead-letter exchange."""
    info = task.request.delivery_info or {}
    key = info.get("routing_key")
    queues = [
        queue
        for queue in task.app.amqp.queues.values()
        if key is not None and key in {queue.name, queue.routing_key}
    ]
    arguments = [getattr(queue, "queue_arguments", None) or {} for queue in queues]
    known = bool(queues) and all("x-dead-letter-exchange" in given for given in arguments)
    # Other brokers drop a rejected message, whatever the queue names.
    return bool(task.acks_late) and known and broker_of(task.app) == "amqp"


def reach(native: Celery) -> None:
    """Check that the broker and the result backend answer.

    Raises:
        EngineError: One of them cannot be used.
    """
    what = f"broker {maybe_sanitize_url(native.conf.broker_write_url)}"
    try:
        with native.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
        # Named before it is made, because that fails if its package is missing.
        first = str(native.conf.result_backend or "").partition(";")[0]
        what = f"result backend {maybe_sanitize_url(first)}"
        ping = getattr(getattr(native.backend, "client", None), "ping", None)
        if ping is not None:
            ping()
    except Exception as error:
        msg = f"{what} cannot be used: {text_of(error)}"
        raise EngineError(msg) from error
