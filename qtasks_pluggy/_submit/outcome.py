"""What an attempt comes to, for the run's host to carry out, and how a submitted run ends."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, Literal

import attrs

from qtasks_hookspecs import Outcome
from qtasks_hookspecs.exc import TaskCancelError, TaskDeadLetteredError
from qtasks_pluggy._plugins.trail import Trail


class TaskStatus(StrEnum):
    """How far a submitted run is."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"
    dead_lettered = "dead_lettered"


_STATUS: Final = {
    "succeed": TaskStatus.succeeded,
    "cancel": TaskStatus.cancelled,
    "dead_letter": TaskStatus.dead_lettered,
}


@attrs.define(eq=False)
class Attempt:
    """What one attempt of a run came to, for the run's host to carry out.

    ``outcome`` is what plugins get; the rest is what the host does.

    Attributes:
        action: What is to be done. ``pass`` lets an error go on unchanged, because the host acts on
            it: an engine's own control exception, or one that is not an ``Exception``.
        error: What the caller will see; for a retry, the error that it answers; None on success.
        delay: Seconds before the next attempt; None leaves it to the host.
        reason: Why, for people.
        result: The result, on success.
        outcome: How the attempt ended; None for a success that no plugin observes.
        will_retry: Whether the run goes on: by a retry, or because the engine itself repeats it.
        kept: Whether a plugin keeps the dead letter, so that the engine's own place is not used.
    """

    action: Literal["succeed", "fail", "retry", "cancel", "dead_letter", "pass"]
    error: BaseException | None = None
    delay: float | None = None
    reason: str = ""
    result: Any = None
    outcome: Outcome | None = None
    will_retry: bool = False
    kept: bool = False

    @property
    def status(self) -> TaskStatus:
        """How a run ends whose last attempt this is."""
        return _STATUS.get(self.action, TaskStatus.failed)


@attrs.frozen(eq=False)
class RunResult:
    """How a submitted run ended.

    Attributes:
        status: One of the four ends.
        result: The result, on success.
        error: What the caller is to see, otherwise.
        trail: Who was asked; None if the engine cannot carry it.
    """

    status: TaskStatus
    result: Any = None
    error: BaseException | None = None
    trail: Trail | None = None


def status_from(error: Any) -> TaskStatus:
    """Return how a run ended, by the error that its caller gets."""
    if isinstance(error, TaskDeadLetteredError):
        return TaskStatus.dead_lettered
    return TaskStatus.cancelled if isinstance(error, TaskCancelError) else TaskStatus.failed
