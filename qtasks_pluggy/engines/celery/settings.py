"""The settings with which Celery loses nothing, and what its broker and results can do."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.local import Proxy
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url

from qtasks_pluggy.engines.servers import in_the_middle, trouble_within
from qtasks_pluggy.exc import CapabilityError, EngineError

T = TypeVar("T")

# Brokers that give a killed worker's messages to another one: RabbitMQ each, Redis each that the
# worker has noted, which kombu does a moment after it has taken the message off its list.
_GIVE_BACK: Final = {"amqp", "redis"}
_GIVES_BACK_EACH: Final = "amqp"
# Seconds for a server to answer, when an app starts.
_PATIENCE: Final = 8
# Seconds, Celery's own default, after which Redis gives a message to another worker.
VISIBILITY: Final = 3600
# Redis looks for messages of killed workers every so many seconds, at every of so many rounds;
# by itself it takes over a minute. One that is killed while it looks keeps the others from it for
# so many seconds; by itself for five minutes.
_REDIS: Final = {
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 30,
    "priority_steps": list(range(10)),
}
_RESULTS: Final = {"retry_policy": {"timeout": 5.0}}


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
    complete(native)


def complete(native: Celery) -> None:
    """Add what is missing from a broker's settings, leaving those that the user chose."""
    conf = native.conf
    kind = broker_of(native)
    options = dict(conf.broker_transport_options or {})
    if kind == "redis":
        options = {**_REDIS, **options}
    elif kind == "amqp":
        # So that whoever submits hears of a message that was not taken.
        options = {"confirm_publish": True, **options}
    conf.broker_transport_options = options
    conf.result_backend_transport_options = {
        **_RESULTS,
        **(conf.result_backend_transport_options or {}),
    }


def broker_of(native: Celery) -> str:
    """Name the kind of broker: ``redis``, ``amqp``, ``memory``, ..."""
    url = native.conf.broker_write_url
    known = _kinds.get(native)
    if known is not None and known[0] == url:
        return known[1]
    try:
        # Of a connection that is not opened; making one costs more than sending a message.
        kind = str(native.connection_for_write().transport.driver_type)
    except (ImportError, KeyError) as error:
        scheme = str(url).partition(":")[0]
        msg = (
            f"engine 'celery', {native.main}: no broker {scheme!r}, or its package is missing:"
            f" {error}; look at broker=, or pip install 'celery[{scheme}]'"
        )
        raise EngineError(msg) from error
    _kinds[native] = url, kind
    return kind


def is_safe(native: Celery) -> bool:
    """Say whether the broker gives every one of a killed worker's runs to another one."""
    return not native.conf.task_always_eager and broker_of(native) == _GIVES_BACK_EACH


def has_results(native: Celery) -> bool:
    """Say whether anybody can ask for a result; ``rpc://`` tells the thread that submitted only."""
    return not isinstance(native.backend, DisabledBackend | RPCBackend)


def has_dead_letters(task: Any) -> bool:
    """Say whether the broker sets a rejected message of this task aside."""
    if not task.acks_late:
        return False
    info = task.request.delivery_info or {}
    exchange, key = info.get("exchange"), info.get("routing_key")
    every = task.app.amqp.queues
    # Without an exchange the key is the queue's name. Else nobody says by which queue it came, of
    # those that are bound to the exchange, and only a direct one wants the very same key.
    found = [every.get(key)]
    if exchange:
        found = [
            queue
            for queue in every.values()
            if queue.exchange
            and queue.exchange.name == exchange
            and (queue.exchange.type != "direct" or queue.routing_key == key)
        ]
    return bool(found) and all(
        "x-dead-letter-exchange" in (getattr(queue, "queue_arguments", None) or {})
        for queue in found
    )


def most_priority(native: Celery) -> int | None:
    """Give the broker's highest priority; None where it has none."""
    if native.conf.task_always_eager:
        return None
    kind = broker_of(native)
    if kind == "redis":
        return 9
    if kind != "amqp":
        return None
    most: int | None = native.conf.task_queue_max_priority
    queue = native.amqp.queues.get(native.conf.task_default_queue)
    if most is None and queue is not None:
        most = (queue.queue_arguments or {}).get("x-max-priority")
    return most


def native_priority(native: Celery, priority: int, task: str) -> int | None:
    """Translate a priority, of which higher ones run first, and 0 is in the middle.

    Raises:
        CapabilityError: The broker has not so many.
    """
    most = most_priority(native)
    if most is None:
        return None
    native_one = in_the_middle("celery", task, priority, most)
    # On Redis lower ones run first.
    return most - native_one if broker_of(native) == "redis" else native_one


def reach(native: Celery) -> None:
    """Look whether the broker and the results answer.

    Raises:
        EngineError: One of them does not, within 8 seconds.
    """
    who = ["broker", native.connection_for_write().as_uri()]

    def ask() -> None:
        with native.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
        # Named before it is made, which can fail: its package may be missing.
        first = str(native.conf.result_backend or "").partition(";")[0]
        who[:] = ["result backend", maybe_sanitize_url(first)]
        if (client := getattr(native.backend, "client", None)) is not None:
            ping: Callable[[], object] | None = getattr(client, "ping", None)
            if ping is not None:
                ping()

    trouble = trouble_within(_PATIENCE, ask)
    if trouble is not None:
        msg = (
            f"engine 'celery', {native.main}: {who[0]} {who[1]} cannot be used:"
            f" {type(trouble).__name__}: {trouble}; start it, or give Celery another {who[0]}="
        )
        raise EngineError(msg) from trouble


def told(task: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call Celery, and say what was wanted when its broker or its results do not answer.

    Raises:
        EngineError: They do not.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        what = "broker"
        if not isinstance(error, OperationalError | OSError):
            what = "result backend"
            if type(error).__module__.partition(".")[0] not in {"redis", "celery", "sqlalchemy"}:
                raise
        msg = (
            f"engine 'celery', task {task!r}: the {what} failed:"
            f" {type(error).__name__}: {error}; look whether it runs"
        )
        raise EngineError(msg) from error


_kinds: Final[WeakKeyDictionary[Celery, tuple[Any, str]]] = WeakKeyDictionary()
