"""An app's runs on Celery."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

import attrs
from celery import Celery, states
from celery import exceptions as theirs
from celery.exceptions import NotRegistered
from celery.result import EagerResult
from celery.utils.serialization import UnpickleableExceptionWrapper
from kombu.exceptions import EncodeError

from qtasks_pluggy import TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, status_from
from qtasks_pluggy.engines.celery.install import FORWARD, OURS, CeleryNative
from qtasks_pluggy.engines.celery.losses import survive_losses
from qtasks_pluggy.engines.celery.settings import has_results, is_safe, reach
from qtasks_pluggy.engines.forward import Forward, portable
from qtasks_pluggy.engines.native import attempt_of, header_of
from qtasks_pluggy.exc import EngineError, TaskCancelError

_STATUS: Final = {states.STARTED: TaskStatus.running, states.RETRY: TaskStatus.queued}


class CeleryEngine(Forward[Celery], CeleryNative):
    """Celery behind an app.

    Args:
        given: The Celery app.
    """

    worker = "celery -A MODULE worker"

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        # Spawned children import the app, and its plugins with it.
        self._names = []

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a Celery task of the app's, at-least-once."""
        native, name, func = self.native, task_func.name, task_func.func
        if name in vars(native)["_tasks"]:
            raise ValueError(self._taken(name))

        def run(task: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.begin_for_run()
            return self.work(task, func, args, kwargs)

        run.__module__ = OURS
        options = {FORWARD: True, **survive_losses(task_func.max_retries)}
        # Every Celery app of a process has those that are shared.
        return native.task(name=name, bind=True, shared=False, typing=False, **options)(run)

    def check(self) -> None:
        """Refuse, in clients and workers, a task that Celery had first when it looked."""
        super().check()
        for name in self.tasks:
            if not getattr(self.native.tasks[name], FORWARD, False):
                msg = f"engine 'celery': {self._taken(name)}"
                raise EngineError(msg)

    def _taken(self, name: str) -> str:
        return (
            f"the Celery app {self.native.main!r} has a task {name!r} of its own; give ours"
            " another name="
        )

    def reach(self) -> None:
        """Connect to broker and results."""
        if not self.native.conf.task_always_eager:
            self.check()
            reach(self.native)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Say what Celery can do with this broker and these results."""
        native = self.native
        eager = bool(native.conf.task_always_eager)
        return Capabilities(
            delay=not eager,
            dead_letter=True,
            cancel_queued=not eager,
            results=has_results(native),
            at_least_once=is_safe(native),
            metadata=True,
        )

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a native message."""
        ticket = super().send(message, delay)
        vars(ticket)["our_task"] = message.name
        return ticket

    # --- one attempt

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a request: ``retries`` counts lost workers too, a header does not."""
        message = super().message(run, args, kwargs)
        request = run.request
        attempt = attempt_of(header_of((request.headers or {}).get(OURS)))
        lost = request.retries >= attempt
        return attrs.evolve(
            message, priority=0, attempt=attempt, redelivered=message.redelivered or lost
        )

    def resend(self, run: Any, number: int) -> dict[str, Any]:
        """Count the attempts that are a plugin's wish."""
        headers = dict(run.request.headers or {})
        return {"headers": {**headers, OURS: {**header_of(headers.get(OURS)), "attempt": number}}}

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Give the error, or one that says the same and can be made again."""
        return portable(attempt.error, f"engine 'celery', task {run.name!r}")

    dead_letter = fail

    # --- its end

    def ticket_for(self, uuid: str) -> Any:
        """Make the ticket of a run that was sent from anywhere."""
        ticket = self.native.AsyncResult(uuid)
        vars(ticket)["our_task"] = "unknown"
        return ticket

    def keeps(self, ticket: Any) -> bool:
        """Say whether anybody can ask for a run's end."""
        return self.capabilities.results or isinstance(ticket, EagerResult)

    def no_results(self) -> str:
        """Say what to do where results are not kept."""
        uri = self.native.backend.as_uri()
        return f"{uri} does not give a result to whoever asks; give Celery another backend="

    def read(self, ticket: Any) -> RunResult | None:
        """Read the stored end."""
        state, result = self._state(ticket)
        if state == states.SUCCESS:
            return RunResult(TaskStatus.succeeded, result)
        if state == states.REVOKED:
            if not isinstance(result, TaskCancelError):
                result = TaskCancelError(vars(ticket).get("our_reason") or str(result))
            return RunResult(TaskStatus.cancelled, error=result)
        if state != states.FAILURE:
            return None
        return RunResult(status_from(result), error=_error_of(ticket, result))

    def status(self, ticket: Any) -> TaskStatus | None:
        """Tell how far a run is; nothing of one that waits, or that does not say when it begins."""
        ended = super().status(ticket)
        if ended is None and self.keeps(ticket):
            return _STATUS.get(self._state(ticket)[0])
        return ended

    def revoke(self, ticket: Any, reason: str) -> bool:
        """Have the workers drop a run when they come to it; none that lives, and it is False."""
        if isinstance(ticket, EagerResult) or (self.keeps(ticket) and self.read(ticket)):
            return False
        vars(ticket)["our_reason"] = reason
        return bool(self.native.control.revoke(ticket.id, reply=True, timeout=1, limit=1))

    def _state(self, ticket: Any) -> tuple[str, Any]:
        if isinstance(ticket, EagerResult):
            return ticket.state, ticket.result
        # This thread's own; some of them must not be shared.
        meta = self.native.backend.get_task_meta(ticket.id)
        return meta["status"], meta["result"]


def _error_of(ticket: Any, error: Any) -> BaseException:
    """Say in our own words what Celery says of a run that it could not do, or not make again."""
    who = f"engine 'celery', task {ticket.our_task!r}"
    if isinstance(error, NotRegistered):
        msg = (
            f"{who}: the worker has no such task. It must import every module that declares"
            " tasks, and run the same code as those who submit"
        )
        return EngineError(msg)
    if isinstance(error, EncodeError):
        msg = f"{who}: its result cannot be serialized ({error}); return something that can"
        return EngineError(msg)
    if isinstance(error, UnpickleableExceptionWrapper):
        name = f"{error.exc_module}.{error.exc_cls_name}"
        return EngineError(f"{who}: {name}: {error}; its class cannot be made again here")
    kind = type(error)
    if kind.__module__ == theirs.__name__ and not hasattr(theirs, kind.__name__):
        # Celery's stand-in for a class that this process does not have.
        return EngineError(f"{who}: {kind.__name__}: {error}; import its class to have it")
    return error if isinstance(error, BaseException) else EngineError(f"{who}: {error!r}")
