"""The settings that soon bring back a killed worker's messages, and a check of the servers."""

from __future__ import annotations

from typing import Any, Final

from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker

from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import CapabilityError, EngineError

# Dramatiq's default, and what ``at_least_once`` sets instead. On Redis: in how many of a million
# commands it looks for the messages of dead workers, and after how many milliseconds without a
# heartbeat a worker is dead. On RabbitMQ: whether the server confirms each message.
_SAFE: Final = {
    "maintenance_chance": (1_000, 100_000),
    "heartbeat_timeout": (60_000, 30_000),
    "confirm_delivery": (False, True),
}


def at_least_once(broker: Broker) -> None:
    """Let messages survive the death of their worker, and soon; your own settings stay.

    Args:
        broker: On Redis or RabbitMQ; call this where you make it, in clients and workers alike.

    Raises:
        CapabilityError: It is in memory.
    """
    if isinstance(broker, StubBroker):
        msg = "engine 'dramatiq': StubBroker loses all messages with its process; use another"
        raise CapabilityError(msg)
    for name, (default, ours) in _SAFE.items():
        if getattr(broker, name, None) == default:
            setattr(broker, name, ours)


def reach(what: str, owner: Any) -> None:
    """Connect to a server once.

    Args:
        what: What it is, for the error.
        owner: The broker or the result backend; one in memory has no server.

    Raises:
        EngineError: It cannot be used.
    """
    where = ""
    try:
        if (client := getattr(owner, "client", None)) is not None:
            client.ping()
        elif (given := getattr(owner, "parameters", None)) is not None:
            import pika  # noqa: PLC0415  # installed with RabbitMQ alone

            first = given[0] if isinstance(given, list) else given
            where = f" at {first.host}:{first.port}"
            pika.BlockingConnection(parameters=given).close()
    except Exception as error:
        # pika's own errors have no text, but a repr.
        told = text_of(error) if str(error) else repr(error)
        msg = f"{what} {type(owner).__name__}{where} cannot be used: {told}"
        raise EngineError(msg) from error
