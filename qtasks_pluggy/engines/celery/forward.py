"""An app's runs on Celery."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import attrs
from celery import Celery, states
from celery.exceptions import Retry
from celery.result import EagerResult

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import QueueTasks, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, executor_for, status_from
from qtasks_pluggy.engines.celery.attempt import (
    CONTROL,
    HEADER,
    OURS,
    STOPS_WORKER,
    check_storable,
    error_of,
    message_of,
    settle,
)
from qtasks_pluggy.engines.celery.losses import survive_losses
from qtasks_pluggy.engines.celery.send import send
from qtasks_pluggy.engines.celery.settings import (
    VISIBILITY,
    broker_of,
    complete,
    has_results,
    is_safe,
    itself,
    most_priority,
    native_priority,
    reach,
    told,
)
from qtasks_pluggy.engines.celery.worker import WorkerLife
from qtasks_pluggy.engines.servers import (
    HANDS_OVER,
    attempt_of,
    cut_by,
    named,
    refuse_url,
    settled,
    wait_by_looking,
)
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskCancelError, TaskPluginTriggerError

_STATUS: Final = {
    states.STARTED: TaskStatus.running,
    states.RETRY: TaskStatus.queued,
    states.SUCCESS: TaskStatus.succeeded,
    states.REVOKED: TaskStatus.cancelled,
}


class CeleryEngine:
    """Celery behind an app.

    Args:
        native: The Celery app.
    """

    name = "celery"
    blocking = True

    def __init__(self, native: Celery) -> None:
        refuse_url(native, self.name, "a Celery app")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.control: tuple[type[Exception], ...] = CONTROL
        self.native: Any = itself(native)
        self._app: QueueTasks | None = None
        self._capabilities: Capabilities | None = None
        self._tasks: dict[str, Any] = {}
        # One at a time, so that a killed worker holds up nothing that it has not begun.
        self.native.add_defaults({"worker_prefetch_multiplier": 1})

    @property
    def capabilities(self) -> Capabilities:
        """What it can do with this broker and these results."""
        # Not before it is asked for: settings can come behind the app.
        if self._capabilities is not None:
            return self._capabilities
        native = self.native
        self._capabilities = Capabilities(
            delay=not native.conf.task_always_eager,
            dead_letter=True,
            cancel_queued=not native.conf.task_always_eager,
            results=has_results(native),
            at_least_once=is_safe(native),
            priority=most_priority(native) is not None,
            metadata=True,
        )
        return self._capabilities

    def will_retry(self, error: BaseException) -> bool:
        """Say whether the task has asked Celery for another attempt."""
        return isinstance(error, Retry)

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
        if self.capabilities.results:
            check_storable(self.native, what, value)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Make the task known to Celery, under its own name.

        Raises:
            EngineError: Celery has a task of this name, or this is behind another app.
        """
        if self._app is None:
            self._app = app
            self._life = WorkerLife(self.native, lambda: app, self._check)
        if self._app is not app:
            msg = f"engine 'celery' is behind app {self._app.name!r} already; make one for each app"
            raise EngineError(msg)
        name = task_func.name
        if name in vars(self.native)["_tasks"]:
            raise self._taken(name)

        def body(task: Any, *_: Any, **__: Any) -> Any:
            with HANDS_OVER:
                return self._work(app, task)

        body.__module__ = HEADER
        task = self.native.task(
            name=name,
            bind=True,
            # Every Celery app of a process has those that are shared.
            shared=False,
            **survive_losses(task_func.max_retries),
            **{OURS: True},
        )(body)
        self._tasks[name] = task

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Look whether broker and results can be used."""
        if workers:
            msg = (
                f"engine 'celery': app {app.name!r} is to do runs in this process, and Celery's own"
                " command does them: celery -A MODULE worker"
            )
            raise EngineError(msg)
        if self.native.conf.task_always_eager:
            return
        self._check()
        reach(self.native)

    def stop(self) -> None:
        """Do nothing: the connections are Celery's."""

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a native message."""
        native = self.native
        header: dict[str, Any] = {"created_at": message.created_at, "attempt": 1}
        if message.metadata:
            header["metadata"] = message.metadata
        if message.priority:
            header["priority"] = message.priority
        if too_long := self._too_long(message.name, delay):
            raise too_long
        priority = native_priority(native, message.priority or 0, message.name)
        if has_results(native):
            # It would subscribe to every run's end, also of those that nobody waits for.
            vars(native.backend)["on_task_call"] = _say_nothing
        ticket = send(self._tasks[message.name], message, header, delay, priority)
        vars(ticket)["our_task"] = message.name
        return ticket

    def ticket_for(self, uuid: str) -> Any:
        """Make the ticket of a run that was sent from anywhere."""
        ticket = self.native.AsyncResult(uuid)
        vars(ticket)["our_task"] = "unknown"
        return ticket

    def result(self, ticket: Any, timeout: float | None) -> RunResult | None:
        """Wait for the stored end."""
        if not self.capabilities.results and not isinstance(ticket, EagerResult):
            msg = (
                f"engine 'celery', {self.native.main}: {self.native.backend.as_uri()} does not give"
                " a result to whoever asks; give Celery another backend=, as redis://"
            )
            raise CapabilityError(msg)
        return wait_by_looking(partial(self._ended, ticket), timeout)

    def status(self, ticket: Any) -> TaskStatus | None:
        """Tell how far a run is; nothing of one that waits, or that does not say when it begins."""
        if not self.capabilities.results and not isinstance(ticket, EagerResult):
            return None
        state, error = self._state(ticket)
        if state == states.FAILURE:
            return status_from(error)
        return _STATUS.get(state)

    def trail(self, ticket: Any) -> Trail | None:  # noqa: ARG002  # the seam's name
        """Say nothing: Celery keeps results, and no more."""
        return None

    def cancel(self, ticket: Any, reason: str) -> bool:
        """Have the workers drop a run that waits; nobody can be asked while none of them lives."""
        if isinstance(ticket, EagerResult):
            return False
        control = self.native.control
        name = ticket.our_task
        answers = told(name, control.inspect(timeout=1).query_task, ticket.id)
        if not answers or any(
            state == "active" for one in answers.values() for state, _ in one.values()
        ):
            return False
        if self.capabilities.results and self._state(ticket)[0] in states.READY_STATES:
            return False
        vars(ticket)["our_reason"] = reason
        return bool(told(name, control.revoke, ticket.id, reply=True, timeout=1, limit=1))

    def message(self, native: Any) -> TaskMessage:
        """Make a message of a native task at work."""
        request = native.request
        header = (request.headers or {}).get(HEADER) or {}
        message = message_of(native, request.args, request.kwargs)
        attempt = attempt_of(header) if header else None
        lost = attempt is not None and request.retries >= attempt
        return attrs.evolve(
            message,
            priority=header.get("priority", 0),
            created_at=header.get("created_at"),
            attempt=attempt,
            redelivered=message.redelivered or lost,
        )

    def settle(self, outcome: Attempt, native: Any) -> Any:
        """Return what Celery is to store, or raise what makes it do what the plugins decided."""
        if outcome.action != "retry":
            error = outcome.error
            if isinstance(error, TaskPluginTriggerError) and error.kwargs and not error.args:
                # Celery keeps arguments alone, and the text would be lost.
                error.args = (str(error),)
            return settle(outcome, native)
        if too_long := self._too_long(native.name, outcome.delay):
            raise too_long from outcome.error
        headers = dict(native.request.headers or {})
        header = headers.get(HEADER) or {}
        headers[HEADER] = {**header, "attempt": attempt_of(header) + 1}
        return settle(outcome, native, headers=headers)

    def _work(self, app: QueueTasks, task: Any) -> Any:
        self._life.begin()
        executor = executor_for(app, self.message(task))
        try:
            outcome = executor.execute_attempt_sync(self)
        except BaseException as error:  # noqa: BLE001  # what ends the worker is raised again
            outcome = cut_by(error, self)
        return settled(executor, outcome, lambda end: self.settle(end, task))

    def _check(self, _: Any = None) -> None:
        """Refuse, in clients and workers, what would be done twice as a matter of course."""
        complete(self.native)
        # Whoever asked before may have done so before the settings came.
        self._capabilities = None
        every: Iterable[Any] = () if self._app is None else self._app.tasks.values()
        for task in every:
            if not getattr(self.native.tasks[task.name], OURS, False):
                # It came after, but was there first when Celery looked.
                raise self._taken(task.name)
            limit = task.task_func.max_time
            native_priority(self.native, task.task_func.priority, task.name)
            if limit is not None and limit >= self._visibility:
                msg = (
                    f"engine 'celery', task {task.name!r}: with max_time={limit} it would be done"
                    f" twice: Redis gives a message to another worker after {self._visibility}"
                    " seconds; raise 'visibility_timeout' in broker_transport_options"
                )
                raise EngineError(msg)

    def _too_long(self, name: str, delay: float | None) -> EngineError | None:
        if not delay or delay <= self._visibility:
            return None
        msg = (
            f"engine 'celery', task {name!r}: delay={delay} is longer than Redis lets a worker keep"
            f" a message, {self._visibility} seconds, and it would be done twice; raise"
            " 'visibility_timeout' in broker_transport_options"
        )
        return EngineError(msg)

    def _taken(self, name: str) -> EngineError:
        msg = (
            f"engine 'celery': the Celery app {self.native.main!r} has a task {name!r} of its own;"
            " give ours another name="
        )
        return EngineError(msg)

    @property
    def _visibility(self) -> float:
        """Seconds for which a worker may keep a message."""
        if self.native.conf.task_always_eager or broker_of(self.native) != "redis":
            return float("inf")
        options = self.native.conf.broker_transport_options or {}
        return float(options.get("visibility_timeout", VISIBILITY))

    def _state(self, ticket: Any) -> tuple[str, Any]:
        if isinstance(ticket, EagerResult):
            return ticket.state, ticket.result
        # This thread's own; some of them must not be shared.
        name = ticket.our_task
        meta = told(name, self.native.backend.get_task_meta, ticket.id)
        return meta["status"], meta["result"]

    def _ended(self, ticket: Any) -> RunResult | None:
        try:
            state, result = self._state(ticket)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever reading what others wrote raises
            msg = (
                f"engine 'celery', task {ticket.our_task!r}: its end cannot be read here:"
                f" {type(error).__name__}: {error}; import what the worker's result is made of"
            )
            return RunResult(TaskStatus.failed, error=EngineError(msg))
        if state == states.SUCCESS:
            return RunResult(TaskStatus.succeeded, result)
        if state == states.REVOKED:
            if not isinstance(result, TaskCancelError):
                result = TaskCancelError(vars(ticket).get("our_reason") or str(result))
            return RunResult(TaskStatus.cancelled, error=result)
        if state != states.FAILURE:
            return None
        return RunResult(status_from(result), error=error_of(ticket, result))


def _say_nothing(*_: Any, **__: Any) -> None:
    """Stand in for what a result backend does when a task is submitted."""
