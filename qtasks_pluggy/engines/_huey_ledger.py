"""What keeps a run that a killed worker was doing: a ledger in Huey's own storage.

Huey deletes a message when a worker takes it, so a worker that is killed takes its runs with it.
The ledger holds a copy of each message from its submission until its end, and who is doing it.
"""

# Huey has no types, and its tasks carry what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import os
import pickle
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs
from huey import CancelExecution, Huey
from huey.api import Task
from huey.constants import EmptyData
from huey.utils import Error

from qtasks_pluggy import TaskStatus
from qtasks_pluggy.engines import RunResult, lock_of, log_event
from qtasks_pluggy.engines._huey_presence import presence_on
from qtasks_pluggy.engines._huey_storage import let_fork
from qtasks_pluggy.exc import EngineError

# Where what is ours travels: in the keywords of a message, and in the stored result of an error.
HEADER: Final = "_qtasks_pluggy"
_PREFIX: Final = "qtasks-ledger:"
# Seconds that a living process may need to say that it has the message that it took.
_BETWEEN: Final = 1.0
# How often a run is begun whose end cannot be stored.
_MOST: Final = 5
# Seconds between attempts to write while the storage cannot be used: about half a minute in all.
_PAUSES: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 15.0)
_SHOWN: Final = 20


@attrs.frozen
class Entry:
    """One run in the ledger.

    Attributes:
        data: The message, as Huey serialized it; empty once the run was cancelled and has its end.
        priority: The message's.
        owner: The process that is doing it; None while it waits.
        deliveries: How often it has been begun.
    """

    data: bytes
    priority: float | None = None
    owner: int | None = None
    deliveries: int = 0

    @property
    def is_cancelled(self) -> bool:
        """Whether a worker that comes upon the message has to drop it, and no more."""
        return not self.data


class Ledger:
    """The runs of one Huey that have not ended.

    Args:
        huey: One on SQLite; all processes that use its file are on this machine.

    Raises:
        EngineError: The file beside the database cannot be written.
    """

    def __init__(self, huey: Huey) -> None:
        self._huey = huey
        self._storage: Any = huey.storage
        try:
            self._presence = presence_on(self._storage.filename)
        except OSError as error:
            msg = (
                f"engine 'huey', the ledger: the file {error.filename!r}, by which workers know"
                f" each other, cannot be used: {error.strerror}; let this user write there, or"
                " go without the ledger"
            )
            raise EngineError(msg) from error
        let_fork(self._storage)
        self._lock = lock_of(self)
        self._recovered_in = 0
        self._troubled = False
        name = "qtasks_pluggy-ledger"
        huey.signal("enqueued")(self._enqueued)
        huey.signal("revoked", "expired", "canceled")(self._dropped)
        huey.pre_execute(name=name)(self._begin)
        huey.post_execute(name=name)(self._after)
        huey.on_startup(name=name)(self._recover_or_leave)
        huey.execute = self._then_strike_out(huey.execute)
        huey.enqueue = self._noting_trouble(huey.enqueue)
        huey.read_schedule = self._after_trouble(huey.read_schedule)

    def put(self, task: Task, data: bytes) -> None:
        """Enter a run that is about to be enqueued."""
        self._write(task.id, Entry(data, task.priority))
        task.in_ledger = True

    def get(self, uuid: str) -> Entry | None:
        """Look a run up."""
        raw = self._storage.peek_data(_PREFIX + uuid)
        return None if raw is EmptyData else _entry_of(raw)

    def cancel(self, uuid: str) -> None:
        """Note that a run that waits has its end, so that no worker gives it another."""
        self._write(uuid, Entry(b""))

    def is_cancelled(self, uuid: str) -> bool:
        """Say whether a run was cancelled while it waited."""
        entry = self.get(uuid)
        return entry is not None and entry.is_cancelled

    def delete(self, uuid: str) -> None:
        """Strike out a run that has ended."""
        self._storage.pop_data(_PREFIX + uuid)

    def find(self, data: bytes) -> str | None:
        """Look up which run a message is that cannot be read."""
        for uuid, entry in self._entries(self._storage.result_items()).items():
            if entry.data == data:
                return uuid
        return None

    def recover_once(self, *, anew: bool = False) -> None:
        """Recover before this process takes its first run; its other threads wait for it.

        Args:
            anew: Also if it has done so, for workers that it had before.
        """
        with self._lock:
            if anew or self._recovered_in != os.getpid():
                self.recover()
                self._recovered_in = os.getpid()

    def recover(self) -> list[str]:
        """Enqueue the runs that were lost.

        Returns:
            Their ids.
        """
        with self._presence.alone():
            lost = self._lost()
            if any(entry.owner is None for entry in lost.values()):
                # A process may be about to say that it has them.
                time.sleep(_BETWEEN)
                again = self._lost()
                lost = {uuid: again[uuid] for uuid in lost if uuid in again}
            for uuid, entry in lost.items():
                self._enqueue(uuid, entry)
        if lost:
            known = list(lost)[:_SHOWN]
            log_event("warning", "huey_runs_recovered", count=len(lost), first=known)
        return list(lost)

    def _lost(self) -> dict[str, Entry]:
        """Find the runs that are neither waiting nor being done, oldest first."""
        # The ledger first: what is enqueued in between is then in both.
        stored = self._storage.result_items()
        waiting = [*self._storage.enqueued_items(), *self._storage.scheduled_items()]
        ids, unreadable = set[str](), set[bytes]()
        for data in waiting:
            try:
                ids.add(self._huey.serializer.deserialize(data).id)
            except Exception:  # noqa: BLE001  # whatever reading a message of others raises
                unreadable.add(data)
        lost = {}
        for uuid, entry in self._entries(stored).items():
            if uuid in ids or entry.data in unreadable:
                continue
            if entry.owner is not None and self._presence.is_at_work(entry.owner):
                continue
            if entry.is_cancelled or self._has_ended(stored.get(uuid)):
                self.delete(uuid)
            else:
                lost[uuid] = entry
        return lost

    def _has_ended(self, raw: Any) -> bool:
        """Say whether a stored result is an end, not the error before a retry."""
        with suppress(Exception):
            if raw is not None:
                stored = self._huey.serializer.deserialize(raw)
                return not isinstance(stored, Error) or HEADER in stored.metadata
        return False

    def _entries(self, stored: dict[str, Any]) -> dict[str, Entry]:
        return {
            key.removeprefix(_PREFIX): _entry_of(raw)
            for key, raw in stored.items()
            if key.startswith(_PREFIX)
        }

    def _enqueued(self, _: str, task: Task) -> None:
        if not getattr(task, "in_ledger", False):
            self.put(task, self._huey.serialize_task(task))
        task.in_ledger = False

    def _begin(self, task: Task) -> None:
        entry = self.get(task.id) or Entry(self._huey.serialize_task(task), task.priority)
        if entry.is_cancelled:
            # Since Huey looked; what it would have found then nobody looks for any more.
            self._huey.restore_by_id(task.id)
            raise CancelExecution(retry=False)
        task.redelivered = entry.deliveries > 0
        owner, deliveries = self._presence.token, entry.deliveries + 1
        self._write(task.id, attrs.evolve(entry, owner=owner, deliveries=deliveries))

    def _after(self, task: Task, _: Any, exception: BaseException | None) -> None:
        task.over = exception is None or not task.retries
        if not task.over:
            # Until Huey has enqueued the next attempt, this is where it is known.
            task.retries -= 1
            data = self._huey.serialize_task(task)
            task.retries += 1
            self._write(task.id, Entry(data, task.priority))

    def _dropped(self, _: str, task: Task) -> None:
        task.over = True

    def _then_strike_out(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        """Forget a run after all that Huey does at its end, tasks that follow it included."""

        def execute_and_strike_out(task: Task, timestamp: Any = None) -> Any:
            try:
                value = execute(task, timestamp)
            except sqlite3.Error as error:
                log_event("error", "huey_end_not_stored", task=task.name, uuid=task.id, why=error)
                self._wait_for_room(task)
                _insist(self._put_back, task)
                raise
            except Exception as error:
                if hasattr(task, "redelivered"):
                    self._end_by(task, error)
                raise
            if getattr(task, "over", False):
                _insist(self.delete, task.id)
            return value

        return execute_and_strike_out

    def _end_by(self, task: Task, error: Exception) -> None:
        """End a run that was done and whose end does not pickle: another time comes to the same."""
        huey = self._huey
        if huey.results:
            _insist(huey.put_if_empty, task.id, Error(huey.build_error_result(task, error)))
        _insist(self.delete, task.id)

    def _wait_for_room(self, task: Task) -> None:
        """Give the disk some time before what was done in vain is done again."""
        with suppress(sqlite3.Error):
            entry = self.get(task.id)
            if entry is not None and entry.deliveries < _MOST:
                time.sleep(_PAUSES[entry.deliveries])

    def _put_back(self, task: Task) -> None:
        """Let a run be done again whose end could not be stored."""
        entry = self.get(task.id)
        if entry is None:
            return
        if entry.deliveries < _MOST:
            self._enqueue(task.id, entry)
            return
        msg = (
            f"engine 'huey', task {task.name!r}: its end cannot be stored, the last of {_MOST}"
            " times; if it is too large for the disk, return a path instead"
        )
        self._huey.put_result(task.id, RunResult(TaskStatus.failed, error=EngineError(msg)))
        self.delete(task.id)

    def _enqueue(self, uuid: str, entry: Entry) -> None:
        self._write(uuid, attrs.evolve(entry, owner=None))
        self._storage.enqueue(entry.data, entry.priority)

    def _noting_trouble(self, enqueue: Callable[..., Any]) -> Callable[..., Any]:
        """Remember when the scheduler could not enqueue what it has taken out already."""

        def enqueue_or_note(task: Any) -> Any:
            try:
                return enqueue(task)
            except sqlite3.Error:
                self._troubled = True
                raise

        return enqueue_or_note

    def _after_trouble(self, read_schedule: Callable[..., Any]) -> Callable[..., Any]:
        def recover_and_read(*args: Any) -> Any:
            if self._troubled:
                self.recover()
                self._troubled = False
            return read_schedule(*args)

        return recover_and_read

    def _recover_or_leave(self) -> None:
        try:
            self.recover_once()
        except Exception as error:
            log_event("error", "worker_cannot_start", app=self._huey.name, exc_info=error)
            # Not an Exception, which Huey would log, and take runs with those lost left lost.
            raise SystemExit(str(error)) from error

    def _write(self, uuid: str, entry: Entry) -> None:
        self._storage.put_data(_PREFIX + uuid, pickle.dumps(attrs.astuple(entry)))


def ledger_of(huey: Huey) -> Ledger:
    """Give the one ledger of a Huey, which it has from then on."""
    ledger: Ledger | None = getattr(huey, "qtasks_pluggy_ledger", None)
    if ledger is None:
        ledger = huey.qtasks_pluggy_ledger = Ledger(huey)
    return ledger


def _entry_of(raw: Any) -> Entry:
    return Entry(*pickle.loads(raw))  # noqa: S301  # as Huey reads its own messages


def _insist(write: Callable[..., Any], *args: Any) -> None:
    """Write, though the storage may be of no use for a while; else the next start sees to it."""
    for pause in _PAUSES:
        try:
            write(*args)
        except sqlite3.Error:
            time.sleep(pause)
        else:
            return
    write(*args)
