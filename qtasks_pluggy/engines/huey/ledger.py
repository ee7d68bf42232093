"""What keeps a run that a killed worker was doing: a ledger in Huey's own storage.

Huey deletes a message when a worker takes it, so a worker that is killed takes its runs with it.
The ledger has a copy of each message from before it is enqueued until its run has ended. What is
neither waiting nor being done when a consumer begins was lost, and is enqueued again.

One consumer at a time, with all of its threads or processes, does the runs of a Huey: it holds a
lock on a file beside the database. Of Huey's own the ledger uses signals, hooks and the storage;
its tables ``kv``, ``task`` and ``schedule``, to recover in one transaction.
"""

# Huey has no types, and its tasks carry what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import os
import pickle
import time
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import attrs
from huey import Huey
from huey.api import Task
from huey.constants import EmptyData

from qtasks_pluggy.engines import lock_of, log_event
from qtasks_pluggy.engines._errors import PLAIN
from qtasks_pluggy.exc import EngineError

_PREFIX: Final = "qtasks-ledger:"
_VERSION: Final = 1
# Seconds that may be between an entry and the message, of those who live.
_BETWEEN: Final = 1.0
_SHOWN: Final = 20


@attrs.frozen
class Entry:
    """One run in the ledger.

    Attributes:
        data: The message, as Huey serialized it.
        priority: The message's.
        owner: The consumer and the process that are doing it; None while it waits.
        again: Whether it was begun before, by a worker that was lost.
    """

    data: bytes
    priority: float | None = None
    owner: tuple[str, int] | None = None
    again: bool = False

    def pack(self) -> bytes:
        """Write it down, so that another version can tell that it cannot read it."""
        return pickle.dumps({"version": _VERSION, **attrs.asdict(self)})

    @classmethod
    def unpack(cls, raw: Any) -> Entry:
        """Read it.

        Raises:
            Exception: It is damaged, or another version's.
        """
        given = pickle.loads(raw)  # noqa: S301  # as Huey reads its own messages
        if given.pop("version") != _VERSION:
            msg = f"expected version {_VERSION}"
            raise ValueError(msg)
        return cls(**given)


class Ledger:
    """The runs of one Huey that have not ended.

    Args:
        huey: One on SQLite.
    """

    def __init__(self, huey: Huey) -> None:
        self._huey = huey
        self._storage: Any = huey.storage
        self._lock = lock_of(self)
        self._consumer = ConsumerLock(huey)
        # Runs that another follows, which is not enqueued yet, by the id of that one.
        self._followed: dict[str, str] = {}
        name = "qtasks_pluggy-ledger"
        huey.signal("enqueued", "scheduled")(self._waits)
        huey.signal("revoked", "expired", "canceled")(self._drop)
        huey.pre_execute(name=name)(self._begin)
        huey.post_execute(name=name)(self._after)
        huey.on_shutdown(name=name)(self._consumer.release)

    def get(self, uuid: str) -> Entry | None:
        """Look a run up; None of one that has ended, or whose entry cannot be read."""
        raw = self._storage.peek_data(_PREFIX + uuid)
        return None if raw is EmptyData else _read(uuid, raw)

    def delete(self, uuid: str) -> None:
        """Strike out a run that has ended."""
        self._storage.pop_data(_PREFIX + uuid)

    def open(self) -> None:
        """Be the consumer of this Huey, and enqueue what the last one lost; in each worker.

        Raises:
            EngineError: Another consumer is.
        """
        with self._lock:
            self._consumer.acquire()
            with self._storage.db() as cursor:
                lost = self._lost(cursor)
            if any(entry.owner is None for entry in lost.values()):
                # A client may be about to enqueue it, or a worker to note that it has it.
                time.sleep(_BETWEEN)
            # In one transaction: other workers of this consumer may be about to do the same.
            with self._storage.db(commit=True) as cursor:
                lost = {uuid: entry for uuid, entry in self._lost(cursor).items() if uuid in lost}
                for uuid, entry in lost.items():
                    self._enqueue(cursor, uuid, entry)
                self._consumer.sign()
        if lost:
            known = list(lost)[:_SHOWN]
            log_event("warning", "huey_runs_recovered", count=len(lost), first=known)

    def _lost(self, cursor: Any) -> dict[str, Entry]:
        """Find the runs that are neither waiting nor being done, oldest first."""

        def rows(query: str, *more: Any) -> list[Any]:
            cursor.execute(query, (self._storage.name, *more))
            found: list[Any] = cursor.fetchall()
            return found

        stored = rows("select key, value from kv where queue = ? and key glob ?", f"{_PREFIX}*")
        waiting = {
            *(data for (data,) in rows("select data from task where queue = ?")),
            *(data for (data,) in rows("select data from schedule where queue = ?")),
        }
        ids, is_new, lost = self._ids(waiting), self._consumer.is_new(), dict[str, Entry]()
        for key, raw in stored:
            uuid = key.removeprefix(_PREFIX)
            entry = _read(uuid, raw)
            if entry is None or uuid in ids or entry.data in waiting:
                continue
            # What nobody has begun another worker of this consumer may be about to begin.
            if is_new if entry.owner is None else not self._consumer.has(entry.owner):
                lost[uuid] = entry
        return lost

    def _enqueue(self, cursor: Any, uuid: str, entry: Entry) -> None:
        name = self._storage.name
        again = attrs.evolve(entry, owner=None, again=entry.owner is not None)
        cursor.execute(
            "update kv set value = ? where queue = ? and key = ?",
            (again.pack(), name, _PREFIX + uuid),
        )
        cursor.execute(
            "insert into task (queue, data, priority) values (?, ?, ?)",
            (name, entry.data, float(entry.priority or 0)),
        )

    def _ids(self, waiting: set[Any]) -> set[str]:
        """Read the ids of messages; of those that cannot be read there is the message itself."""
        ids = set[str]()
        for data in waiting:
            try:
                ids.add(self._huey.serializer.deserialize(data).id)
            except Exception:  # noqa: BLE001, S112  # whatever reading one of others raises
                continue
        return ids

    def _waits(self, _: str, task: Task) -> None:
        """Enter a run: before Huey enqueues it, and after it has scheduled it."""
        if self._huey.immediate:
            return
        entry = Entry(self._huey.serialize_task(task), task.priority)
        self._storage.put_data(_PREFIX + task.id, entry.pack())
        before = self._followed.pop(task.id, None)
        if before is not None:
            self.delete(before)

    def _drop(self, _: str, task: Task) -> None:
        """Strike out a run that Huey does not begin; one that is to be repeated comes back."""
        self.delete(task.id)

    def _begin(self, task: Task) -> None:
        """Note who does a run."""
        entry = self.get(task.id) or Entry(self._huey.serialize_task(task), task.priority)
        task.redelivered = entry.again
        owner = (self._consumer.token, os.getpid())
        self._storage.put_data(_PREFIX + task.id, attrs.evolve(entry, owner=owner).pack())
        execute, task.storable = task.execute, self.storable
        task.execute = lambda: self.storable(execute())

    def storable(self, value: Any) -> Any:
        """Have a result that cannot be stored fail its run, which would be done again for ever."""
        if self._huey.results and type(value) not in PLAIN:
            self._huey.serializer.serialize(value)
        return value

    def _after(self, task: Task, _: Any, exception: BaseException | None) -> None:
        """Strike out a run that has ended; the next attempt is known here until it is enqueued."""
        if exception is None and task.on_complete is not None:
            self._followed[task.on_complete.id] = task.id
        elif exception is None or not task.retries:
            self.delete(task.id)
        else:
            task.retries -= 1
            entry = Entry(self._huey.serialize_task(task), task.priority)
            task.retries += 1
            self._storage.put_data(_PREFIX + task.id, entry.pack())


class ConsumerLock:
    """Held by the one consumer of a Huey, and by the processes that it forks.

    Args:
        huey: One on SQLite.

    Attributes:
        token: The consumer's name.
    """

    def __init__(self, huey: Huey) -> None:
        storage: Any = huey.storage
        self.token = uuid4().hex
        self._path = f"{storage.filename}-{quote(storage.name, safe='')}.lock"
        self._opened_in = os.getpid()
        self._holders = 0
        try:
            # In the process that forks the others: a lock belongs to what was opened once. Nobody
            # else may open it, because a lock to read is one that we would wait for.
            self._file: Any = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            # A client needs none.
            self._file = error

    def acquire(self) -> None:
        """Be the consumer, for one of its workers.

        Raises:
            EngineError: Another consumer is, or the file cannot be used.
        """
        try:
            if isinstance(self._file, OSError):
                raise self._file
            _flock(self._file)
        except BlockingIOError:
            msg = (
                f"engine 'huey', the ledger: another consumer does the runs of {self._path!r}; give"
                " one consumer more workers instead, or use an engine with a server"
            )
            raise EngineError(msg) from None
        except OSError as error:
            msg = (
                f"engine 'huey', the ledger: {self._path!r}, which the one consumer locks, cannot"
                f" be used: {error.strerror}; let this user write there, or go without the ledger"
            )
            raise EngineError(msg) from error
        self._holders += 1

    def release(self) -> None:
        """Let another process be it, after the last of this one's threads."""
        if self._holders:
            self._holders -= 1
            if not self._holders and self._opened_in == os.getpid():
                _flock(self._file, release=True)

    def is_new(self) -> bool:
        """Say whether no worker of this consumer has recovered yet."""
        return os.pread(self._file, len(self.token), 0) != self.token.encode()

    def sign(self) -> None:
        """Note that one has."""
        os.pwrite(self._file, self.token.encode(), 0)

    def has(self, owner: tuple[str, int]) -> bool:
        """Say whether a process is there, and one of this consumer."""
        token, pid = owner
        if token != self.token:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True


def _flock(file: int, *, release: bool = False) -> None:
    """Lock a file without waiting; on Windows nobody does."""
    try:
        import fcntl  # noqa: PLC0415  # Windows has none
    except ImportError:  # pragma: no cover  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB)


def ledger_of(huey: Huey) -> Ledger:
    """Give the one ledger of a Huey, which it has from then on."""
    ledger: Ledger | None = getattr(huey, "qtasks_pluggy_ledger", None)
    if ledger is None:
        ledger = huey.qtasks_pluggy_ledger = Ledger(huey)
    return ledger


def _read(uuid: str, raw: Any) -> Entry | None:
    """Read an entry; name, and leave, what cannot be read."""
    try:
        return Entry.unpack(raw)
    except Exception as error:  # noqa: BLE001  # whatever reading what others wrote raises
        hint = "it is left as it is; a consumer of the version that wrote it can do it"
        why = f"{type(error).__name__}: {error}"
        log_event("error", "huey_ledger_entry_unreadable", uuid=uuid, why=why, hint=hint)
        return None
