"""The reading side of a store: groups, runs, one run. Each query uses an index, newest first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs
from sqlalchemy import URL, Connection, Row, Select, bindparam, func, or_, select

from qtasks_pluggy.failures.connection import check, connect, engine_for, must_be_there
from qtasks_pluggy.failures.records import (
    FINAL,
    GOOD_REPLAY,
    IGNORED,
    STATES,
    WAITING,
    Attempt,
    Filters,
    Group,
    Repetition,
    Run,
    WholeRun,
)
from qtasks_pluggy.failures.schema import (
    ACTS,
    ALTOGETHER,
    ATTEMPTS,
    COUNTS,
    GROUPS,
    GROUPS_OF,
    IS_IGNORED,
    KEY,
    META,
    NEWEST,
    RUNS,
)

MOST_ORIGINALS: Final = 100
"""How far back the lineage of a run is followed."""
MOST_ASKED: Final = 500
"""Values that one statement asks for."""
READ_SECONDS: Final = 5.0
"""How long to wait while the store is locked."""


class Reader:
    """Reads a store.

    Args:
        url: Where it is.

    Raises:
        StoreError: There is none, it is another program's, or of a newer version.
        sqlalchemy.exc.SQLAlchemyError: It cannot be read.
    """

    def __init__(self, url: URL) -> None:
        must_be_there(url)
        if url.drivername == "sqlite":
            path = Path(url.database or "")
            if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
                # SQLite makes a file beside it even for reading, unless nobody writes.
                immutable = {"immutable": "1", "uri": "true"}
                url = url.set(database=f"file:{quote(str(path))}", query=immutable)
        self._engine = engine_for(url, seconds=READ_SECONDS, writes=False)
        with connect(self._engine) as connection:
            check(connection)

    def groups(self, filters: Filters) -> list[Group]:
        """Find groups, most recent first."""
        with self._engine.connect() as connection:
            rows = list(islice(_found_groups(connection, filters), filters.limit))
        counts = self.counts(row.id for row in rows) if rows else {}
        return [
            Group(
                id=row.id,
                task=row.task,
                error=row.error,
                message=row.message,
                state=row.state,
                first_seen=_time(row.first_seen),
                last_seen=_time(row.last_seen),
                counts=dict(sorted(counts.get(row.id, {}).items())),
            )
            for row in rows
        ]

    def counts(self, groups: Iterable[str]) -> dict[str, dict[str, int]]:
        """Count the runs of groups by how they ended, the most frequent first."""
        runs = func.sum(COUNTS.c.runs)
        wanted = (
            select(COUNTS.c.group_id, COUNTS.c.status, runs)
            .where(COUNTS.c.group_id.in_(list(groups)), COUNTS.c.hour == ALTOGETHER)
            .group_by(COUNTS.c.group_id, COUNTS.c.status)
            .having(runs > 0)
            .order_by(runs.desc(), COUNTS.c.status)
        )
        found: dict[str, dict[str, int]] = {}
        with self._engine.connect() as connection:
            for group, status, number in connection.execute(wanted):
                found.setdefault(group, {})[status] = int(number)
        return found

    def runs(self, filters: Filters) -> list[Run]:
        """Find runs that failed at least once, the newest first; good replays if asked for."""
        wanted = _runs(filters).order_by(RUNS.c.at.desc()).limit(filters.limit)
        if filters.status is None:
            wanted = wanted.where(RUNS.c.status != GOOD_REPLAY)
        return [_run(row) for row in self._newest(filters, wanted)]

    def run(self, uuid: str) -> WholeRun | None:
        """Find one run with all that is kept of it; if two have the id, the newer one."""
        wanted = _runs(Filters()).where(RUNS.c.uuid == uuid)
        with self._engine.connect() as connection:
            last = wanted.order_by(RUNS.c.at.desc()).limit(1)
            row = connection.execute(last, {"the_time": 0.0}).first()
            if row is None:
                return None
            key = [ATTEMPTS.c[name] == getattr(row, name) for name in KEY]
            attempts = connection.execute(
                select(ATTEMPTS).where(*key).order_by(ATTEMPTS.c.attempt)
            ).all()
            replays = _replays(connection, row)
        given = json.loads(row.arguments or '{"hidden": true}')
        is_shown = not given.get("hidden")
        return WholeRun(
            run=_run(row),
            args=given["args"] if is_shown else None,
            kwargs=given["kwargs"] if is_shown else None,
            replays=replays,
            attempts=[
                Attempt(
                    attempt=one.attempt,
                    error=one.error,
                    message=one.message,
                    traceback=one.traceback,
                    seconds=one.seconds,
                    trail=json.loads(one.trail),
                )
                for one in attempts
            ],
        )

    def originals(self, replay_of: str | None) -> list[str]:
        """Find the run that a run repeats, the one that that repeats, and so on.

        Args:
            replay_of: The run that it repeats itself, if it repeats one.
        """
        found: list[str] = []
        with self._engine.connect() as connection:
            while replay_of is not None and replay_of not in found and len(found) < MOST_ORIGINALS:
                found.append(replay_of)
                before = select(RUNS.c.replay_of).where(RUNS.c.uuid == replay_of).limit(1)
                replay_of = connection.scalar(before)
        return found

    def to_replay(self, filters: Filters, *, is_claimed: bool | None) -> list[str]:
        """Find the ids of runs to replay, the newest first: of failed ones, or as filters say.

        Args:
            filters: Which runs.
            is_claimed: Whether a replay has claimed them; None for either.
        """
        wanted: Any = (
            _runs(filters)
            .with_only_columns(RUNS.c.uuid, RUNS.c.at)
            .order_by(RUNS.c.at.desc())
            .limit(filters.limit)
        )
        if is_claimed is not None:
            claimed = RUNS.c.claimed_at
            wanted = wanted.where(claimed.is_not(None) if is_claimed else claimed.is_(None))
        if filters.status is None:
            wanted = wanted.where(RUNS.c.status.in_(FINAL))
        return [row.uuid for row in self._newest(filters, wanted)]

    def _newest(self, filters: Filters, wanted: Select[Any]) -> Sequence[Row[Any]]:
        """Find the newest of the wanted runs."""
        with self._engine.connect() as connection:
            if _narrows_groups(connection, filters):
                return _newest_of_groups(connection, filters, wanted)
            return connection.execute(wanted, {"the_time": filters.since}).all()

    def ids_from(self, beginning: str, limit: int) -> list[str]:
        """Find the ids of runs that begin with some characters, in order.

        Args:
            beginning: The characters.
            limit: How many at most.
        """
        begins = RUNS.c.uuid.startswith(beginning, autoescape=True)
        wanted = select(RUNS.c.uuid).where(begins).distinct().order_by(RUNS.c.uuid).limit(limit)
        with self._engine.connect() as connection:
            return list(connection.scalars(wanted))

    def tasks(self) -> list[str]:
        """Find the names of the tasks that failed, in order."""
        wanted = select(GROUPS.c.task).distinct().order_by(GROUPS.c.task)
        with self._engine.connect() as connection:
            return list(connection.scalars(wanted))

    def groups_of(self, uuids: Iterable[str]) -> dict[str, str]:
        """Find the groups of stored runs, by the runs' ids."""
        with self._engine.connect() as connection:
            return {
                uuid: group
                for some in parts(uuids)
                for uuid, group in connection.execute(GROUPS_OF, {"uuids": some})
            }

    def acts(self, limit: int, before: int | None = None) -> Sequence[Row[Any]]:
        """Find what people did, most recent first.

        Args:
            limit: How many at most.
            before: Only what they did before the act of this id.
        """
        # A condition in any case, so that the key is searched.
        older = ACTS.c.id > 0 if before is None else ACTS.c.id < before
        wanted = select(ACTS).where(older).order_by(ACTS.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return connection.execute(wanted).all()

    def dropped(self) -> int:
        """Return how many final failures were only counted, for lack of room."""
        with self._engine.connect() as connection:
            wanted = select(META.c.value).where(META.c.name == "dropped")
            return connection.scalar(wanted) or 0


def _found_groups(connection: Connection, filters: Filters) -> Iterator[Row[Any]]:
    wanted = (
        select(GROUPS)
        .where(GROUPS.c.last_seen >= filters.since, GROUPS.c.state.in_(filters.states))
        .order_by(GROUPS.c.last_seen.desc())
    )
    if filters.group is not None:
        wanted = wanted.where(GROUPS.c.id == filters.group)
    if filters.error is not None:
        short = GROUPS.c.error.endswith(f".{filters.error}", autoescape=True)
        wanted = wanted.where(or_(GROUPS.c.error == filters.error, short))
    # A group may have lost its runs: later attempts failed of another cause.
    ended = select(COUNTS.c.runs).where(
        COUNTS.c.group_id == GROUPS.c.id, COUNTS.c.hour == ALTOGETHER, COUNTS.c.runs > 0
    )
    if filters.status is not None:
        ended = ended.where(COUNTS.c.status == filters.status)
    if filters.plugin is not None:
        ended = ended.where(COUNTS.c.plugin == filters.plugin)
    wanted = wanted.where(ended.exists())
    if filters.text is not None:
        wanted = wanted.where(GROUPS.c.message.icontains(filters.text, autoescape=True))
    for row in connection.execute(wanted):
        if filters.task is None or fnmatchcase(row.task, filters.task):
            yield row


def _newest_of_groups(
    connection: Connection, filters: Filters, wanted: Select[Any]
) -> Sequence[Row[Any]]:
    """Find the newest runs of some groups, by each one's key; no group is read whole."""
    by_group = wanted.where(RUNS.c.group_id == bindparam("the_group"))
    newest: list[Row[Any]] = []
    since = filters.since
    # A group has its last error's text only, and a run is found by its own.
    for group in _found_groups(connection, attrs.evolve(filters, text=None)):
        if group.last_seen < since:
            break  # they come newest first: no later one has a newer run
        rows = connection.execute(by_group, {"the_group": group.id, "the_time": since})
        newest = sorted([*newest, *rows], key=lambda row: row.at, reverse=True)[: filters.limit]
        if len(newest) == filters.limit:
            since = newest[-1].at
    return newest


def _narrows_groups(connection: Connection, filters: Filters) -> bool:
    """Return whether the filters exclude some groups."""
    by_group = (filters.group, filters.task, filters.error, filters.plugin, filters.status)
    if any(one is not None for one in by_group):
        return True
    left_out = set(STATES).difference(filters.states)
    if left_out == {IGNORED}:
        return connection.scalar(_AN_IGNORED) is not None
    return bool(left_out)


def _replays(connection: Connection, run: Row[Any]) -> list[Repetition]:
    """Find the replays of a run: the recorded ones, and one that is not recorded yet."""
    rows = connection.execute(
        select(RUNS.c.uuid, RUNS.c.status)
        .where(RUNS.c.replay_of == run.uuid)
        .order_by(RUNS.c.replay_of, RUNS.c.at)
    )
    known = {row.uuid: None if row.status == WAITING else row.status for row in rows}
    if run.sent_as is not None:
        known.setdefault(run.sent_as, None)
    found: list[tuple[str | None, str | None]] = [*known.items()]
    if run.claimed_at is not None and run.sent_at is None:
        found.append((None, None))
    return [Repetition(uuid=uuid, replay_of=run.uuid, status=status) for uuid, status in found]


def _runs(filters: Filters) -> Select[Any]:
    """Select runs with the errors of their newest attempts."""
    wanted = select(RUNS, ATTEMPTS.c.error, ATTEMPTS.c.message).select_from(NEWEST)
    wanted = wanted.where(RUNS.c.at >= bindparam("the_time"))
    if filters.status is not None:
        wanted = wanted.where(RUNS.c.status == filters.status)
    if filters.plugin is not None:
        wanted = wanted.where(RUNS.c.decided_by == filters.plugin)
    if filters.text is not None:
        wanted = wanted.where(ATTEMPTS.c.message.icontains(filters.text, autoescape=True))
    return wanted


def _run(row: Row[Any]) -> Run:
    return Run(
        uuid=row.uuid,
        task=row.task,
        app=row.app or None,
        engine=row.engine or None,
        queue=row.queue,
        status=row.status,
        error=row.error or "",
        message=row.message or "",
        group=row.group_id,
        attempts=row.attempts,
        decided_by=row.decided_by,
        decision=row.decision,
        reason=row.reason,
        at=_time(row.at),
        replayable=row.not_replayable is None,
        not_replayable=row.not_replayable,
        replay_of=row.replay_of,
        replayed_as=row.sent_as,
    )


def parts(values: Iterable[str]) -> Iterator[list[str]]:
    """Cut values into parts that fit into one statement."""
    left = iter(values)
    while some := list(islice(left, MOST_ASKED)):
        yield some


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


_AN_IGNORED: Final = select(GROUPS.c.id).where(IS_IGNORED).limit(1)
