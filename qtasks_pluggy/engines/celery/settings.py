"""The settings with which Celery loses nothing, and what its broker and results can do."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.local import Proxy
from kombu.utils.url import maybe_sanitize_url

from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import CapabilityError, EngineError

# Brokers that give a killed worker's messages to another one: RabbitMQ each, Redis each that the
# worker has noted, which kombu does a moment after it has taken the message off its list.
_GIVE_BACK: Final = {"amqp", "redis"}
_GIVES_BACK_EACH: Final = "amqp"
# Redis looks for messages of killed workers every so many seconds, at every of so many rounds;
# by itself it takes over a minute. One that is killed while it looks keeps the others from it for
# so many seconds; by itself for five minutes.
_REDIS: Final = {
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 30,
}


def itself(native: Any) -> Any:
    """Give the Celery app for which another object stands in, as ``current_app`` does."""
    if not isinstance(native, Proxy):
        return native
    # Celery's own way.
    return vars(Proxy)["_get_current_object"](native)


def at_least_once(native: Celery) -> None:
    """Let runs survive the death of their worker, for all tasks of a Celery app.

    On Redis a message can still be lost whose worker is killed in the very moment in which it has
    taken the message off the list, and not noted it yet; RabbitMQ has no such moment.

    Args:
        native: The Celery app; call this where it is made, in clients and workers alike.

    Raises:
        CapabilityError: Its broker loses what a killed worker was doing, whatever is set.
    """
    native = itself(native)
    kind = broker_of(native)
    if kind not in _GIVE_BACK:
        msg = (
            f"engine 'celery', {native.main}: broker {kind!r} loses what a killed worker was doing;"
            " use RabbitMQ or Redis"
        )
        raise CapabilityError(msg)
    native.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
    )
    # In AMQP, so that whoever submits hears of a message that was not taken.
    missing = _REDIS if kind == "redis" else {"confirm_publish": True}
    native.conf.broker_transport_options = {
        **missing,
        **(native.conf.broker_transport_options or {}),
    }


def broker_of(native: Celery) -> str:
    """Name the kind of broker: ``redis``, ``amqp``, ``memory``, ..."""
    try:
        # Of a connection that is not opened.
        return str(native.connection_for_write().transport.driver_type)
    except (ImportError, KeyError) as error:
        scheme = str(native.conf.broker_write_url).partition(":")[0]
        msg = (
            f"engine 'celery', {native.main}: no broker {scheme!r}, or its package is missing:"
            f" {error}; look at broker=, or pip install 'celery[{scheme}]'"
        )
        raise EngineError(msg) from error


def is_safe(native: Celery) -> bool:
    """Say whether the broker gives every one of a killed worker's runs to another one."""
    return not native.conf.task_always_eager and broker_of(native) == _GIVES_BACK_EACH


def has_results(native: Celery) -> bool:
    """Say whether anybody can ask for a result; ``rpc://`` tells the thread that submitted only."""
    return not isinstance(native.backend, DisabledBackend | RPCBackend)


def has_dead_letters(task: Any) -> bool:
    """Say whether the settings have the broker set a rejected message of this task aside."""
    info = task.request.delivery_info or {}
    key = info.get("routing_key")
    queues = [
        queue
        for queue in task.app.amqp.queues.values()
        if key is not None and key in {queue.name, queue.routing_key}
    ]
    arguments = [getattr(queue, "queue_arguments", None) or {} for queue in queues]
    known = bool(queues) and all("x-dead-letter-exchange" in given for given in arguments)
    return bool(task.acks_late) and known


def reach(native: Celery) -> None:
    """Look whether the broker and the results answer.

    Raises:
        EngineError: One of them cannot be used.
    """
    what = f"broker {native.connection_for_write().as_uri()}"
    try:
        with native.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
        # Named before it is made, which can fail: its package may be missing.
        first = str(native.conf.result_backend or "").partition(";")[0]
        what = f"result backend {maybe_sanitize_url(first)}"
        ping = getattr(getattr(native.backend, "client", None), "ping", None)
        if ping is not None:
            ping()
    except Exception as error:
        msg = f"{what} cannot be used: {text_of(error)}"
        raise EngineError(msg) from error
