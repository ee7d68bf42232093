"""Replays recorded runs one after another: claims, sends and marks each.

``app.replay`` sends them, in place or to the app's engine. How a replay ends is known at once if it
runs in this process; otherwise the store has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final, NamedTuple

import attrs
from sqlalchemy.exc import SQLAlchemyError

from qtasks_hookspecs import Outcome, TaskMessage, hookimpl
from qtasks_hookspecs.exc import CapabilityError, EngineError, QTasksError
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.failures.claims import Claims, Recorded
from qtasks_pluggy.failures.connection import StoreError, unusable
from qtasks_pluggy.failures.records import FINAL
from qtasks_pluggy.failures.values import UnreadableError, read_args, read_kwargs

MARK_AGAIN: Final = (0.05, 0.2, 0.5)
"""Seconds between the tries to mark a run that was sent."""
WAIT_SECONDS: Final = 60.0
"""How long to wait for the end of one replay."""
LOOK_SECONDS: Final = 0.2
"""Seconds between two looks for it."""
_numbers: Final = count(1)
MOST_REFUSED: Final = 3
"""Runs in a row that an engine refuses before the replay stops."""
_GOOD: Final = frozenset({"succeeded", "recovered"})


@attrs.frozen(kw_only=True)
class Replayed:
    """The result of one run of a replay.

    Attributes:
        uuid: The id of the new run; None if nothing was sent.
        replay_of: The id of the run that is repeated.
        group: The fingerprint of the error that it failed with.
        status: How the new run ended; None if that is not known yet.
        why_not: Why nothing was sent; empty if it was.
    """

    uuid: str | None
    replay_of: str
    group: str
    status: str | None = None
    why_not: str = ""


@attrs.frozen
class OtherArguments:
    """Arguments that replace the recorded ones; None keeps them."""

    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None

    def refusal(self, run: Recorded) -> str | None:
        """Return why a run cannot be repeated with these; None if it can.

        Args:
            run: The run.
        """
        if run.not_replayable is None or (self.args is None and self.kwargs is None):
            return run.not_replayable
        try:
            self.message_of(run, None)
        except UnreadableError as error:
            return str(error) if run.arguments else run.not_replayable
        return None

    def message_of(self, run: Recorded, app: QueueTasks | None) -> TaskMessage:
        """Make a recorded run's message, as its engine carried it.

        Args:
            run: The run.
            app: The app, for what its task is declared with.

        Raises:
            UnreadableError: An argument cannot be read back.
        """
        text = run.arguments or ""
        task = None if app is None else app.tasks.get(run.task)
        return TaskMessage(
            run.task,
            read_args(text) if self.args is None else self.args,
            read_kwargs(text) if self.kwargs is None else self.kwargs,
            uuid=run.uuid,
            priority=getattr(getattr(task, "task_func", None), "priority", 0),
            attempt=run.attempts,
            queue=run.queue,
            engine=run.engine or None,
        )


class LeftOut(NamedTuple):
    """Why a run is not replayed: for a count of such runs, and of the one run."""

    kind: str
    why: str


def left_out(
    run: Recorded, app: QueueTasks, arguments: OtherArguments, *, again: bool = False
) -> LeftOut | None:
    """Return why a run is not to be replayed; None if it is.

    Args:
        run: The run.
        app: The app that will replay it.
        arguments: Other arguments than the recorded ones.
        again: Whether a run may be replayed a second time.
    """
    if run.app != app.name:
        why_not = f"was recorded by app {run.app!r}, and this is app {app.name!r}"
        return LeftOut(f"of app {run.app!r}", why_not)
    if run.task not in app.tasks:
        return LeftOut(
            f"of task {run.task!r}, which app {app.name!r} does not have",
            f"is of task {run.task!r}, which app {app.name!r} does not have;"
            f" its tasks are {', '.join(sorted(app.tasks)) or 'none'}",
        )
    if run.claimed_at is not None and not again:
        if run.sent_at is None:
            kind = "claimed by a replay that has not sent them"
            return LeftOut(
                kind,
                f"was claimed by a replay at {_at(run.claimed_at)} but not sent; if that replay"
                " was killed, use --again",
            )
        why_not = f"was replayed at {_at(run.sent_at)}, as run {run.sent_as}; use --again"
        return LeftOut("replayed already", why_not)
    refusal = arguments.refusal(run)
    if refusal is not None:
        why_not = f"cannot be replayed: {refusal}; pass the arguments by --args and --kwargs"
        return LeftOut("not replayable", why_not)
    return None


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


class Ends:
    """A plugin that records how the replays in this process end."""

    name = "failures-replay"

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, str]] = {}

    @hookimpl
    def task_executor_task_close(self, task_broker: TaskMessage, outcome: Outcome) -> None:
        """Record the status and fingerprint of a replay's end."""
        if "replay_of" in task_broker.metadata:
            end = str(outcome.status), outcome.fingerprint or ""
            self.known[str(task_broker.uuid)] = end


class Replay:
    """One replay of some runs, in an app that can send them.

    Args:
        app: The app, which is started.
        claims: The store's runs.
        arguments: Other arguments than the recorded ones.
        again: Whether runs may be replayed that were replayed before.
        rate: Runs a second, at most; None for no limit.
        stop_after: How many new runs may fail like the old ones before it stops; None for no bound.
        wait: Waits for a number of seconds.
    """

    def __init__(
        self,
        app: QueueTasks,
        claims: Claims,
        *,
        arguments: OtherArguments | None = None,
        again: bool = False,
        rate: float | None = None,
        stop_after: int | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._app = app
        self._claims = claims
        self._arguments = arguments or OtherArguments()
        self._again = again
        self._pause = 0.0 if rate is None else 1 / rate
        self._stop_after = stop_after
        self._wait = wait
        self._ends = Ends()
        self.done: Final[list[Replayed]] = []
        self.stopped: str = ""
        """Why it stopped before its last run; empty if it did not."""

    def run(self, runs: Iterable[Recorded]) -> Iterator[Replayed]:
        """Send runs, one after another.

        Args:
            runs: The runs.

        Yields:
            The result of each, once it was sent or refused.
        """
        # Several replays of one process each have their own.
        name = self._app.add_plugin(self._ends, f"{Ends.name}-{next(_numbers)}")
        try:
            yield from self._run(runs)
        finally:
            self._app.remove_plugin(name)

    def _run(self, runs: Iterable[Recorded]) -> Iterator[Replayed]:
        refused = alike = 0
        due = time.monotonic()
        for run in runs:
            if self._pause:
                self._wait(max(0.0, due - time.monotonic()))
                due = max(due, time.monotonic()) + self._pause
            try:
                one, is_engines = self._replay(run)
            except (StoreError, SQLAlchemyError, OSError) as error:
                self.stopped = unusable(self._claims.url, error)
                return
            refused = refused + 1 if is_engines else 0
            if one.uuid is not None and self._stop_after is not None:
                end = self._wait_for_end(one.uuid)
                alike += end is not None and end[0] in FINAL and end[1] == run.group
            yield one
            if refused >= MOST_REFUSED:
                self.stopped = f"{refused} runs in a row could not be sent: {one.why_not}"
                return
            if self._stop_after is not None and alike >= self._stop_after:
                self.stopped = f"{alike} of the new runs failed like the runs that they repeat"
                return

    def _replay(self, run: Recorded) -> tuple[Replayed, bool]:
        """Claim a run, send it, and mark it; say, too, whether the engine has refused it."""
        try:
            message = self._arguments.message_of(run, self._app)
        except UnreadableError as error:
            return self._not_sent(run, run.not_replayable or str(error)), False
        if not self._claims.claim(run, again=self._again):
            return self._not_sent(run, "another replay took it at this moment"), False
        try:
            uuid = str(self._app.replay(message))
        except (QTasksError, TypeError) as error:
            self._claims.release(run)
            is_engines = isinstance(error, EngineError) and not isinstance(error, CapabilityError)
            return self._not_sent(run, str(error)), is_engines
        except Exception as error:  # noqa: BLE001  # any error of an engine's own
            # It stays claimed: who wants it a second time says so.
            why_not = f"{type(error).__name__}: {error}; it may have been sent nevertheless"
            return self._not_sent(run, why_not), True
        self.done.append(one := Replayed(uuid=uuid, replay_of=run.uuid, group=run.group))
        try:
            self._mark_sent(run, uuid)
        except BaseException:
            # A lock that was held too long, or an interruption: it is sent all the same.
            with suppress(StoreError, SQLAlchemyError, OSError):
                self._claims.mark_sent(run, uuid)
            raise
        return one, False

    def _mark_sent(self, run: Recorded, uuid: str) -> None:
        """Mark a run; SQLite says at once that it is locked while another process opens it."""
        for pause in MARK_AGAIN:
            with suppress(StoreError, SQLAlchemyError, OSError):
                self._claims.mark_sent(run, uuid)
                return
            time.sleep(pause)
        self._claims.mark_sent(run, uuid)

    def _not_sent(self, run: Recorded, why_not: str) -> Replayed:
        one = Replayed(uuid=None, replay_of=run.uuid, group=run.group, why_not=why_not)
        self.done.append(one)
        return one

    def _wait_for_end(self, uuid: str) -> tuple[str, str] | None:
        until = time.monotonic() + WAIT_SECONDS
        while (end := self._end_of(uuid)) is None and time.monotonic() < until:
            self._wait(LOOK_SECONDS)
        return end

    def _end_of(self, uuid: str) -> tuple[str, str] | None:
        return self._ends.known.get(uuid) or self._claims.ends([uuid]).get(uuid)

    def mended(self) -> list[str]:
        """Find the groups without a failed run left: all were replayed, and these succeeded."""
        groups: dict[str, bool] = {}
        for one in self.results():
            groups[one.group] = groups.get(one.group, True) and one.status in _GOOD
        return [
            group
            for group, is_good in groups.items()
            if is_good and not self._claims.is_left(group)
        ]

    def results(self) -> list[Replayed]:
        """Return the result of each run, with its status if that is known by now."""
        sent = [one.uuid for one in self.done if one.uuid is not None]
        known: dict[str, tuple[str, str]] = {}
        with suppress(StoreError, SQLAlchemyError, OSError):
            known = self._claims.ends([one for one in sent if one not in self._ends.known])
        known |= self._ends.known
        return [
            attrs.evolve(one, status=known[one.uuid][0]) if one.uuid in known else one
            for one in self.done
        ]
