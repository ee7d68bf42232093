"""Runs whose worker process was lost are sent again, with a limit, as Celery 5.7 itself does."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from celery import Task
from celery.exceptions import WorkerLostError
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.exceptions import OperationalError

# Seconds until such a run is sent again, and how many times, besides its retries.
AFTER_LOSS: Final = 1
LOSSES: Final = 10
_log: Final = get_logger(__name__)


def survive_losses(max_retries: int | None) -> dict[str, Any]:
    """Return the options of a task whose runs outlive the loss of their process.

    Losses are counted, unlike rejections, so a run that kills its workers ends.

    Args:
        max_retries: The task's own bound; None for no bound.
    """
    again = (
        {"retry_on_worker_lost": True}
        if hasattr(Task, "retry_on_worker_lost")
        # Past the limit a rejection, which ``at_least_once`` asks for, would requeue it forever.
        else {"Request": CountedRequest, "reject_on_worker_lost": False}
    )
    most = None if max_retries is None else max_retries + LOSSES
    return {"acks_late": True, "default_retry_delay": AFTER_LOSS, "max_retries": most, **again}


class CountedRequest(Request):  # type: ignore[misc]  # it has no types
    """A message in a worker's main process; Celery below 5.7 fails it when its child is lost."""

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Send the run again if its process was lost; leave other failures to Celery."""
        error = exc_info.exception
        error = getattr(error, "exc", error)
        if not isinstance(error, WorkerLostError) or not self._sent_again():
            super().on_failure(exc_info, *args, **kwargs)
            return
        task_ready(self)
        # After sending: a kill in between has the run happen twice, and does not lose it.
        self.acknowledge()
        self.send_event("task-retried", exception=saferepr(error), traceback=exc_info.traceback)

    def _sent_again(self) -> bool:
        request, most = self._context, self.task.max_retries
        if most is not None and request.retries >= most:
            return False
        again = self.task.signature_from_request(
            request, countdown=AFTER_LOSS, retries=request.retries + 1
        )
        try:
            again.apply_async()
        except OperationalError:
            _log.exception("Task %s[%s] was lost and cannot be sent again", self.name, self.id)
            return False
        return True
