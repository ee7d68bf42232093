"""The writing side of a store: batches of records, and retention."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Container, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import attrs
from sqlalchemy import URL, Connection, Select, Table, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from qtasks_pluggy.failures.connection import engine_for, file_of, prepare, set_durable
from qtasks_pluggy.failures.records import (
    FINAL,
    GOOD_REPLAY,
    SOFT,
    WAITING,
    Count,
    Record,
    RunKey,
    hour_of,
)
from qtasks_pluggy.failures.schema import (
    ACTS,
    ALTOGETHER,
    ATTEMPTS,
    COUNTS,
    GROUPS,
    GROUPS_OF,
    KEY,
    META,
    RUNS,
)

LOCK_SECONDS: Final = 1.0
"""Seconds that a batch waits for another process that writes; after that, it is retried later."""
MOST_DELETED: Final = 1_000
"""How many runs one step of retention deletes; more than one batch adds."""

Row: TypeAlias = dict[str, Any]


@attrs.frozen
class Keep:
    """How much a store keeps.

    Attributes:
        days: Days after which a run is deleted.
        runs: The maximum number of runs.
        recovered: The maximum number of recovered, and of retried, runs for each group and hour.
    """

    days: float = 30.0
    runs: int = 1_000_000
    recovered: int = 10


@attrs.frozen
class Batch:
    """What is written in one transaction.

    Attributes:
        records: Attempts to keep.
        counts: Everything else that happened, which is only counted.
        seen: The newest record of each group in those counts.
        dropped: How many final failures are only counted because there was no room.
        is_durable: Whether it must survive a power cut right after the write.
    """

    records: Sequence[Record]
    counts: Mapping[Count, int] = attrs.field(factory=dict)
    seen: Sequence[Record] = ()
    dropped: int = 0
    is_durable: bool = False


@attrs.frozen
class News:
    """The groups of a batch to log, one record each.

    Attributes:
        new: Groups that are new.
        regressed: Groups that were resolved, and failed again.
        early: Ends of runs that are not there, or not yet.
    """

    new: Sequence[Record]
    regressed: Sequence[Record]
    early: Sequence[Record] = ()


class Store:
    """The writing side of a store, for one thread of one process.

    Args:
        url: The store's address.
        keep: How much it keeps.
    """

    def __init__(self, url: URL, keep: Keep) -> None:
        self._keep = keep
        self._engine = engine_for(url, seconds=LOCK_SECONDS, writes=True)
        self._connection: Connection | None = None
        self._file: object = None

    def close(self) -> None:
        """Close the connection; the next batch opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def write(self, batch: Batch) -> News:
        """Write all of a batch or nothing; return the groups to log."""
        with self._transaction(is_durable=batch.is_durable) as transaction:
            return transaction.write(batch)

    def retain(self, now: float) -> bool:
        """Delete some of what need not be kept; return whether there may be more."""
        first = now - self._keep.days * 86_400
        with self._transaction() as transaction:
            has_more = transaction.delete_runs(first)
        if not has_more:
            # Another transaction, because writers lock groups before they lock all else.
            with self._transaction() as transaction:
                transaction.delete_groups(first)
        return has_more

    @contextmanager
    def _transaction(self, *, is_durable: bool = False) -> Generator[_Transaction]:
        if self._connection is not None and self._file != file_of(self._engine):
            # The file was removed or replaced, so a write to the old one would be lost.
            self.close()
        if self._connection is None:
            prepare(self._engine)
            self._connection, self._file = self._engine.connect(), file_of(self._engine)
        try:
            set_durable(self._connection, is_durable=is_durable)
            with self._connection.begin():
                yield _Transaction(self._connection, self._keep)
        except BaseException:
            # The connection may be in any state, so the next transaction opens a new one.
            self.close()
            raise


class _Transaction:
    """One transaction of a store."""

    def __init__(self, connection: Connection, keep: Keep) -> None:
        self._connection = connection
        self._keep = keep

    def write(self, batch: Batch) -> News:
        """Write a batch: groups, counts, runs and attempts."""
        batch = attrs.evolve(batch, records=self._placed(batch.records))
        news = self._write_groups(batch)
        known = self._known({one.uuid for one in batch.records})
        newest = {run: attempts for run, (attempts, _) in known.items()}
        places = {run: count for run, (_, count) in known.items()}
        counts = Counter(batch.counts)
        runs: dict[RunKey, Record] = {}
        ends: dict[RunKey, Record] = {}
        early: list[Record] = []
        for record in batch.records:
            if record.is_end:
                place = places.get(record.run)
                if place is None:
                    early.append(record)
                elif place[2] == WAITING and record.attempt >= newest[record.run]:
                    after = record.end_of(place)
                    counts.update({place: -1, after: 1})
                    places[record.run], ends[record.run] = after, record
            elif record.attempt >= newest.get(record.run, 0):
                counts.update(record.moves(places.get(record.run)))
                newest[record.run], places[record.run] = record.attempt, record.count
                runs[record.run] = record
                ends.pop(record.run, None)
        self._write_counts(counts)
        self._upsert(RUNS, [_run_row(one) for one in runs.values()])
        self._upsert(ATTEMPTS, [_attempt_row(one) for one in batch.records if one.told is not None])
        self._end(ends, places)
        self._add_to("runs", len(runs.keys() - known.keys()))
        self._add_to("dropped", batch.dropped)
        changed = {places[run][:3] for run in (*runs, *ends)}
        for group, hour, status in sorted(changed):
            if status in SOFT:
                self._trim(group, hour, status)
        return attrs.evolve(news, early=early)

    def _end(self, ends: Mapping[RunKey, Record], places: Mapping[RunKey, Count]) -> None:
        """Give runs that waited for an attempt the status of their end.

        One that succeeded keeps the time, the plugin and the decision of its last failure.
        """
        for run, end in ends.items():
            values: Row = {"status": end.status}
            if end.status not in SOFT:
                values |= {"decided_by": None, "decision": None, "reason": end.reason, "at": end.at}
                seen = update(GROUPS).where(GROUPS.c.id == places[run][0])
                seen = seen.where(GROUPS.c.last_seen < end.at).values(last_seen=end.at)
                self._connection.execute(seen)
            its = [RUNS.c[name] == value for name, value in zip(KEY, run, strict=True)]
            self._connection.execute(update(RUNS).where(*its).values(values))

    def _placed(self, records: Sequence[Record]) -> Sequence[Record]:
        """Put successful replays into the group of the run they repeat; drop those without one."""
        replays = [one for one in records if _is_good_replay(one)]
        if not replays:
            return records
        groups = self._groups_of({one.replay_of for one in replays})
        groups |= {one.uuid: one.group for one in records if one.told is not None}
        placed = [
            attrs.evolve(one, group=groups.get(one.replay_of, "")) if _is_good_replay(one) else one
            for one in records
        ]
        return [one for one in placed if one.group or one.is_end]

    def _groups_of(self, uuids: Collection[str | None]) -> dict[str | None, str]:
        """Find the groups of stored runs, by the runs' ids."""
        if not uuids:
            return {}
        found = self._connection.execute(GROUPS_OF, {"uuids": list(uuids)})
        return {row.uuid: row.group_id for row in found}

    def _write_groups(self, batch: Batch) -> News:
        groups: dict[str, list[Record]] = {}
        for record in (*batch.seen, *batch.records):
            if record.told is None:
                continue
            groups.setdefault(record.group, []).append(record)
        ended = self._groups_of({one.uuid for one in batch.records if one.is_end})
        found = self._connection.execute(_THERE, {"ids": [*groups, *ended.values()]})
        there = {row.id: row.state for row in found}
        if not groups:
            return News((), ())
        last = {group: max(some, key=_time) for group, some in groups.items()}
        rows = [_group_row(min(map(_time, groups[group])), last[group]) for group in sorted(groups)]
        new = self._insert_groups([row for row in rows if row["id"] not in there])
        old = [row for row in rows if row["id"] not in new]
        if old:
            seen = ("id", "message", "last_seen")
            changes = [{f"the_{name}": row[name] for name in seen} for row in old]
            self._many(_SEEN_AGAIN, changes)
        resolved = {group for group, state in there.items() if state == "resolved"}
        regressed = self._regress(_final_failures(batch, resolved)) if resolved else ()
        return News([last[group] for group in sorted(new)], regressed)

    def _regress(self, failures: Iterable[Record]) -> list[Record]:
        """Mark groups that failed after they were resolved; return each of them once."""
        last = {one.group: one for one in sorted(failures, key=_time)}
        return [
            last[group]
            for group in sorted(last)
            if self._connection.execute(
                _REGRESSED, {"the_id": group, "the_time": last[group].at}
            ).rowcount
        ]

    def _insert_groups(self, rows: list[Row]) -> set[str]:
        """Add groups; return those that no other process has added at the same time."""
        if not rows:
            return set()
        insert = _insert(self._connection)(GROUPS).values(rows).on_conflict_do_nothing()
        return set(self._connection.scalars(insert.returning(GROUPS.c.id)))

    def _known(self, uuids: Iterable[str]) -> dict[RunKey, tuple[int, Count]]:
        """Find the stored runs, with their attempts and the count that each belongs to."""
        rows = self._connection.execute(_KNOWN, {"uuids": list(uuids)})
        return {
            (row.uuid, row.app, row.engine): (
                row.attempts,
                (row.group_id, hour_of(row.at), row.status, row.decided_by or ""),
            )
            for row in rows
        }

    def _write_counts(self, counts: Mapping[Count, int]) -> None:
        changes: Counter[Count] = Counter()
        for (group, hour, status, plugin), runs in counts.items():
            changes[group, hour, status, plugin] += runs
            changes[group, ALTOGETHER, status, plugin] += runs
        names = _names(COUNTS)
        # Every process writes in the same order, so that two never wait for each other.
        rows = [(*count, runs) for count, runs in sorted(changes.items()) if runs]
        insert = _insert(self._connection)(COUNTS)
        more = {"runs": COUNTS.c.runs + insert.excluded.runs}
        added = insert.on_conflict_do_update(index_elements=_key(COUNTS), set_=more)
        self._many(added, [dict(zip(names, row, strict=True)) for row in rows])

    def _upsert(self, table: Table, rows: list[Row]) -> None:
        """Insert rows, or replace existing ones unless they are of a later attempt.

        Columns that a row does not name, such as who claimed the run, keep their values.
        """
        if not rows:
            return
        insert = _insert(self._connection)(table)
        key = _key(table)
        values = {name: insert.excluded[name] for name in rows[0] if name not in key}
        newer = insert.excluded.attempts >= RUNS.c.attempts if table is RUNS else None
        upsert = insert.on_conflict_do_update(index_elements=key, set_=values, where=newer)
        self._many(upsert, rows)

    def _many(self, statement: Any, rows: list[Row]) -> int:
        """Execute a statement for each row without SQLAlchemy's work per row, in half the time.

        Returns how many rows of the table it has changed.
        """
        if not rows:
            return 0
        names = list(rows[0])
        compiled = statement.compile(dialect=self._connection.dialect, column_keys=names)
        return self._connection.exec_driver_sql(str(compiled), rows).rowcount

    def _add_to(self, name: str, number: int) -> None:
        if number:
            change = {"value": META.c.value + number}
            self._connection.execute(update(META).where(META.c.name == name).values(change))

    def _trim(self, group: str, hour: int, status: str) -> None:
        """Delete all but the newest few of a group's recovered or retried runs of an hour."""
        begin = hour * 3600.0
        old = (
            select(*_RUN)
            .where(RUNS.c.group_id == group, RUNS.c.status == status)
            .where(RUNS.c.at >= begin, RUNS.c.at < begin + 3600)
            .order_by(RUNS.c.at.desc())
            .offset(self._keep.recovered)
            .limit(MOST_DELETED)
        )
        self._delete(old)

    def delete_runs(self, first: float) -> bool:
        """Delete some runs that are too old or too many; return whether there may be more."""
        keys = select(*_RUN).order_by(RUNS.c.at)
        deleted = self._delete(keys.where(RUNS.c.at < first).limit(MOST_DELETED))
        there = self._connection.scalar(select(META.c.value).where(META.c.name == "runs")) or 0
        if there > self._keep.runs:
            deleted += self._delete(keys.limit(min(there - self._keep.runs, MOST_DELETED)))
        return deleted >= MOST_DELETED

    def delete_groups(self, first: float) -> None:
        """Delete groups that were last seen before a time, and counts and acts from before it."""
        unseen = select(GROUPS.c.id).where(GROUPS.c.last_seen < first)
        # In the order in which batches lock them.
        locked = select(GROUPS.c.id).where(GROUPS.c.id.in_(unseen)).order_by(GROUPS.c.id)
        self._connection.execute(locked.with_for_update())
        self._connection.execute(
            delete(COUNTS).where(COUNTS.c.hour > ALTOGETHER, COUNTS.c.hour < hour_of(first))
        )
        self._connection.execute(delete(COUNTS).where(COUNTS.c.group_id.in_(unseen)))
        self._connection.execute(delete(GROUPS).where(GROUPS.c.last_seen < first))
        self._connection.execute(delete(ACTS).where(ACTS.c.at < first))

    def _delete(self, keys: Select[Any, Any, Any]) -> int:
        found = [dict(row) for row in self._connection.execute(keys).mappings()]
        if found:
            # Not all that were found: another process may delete the same ones.
            self._add_to("runs", -self._many(_BY_RUN[RUNS.name], found))
            self._many(_BY_RUN[ATTEMPTS.name], found)
        return len(found)


def _is_good_replay(record: Record) -> bool:
    """Return whether a record is of a replay that succeeded: it has no error and no group yet."""
    return record.status == GOOD_REPLAY and record.told is None


def _final_failures(batch: Batch, groups: Container[str]) -> list[Record]:
    """Find the final failures, including those that are only counted."""
    counted = {count[0] for count, runs in batch.counts.items() if count[2] in FINAL and runs > 0}
    found = [one for one in batch.records if one.status in FINAL]
    found += [one for one in batch.seen if one.group in counted]
    return [one for one in found if one.group in groups]


def _insert(connection: Connection) -> Any:
    return sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _key(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _time(record: Record) -> float:
    return record.at


def _group_row(first: float, last: Record) -> Row:
    told = _error_of(last)
    times = {"first_seen": first, "last_seen": last.at}
    return {"id": last.group, "task": last.task, "state": "open", **told, **times}


def _run_row(record: Record) -> Row:
    kept = record.arguments
    return {
        **{name: getattr(record, name) for name in _OF_RECORD},
        "group_id": record.group,
        "attempts": record.attempt,
        "arguments": kept.text,
        "not_replayable": kept.not_replayable,
    }


def _attempt_row(record: Record) -> Row:
    return {
        **dict(zip(KEY, record.run, strict=True)),
        "attempt": record.attempt,
        **_error_of(record),
        "traceback": "" if record.told is None else record.told.traceback,
        "seconds": record.seconds,
        "error_arguments": record.error_arguments,
        "trail": json.dumps([_line(one, record) for one in record.trail]),
    }


def _line(one: Any, record: Record) -> Row:
    line = {name: getattr(one, name) for name in _TRAIL}
    return {**line, "delay": record.delay} if one.won and one.kind == "Retry" else line


def _error_of(record: Record) -> Row:
    told = record.told
    return {"error": told.error if told else "", "message": told.message if told else ""}


_TRAIL: Final = (
    *("plugin", "distribution", "version", "handler", "hook", "status", "kind"),
    *("seconds", "observed", "won"),
)
# The names that a record and a run's row have in common.
_OF_RECORD: Final = tuple(
    name for name in _names(RUNS) if name in attrs.fields_dict(Record) and name != "arguments"
)
# Locked first, all of a batch in one order, so that no two processes wait for each other.
_THERE: Final = (
    select(GROUPS.c.id, GROUPS.c.state)
    .where(GROUPS.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(GROUPS.c.id)
    .with_for_update()
)
_SEEN_AGAIN: Final = (
    update(GROUPS)
    .where(GROUPS.c.id == bindparam("the_id"), GROUPS.c.last_seen <= bindparam("the_last_seen"))
    .values(message=bindparam("the_message"), last_seen=bindparam("the_last_seen"))
)
# A failure from before the group was resolved is not news, even if it is written later.
_REGRESSED: Final = (
    update(GROUPS)
    .where(GROUPS.c.id == bindparam("the_id"), GROUPS.c.state == "resolved")
    .where(GROUPS.c.state_since < bindparam("the_time"))
    .values(state="regressed", state_since=bindparam("the_time"))
)
_RUN: Final = [RUNS.c[name] for name in KEY]
_KNOWN: Final = select(
    *_RUN,
    *(RUNS.c[name] for name in ("group_id", "status", "attempts", "decided_by", "at")),
).where(RUNS.c.uuid.in_(bindparam("uuids", expanding=True)))
_BY_RUN: Final = {
    table.name: delete(table).where(*(table.c[name] == bindparam(name) for name in KEY))
    for table in (ATTEMPTS, RUNS)
}
