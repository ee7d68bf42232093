"""Plugins for the actors of an existing Dramatiq broker.

A middleware gives every actor another ``fn``, and adds our error to its ``throws``. Nothing of this
is private in Dramatiq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import Any, ClassVar, Final

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Retries, Shutdown, SkipMessage
from dramatiq.results import Results

from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.native import Native, attempt_of, header_of
from qtasks_pluggy.exc import TaskDeadLetteredError

# Two things have this name: the option that we add to messages, and the mark of an ``fn`` of ours.
OURS: Final = "qtasks_pluggy"
_DRAMATIQ: Final = f"{dramatiq.__name__}."
# Dramatiq's own options of messages, besides those of its middleware.
_OPTIONS: Final = frozenset(
    {
        "broker_priority",
        "delay",
        "eta",
        "group_completion_callbacks",
        "group_completion_uuid",
        "pipe_ignore",
        "pipe_target",
        "redis_message_id",
        "requeue_timestamp",
        "retries",
        "traceback",
    }
)
# The message that this thread processes: Dramatiq passes an actor its arguments alone.
_current: Final[ContextVar[Any]] = ContextVar("qtasks_pluggy_dramatiq_message", default=None)


class DramatiqNative(Native[Broker]):
    """Plugins for the actors of a broker, asked at every attempt."""

    name = "dramatiq"
    kind = Broker
    # The last one is raised when an ``async def`` actor was cancelled.
    control = (Retry, RateLimitExceeded, SkipMessage, CancelledError)
    ends_worker: ClassVar = (Shutdown, KeyboardInterrupt)
    hint = "name the modules that declare them on the worker's command line"

    def cover(self) -> None:
        """Follow the workers, their messages, and the declaration of actors."""
        self.native.add_middleware(_Installed(self))

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The broker's own actors by name."""
        every: Any = self.native.actors
        return {
            name: actor for name, actor in every.items() if getattr(actor.fn, OURS, None) is self
        }

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make the function of an actor that asks plugins when a worker calls it."""

        def call(*args: Any, **kwargs: Any) -> Any:
            run = _current.get()
            # A direct call is a plain call, also when an actor calls itself.
            if run is None or run.actor_name != name or self.is_at_work(run.message_id):
                return function(*args, **kwargs)
            try:
                return self.work(run, function, args, kwargs, run.message_id)
            except BaseException as error:
                if not isinstance(error, self.ends_worker):
                    # Another attempt of Dramatiq's own counts on from here.
                    header = _our_option(run)
                    run.options[OURS] = {**header, "attempt": attempt_of(header) + 1}
                raise

        vars(call).update({"__wrapped__": function, OURS: self})
        return call

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of Dramatiq's; the options that are not its own are metadata."""
        header, known = _our_option(run), self._known_options()
        options = {name: value for name, value in run.options.items() if name not in known}
        return TaskMessage(
            run.actor_name,
            args,
            kwargs,
            uuid=run.message_id,
            priority=run.options.get("broker_priority"),
            created_at=run.message_timestamp / 1000,
            attempt=attempt_of(header),
            queue=run.queue_name,
            engine=self.name,
            # Messages of RabbitMQ have it.
            redelivered=getattr(run, "redelivered", None),
            metadata={**options, **header.get("metadata", {})},
        )

    def options(self, run: Any) -> Mapping[str, Any]:
        """Return an actor's options that are not Dramatiq's own."""
        known = self._known_options()
        declared = self.native.get_actor(run.actor_name).options
        return {name: value for name, value in declared.items() if name not in known}

    def _known_options(self) -> set[str]:
        """Return the names of Dramatiq's own options, and of ours."""
        every = self.native.middleware
        theirs = (one for one in every if type(one).__module__.startswith(_DRAMATIQ))
        return {OURS, *_OPTIONS}.union(*(one.actor_options for one in theirs))

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Say what Dramatiq can do."""
        results = bool(self._results())
        return Capabilities(delay=True, results=results, dead_letter=True, metadata=True)

    def _results(self) -> list[Any]:
        """Find the middleware that stores results."""
        return [one for one in self.native.middleware if isinstance(one, Results)]

    def _stores(self, run: Any) -> Iterator[tuple[Any, int]]:
        """Find the backends that store this run's end, and for how many milliseconds."""
        declared = self.native.get_actor(run.actor_name).options
        for one in self._results():
            if run.options.get("store_results", declared.get("store_results", one.store_results)):
                kept = run.options.get("result_ttl", declared.get("result_ttl", one.result_ttl))
                yield one.backend, kept

    def encode(self, run: Any, value: Any) -> object:
        """Encode an argument for a message, or an answer for whoever gets it."""
        in_message: object = {"value": value}
        if run is None:
            return dramatiq.get_encoder().encode(in_message)  # type: ignore[arg-type]  # a dict
        if run.options.get("pipe_target") is not None:
            dramatiq.get_encoder().encode(in_message)  # type: ignore[arg-type]  # likewise
        return [backend.encoder.encode(value) for backend, _ in self._stores(run)]

    def will_retry(self, run: Any, error: BaseException) -> bool:
        """Say whether Dramatiq itself will retry the message."""
        declared = self.native.get_actor(run.actor_name).options
        throws = run.options.get("throws") or declared.get("throws")
        if isinstance(error, SkipMessage) or (throws and isinstance(error, throws)):
            return False
        rules = next((one for one in self.native.middleware if isinstance(one, Retries)), None)
        if rules is None:
            return False
        retries = run.options.get("retries", 0)
        wanted = declared.get("retry_when", rules.retry_when)
        if wanted is not None:
            return bool(wanted(retries, error))
        most = run.options.get("max_retries", declared.get("max_retries", rules.max_retries))
        return most is None or retries < most

    def retry(self, run: Any, attempt: Attempt, number: int) -> Exception:
        """Enqueue the message again; Dramatiq's own count of retries stays as it is."""
        again = run.copy(options={OURS: {**_our_option(run), "attempt": number}})
        self.native.enqueue(again, delay=milliseconds(attempt.delay))
        run.options["store_results"] = False
        return SkipMessage(f"retried as attempt {number}")

    def cancel(self, run: Any, attempt: Attempt) -> Exception:
        """Store the end, and skip the message: no retry, and no dead letter."""
        self.store(run, attempt)
        run.options["store_results"] = False
        return SkipMessage(f"{attempt.status}: {attempt.reason}")

    def dead_letter(self, run: Any, attempt: Attempt) -> BaseException | None:
        """Move the message to the dead letters, unless a plugin keeps it."""
        if attempt.kept:
            return self.cancel(run, attempt)
        run.fail()
        return attempt.error

    def store(self, run: Any, attempt: Attempt) -> None:
        """Store an end that Dramatiq would store otherwise, or not at all."""
        for backend, kept in self._stores(run):
            backend.store_exception(run, attempt.error, kept)

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Enqueue a message for the actor of this name, under the message's id."""
        known, metadata = self._known_options(), message.metadata
        hidden = {name: value for name, value in metadata.items() if name in known}
        options = {name: value for name, value in metadata.items() if name not in known}
        options[OURS] = {"metadata": hidden} if hidden else {}
        if message.priority:
            options["broker_priority"] = message.priority
        native = self.tasks[message.name].message_with_options(
            args=message.args, kwargs=dict(message.kwargs)
        )
        native = native.copy(message_id=str(message.uuid), options=options)
        self.native.enqueue(native, delay=milliseconds(delay))
        return native


class WorkerLife(Middleware):
    """The plugins' life in workers, and the message that each thread processes.

    Args:
        plugged: The ``DramatiqNative`` that has the plugins.
    """

    def __init__(self, plugged: DramatiqNative) -> None:
        self.plugged = plugged

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Start the plugins."""
        try:
            self.plugged.begin()
        except Exception as error:
            # Dramatiq logs an Exception, and takes messages all the same.
            raise self.plugged.refusal(error) from error

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Stop the plugins after the last worker."""
        self.plugged.end()

    def before_process_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Remember the message."""
        _current.set(message)

    def after_process_message(self, broker: Broker, message: Any, **_: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Forget it."""
        _current.set(None)

    after_skip_message = after_process_message


class _Installed(WorkerLife):
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
        if hasattr(actor.fn, OURS):
            return
        actor.fn = self.plugged.around(actor.actor_name, actor.fn)
        throws = actor.options.get("throws") or ()
        # Dramatiq retries none of these, whatever ``retry_when`` says.
        actor.options["throws"] = (throws, TaskDeadLetteredError)


def _our_option(run: Any) -> dict[str, Any]:
    """Return our option of a message, which anybody may have written."""
    return header_of(run.options.get(OURS))


def milliseconds(delay: float | None) -> int | None:
    """Convert a delay in seconds: at least one millisecond, or None for at once."""
    return max(1, round(delay * 1000)) if delay else None


install: Final = DramatiqNative.install
