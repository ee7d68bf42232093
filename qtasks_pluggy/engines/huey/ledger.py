"""A ledger in Huey's own SQLite file, so that no run is lost with its worker.

Huey deletes a message when a worker takes it, so a killed worker loses the runs that it was
executing. The ledger keeps a copy of each message until its run has ended. When a consumer starts,
it enqueues again every run in the ledger that is neither queued nor running.

Only one consumer at a time, with all its threads or processes, executes the runs of a Huey. It
holds a lock on a file next to the database.

This module replaces three methods of the Huey's storage: ``enqueue`` and ``add_to_schedule`` write
a message and its copy in one transaction, and ``read_schedule`` waits for the recovery. These use
the tables ``kv``, ``task`` and ``schedule``; the rest uses Huey's signals and hooks.
"""

# Huey has no types, and we set attributes on its tasks.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import os
import pickle
from datetime import datetime
from typing import Any, Final

import attrs
from huey import Huey
from huey.api import Task
from huey.constants import EmptyData

from qtasks_pluggy.engines import lock_of, log_event
from qtasks_pluggy.engines._errors import PLAIN, text_of
from qtasks_pluggy.engines.huey.lock import ConsumerLock

_PREFIX: Final = "qtasks-ledger:"
_VERSION: Final = 1
# How many of the recovered runs their event names.
_SHOWN: Final = 20


@attrs.frozen
class Entry:
    """One run in the ledger.

    Attributes:
        data: The message, as Huey serialized it.
        priority: The message's priority.
        owner: The consumer and the process that are executing it; None while it waits.
        again: Whether a worker had started it and was lost.
    """

    data: bytes
    priority: float | None = None
    owner: tuple[str, int] | None = None
    again: bool = False

    def pack(self) -> bytes:
        """Serialize it with a version, so that another version can tell that it cannot read it."""
        return pickle.dumps({"version": _VERSION, **attrs.asdict(self)})

    @classmethod
    def unpack(cls, uuid: str, raw: Any) -> Entry | None:
        """Read an entry; if it is damaged or of another version, log that and return None."""
        try:
            given = pickle.loads(raw)  # noqa: S301  # as Huey reads its own messages
            version = given.pop("version")
            if version == _VERSION:
                return cls(**given)
            why = f"it has version {version!r}, but this is version {_VERSION}"
        except Exception as error:  # noqa: BLE001  # whatever reading what others wrote raises
            why = text_of(error)
        hint = "it was not changed; a consumer of the version that wrote it can execute the run"
        log_event("error", "huey_ledger_entry_unreadable", uuid=uuid, why=why, hint=hint)
        return None


class Ledger:
    """The runs of one Huey that have not ended.

    Args:
        huey: A Huey on SQLite.
    """

    def __init__(self, huey: Huey) -> None:
        self._huey = huey
        self._storage: Any = huey.storage
        self._lock = lock_of(self)
        self._consumer = ConsumerLock(huey)
        # Ended runs by the runs that follow them (both by id), until the followers are enqueued.
        self._followed: dict[str, str] = {}
        self._native_read_schedule = self._storage.read_schedule
        self._storage.enqueue = self._enqueue
        self._storage.add_to_schedule = self._add_to_schedule
        self._storage.read_schedule = self._read_schedule
        name = "qtasks_pluggy-ledger"
        huey.signal("revoked", "expired", "canceled")(self._drop)
        huey.pre_execute(name=name)(self._begin)
        huey.post_execute(name=name)(self._after)
        huey.on_shutdown(name=name)(self._consumer.release)

    def get(self, uuid: str) -> Entry | None:
        """Look up a run; return None if it has ended, or if its entry cannot be read."""
        raw = self._storage.peek_data(_PREFIX + uuid)
        return None if raw is EmptyData else Entry.unpack(uuid, raw)

    def delete(self, uuid: str) -> None:
        """Delete the entry of a run that has ended."""
        self._storage.pop_data(_PREFIX + uuid)

    def open(self) -> None:
        """Become the consumer of this Huey, and enqueue lost runs again; each worker calls this.

        Raises:
            EngineError: Another consumer is running.
        """
        with self._lock:
            self._consumer.acquire()
            # In one transaction: other workers of this consumer may be recovering too.
            with self._storage.db(commit=True) as cursor:
                lost = self._lost(cursor)
                for uuid, entry in lost.items():
                    again = entry.again or entry.owner is not None
                    self._put(cursor, uuid, attrs.evolve(entry, owner=None, again=again))
                    self._put_task(cursor, entry.data, entry.priority)
                self._consumer.sign()
        if lost:
            known = list(lost)[:_SHOWN]
            log_event("warning", "huey_runs_recovered", count=len(lost), first=known)

    def _lost(self, cursor: Any) -> dict[str, Entry]:
        """Find the runs that are neither queued nor running, oldest first."""
        name, found = self._storage.name, dict[str, Entry]()
        cursor.execute(
            "select key, value from kv where queue = ? and key glob ?", (name, f"{_PREFIX}*")
        )
        stored = cursor.fetchall()
        cursor.execute(
            "select data from task where queue = ? union all"
            " select data from schedule where queue = ?",
            (name, name),
        )
        waiting = {data for (data,) in cursor.fetchall()}
        is_new = self._consumer.is_new()
        for key, raw in stored:
            uuid = key.removeprefix(_PREFIX)
            entry = Entry.unpack(uuid, raw)
            if entry is None or entry.data in waiting:
                continue
            # Another worker of this consumer may have taken the run without having started it.
            if is_new if entry.owner is None else not self._consumer.has(entry.owner):
                found[uuid] = entry
        return found

    def _enqueue(self, data: bytes, priority: float | None = None) -> None:
        """Enqueue a message together with its copy."""
        with self._storage.db(commit=True) as cursor:
            self._enter(cursor, data)
            self._put_task(cursor, data, priority)

    def _add_to_schedule(self, data: bytes, eta: datetime) -> None:
        """Schedule a message together with its copy."""
        with self._storage.db(commit=True) as cursor:
            self._enter(cursor, data)
            cursor.execute(
                "insert into schedule (queue, data, timestamp) values (?, ?, ?)",
                (self._storage.name, data, eta.timestamp()),
            )

    def _read_schedule(self, now: datetime) -> list[bytes]:
        """Read the due messages; return none until a worker has recovered the lost runs."""
        if self._consumer.is_new():
            # A message that the scheduler has read but not yet enqueued would look lost.
            return []
        due: list[bytes] = self._native_read_schedule(now)
        return due

    def _enter(self, cursor: Any, data: bytes) -> None:
        message = self._huey.serializer.deserialize(data)
        self._put(cursor, message.id, Entry(data, message.priority))
        before = self._followed.pop(message.id, "")
        cursor.execute(
            "delete from kv where queue = ? and key = ?", (self._storage.name, _PREFIX + before)
        )

    def _put(self, cursor: Any, uuid: str, entry: Entry) -> None:
        cursor.execute(
            "insert or replace into kv (queue, key, value) values (?, ?, ?)",
            (self._storage.name, _PREFIX + uuid, entry.pack()),
        )

    def _put_task(self, cursor: Any, data: bytes, priority: float | None) -> None:
        cursor.execute(
            "insert into task (queue, data, priority) values (?, ?, ?)",
            (self._storage.name, data, priority or 0),
        )

    def _drop(self, _: str, task: Task) -> None:
        """Delete the entry of a run that Huey does not start; a repeated one is entered again."""
        self.delete(task.id)

    def _begin(self, task: Task) -> None:
        """Note who executes a run."""
        entry = self.get(task.id) or Entry(self._huey.serialize_task(task), task.priority)
        task.redelivered = entry.again
        owned = attrs.evolve(entry, owner=(self._consumer.token, os.getpid()))
        self._storage.put_data(_PREFIX + task.id, owned.pack())
        execute, task.storable = task.execute, self.storable
        task.execute = lambda: self.storable(execute())

    def storable(self, value: Any) -> Any:
        """Fail a run whose result cannot be stored; otherwise it would never end."""
        if self._huey.results and type(value) not in PLAIN:
            self._huey.serializer.serialize(value)
        return value

    def _after(self, task: Task, _: Any, exception: BaseException | None) -> None:
        """Delete the entry of a run that has ended, unless another attempt or task follows."""
        if exception is None and task.on_complete is not None:
            self._followed[task.on_complete.id] = task.id
        elif exception is None or not task.retries:
            self.delete(task.id)


def ledger_of(huey: Huey) -> Ledger:
    """Return the only ledger of a Huey; the first call creates it."""
    ledger: Ledger | None = getattr(huey, "qtasks_pluggy_ledger", None)
    if ledger is None:
        ledger = huey.qtasks_pluggy_ledger = Ledger(huey)
    return ledger
