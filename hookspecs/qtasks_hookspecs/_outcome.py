"""How one attempt of a run ended."""

from __future__ import annotations

from enum import StrEnum

import attrs


class OutcomeStatus(StrEnum):
    """The ways in which an attempt can end."""

    succeeded = "succeeded"
    recovered = "recovered"
    retried = "retried"
    failed = "failed"
    cancelled = "cancelled"
    dead_lettered = "dead_lettered"


@attrs.frozen(kw_only=True, eq=False)
class Outcome:
    """How one attempt ended.

    Attributes:
        status: The way in which it ended.
        error: The task's own error, unwrapped; of ``Raise(x)`` it is ``x``; None on success.
        decided_by: The name of the plugin whose decision it was; None where nobody decided.
        reason: Why, for people; empty where no reason was given.
        delay: Seconds before the next attempt; None where there is none, or the engine chooses.
        seconds: How long the attempt took.
        attempt: Which attempt it was, from 1.
    """

    status: OutcomeStatus
    error: BaseException | None = None
    decided_by: str | None = None
    reason: str = ""
    delay: float | None = None
    seconds: float = 0.0
    attempt: int = 1
