"""Plugins for the actors of an existing Dramatiq broker.

A middleware gives every actor another ``fn``, and remembers the message that each thread processes.
Nothing of this is private in Dramatiq.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextvars import ContextVar
from functools import wraps
from typing import Any, ClassVar, Final

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Retries, Shutdown, SkipMessage, default_middleware
from dramatiq.results import Results

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.native import Native, attempt_of, header_of
from qtasks_pluggy.exc import CapabilityError

# Two things have this name: the option that we add to messages, and the mark of a replaced ``fn``.
OURS: Final = "qtasks_pluggy"
# The options that Dramatiq itself reads; what else messages and actors have is for plugins.
_ITS_OWN: Final = frozenset({OURS}).union(
    ("broker_priority", "delay", "eta", "redis_message_id", "requeue_timestamp"),
    ("group_completion_callbacks", "group_completion_uuid", "retries", "traceback"),
    Results(backend=None).actor_options,  # type: ignore[no-untyped-call]  # Dramatiq's
    *(kind().actor_options for kind in default_middleware),
)
# Dramatiq's default, and what ``at_least_once`` sets instead. On Redis: in how many of a million
# commands it looks for the messages of dead workers, and after how many milliseconds without a
# heartbeat a worker is dead. On RabbitMQ: whether the server confirms each message.
_SAFE: Final = {
    "maintenance_chance": (1_000, 100_000),
    "heartbeat_timeout": (60_000, 30_000),
    "confirm_delivery": (False, True),
}
# The message that this thread is about to process: Dramatiq passes an actor its arguments alone.
_next: Final[ContextVar[Any]] = ContextVar("qtasks_pluggy_dramatiq_message", default=None)


class DramatiqNative(Native[Broker]):
    """Plugins for the actors of a broker, asked at every attempt."""

    name = "dramatiq"
    kind = Broker
    # The last one is raised when an ``async def`` actor was cancelled.
    control = (Retry, RateLimitExceeded, SkipMessage, CancelledError)
    ends_worker: ClassVar = (Shutdown, KeyboardInterrupt)

    def cover(self) -> None:
        """Follow the workers, their messages, and the declaration of actors."""
        self.native.add_middleware(_Covers(self))

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The broker's own actors by name."""
        actors = self.native.actors
        return {name: one for name, one in actors.items() if getattr(one.fn, OURS, None) is self}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make the function of an actor that asks plugins when a worker calls it."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            run = _next.get()
            if run is None or run.actor_name != name:
                return function(*args, **kwargs)
            # Whatever the actor itself calls, be it itself, is a plain function.
            _next.set(None)
            return self.work(run, function, args, kwargs)

        setattr(call, OURS, self)
        return call

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of Dramatiq's; the options that are not its own are metadata."""
        # Read once, because each look at a message goes through a proxy.
        options = run.options
        header = header_of(options.get(OURS))
        return TaskMessage(
            run.actor_name,
            args,
            kwargs,
            uuid=run.message_id,
            priority=options.get("broker_priority"),
            created_at=run.message_timestamp / 1000,
            # Ours, and Dramatiq's own retries, of which anybody may have written the number.
            attempt=attempt_of(header) + max(options.get("retries", 0), 0),
            queue=run.queue_name,
            engine=self.name,
            # Messages of RabbitMQ have it; the proxy would look for it in every other one.
            redelivered=vars(run).get("redelivered"),
            metadata={**_not_its_own(options), **header.get("metadata", {})},
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return an actor's options that are not Dramatiq's own."""
        return _not_its_own(self.native.get_actor(run.actor_name).options)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Return what Dramatiq can do with this broker."""
        results, is_safe = self.find(Results) is not None, not isinstance(self.native, StubBroker)
        return Capabilities(
            delay=True, results=results, at_least_once=is_safe, dead_letter=True, metadata=True
        )

    def find(self, kind: type[Middleware]) -> Any:
        """Find the broker's middleware of a kind."""
        return next((one for one in self.native.middleware if isinstance(one, kind)), None)

    def _option(self, run: Any, middleware: Any, name: str) -> Any:
        """Look up an option of a middleware, as that does it."""
        declared = self.native.get_actor(run.actor_name).options
        return run.options.get(name, declared.get(name, getattr(middleware, name)))

    def encode(self, run: Any, value: Any) -> None:
        """Encode an argument for a message, or an answer for its receivers."""
        if run is None or run.options.get("pipe_target") is not None:
            dramatiq.get_encoder().encode({"value": value})
        results = self.find(Results)
        if run is not None and results is not None and self._option(run, results, "store_results"):
            results.backend.encoder.encode(value)

    def will_retry(self, run: Any, error: BaseException) -> bool:
        """Return whether Dramatiq itself will retry the message."""
        rules, declared = self.find(Retries), self.native.get_actor(run.actor_name).options
        throws = run.options.get("throws") or declared.get("throws") or ()
        if rules is None or isinstance(error, (SkipMessage, throws)):
            return False
        retries = run.options.get("retries", 0)
        wanted = declared.get("retry_when", rules.retry_when)
        if wanted is not None:
            return bool(wanted(retries, error))
        most = self._option(run, rules, "max_retries")
        return most is None or retries < most

    def retry(self, run: Any, attempt: Attempt, number: int) -> Exception:
        """Enqueue the message again; Dramatiq's own count of retries stays as it is."""
        header = header_of(run.options.get(OURS))
        again = run.copy(options={OURS: {**header, "attempt": attempt_of(header) + 1}})
        self.native.enqueue(again, delay=_milliseconds(attempt.delay))
        run.options["store_results"] = False
        return SkipMessage(f"retried as attempt {number}")

    def cancel(self, run: Any, attempt: Attempt) -> Exception:
        """Store the end, and skip the message: no retry, and no dead letter."""
        self.store(run, attempt)
        # Dramatiq would store None.
        run.options["store_results"] = False
        return SkipMessage(f"{attempt.status}: {attempt.reason}")

    def dead_letter(self, run: Any, attempt: Attempt) -> Any:
        """Move the message to the dead letters, unless a plugin keeps it."""
        if attempt.kept:
            return self.cancel(run, attempt)
        run.fail()
        # Dramatiq retries no error of this class, whatever ``retry_when`` says. The options are
        # those of the worker alone, because a class cannot be sent to ``on_failure``.
        run.options = {**run.options, "throws": type(attempt.error)}
        return self.fail(run, attempt)

    def store(self, run: Any, attempt: Attempt) -> None:
        """Store an error that Dramatiq would not store."""
        results = self.find(Results)
        if results is not None and self._option(run, results, "store_results"):
            kept = self._option(run, results, "result_ttl")
            results.backend.store_exception(run, attempt.error, kept)

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Enqueue a message for the actor of this name, under the message's id."""
        options = _not_its_own(message.metadata)
        # What Dramatiq would read travels in our own option.
        hidden = {name: value for name, value in message.metadata.items() if name not in options}
        options[OURS] = {"metadata": hidden}
        if message.priority:
            options["broker_priority"] = message.priority
        # The actor makes it, because its class may add options.
        actor = self.tasks[message.name]
        native = actor.message_with_options(args=message.args, kwargs=dict(message.kwargs))
        native = native.copy(message_id=str(message.uuid), options=options)
        self.native.enqueue(native, delay=_milliseconds(delay))
        return native


class WorkerLife(Middleware):
    """The plugins' life in workers, and the message that each thread is about to process.

    Args:
        plugged: The ``DramatiqNative`` that has the plugins.
    """

    def __init__(self, plugged: DramatiqNative) -> None:
        self.plugged = plugged

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Start the plugins."""
        self.plugged.begin()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Stop the plugins after the last worker."""
        self.plugged.end()

    def before_process_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Remember the message."""
        _next.set(message)


class _Covers(WorkerLife):
    """Covers the actors that exist, and each that is declared later."""

    @property
    def actor_options(self) -> set[str]:
        """Allow ``tags`` in the declaration of actors, for plugins."""
        return {"tags"}

    def after_declare_actor(self, broker: Broker, actor: Any) -> None:
        """Cover an actor, unless it belongs to a ``QueueTasks`` app."""
        if isinstance(actor, str):
            # Dramatiq 1 gives the names of those that were declared before the middleware came.
            actor = broker.get_actor(actor)
        if not hasattr(actor.fn, OURS):
            actor.fn = self.plugged.around(actor.actor_name, actor.fn)


def _not_its_own(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a message or an actor that are not Dramatiq's own, nor ours."""
    return {name: value for name, value in options.items() if name not in _ITS_OWN}


def _milliseconds(delay: float | None) -> int | None:
    """Convert a delay in seconds: at least one millisecond, or None for at once."""
    return max(1, round(delay * 1000)) if delay else None


install: Final = DramatiqNative.install


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
