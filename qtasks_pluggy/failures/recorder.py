"""A thread that writes records to the store in batches; forks, stops and exits.

No run fails because of the store. A run waits for it in two cases, for a second at most: a final
failure while the buffer is full, and every record of a forked process that did not start the app,
for that may end by ``os._exit`` and ask nobody.

A dead letter is the only copy of its run. So its run waits, for ``LETTER_SECONDS`` at most, until
the letter is on the disk, and hears if it is not. It is the writer's thread that commits it: then
the bound holds whatever hangs, letters of many threads share a commit, and a record that follows is
written later.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from qtasks_pluggy.engines import log_event
from qtasks_pluggy.failures.buffer import LETTER_SECONDS, Buffer, Letter, Letters
from qtasks_pluggy.failures.connection import StoreError, why
from qtasks_pluggy.failures.records import Record
from qtasks_pluggy.failures.store import LOCK_SECONDS, Batch, News, Store

DRAIN_SECONDS: Final = 5.0
"""How long a stop, or the end of the process, waits for what is still to be written."""
TELL_EVERY: Final = 60.0
"""Seconds between two events about a store that is not available."""
FIRST_PAUSE: Final = 0.5
"""Seconds that the writer first waits before it tries such a store again."""
LONGEST_PAUSE: Final = 5.0
"""The longest such wait, in seconds."""
_OF_STORE: Final = (DBAPIError, OSError, StoreError, sqlite3.Error)
_OF_DATA: Final = (DataError, IntegrityError)
_LOCKED: Final = frozenset({"55P03", "40P01"})
"""PostgreSQL's codes for a lock that is not available, and for a deadlock."""
RETAIN_EVERY: Final = 60.0
"""Seconds between two looks for what is too old."""
EARLY_SECONDS: Final = 5.0
"""How long the end of a run waits for what another process has to write of the run before."""
FORK_SECONDS: Final = 5.0
"""How long a fork waits for the writer to end its batch, which may wait for three locks."""


class Recorder:
    """Takes records from runs, and passes them to the writer.

    Args:
        open_store: Makes the store, for the thread that writes.
        name: The store's name, for people; without a password.
    """

    def __init__(self, open_store: Callable[[], Store], name: str) -> None:
        self._open_store = open_store
        self._name = name
        self._is_forked = False
        self._held: Writer | None = None
        self._begin()
        _recorders.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._buffer = Buffer(eager=self._is_forked)
        self._writer: Writer | None = None

    def add(self, record: Record) -> None:
        """Take a record from a run."""
        while not self._open_buffer().add(record):
            pass  # it was closed meanwhile: the next one is open

    def keep(self, record: Record) -> None:
        """Write a dead letter to the disk, within ``LETTER_SECONDS``.

        Raises:
            StoreError: It was not written.
        """
        letter = Letter(record)
        while not self._open_buffer().add_letter(letter):
            pass  # as above
        try:
            letter.written.result(letter.until - time.monotonic())
        except TimeoutError:
            letter.written.cancel()
            msg = f"{self._name} did not accept the dead letter within {LETTER_SECONDS:g} seconds"
            raise StoreError(msg) from None

    def _open_buffer(self) -> Buffer:
        with self._lock:
            if self._writer is None or not self._writer.is_alive():
                self._writer = Writer(self._buffer, self._open_store(), self._name)
                self._writer.start()
            return self._buffer

    def close(self) -> None:
        """Write the waiting records, within ``DRAIN_SECONDS``, and end the thread."""
        with self._lock:
            buffer, writer = self._buffer, self._writer
            if writer is None:
                return
            self._begin()
        buffer.close()
        writer.join(DRAIN_SECONDS)
        reason = "it takes too long" if writer.is_alive() else "the thread that writes has ended"
        if lost := buffer.give_up():
            writer.tell_unavailable(reason, lost)

    def before_fork(self) -> None:
        """Close the connection, and keep the store at rest until the fork is done.

        SQLite takes a child's connection for a sibling of what it inherited, and locks nothing.
        """
        writer = self._writer
        if writer is not None and writer.at_work.acquire(timeout=FORK_SECONDS):
            self._held = writer
            writer.store.close()

    def after_fork(self, *, in_child: bool) -> None:
        """Continue after a fork; a child starts with an empty buffer."""
        # Not the writer of now: another thread may close the recorder meanwhile.
        held, self._held = self._held, None
        if in_child:
            # Where the connection was not to be had it is at least not closed by this process.
            _of_parents.append(self._writer)
            self._is_forked = True
            self._begin()
        elif held is not None:
            held.at_work.release()


class Writer(threading.Thread):
    """Writes what is in a buffer until that is closed.

    Args:
        buffer: The buffer.
        store: The store; only this thread uses it.
        store_name: The store's name, for people.
    """

    def __init__(self, buffer: Buffer, store: Store, store_name: str) -> None:
        super().__init__(name="qtasks-failures", daemon=True)
        self._buffer = buffer
        self.store: Final = store
        self._store_name = store_name
        self._pause = FIRST_PAUSE
        self._told_at = self._retained_at = -TELL_EVERY
        self.at_work: Final = threading.Lock()

    def run(self) -> None:
        """Write batches, and delete what is too old."""
        while (batch := self._buffer.take(RETAIN_EVERY)) is not None:
            if isinstance(batch, list):
                self._keep(batch)
                continue
            if batch.records or batch.counts:
                self._write(batch)
            self._retain()
        with self.at_work:
            self.store.close()

    def _keep(self, letters: Letters) -> None:
        """Write dead letters, or report the failure to their runs; retry on a locked store."""
        batch = Batch([one.record for one in letters], is_durable=True)
        while letters:
            try:
                news = self._commit(batch)
            except Exception as error:  # noqa: BLE001  # the runs hear of it
                again_until = time.monotonic() + LOCK_SECONDS
                if not _is_locked(error) or again_until > max(one.until for one in letters):
                    self._refuse(letters, error)
                    return
            else:
                for one in letters:
                    one.written.set_result(None)
                self._tell(news)
                return

    def _refuse(self, letters: Letters, error: Exception) -> None:
        """Report to runs why their dead letters are not kept; a faulty one affects no other."""
        if _is_of_data(error) and len(letters) > 1:
            for one in letters:
                self._keep([one])
            return
        for one in letters:
            msg = f"{self._store_name} did not accept the dead letter: {why(error)}"
            one.written.set_exception(StoreError(msg))

    def _commit(self, batch: Batch) -> News:
        """Write a batch; return the groups to log."""
        with self.at_work:
            news = self.store.write(batch)
        self._pause = FIRST_PAUSE
        return news

    def _write(self, batch: Batch) -> None:
        try:
            news = self._commit(batch)
        except Exception as error:  # noqa: BLE001  # no run may fail because of it
            self._go_on(batch, error)
            return
        self._buffer.settle(batch)
        since = time.time() - EARLY_SECONDS
        # The first attempt was in this process: what is not written by now was not recorded.
        self._buffer.put_off([one for one in news.early if one.attempt > 1 and one.at > since])
        self._tell(news)

    def _tell(self, news: News) -> None:
        for one in news.new:
            log_event("error", "failure_group_new", **_told(one))
        for one in news.regressed:
            log_event("error", "failure_group_regressed", **_told(one))

    def _go_on(self, batch: Batch, error: Exception) -> None:
        """Keep a batch for later, unless the writer is closing or the batch itself is at fault."""
        if _is_of_data(error):
            self._halve(batch, error)
            return
        # Somebody else's lock mostly goes away soon.
        is_locked = _is_locked(error)
        self._buffer.put_back(batch, is_stuck=not is_locked or self._pause > FIRST_PAUSE)
        if self._buffer.is_closing and not is_locked:
            self.tell_unavailable(why(error), self._buffer.give_up())
            return
        if time.monotonic() - self._told_at >= TELL_EVERY:
            self._told_at = time.monotonic()
            self.tell_unavailable(why(error), 0)
        self._buffer.pause(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _halve(self, batch: Batch, error: Exception) -> None:
        """Write a batch with a faulty record in halves, and drop that record."""
        half = len(batch.records) // 2
        if half:
            self._write(attrs.evolve(batch, records=batch.records[:half]))
            self._write(Batch(batch.records[half:]))
        else:
            self._buffer.settle(batch)
            self.tell_unavailable(why(error), len(batch.records))

    def tell_unavailable(self, reason: str, lost: int) -> None:
        """Log that the store cannot be used now."""
        log_event(
            "error",
            "failures_store_unavailable",
            store=self._store_name,
            why=reason,
            waiting=len(self._buffer),
            lost=lost,
        )

    def _retain(self) -> None:
        if time.monotonic() - self._retained_at < RETAIN_EVERY:
            return
        try:
            with self.at_work:
                has_more = self.store.retain(time.time())
        except Exception:  # noqa: BLE001  # the next batch tells of it
            has_more = False
        if not has_more:
            self._retained_at = time.monotonic()


def _is_of_data(error: Exception) -> bool:
    """Return whether the records are at fault, and not the store."""
    return isinstance(error, _OF_DATA) or not isinstance(error, _OF_STORE)


def _is_locked(error: Exception) -> bool:
    """Return whether another process holds the store's lock, or waits for ours."""
    driver = getattr(error, "orig", error)
    if getattr(driver, "sqlstate", None) in _LOCKED:
        return True
    return getattr(driver, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _told(record: Record) -> dict[str, str | None]:
    names = ("group", "task", "uuid", "status", "decided_by")
    told = {name: getattr(record, name) for name in names}
    return {**told, "error": record.told.error if record.told else ""}


_recorders: Final[weakref.WeakSet[Recorder]] = weakref.WeakSet()
_of_parents: Final[list[Writer | None]] = []


def _before_fork() -> None:
    for recorder in tuple(_recorders):
        recorder.before_fork()


def _after_fork(*, in_child: bool) -> None:
    for recorder in tuple(_recorders):
        recorder.after_fork(in_child=in_child)


@atexit.register
def _at_exit() -> None:
    for recorder in tuple(_recorders):
        recorder.close()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has no fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, in_child=False),
        after_in_child=partial(_after_fork, in_child=True),
    )
