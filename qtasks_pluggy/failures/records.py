"""What is recorded, and what is read again: one frozen class for each kind of row.

What is read has the fields that ``--json`` promises, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from qtasks_pluggy.failures.errors import Told
from qtasks_pluggy.failures.values import Arguments

TRIGGER: Final = "task_executor_run_task_trigger_error"
"""The hook whose answers decide, as trails name it."""
OUTCOMES: Final = ("failed", "dead_lettered", "cancelled", "recovered", "retried")
"""How an attempt ends that does not simply succeed."""
WAITING: Final = "waiting"
"""The status of a run that is to be retried; ``retried`` is that of one that then succeeded."""
FAILED_ONCE: Final = (*OUTCOMES, WAITING)
GOOD_REPLAY: Final = "succeeded"
STATUSES: Final = (*FAILED_ONCE, GOOD_REPLAY)
FINAL: Final = frozenset({"failed", "dead_lettered"})
SOFT: Final = frozenset({"recovered", "retried"})
IGNORED: Final = "ignored"
STATES: Final = ("open", "regressed", "resolved", IGNORED)

RunKey: TypeAlias = tuple[str, str, str]
"""A run's id, app and engine."""

Count: TypeAlias = tuple[str, int, str, str]
"""What is counted: a group's runs of one hour and status, by the plugin that decided."""


@attrs.frozen(kw_only=True)
class Record:
    """One attempt that did not simply succeed, a successful replay, or the end of a waiting run.

    Attributes:
        uuid: The run's id.
        app: The app's name; empty for an executor without one.
        engine: The engine's name; empty in place.
        attempt: Which attempt it was, from 1.
        task: The task's name.
        queue: The queue that the run came from; None if there is none.
        status: The run's status after the attempt, one of ``STATUSES``.
        group: The fingerprint of the error; the store finds it if there is none.
        told: The error; None of a replay that succeeded, and of the end of a run that waited.
        at: When it ended, in seconds since the epoch.
        seconds: How long it took.
        decided_by: The plugin that decided; None if no plugin did.
        decision: The kind of the decision.
        reason: Why, for people.
        trail: Who was asked in this attempt.
        arguments: The run's arguments.
        error_arguments: The error's own arguments, as text; None if they cannot be read back.
        replay_of: The id of the run that this one repeats; None if it repeats none.
        delay: Seconds until the next attempt; None if nobody gave any.
    """

    uuid: str
    app: str
    engine: str
    attempt: int
    task: str
    queue: str | None
    status: str
    group: str
    told: Told | None
    at: float
    seconds: float
    decided_by: str | None
    decision: str | None
    reason: str
    trail: tuple[Any, ...]
    arguments: Arguments
    error_arguments: str | None
    replay_of: str | None
    delay: float | None = None

    @property
    def run(self) -> RunKey:
        """The run's key."""
        return self.uuid, self.app, self.engine

    @property
    def is_end(self) -> bool:
        """Whether it only says how a run ended that waited for its next attempt."""
        return self.told is None and self.status != GOOD_REPLAY

    @property
    def size(self) -> int:
        """About how many bytes of memory its values take, besides what every record takes."""
        error = 0 if self.told is None else self.told.size
        return error + self.arguments.size + len(self.error_arguments or "")

    @property
    def count(self) -> Count:
        """Where its run is counted, until a later attempt ends otherwise."""
        return self.group, hour_of(self.at), self.status, self.decided_by or ""

    def end_of(self, before: Count) -> Count:
        """Return where a run is counted that it ends.

        Args:
            before: Where the run is counted so far.
        """
        if self.status in SOFT:
            return (*before[:2], self.status, before[3])
        return (before[0], hour_of(self.at), self.status, "")

    def moves(self, before: Count | None) -> dict[Count, int]:
        """Return how it changes the counts: a run is counted once, by its newest attempt.

        Args:
            before: Where its run is counted so far; None if the run is not known.
        """
        if before is None and self.attempt > 1:
            # Counted when it was retried, and no longer kept. Most runs fail the same way again.
            before = (self.group, hour_of(self.at), "retried", "")
        changes = {self.count: 1}
        if before is not None:
            changes[before] = changes.get(before, 0) - 1
        return changes


def hour_of(seconds: float) -> int:
    """Return the hour of a time, counted from the epoch; 0 stands for all of them."""
    return max(1, int(seconds // 3600))


@attrs.frozen(kw_only=True)
class Filters:
    """Which groups or runs to find; None or empty for any.

    Attributes:
        group: A group's id.
        task: A glob for the task's name.
        error: The error's class, with its module or without.
        plugin: The plugin that decided.
        status: How runs ended.
        states: The states of groups.
        since: Seconds since the epoch.
        text: A part of the error's text; the case of letters is ignored.
        limit: The most groups or runs; None for all.
    """

    group: str | None = None
    task: str | None = None
    error: str | None = None
    plugin: str | None = None
    status: str | None = None
    states: Sequence[str] = STATES
    since: float = 0.0
    text: str | None = None
    limit: int | None = 100


@attrs.frozen(kw_only=True)
class Group:
    """Failures of one cause; times are ISO 8601 in UTC, and counts are by status."""

    id: str
    task: str
    error: str
    message: str
    state: str
    first_seen: str
    last_seen: str
    counts: dict[str, int]


@attrs.frozen(kw_only=True)
class Run:
    """A run that failed at least once, with the error of its newest failed attempt."""

    uuid: str
    task: str
    app: str | None
    engine: str | None
    queue: str | None
    status: str
    error: str
    message: str
    group: str
    attempts: int
    decided_by: str | None
    decision: str | None
    reason: str
    at: str
    replayable: bool
    not_replayable: str | None
    replay_of: str | None
    replayed_as: str | None


@attrs.frozen(kw_only=True)
class Attempt:
    """One stored attempt of a run."""

    attempt: int
    error: str
    message: str
    traceback: str
    seconds: float
    trail: list[dict[str, Any]]


def about_retry(line: Mapping[str, Any], attempt: int) -> str:
    """Say when a retry in a trail was due, or why it did not count; empty for all else.

    Args:
        line: A line of the trail.
        attempt: Its attempt.
    """
    if line["kind"] != "Retry":
        return ""
    if line["status"] == "no_opinion":
        return f"limit reached after {attempt - 1} retr{'y' if attempt == 2 else 'ies'}"  # noqa: PLR2004  # one retry
    delay = line.get("delay")  # none in what older versions recorded
    return "" if delay is None else f"after {delay:,.2f}".rstrip("0").rstrip(".") + " s"


@attrs.frozen(kw_only=True)
class Repetition:
    """A run that repeats another one, and how it ended.

    ``status`` is None if that is not known, and ``uuid`` if a replay has claimed the run and
    not sent it.
    """

    uuid: str | None
    replay_of: str
    status: str | None


@attrs.frozen(kw_only=True)
class WholeRun:
    """A run with everything stored about it; arguments are as stored, None if they are hidden."""

    run: Run
    args: list[Any] | None
    kwargs: dict[str, Any] | None
    replays: list[Repetition]
    attempts: list[Attempt]
