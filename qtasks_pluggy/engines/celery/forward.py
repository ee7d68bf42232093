"""Celery as the engine of a ``QueueTasks`` app."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

from celery import Celery, states
from celery import exceptions as theirs
from celery.exceptions import NotRegistered
from celery.result import EagerResult

from qtasks_pluggy import TaskFunc, TaskMessage, TaskStatus
from qtasks_pluggy.engines import Attempt, Capabilities, RunResult, status_from
from qtasks_pluggy.engines.celery.install import FORWARD, CeleryNative
from qtasks_pluggy.engines.celery.losses import survive_losses
from qtasks_pluggy.engines.celery.settings import broker_of, has_results
from qtasks_pluggy.engines.forward import Forward, portable
from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import EngineError, TaskCancelError


class CeleryEngine(Forward[Celery], CeleryNative):
    """Celery as an app's engine.

    Args:
        given: The Celery app.
    """

    worker = "celery -A MODULE worker"

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a Celery task, whose runs outlive the loss of their process."""

        def run(task: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.begin_for_run()
            return self.work(task, task_func.func, args, kwargs)

        # Spawned children import the modules of all tasks, and declare them again.
        run.__module__ = task_func.func.__module__
        options = {FORWARD: True, "typing": False, **survive_losses(task_func.max_retries)}
        # A shared task would be in every Celery app of the process.
        return self.native.task(name=task_func.name, bind=True, shared=False, **options)(run)

    def check(self) -> None:
        """Refuse, in clients and workers, a task whose name Celery gave to another one."""
        super().check()
        for name in self.tasks:
            if not getattr(self.native.tasks[name], FORWARD, False):
                msg = (
                    f"engine 'celery': the Celery app {self.native.main!r} has a task {name!r} of"
                    " its own; give this one another name="
                )
                raise EngineError(msg)

    def reach(self) -> None:
        """Connect to the broker and the result backend."""
        self.check()
        native, what = self.native, "broker"
        if native.conf.task_always_eager:
            return
        try:
            with native.connection_for_write() as connection:
                what = f"broker {connection.as_uri()}"
                connection.ensure_connection(max_retries=1, interval_start=0.1)
            what = "result backend"
            ping = getattr(getattr(native.backend, "client", None), "ping", None)
            if ping is not None:
                ping()
        except Exception as error:
            msg = f"engine 'celery': {what} cannot be used: {text_of(error)}"
            raise EngineError(msg) from error

    def can(self, run: Any) -> Capabilities:  # noqa: ARG002  # of all the same
        """Return what Celery can do with this broker and these results."""
        native = self.native
        eager = bool(native.conf.task_always_eager)
        return Capabilities(
            delay=not eager,
            dead_letter=True,
            cancel_queued=not eager,
            results=eager or has_results(native),
            at_least_once=not eager and broker_of(native) == "amqp",
            metadata=True,
        )

    def send(self, message: TaskMessage, delay: float | None) -> Any:
        """Send a Celery message."""
        ticket = super().send(message, delay)
        vars(ticket)["our_task"] = message.name
        return ticket

    def fail(self, run: Any, attempt: Attempt) -> Any:
        """Return the error, or one that says the same and can be rebuilt."""
        return portable(attempt.error, f"engine 'celery', task {run.name!r}")

    dead_letter = fail

    # --- its end

    def ticket_for(self, uuid: str) -> Any:
        """Make the ticket of a run that any process may have sent."""
        return self.native.AsyncResult(uuid)

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
        if ended is None and self.keeps(ticket) and self._state(ticket)[0] == states.STARTED:
            return TaskStatus.running
        return ended

    def revoke(self, ticket: Any, reason: str) -> bool:
        """Have the workers drop a run when they come to it; False if no worker replies."""
        if self.keeps(ticket) and self.read(ticket):
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
    kind, why = type(error), repr(error)
    if isinstance(error, NotRegistered):
        why = "the worker has no such task; have it import every module that declares tasks"
    elif kind.__module__ == theirs.__name__ and not hasattr(theirs, kind.__name__):
        # Celery's stand-in for a class that this process has not loaded.
        why = f"{kind.__name__}: {error}; import its class to get the original"
    elif isinstance(error, BaseException):
        return error
    task = vars(ticket).get("our_task", "unknown")
    return EngineError(f"engine 'celery', task {task!r}: {why}")
