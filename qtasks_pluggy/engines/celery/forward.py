"""Celery as the engine of a ``QueueTasks`` app."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

import attrs
from celery import Celery, states
from celery import exceptions as theirs
from celery.exceptions import NotRegistered
from celery.result import EagerResult

from qtasks_pluggy import TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, status_from
from qtasks_pluggy.engines.celery.install import FORWARD, OURS, CeleryNative, our_header
from qtasks_pluggy.engines.celery.losses import survive_losses
from qtasks_pluggy.engines.celery.settings import has_results, is_safe, reach
from qtasks_pluggy.engines.forward import Forward, portable
from qtasks_pluggy.engines.native import attempt_of
from qtasks_pluggy.exc import EngineError, TaskCancelError

_STATUS: Final = {states.STARTED: TaskStatus.running, states.RETRY: TaskStatus.queued}


class CeleryEngine(Forward[Celery], CeleryNative):
    """Celery as an app's engine.

    Args:
        given: The Celery app.
    """

    worker = "celery -A MODULE worker"

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a Celery task, whose runs outlive the loss of their process."""
        native, name, func = self.native, task_func.name, task_func.func
        if name in vars(native)["_tasks"]:
            raise ValueError(self._taken(name))

        def run(task: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.begin_for_run()
            return self.work(task, func, args, kwargs)

        run.__module__ = OURS
        options = {FORWARD: True, **survive_losses(task_func.max_retries)}
        # A shared task would be in every Celery app of the process.
        return native.task(name=name, bind=True, shared=False, typing=False, **options)(run)

    def check(self) -> None:
        """Refuse, in clients and workers, a task whose name Celery gave to another one."""
        super().check()
        for name in self.tasks:
            if not getattr(self.native.tasks[name], FORWARD, False):
                msg = f"engine 'celery': {self._taken(name)}"
                raise EngineError(msg)

    def _taken(self, name: str) -> str:
        return (
            f"the Celery app {self.native.main!r} has a task {name!r} of its own; give this one"
            " another name="
        )

    def reach(self) -> None:
        """Connect to the broker and the result backend."""
        if not self.native.conf.task_always_eager:
            self.check()
            reach(self.native)

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Return what Celery can do with this broker and these results."""
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
        """Send a Celery message."""
        ticket = super().send(message, delay)
        vars(ticket)["our_task"] = message.name
        return ticket

    # --- one attempt

    def message(self, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskMessage:
        """Make a message of a request: ``retries`` counts lost workers too, our header does not."""
        message = super().message(run, args, kwargs)
        attempt = attempt_of(our_header(run.request))
        lost = run.request.retries >= attempt
        return attrs.evolve(
            message, priority=0, attempt=attempt, redelivered=message.redelivered or lost
        )

    def resend(self, run: Any, number: int) -> dict[str, Any]:
        """Count the attempts that plugins asked for."""
        header = {**our_header(run.request), "attempt": number}
        return {"headers": {**(run.request.headers or {}), OURS: header}}

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Return the error, or one that says the same and can be rebuilt."""
        return portable(attempt.error, f"engine 'celery', task {run.name!r}")

    dead_letter = fail

    # --- its end

    def ticket_for(self, uuid: str) -> Any:
        """Make the ticket of a run that any process may have sent."""
        ticket = self.native.AsyncResult(uuid)
        vars(ticket)["our_task"] = "unknown"
        return ticket

    def keeps(self, ticket: Any) -> bool:
        """Return whether the end of a run can be read."""
        return self.capabilities.results or isinstance(ticket, EagerResult)

    def no_results(self) -> str:
        """Return what to do if results are not stored."""
        uri = self.native.backend.as_uri()
        return f"{uri} does not share results with other processes; give Celery another backend="

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
        """Return how far a run is; None while it waits, or if its start is not tracked."""
        ended = super().status(ticket)
        if ended is None and self.keeps(ticket):
            return _STATUS.get(self._state(ticket)[0])
        return ended

    def revoke(self, ticket: Any, reason: str) -> bool:
        """Have the workers drop a run when they come to it; False if no worker replies."""
        if isinstance(ticket, EagerResult) or (self.keeps(ticket) and self.read(ticket)):
            return False
        vars(ticket)["our_reason"] = reason
        return bool(self.native.control.revoke(ticket.id, reply=True, timeout=1, limit=1))

    def _state(self, ticket: Any) -> tuple[str, Any]:
        if isinstance(ticket, EagerResult):
            return ticket.state, ticket.result
        # The backend of this thread; some kinds must not be shared.
        meta = self.native.backend.get_task_meta(ticket.id)
        return meta["status"], meta["result"]


def _error_of(ticket: Any, error: Any) -> BaseException:
    """Replace the errors that say too little: an unknown task, a class not loaded here."""
    who = f"engine 'celery', task {ticket.our_task!r}"
    if isinstance(error, NotRegistered):
        msg = (
            f"{who}: the worker has no such task. It must import every module that declares"
            " tasks, and run the same code as those who submit"
        )
        return EngineError(msg)
    kind = type(error)
    if kind.__module__ == theirs.__name__ and not hasattr(theirs, kind.__name__):
        # Celery's stand-in for a class that this process has not loaded.
        return EngineError(f"{who}: {kind.__name__}: {error}; import its class to get the original")
    return error if isinstance(error, BaseException) else EngineError(f"{who}: {error!r}")
