"""Finds the runs of a replay, and marks them so that no run is taken twice.

A replay claims a run, sends it, and marks it as sent. Each is a transaction of its own, so what a
killed replay has sent is marked, and at most one run is claimed and not sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs
from sqlalchemy import URL, Row, select, update

from qtasks_pluggy.failures.acts import note
from qtasks_pluggy.failures.connection import check, connect, engine_for, must_be_there
from qtasks_pluggy.failures.queries import parts
from qtasks_pluggy.failures.records import FINAL, WAITING, RunKey
from qtasks_pluggy.failures.schema import ACTS, ATTEMPTS, KEY, NEWEST, RUNS

LOCK_SECONDS: Final = 10.0
"""How long a claim or a mark waits for other writers."""


@attrs.frozen(kw_only=True)
class Recorded:
    """A recorded run, with all that a replay needs.

    Attributes:
        uuid: Its id.
        app: The app's name; empty for an executor without one.
        engine: The engine's name; empty in place.
        task: The task's name.
        queue: The queue that it came from; None if there is none.
        status: How it ended.
        attempts: How many attempts it had.
        group: The fingerprint of its error.
        arguments: Its arguments, as ``Encoder`` wrote them; None if none are kept.
        not_replayable: Why they cannot be passed to a task again; None if they can.
        replay_of: The run that it repeats; None if it repeats none.
        claimed_at: When a replay claimed it, in seconds since the epoch; None where none did.
        sent_at: When it was sent; None if it was not, or if the replay was killed first.
        sent_as: The id of the newest run that repeats it; None where none was sent.
        error: The class of its newest attempt's error, with its module; a built-in one bare.
        message: That error's text.
        error_arguments: That error's own arguments; None if they are not kept.
    """

    uuid: str
    app: str
    engine: str
    task: str
    queue: str | None
    status: str
    attempts: int
    group: str
    arguments: str | None
    not_replayable: str | None
    replay_of: str | None
    claimed_at: float | None
    sent_at: float | None
    sent_as: str | None
    error: str
    message: str
    error_arguments: str | None

    @property
    def key(self) -> RunKey:
        """The run's key."""
        return self.uuid, self.app, self.engine


class Claims:
    """Finds recorded runs, and marks those that a replay takes.

    Args:
        url: The store.

    Raises:
        StoreError: There is none, it is another program's, or of another version.
        sqlalchemy.exc.SQLAlchemyError: It cannot be used.
    """

    def __init__(self, url: URL) -> None:
        self.url: Final = url
        must_be_there(url)
        self._reading = engine_for(url, seconds=LOCK_SECONDS, writes=False)
        self._writing = engine_for(url, seconds=LOCK_SECONDS, writes=True)
        with connect(self._reading) as connection:
            check(connection)

    def find(self, uuids: Iterable[str]) -> Iterator[Recorded]:
        """Find runs by their ids, in the order of the ids; of two with one id, the newer one.

        Args:
            uuids: The ids; those of no run are left out.
        """
        for some in parts(uuids):
            with self._reading.connect() as connection:
                rows = connection.execute(_RECORDED.where(RUNS.c.uuid.in_(some))).all()
            found = {row.uuid: _recorded(row) for row in sorted(rows, key=lambda row: row.at)}
            yield from (found[uuid] for uuid in some if uuid in found)

    def claim(self, run: Recorded, *, again: bool = False) -> bool:
        """Claim a run for a replay.

        Args:
            run: The run, as it was found.
            again: Whether it may have been claimed before it was found.

        Returns:
            Whether nobody else has claimed it; with ``again``, since it was found.
        """
        # ``=`` is never true of NULL.
        before, column = run.claimed_at, RUNS.c.claimed_at
        same = column == before if again and before is not None else column.is_(None)
        with self._writing.begin() as connection:
            taken = _of(run.key).where(same).values(claimed_at=time.time(), sent_at=None)
            return connection.execute(taken).rowcount == 1

    def mark_sent(self, run: Recorded, uuid: str) -> None:
        """Mark a run as sent.

        Args:
            run: The run, which is claimed.
            uuid: The id of the run that repeats it.
        """
        with self._writing.begin() as connection:
            sent = _of(run.key).values(sent_at=time.time(), sent_as=uuid)
            connection.execute(sent)

    def release(self, run: Recorded) -> None:
        """Release a claimed run that could not be sent."""
        before = {"claimed_at": run.claimed_at, "sent_at": run.sent_at}
        with self._writing.begin() as connection:
            connection.execute(_of(run.key).values(**before))

    def is_left(self, group: str) -> bool:
        """Return whether a group has a failed run that no replay has claimed."""
        left = select(RUNS.c.uuid).where(
            RUNS.c.group_id == group, RUNS.c.status.in_(FINAL), RUNS.c.sent_at.is_(None)
        )
        with self._reading.connect() as connection:
            return connection.execute(left.limit(1)).first() is not None

    def begin_act(self, number: int, *, who: str, scope: str) -> int:
        """Record that a replay begins; return the id of the act.

        Args:
            number: How many runs it is about.
            who: The person who replays.
            scope: What was asked for, for people.
        """
        with self._writing.begin() as connection:
            return note(connection, "replay", number, who=who, scope=scope)

    def end_act(self, act: int, number: int) -> None:
        """Record how many runs a replay has sent."""
        with self._writing.begin() as connection:
            connection.execute(update(ACTS).where(ACTS.c.id == act).values(number=number))

    def ends(self, uuids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Find the recorded outcomes of runs.

        Args:
            uuids: Their ids.

        Returns:
            The status and the group of each that is over, by its id.
        """
        over = select(RUNS.c.uuid, RUNS.c.status, RUNS.c.group_id).where(RUNS.c.status != WAITING)
        found: dict[str, tuple[str, str]] = {}
        with self._reading.connect() as connection:
            for some in parts(uuids):
                for row in connection.execute(over.where(RUNS.c.uuid.in_(some))):
                    found[row.uuid] = row.status, row.group_id
        return found


def _of(key: RunKey) -> Any:
    return update(RUNS).where(*(RUNS.c[name] == one for name, one in zip(KEY, key, strict=True)))


def _recorded(row: Row[Any]) -> Recorded:
    names = [one.name for one in attrs.fields(Recorded) if one.name != "group"]
    values: dict[str, Any] = {name: getattr(row, name) for name in names}
    for name in ("error", "message"):
        values[name] = values[name] or ""
    return Recorded(**values, group=row.group_id)


_RECORDED: Final = select(
    RUNS, ATTEMPTS.c.error, ATTEMPTS.c.message, ATTEMPTS.c.error_arguments
).select_from(NEWEST)
