"""Runs whose worker process was lost are sent again, with a limit, as Celery 5.7 itself does."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from celery import Task
from celery.exceptions import Retry, WorkerLostError
from celery.worker.request import Request

# Seconds until such a run is sent again, and how many times, besides its retries.
AFTER_LOSS: Final = 1
LOSSES: Final = 10


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
        """Send the run again if its process was lost; leave the rest to Celery."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        request, most = self._context, self.task.max_retries
        if isinstance(error, WorkerLostError) and (most is None or request.retries < most):
            again = self.task.signature_from_request(
                request, countdown=AFTER_LOSS, retries=request.retries + 1
            )
            # If this fails, the message is not acknowledged, so the broker delivers it again.
            again.apply_async()
            exc_info.exception = Retry(exc=error)
        super().on_failure(exc_info, *args, **kwargs)
