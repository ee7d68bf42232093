"""Dramatiq: an app's runs on a Dramatiq broker, or plugins for that one's own actors.

The worker is Dramatiq's own command, ``dramatiq module``. Runs survive a killed worker on
RabbitMQ and on Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from qtasks_pluggy.engines._versions import require

require("dramatiq", "1.17")

import dramatiq
from dramatiq import Broker, Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import BrokerError
from dramatiq.middleware import TimeLimit
from dramatiq.results import ResultFailure, ResultMissing, Results

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, executor_for
from qtasks_pluggy.engines._dramatiq_ends import packed, unpacked
from qtasks_pluggy.engines._dramatiq_reverse import (
    CONTROL,
    HEADER,
    STOPS_WORKER,
    WorkerLife,
    at_least_once,
    check_storable,
    current,
    install,
    message_of,
    settle,
)
from qtasks_pluggy.engines.servers import (
    HANDS_OVER,
    attempt_of,
    cut_by,
    in_the_middle,
    named,
    refuse_url,
    settled,
    trouble_within,
    unserializable,
    wait_by_looking,
)
from qtasks_pluggy.exc import CapabilityError, EngineError

__all__ = ["DramatiqEngine", "at_least_once", "install"]

# Seconds for a server to answer, when an app starts.
_PATIENCE: Final = 8
# Milliseconds for which a result is kept: a day, instead of Dramatiq's ten minutes.
_KEPT: Final = 86_400_000
# Seconds, after a task's own ``max_time``, for the plugins that are asked about its end.
_MARGIN: Final = 60


class DramatiqEngine:
    """A Dramatiq broker behind an app.

    Args:
        native: The broker.
        queue_name: The queue of tasks that are declared without one.
    """

    name = "dramatiq"
    blocking = True

    def __init__(self, native: Broker, queue_name: str = "default") -> None:
        refuse_url(native, self.name, "a Dramatiq broker")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.control: tuple[type[Exception], ...] = CONTROL
        self.native: Any = native
        self._queue = queue_name
        self._app: QueueTasks | None = None
        self._worker: Worker | None = None
        is_safe = not isinstance(native, StubBroker)
        if is_safe:
            at_least_once(native)
        self._most = getattr(native, "max_priority", None)
        self.capabilities: Capabilities = Capabilities(
            delay=True,
            dead_letter=True,
            results=self._results is not None,
            at_least_once=is_safe,
            priority=self._most is not None,
            metadata=True,
        )

    @property
    def _results(self) -> Any:
        """The backend of results; None where there is none."""
        every = (one.backend for one in self.native.middleware if isinstance(one, Results))
        return next(every, None)

    def will_retry(self, error: BaseException) -> bool:  # noqa: ARG002  # the seam's name
        """Say no: whoever retries is a plugin."""
        return False

    def failure(self, error: BaseException) -> BaseException | None:
        """Name what ends the task's own run: a task that calls sys.exit() ends itself alone."""
        if isinstance(error, STOPS_WORKER):
            return None
        return named(error, self.name)

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It cannot be serialized.
        """
        self._check_storable("the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: It cannot be serialized.
        """
        self._check_storable(f"the result of task {run.task_func.name!r}", run.result)

    def _check_storable(self, what: str, value: Any) -> None:
        check_storable(filter(None, (self._results,)), what, value)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Make the task known to Dramatiq, under its own name.

        Raises:
            EngineError: The broker has an actor of this name, or this is behind another app.
        """
        if self._app is None:
            self._app = app
            self.native.add_middleware(_Forward(lambda: app, self))
        if self._app is not app:
            msg = (
                f"engine 'dramatiq' is behind app {self._app.name!r} already; make one for each app"
            )
            raise EngineError(msg)

        def body(*args: Any, **kwargs: Any) -> Any:
            message = current.get()
            if message is None:
                return task_func.func(*args, **kwargs)
            with HANDS_OVER:
                return self._work(app, message)

        # By which it is known that no ``install`` is to cover it.
        body.qtasks_pluggy = None  # type: ignore[attr-defined]  # a function's own attribute
        given = {"max_retries": 0, "store_results": True, "result_ttl": _KEPT}
        options: Any = {k: v for k, v in given.items() if k in self.native.actor_options}
        for one in self.native.middleware:
            if isinstance(one, TimeLimit) and task_func.max_time is not None:
                # Whose end is one that no plugin hears of; ours comes first.
                options["time_limit"] = max(
                    one.time_limit, round((task_func.max_time + _MARGIN) * 1000)
                )
        options["queue_name"] = task_func.extra.get("queue_name", self._queue)
        try:
            dramatiq.actor(actor_name=task_func.name, broker=self.native, **options)(body)
        except ValueError as error:
            msg = f"engine 'dramatiq': task {task_func.name!r} of app {app.name!r}: {error}"
            raise EngineError(msg) from error

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Look whether the servers can be used; do runs in this process, if asked to."""
        for task in app.tasks.values():
            self._native_priority(task.name, task.task_func.priority)
        if self._results is not None and not self.capabilities.results:
            msg = (
                f"engine 'dramatiq', app {app.name!r}: the broker got its Results behind"
                " QueueTasks(engine=broker), and the tasks keep none; add_middleware(Results(...))"
                " first"
            )
            raise EngineError(msg)
        for what, owner in (("broker", self.native), ("result backend", self._results)):
            _reach(app.name, what, owner)
        if workers:
            self._worker = Worker(self.native, worker_threads=workers, worker_timeout=100)
            self._worker.start()

    def stop(self) -> None:
        """Finish the runs that this process is doing; those that wait stay with the broker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Enqueue a native message."""
        header: dict[str, Any] = {"attempt": 1}
        if message.metadata:
            header["metadata"] = dict(message.metadata)
        if message.priority:
            header["priority"] = message.priority
        options: dict[str, Any] = {HEADER: header}
        priority = self._native_priority(message.name, message.priority or 0)
        if priority is not None:
            options["broker_priority"] = priority
        native = self.native.get_actor(message.name).message_with_options(
            args=message.args, kwargs=dict(message.kwargs), **options
        )
        native = native.copy(message_id=str(message.uuid))
        encode = dramatiq.get_encoder().encode
        try:
            native.encode()
        except Exception as error:
            what = unserializable(message, lambda value: encode({"value": value}))
            msg = (
                f"engine 'dramatiq' cannot take task {message.name!r}: {what or 'an argument'}"
                f" cannot be serialized ({type(error).__name__}: {error}); give it something that"
                " can, an id or a path"
            )
            raise EngineError(msg) from error
        wait = max(1, round(delay * 1000)) if delay else None
        _told(message.name, self.native.enqueue, native, delay=wait)
        return native

    def result(self, ticket: Any, timeout: float | None) -> RunResult | None:
        """Wait for the stored end."""
        if self._results is None:
            msg = (
                "engine 'dramatiq': this broker keeps no results; give it one, "
                "broker.add_middleware(Results(backend=...))"
            )
            raise CapabilityError(msg)
        return wait_by_looking(partial(self._ended, ticket), timeout)

    def status(self, ticket: Any) -> TaskStatus | None:
        """Tell how a run ended; nothing of one that has not."""
        ended = None if self._results is None else self._ended(ticket)
        return None if ended is None else ended.status

    def trail(self, ticket: Any) -> Trail | None:  # noqa: ARG002  # the seam's name
        """Say nothing: Dramatiq keeps results, and no more."""
        return None

    def revoke(self, ticket: Any, reason: str) -> bool:  # noqa: ARG002  # the seam's name
        """Refuse: Dramatiq takes no message back."""
        msg = f"engine 'dramatiq' cannot cancel a run, so {ticket.message_id} goes on"
        raise CapabilityError(msg)

    def message(self, native: Any) -> TaskMessage:
        """Make a message of a native one."""
        header = native.options.get(HEADER) or {}
        return message_of(native, tuple(native.args), dict(native.kwargs), attempt_of(header))

    def settle(self, outcome: Attempt, native: Any) -> Any:
        """Return what Dramatiq is to store, or raise what makes it do what the plugins decided."""
        if outcome.action in {"fail", "dead_letter"}:
            # With the error's class, of which Dramatiq would keep the name.
            self._store(self.native, native, outcome)
            native.options["store_results"] = False
        return settle(self.native, outcome, native, self._store)

    def _store(self, _: Broker, native: Any, outcome: Attempt) -> None:
        if self._results is not None:
            end = packed(RunResult(outcome.status, error=outcome.error))
            self._results.store_result(native, end, _KEPT)

    def _work(self, app: QueueTasks, native: Any) -> Any:
        executor = executor_for(app, self.message(native))
        # A task that is called within this one is called as a function.
        token = current.set(None)
        try:
            outcome = executor.execute_attempt_sync(self)
        except BaseException as error:  # noqa: BLE001  # what ends the worker is raised again
            outcome = cut_by(error, self)
        finally:
            current.reset(token)
        return settled(executor, outcome, lambda end: self.settle(end, native))

    def end_unknown(self, native: Any) -> None:
        """Give an end to a run whose task this worker does not have, and which it sets aside."""
        msg = (
            f"engine 'dramatiq', task {native.actor_name!r}: the worker has no such task. It must"
            " import every module that declares tasks, and run the same code as those who submit"
        )
        self._store(self.native, native, Attempt("fail", EngineError(msg)))

    def _ended(self, ticket: Any) -> RunResult | None:
        who = f"engine 'dramatiq', task {ticket.actor_name!r}"
        try:
            result = _told(ticket.actor_name, self._results.get_result, ticket, block=False)
        except ResultMissing:
            return None
        except ResultFailure as error:
            return RunResult(TaskStatus.failed, error=EngineError(f"{who}: {error}"))
        return unpacked(result, who)

    def _native_priority(self, task: str, priority: int) -> int | None:
        """Translate a priority, of which higher ones run first, and 0 is in the middle."""
        if self._most is None:
            return None
        return in_the_middle(self.name, task, priority, self._most)


class _Forward(WorkerLife):
    """The plugins' life in workers, and an end for runs of tasks that they do not have."""

    def __init__(self, app: Callable[[], QueueTasks], engine: DramatiqEngine) -> None:
        super().__init__(app)
        self._engine = engine

    def before_nack(self, broker: Broker, message: Any) -> None:
        """Tell who waits for a run whose task is not there."""
        if message.actor_name not in broker.actors and HEADER in message.options:
            self._engine.end_unknown(message)


def _reach(app: str, what: str, owner: Any) -> None:
    """Look whether a server answers.

    Raises:
        EngineError: It does not, within 8 seconds.
    """
    where = [""]

    def ask() -> None:
        if (client := getattr(owner, "client", None)) is not None:
            client.ping()
        elif hasattr(owner, "parameters"):
            import pika  # noqa: PLC0415  # only who has RabbitMQ has it

            first = owner.parameters[0] if isinstance(owner.parameters, list) else owner.parameters
            where[:] = [f" at {first.host}:{first.port}"]
            pika.BlockingConnection(parameters=owner.parameters).close()

    trouble = trouble_within(_PATIENCE, ask)
    if trouble is not None:
        # pika's own errors have no text, but show what they hold.
        msg = (
            f"engine 'dramatiq', app {app!r}: {what} {type(owner).__name__}{where[0]} cannot be"
            f" used: {type(trouble).__name__}: {str(trouble) or repr(trouble)}; start its server,"
            " or give it another address"
        )
        raise EngineError(msg) from trouble


def _told(task: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except (BrokerError, OSError) as error:
        failed = error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"redis", "pika"}:
            raise
        failed = error  # type: ignore[assignment]  # a client's own kind
    msg = (
        f"engine 'dramatiq', task {task!r}: the server failed: {type(failed).__name__}: {failed};"
        " look whether it runs"
    )
    raise EngineError(msg) from failed
