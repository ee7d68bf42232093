"""Plugins for the actors of a Dramatiq app that is there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import Any, Final

from dramatiq import Broker, Middleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Retries, Shutdown, SkipMessage
from dramatiq.results import Results

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskMessage
from qtasks_pluggy.engines import (
    Attempt,
    Capabilities,
    is_started,
    lock_of,
    log_event,
    worker_lifespan,
)
from qtasks_pluggy.engines._dramatiq_retries import AskedOnce
from qtasks_pluggy.engines.reverse import Plugged, refuse_other
from qtasks_pluggy.engines.servers import HANDS_OVER, PLAIN, attempt_of, settled, unstorable
from qtasks_pluggy.exc import CapabilityError, EngineError

CONTROL: Final = (Retry, RateLimitExceeded, SkipMessage)
# How Dramatiq ends a worker in the middle of a run.
STOPS_WORKER: Final = (Shutdown, KeyboardInterrupt)
# Where a message has what is ours, and by which our own actors are known.
HEADER: Final = "qtasks_pluggy"

# How often in a million commands Redis looks for what killed workers had, and after how many
# milliseconds without a sign of life a worker is taken for dead: Dramatiq's own, and ours, with
# which it takes seconds instead of minutes.
_MAINTENANCE: Final = (1_000, 100_000)
_HEARTBEAT: Final = (60_000, 30_000)


def install(
    broker: Broker,
    plugins: Iterable[Any] = (),
    *,
    discover: bool = True,
    intercept: type[BaseException] | Iterable[type[BaseException]] = Exception,
) -> int:
    """Let plugins decide about the errors of a broker's own actors, those declared later too.

    Args:
        broker: The broker.
        plugins: As for ``QueueTasks``.
        discover: As for ``QueueTasks``.
        intercept: The exception classes that plugins are asked about, at every attempt.

    Returns:
        How many actors are covered now.

    Raises:
        PluginRegistrationError: Faults of ``plugins``.
        TypeError: It is no broker.
    """
    refuse_other("dramatiq", broker, Broker)
    plugged = Plugged(broker, "dramatiq", plugins, discover=discover, intercept=intercept)
    one: _Native | None = vars(broker).get(_INSTALLED)
    if one is None:
        # There, and nowhere else: it goes with the broker.
        one = vars(broker)[_INSTALLED] = _Native(broker, plugged)
        broker.add_middleware(one)
    one.take(plugged)
    return one.covered


def at_least_once(broker: Broker) -> None:
    """Let messages survive the death of their worker, and soon; settings of one's own stay.

    Args:
        broker: On Redis or RabbitMQ; call this where it is made, in clients and workers alike.

    Raises:
        CapabilityError: It is in memory.
    """
    if isinstance(broker, StubBroker):
        msg = "engine 'dramatiq': StubBroker is in memory, and loses all with its process"
        raise CapabilityError(msg)
    given: Any = broker
    for name, (default, ours) in (
        ("maintenance_chance", _MAINTENANCE),
        ("heartbeat_timeout", _HEARTBEAT),
    ):
        if getattr(given, name, None) == default:
            setattr(given, name, ours)
    if getattr(given, "confirm_delivery", None) is False:
        # So that whoever submits hears of a message that was not taken.
        given.confirm_delivery = True


class WorkerLife(Middleware):
    """Starts an app's plugins when a worker process begins, and stops them at its end.

    Args:
        app: Gives the app. An error of it refuses the worker.
    """

    def __init__(self, app: Callable[[], QueueTasks]) -> None:
        self._app = app
        self._lock = lock_of(self)
        self._pid = 0
        self._life: Any = None
        # There can be several in one process, each with queues of its own.
        self._workers = 0

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Start the plugins."""
        with self._lock:
            try:
                app = self._app()
                # In the process that submits it is started already, and is not ours to stop.
                if self._pid != os.getpid() and not is_started(app):
                    self._life = worker_lifespan(app)
                    self._life.__enter__()
                    self._pid, self._workers = os.getpid(), 0
            except Exception as error:
                log_event("error", "worker_cannot_start", app="dramatiq", exc_info=error)
                # Not an Exception, which Dramatiq would log, and go on to take messages.
                raise SystemExit(str(error)) from error
            self._workers += 1

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Stop the plugins, behind the last one."""
        with self._lock:
            self._workers -= 1
            if self._pid == os.getpid() and self._workers <= 0:
                self._pid = 0
                self._life.__exit__(None, None, None)

    def before_process_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Remember what this thread is about to do: Dramatiq gives an actor its arguments only."""
        current.set(message)

    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002  # Dramatiq's
        message: Any,  # noqa: ARG002  # Dramatiq's
        *,
        result: Any = None,  # noqa: ARG002  # Dramatiq's
        exception: BaseException | None = None,  # noqa: ARG002  # Dramatiq's
    ) -> None:
        """Forget it."""
        current.set(None)

    def after_skip_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002  # Dramatiq's
        """Forget it."""
        current.set(None)


class _Native(WorkerLife):
    """A broker with plugins for its own actors."""

    def __init__(self, broker: Broker, plugged: Plugged) -> None:
        super().__init__(self._checked_app)
        self._broker = broker
        self.plugged = plugged

    @property
    def covered(self) -> int:
        """How many actors are the broker's own."""
        every: Any = self._broker.actors.values()
        owners = (getattr(actor.fn, HEADER, self) for actor in every)
        return sum(owner is self for owner in owners)

    def take(self, plugged: Plugged) -> None:
        """Have these plugins from now on, started where a worker runs, in place of others."""
        with self._lock:
            self.plugged = plugged
            if self._pid == os.getpid():
                self._pid = 0
                self._life.__exit__(None, None, None)
                self._life = worker_lifespan(plugged.app)
                self._life.__enter__()
                self._pid = os.getpid()

    def _checked_app(self) -> QueueTasks:
        """Give the app behind it; refuse a worker that would do without plugins."""
        if not self.covered:
            msg = (
                "engine 'dramatiq': install() covers no actor; name the modules that declare them"
                " on the worker's command line"
            )
            raise EngineError(msg)
        return self.plugged.app

    def after_declare_actor(self, broker: Broker, actor: Any) -> None:
        """Let the executor run the actor's function, where a worker does."""
        if isinstance(actor, str):
            # So Dramatiq 1 names those that were declared before the middleware came.
            actor = broker.get_actor(actor)
        fn = actor.fn
        if hasattr(fn, HEADER):
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            message = current.get()
            if message is None or message.actor_name != actor.actor_name:
                return fn(*args, **kwargs)
            # Calls of this actor by itself are as native as any other.
            token = current.set(None)
            try:
                with HANDS_OVER:
                    return self._work(message, fn, args, kwargs)
            finally:
                current.reset(token)

        call.__wrapped__ = fn  # type: ignore[attr-defined]  # as functools does
        call.qtasks_pluggy = self  # type: ignore[attr-defined]  # by which it is known
        actor.fn = call

    def _work(self, message: Any, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        header = message.options.get(HEADER) or {}
        seen = message_of(message, args, kwargs, attempt_of(header))
        executor = self.plugged.executor_for(seen, fn)
        outcome = executor.execute_attempt_sync(_Attempt(self._broker, message))
        if executor.attempt and outcome.action in {"fail", "pass"}:
            # The next attempt is Dramatiq's own, and counts on.
            message.options[HEADER] = {**header, "attempt": executor.attempt + 1}
        return settled(
            executor, outcome, lambda end: settle(self._broker, end, message, store_error)
        )


class _Attempt:
    """Dramatiq as the executor of one attempt sees it."""

    name = "dramatiq"
    # As the middleware for ``async def`` actors says that one was cancelled.
    control = (*CONTROL, CancelledError)
    capabilities = Capabilities(delay=True, results=True, dead_letter=True)

    def __init__(self, broker: Broker, message: Any) -> None:
        self._broker = broker
        self._message = message

    def failure(self, error: BaseException) -> BaseException | None:
        """Say what Dramatiq makes of an error that is no ``Exception``: as of any other."""
        return None if isinstance(error, STOPS_WORKER) else error

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It cannot be serialized.
        """
        backends = (backend for backend, _ in _backends(self._broker, self._message))
        check_storable(backends, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Do nothing: what the actor itself returns is Dramatiq's affair."""

    def will_retry(self, error: BaseException) -> bool:
        """Say whether Dramatiq's own retries, if it has them, run the actor again."""
        actor, options = self._broker.get_actor(self._message.actor_name), self._message.options
        throws = options.get("throws") or actor.options.get("throws")
        if isinstance(error, SkipMessage) or (throws and isinstance(error, throws)):
            return False
        for one in self._broker.middleware:
            if isinstance(one, Retries):
                retries = options.get("retries", 0)
                wanted = AskedOnce.of(actor, one)
                if wanted is not None:
                    return wanted.ahead(retries, error)
                most = actor.options.get("max_retries", one.max_retries)
                most = options.get("max_retries", most)
                return most is None or retries < most
        return False


def message_of(
    message: Any, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int | None
) -> TaskMessage:
    """Make a message of what Dramatiq knows of a run; what it does not know is None."""
    header = message.options.get(HEADER) or {}
    return TaskMessage(
        message.actor_name,
        args,
        kwargs,
        uuid=message.message_id,
        priority=header.get("priority", 0),
        created_at=message.message_timestamp / 1000,
        attempt=attempt,
        queue=message.queue_name,
        engine="dramatiq",
        redelivered=getattr(getattr(message, "_method", None), "redelivered", None),
        metadata=header.get("metadata", {}),
    )


def settle(
    broker: Broker,
    outcome: Attempt,
    message: Any,
    store: Callable[[Broker, Any, Attempt], None],
) -> Any:
    """Return what Dramatiq is to store, or raise what makes it do what the plugins decided.

    Args:
        broker: The broker.
        outcome: The attempt's outcome.
        message: The message that a worker is at.
        store: Stores an end that Dramatiq would store in another way, or not at all.
    """
    if outcome.action == "succeed":
        return outcome.result
    if outcome.action == "retry":
        # By ourselves: Dramatiq counts, and ends, its own retries, and theirs in an error of its.
        header = message.options.get(HEADER) or {}
        ours = {**header, "attempt": attempt_of(header) + 1}
        again = message._message.copy(options={HEADER: ours})  # noqa: SLF001  # Dramatiq's own way
        delay = None if not outcome.delay else max(1, round(outcome.delay * 1000))
        try:
            broker.enqueue(again, delay=delay)
        except Exception as failure:  # noqa: BLE001  # the cause is the task's own error
            msg = (
                f"engine 'dramatiq', task {message.actor_name!r}: a retry was decided, and the"
                f" broker did not take it: {type(failure).__name__}: {failure}; look whether it"
                " runs, and has room"
            )
            raise EngineError(msg) from outcome.error
        message.options["store_results"] = False
        msg = f"retried as attempt {ours['attempt']}"
        raise SkipMessage(msg)
    if outcome.action == "cancel" or outcome.kept:
        # What fails, Dramatiq puts into the queue of dead letters by itself.
        store(broker, message, outcome)
        message.options["store_results"] = False
        msg = f"{outcome.status}: {outcome.reason}"
        raise SkipMessage(msg)
    error = SkipMessage(outcome.reason) if outcome.error is None else outcome.error
    if outcome.action == "dead_letter":
        # Not to be retried; its place is the queue of what failed.
        _throws(message, type(error))
        message.fail()
    raise error


def _throws(message: Any, kind: type[BaseException]) -> None:
    """Have Dramatiq retry no error of this kind.

    Whoever looks finds it at the worker's proxy. The message behind that is sent, as JSON, to the
    actor that ``on_failure`` names, and must not have a class in it.
    """
    message.options = {**message.options, "throws": kind}


def store_error(broker: Broker, message: Any, outcome: Attempt) -> None:
    """Store an end as Dramatiq stores errors."""
    for backend, ttl in _backends(broker, message):
        if outcome.error is not None:
            backend.store_exception(message, outcome.error, ttl)


def _backends(broker: Broker, message: Any) -> Iterator[tuple[Any, int]]:
    """Find where a message's result is to be stored, and for how many milliseconds."""
    for one in broker.middleware:
        if isinstance(one, Results):
            rules: Any = one
            stores, ttl = rules._lookup_options(broker, message)  # noqa: SLF001  # its own
            if stores:
                yield one.backend, ttl


def check_storable(backends: Iterable[Any], what: str, value: Any) -> None:
    """Refuse what cannot be stored; Dramatiq would log it, and leave the caller waiting.

    Args:
        backends: Where it is to be stored.
        what: Whose value it is, for people.
        value: A result, or an answer.

    Raises:
        EngineError: It cannot be serialized.
    """
    if type(value) in PLAIN:
        return
    for backend in backends:
        try:
            backend.encoder.encode(value)
        except Exception as error:
            raise unstorable(what, value, error, engine="dramatiq") from error


current: Final[ContextVar[Any]] = ContextVar("qtasks_pluggy_dramatiq_message", default=None)
_INSTALLED: Final = "qtasks_pluggy_installed"
