"""One attempt of a Celery task as its executor sees it, and what Celery makes of its outcome."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from contextlib import suppress
from traceback import format_exception
from typing import Any, Final

from celery import states
from celery.app import trace
from celery.backends.base import DisabledBackend
from celery.exceptions import (
    Ignore,
    NotRegistered,
    Reject,
    Retry,
    WorkerShutdown,
    WorkerTerminate,
)
from celery.utils.serialization import UnpickleableExceptionWrapper
from kombu.exceptions import EncodeError

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import Attempt, Capabilities
from qtasks_pluggy.engines.celery.settings import has_dead_letters
from qtasks_pluggy.engines.servers import PLAIN, unstorable
from qtasks_pluggy.exc import EngineError

CONTROL: Final = (Ignore, Reject, Retry)
# How Celery ends a worker in the middle of a run.
STOPS_WORKER: Final = (WorkerShutdown, WorkerTerminate, KeyboardInterrupt)
# The header of a message that has what is ours.
HEADER: Final = "qtasks_pluggy"
# By which our own native tasks are known.
OURS: Final = "qtasks_pluggy_task"
# Whether a worker asks the message, besides the task, if it is to store an attempt's end: as of
# Celery 5.6.
_HEEDS_REQUEST: Final = hasattr(trace, "get_actual_ignore_result")


class CeleryHost:
    """Celery as the executor of one attempt sees it."""

    name = "celery"
    control = CONTROL

    def __init__(self, task: Any) -> None:
        self._task = task

    def will_retry(self, error: BaseException) -> bool:
        """Say whether the task has asked Celery for another attempt."""
        return isinstance(error, Retry)

    def failure(self, error: BaseException) -> BaseException | None:
        """Say that it ends the run, if not the worker."""
        return None if isinstance(error, STOPS_WORKER) else error

    def check_answer(self, value: Any) -> None:
        """Refuse an answer that cannot be stored.

        Raises:
            EngineError: It cannot be serialized.
        """
        if not ignores_result(self._task):
            check_storable(self._task.app, "the answer", value)

    def check_result(self, run: RunningTask) -> None:
        """Do nothing: what the task itself returns is Celery's affair."""

    @property
    def capabilities(self) -> Capabilities:
        """What Celery can do for this task."""
        return Capabilities(
            delay=not self._task.request.is_eager,
            results=True,
            at_least_once=bool(self._task.acks_late),
            dead_letter=has_dead_letters(self._task),
        )


def check_storable(native: Any, what: str, value: Any) -> None:
    """Refuse what Celery's backend cannot store.

    Args:
        native: The Celery app.
        what: Whose value it is, for people.
        value: A result, or an answer.

    Raises:
        EngineError: It cannot be serialized.
    """
    if type(value) in PLAIN or isinstance(native.backend, DisabledBackend):
        return
    try:
        native.backend.encode(value)
    except Exception as error:
        raise unstorable(what, value, error, engine="celery") from error


def message_of(task: Any, args: Any, kwargs: Any) -> TaskMessage:
    """Make a message of what Celery knows of a run; what it does not know is None."""
    request = task.request
    info = request.delivery_info or {}
    header = (request.headers or {}).get(HEADER) or {}
    return TaskMessage(
        # Not the request's: the first of Celery 5.3 has none there in eager mode.
        task.name,
        tuple(args or ()),
        kwargs or {},
        uuid=request.id,
        priority=info.get("priority") or 0,
        created_at=None,
        attempt=None,
        queue=info.get("routing_key"),
        engine="celery",
        redelivered=None if request.is_eager else bool(info.get("redelivered")),
        metadata=header.get("metadata", {}),
    )


def settle(outcome: Attempt, task: Any, **options: Any) -> Any:
    """Return what Celery is to store, or raise what makes it do what the plugins decided.

    Args:
        outcome: The attempt's outcome.
        task: The native task that is at work.
        options: Celery's own, for another attempt.
    """
    if outcome.action == "succeed":
        return outcome.result
    error, request = outcome.error, task.request
    if outcome.action == "retry":
        # The limit was looked at already; Celery's own would end the run in another error.
        most = request.retries + 1
        if not request.is_eager:
            _store_retry(task, error)
        try:
            again = task.retry(
                exc=error,
                countdown=outcome.delay or 0,
                max_retries=most,
                throw=False,
                **options,
            )
        except Reject as unsent:
            msg = (
                f"engine 'celery', task {task.name!r}: a retry was decided, and the broker did"
                f" not take it: {unsent.reason}; look whether it runs, and has room"
            )
            raise EngineError(msg) from error
        finally:
            # Where Celery would keep it for the task's next run.
            vars(task).pop("override_max_retries", None)
        if not request.is_eager:
            # Celery would store the retry now, and the next attempt may have stored the end.
            if not _HEEDS_REQUEST:
                raise Ignore
            request.ignore_result = True
        raise again
    if outcome.action == "cancel" and not request.is_eager:
        _store(task, error, states.REVOKED)
        raise Ignore
    set_aside = outcome.action == "dead_letter" and not outcome.kept
    if set_aside and has_dead_letters(task) and not request.is_eager:
        _store(task, error, states.FAILURE)
        raise Reject(error, requeue=False)
    raise Ignore if error is None else error


def ignores_result(task: Any) -> bool:
    """Say whether nobody wants the result of the attempt at work; its message overrides the task.

    What the request's class says is a default of Celery's own, and nobody's wish.
    """
    wish: bool | None = vars(task.request).get("ignore_result")
    return bool(task.ignore_result if wish is None else wish)


def _store_retry(task: Any, error: BaseException | None) -> None:
    """Store that there will be another attempt, before there can be."""
    if ignores_result(task):
        return
    # It tells how far the run is, and nothing depends on it.
    with suppress(Exception):
        told = "".join(format_exception(error))
        task.backend.mark_as_retry(task.request.id, error, told, request=task.request)


def _store(task: Any, error: BaseException | None, state: str) -> None:
    """Store an end that Celery would store in another way, or not at all; for chords too."""
    request = task.request
    task.backend.mark_as_failure(
        request.id,
        error,
        request=request,
        store_result=not ignores_result(task),
        call_errbacks=state == states.FAILURE,
        state=state,
    )


def error_of(ticket: Any, error: Any) -> BaseException:
    """Say in our own words what Celery says of a run that it could not do."""
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
    return error if isinstance(error, BaseException) else EngineError(f"{who}: {error!r}")
