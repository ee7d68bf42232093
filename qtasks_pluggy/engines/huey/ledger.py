"""A ledger in Huey's own SQLite file, so that no run is lost with its worker.

Huey deletes a message when a worker takes it, so a killed worker loses the runs that it was
executing. With the ledger a worker moves the message to a queue of its own, in the same table, and
deletes it when the run is over. When a worker starts, it puts back what dead workers had taken.

============================  ==================================================================
``NAME``                      messages that wait, as without the ledger
``NAME:qtasks_pluggy:T:PID``  messages that a process of the consumer T has taken
``NAME:qtasks_pluggy``        in the table ``kv``: which of those that wait were put back
============================  ==================================================================

A message that is due leaves the schedule in the transaction that enqueues it. A run's next attempt
takes the place of its message in one transaction, too.

Only one consumer at a time, with all its threads or processes, executes the runs of a Huey. It
holds a lock on a file next to the database.

This module replaces ``execute`` of the Huey, and ``dequeue``, ``enqueue``, ``add_to_schedule`` and
``read_schedule`` of its storage, which use the tables ``task``, ``schedule`` and ``kv``.
"""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import attrs
from huey import Huey

from qtasks_pluggy.engines import log_event
from qtasks_pluggy.engines.huey.lock import ConsumerLock


@attrs.define
class Taken:
    """A message that this worker has taken.

    Attributes:
        row: Its row in the table.
        again: Whether a dead worker had taken it before.
        uuid: The run's id, when the run has begun.
    """

    row: int
    again: bool
    uuid: str | None = None


_taken: Final[ContextVar[Taken | None]] = ContextVar("qtasks_pluggy_huey_taken", default=None)


def id_of(huey: Huey, data: bytes) -> str | None:
    """Return the id of a message's run; None if the message cannot be read."""
    with suppress(Exception):
        return str(huey.serializer.deserialize(data).id)
    return None


class Ledger:
    """The runs of one Huey that have not ended.

    Args:
        huey: A Huey on SQLite.
    """

    def __init__(self, huey: Huey) -> None:
        storage: Any = huey.storage
        self._huey, self._storage, self._name = huey, storage, storage.name
        self._again = f"{storage.name}:qtasks_pluggy"
        self._token = uuid4().hex
        self._lock = ConsumerLock(f"{storage.filename}-{quote(storage.name, safe='')}.lock")
        # Whoever is the consumer in this process, and what lets one at a time join them.
        self._holders: set[Any] = set()
        self._joining = threading.Lock()
        # The due messages that Huey is about to enqueue, and their rows, by their runs' ids.
        self._due: dict[Any, tuple[int, bytes]] = {}
        self._native_execute = huey.execute
        huey.execute = self._execute
        storage.dequeue = self._dequeue
        storage.enqueue = self._enqueue
        storage.add_to_schedule = self._add_to_schedule
        storage.read_schedule = self._read_schedule
        # Huey returns from an interrupted run as from one that is over.
        huey.signal("interrupted")(lambda *_: _taken.set(None))

    def open(self, holder: Any = None) -> None:
        """Become the consumer, and put back what dead workers had taken; each worker calls this.

        Args:
            holder: Who is the consumer until it calls ``close``; None for this thread.

        Raises:
            EngineError: Another consumer is running, or the lock's file cannot be used.
        """
        with self._joining:
            self._lock.acquire()
            lost = [] if self._holders else self._recover()
            self._holders.add(holder or threading.get_ident())
        if lost:
            log_event("warning", "huey_runs_recovered", count=len(lost), first=lost[:20])

    def close(self, holder: Any = None) -> None:
        """Stop being the consumer; the last one allows another consumer."""
        with self._joining:
            self._holders.discard(holder or threading.get_ident())
            if not self._holders:
                self._lock.release()

    def _recover(self) -> list[str]:
        """Put back what dead workers had taken, and return the runs' ids."""
        lost: list[str] = []
        with self._storage.db(commit=True) as cursor:
            # These begin with a colon after the name, and the next character is the semicolon.
            queues = f"{self._again}:", f"{self._again};"
            cursor.execute("select id, queue, data from task where queue between ? and ?", queues)
            for row, queue, data in cursor.fetchall():
                if self._is_at_work(queue):
                    continue
                uuid, back = id_of(self._huey, data), self._name
                if uuid is None:
                    hint = "it was not changed; a worker with the code that sent it can read it"
                    log_event("error", "huey_ledger_entry_unreadable", row=row, hint=hint)
                    # Process 0 is always there, so this consumer's other workers skip the message.
                    back = f"{self._again}:{self._token}:0"
                else:
                    lost.append(uuid)
                cursor.execute("update task set queue = ? where id = ?", (back, row))
                mark = "insert or replace into kv (queue, key, value) values (?, ?, ?)"
                cursor.execute(mark, (self._again, str(row), data))
        return lost

    def drop(self, data: bytes) -> None:
        """Delete a message that workers cannot read."""
        with self._storage.db(commit=True) as cursor:
            cursor.execute("delete from task where data = ?", (data,))
            cursor.execute("delete from schedule where data = ?", (data,))

    @property
    def _mine(self) -> str:
        return f"{self._again}:{self._token}:{os.getpid()}"

    def _is_at_work(self, queue: str) -> bool:
        """Return whether another process of this consumer has this queue."""
        *_, token, pid = queue.split(":")
        if token == self._token and queue != self._mine:
            with suppress(OSError):
                os.kill(int(pid), 0)
                return True
        return False

    def _dequeue(self) -> bytes | None:
        """Take the next message."""
        # As Huey does: without the lock that a transaction needs.
        look = "select 1 from task where queue = ? limit 1"
        if not self._storage.sql(look, (self._name,), results=True):
            return None
        first = "select id, data from task where queue = ? order by priority desc, id limit 1"
        with self._storage.db(commit=True) as cursor:
            cursor.execute(first, (self._name,))
            if (found := cursor.fetchone()) is None:
                return None
            row, data = found
            cursor.execute("update task set queue = ? where id = ?", (self._mine, row))
            # A worker without the ledger leaves the mark, and SQLite uses a row's id again.
            mark = self._again, str(row), data
            cursor.execute("delete from kv where queue = ? and key = ? and value = ?", mark)
            _taken.set(Taken(row, cursor.rowcount > 0))
        return bytes(data)

    def _execute(self, task: Any, timestamp: datetime | None = None) -> Any:
        """Execute a task, and delete its message when the run is over."""
        taken = _taken.get()
        task.redelivered = taken is not None and taken.again
        if taken is not None:
            taken.uuid = task.id
        try:
            value = self._native_execute(task, timestamp)
        except Exception as error:
            # If the run's end could not be stored, the next consumer repeats the run.
            if not isinstance(error, sqlite3.Error):
                self._delete()
            raise
        self._delete()
        return value

    def _delete(self) -> None:
        if (taken := _taken.get()) is not None:
            with self._storage.db(commit=True) as cursor:
                self._forget(cursor, taken)

    def _forget(self, cursor: Any, taken: Taken) -> None:
        # SQLite uses a row's id again, so a row that is not in this queue is another message.
        cursor.execute("delete from task where id = ? and queue = ?", (taken.row, self._mine))
        _taken.set(None)

    def _read_schedule(self, now: datetime) -> list[bytes]:
        """Read what is due, each message once; one that Huey cannot read stays in the schedule."""
        rows = self._storage.sql(
            "select id, data from schedule where queue = ? and timestamp <= ?"
            " order by timestamp, id",
            (self._name, now.timestamp()),
            results=True,
        )
        due: list[bytes] = []
        for row, data in rows:
            uuid = id_of(self._huey, data) or data
            if uuid not in self._due:
                self._due[uuid] = row, data
                due.append(data)
        return due

    def _add_to_schedule(self, data: bytes, eta: datetime) -> None:
        """Schedule a message."""
        insert = "insert into schedule (queue, data, timestamp) values (?, ?, ?)"
        self._put(data, insert, eta.timestamp())

    def _enqueue(self, data: bytes, priority: float | None = None) -> None:
        """Enqueue a message."""
        insert = "insert into task (queue, data, priority) values (?, ?, ?)"
        self._put(data, insert, priority or 0)

    def _put(self, data: bytes, insert: str, order: float) -> None:
        """Insert a message, and delete the one whose place it takes.

        That is the same run's message, which was due, or which this worker has taken.
        """
        taken = _taken.get()
        uuid = id_of(self._huey, data) if taken is not None or self._due else None
        due = self._due.pop(uuid, None)
        with self._storage.db(commit=True) as cursor:
            if due is not None:
                cursor.execute("delete from schedule where id = ? and data = ?", due)
                if not cursor.rowcount:
                    # Another consumer has enqueued it, before it was refused.
                    return
            cursor.execute(insert, (self._name, data, order))
            if taken is not None and uuid == taken.uuid:
                self._forget(cursor, taken)
