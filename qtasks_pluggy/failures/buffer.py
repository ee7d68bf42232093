"""A bounded buffer between the threads of runs and the thread that writes."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, TypeAlias

import attrs

from qtasks_pluggy.failures.records import FINAL, WAITING, Count, Record
from qtasks_pluggy.failures.store import Batch

BATCH: Final = 500
"""The most records of one batch."""
BATCH_SECONDS: Final = 0.2
"""How long a record waits for others to be written with."""
MOST_WAITING: Final = 10_000
"""The most records that wait; beyond that, records are only counted."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""About how much their arguments and texts are at most, together."""
WAIT_SECONDS: Final = 1.0
"""How long a run waits at most, for room or for its record to be written."""
LETTER_SECONDS: Final = 3.0
"""How long a run waits at most for its dead letter to be on the disk."""


@attrs.frozen(eq=False)
class Letter:
    """A dead letter, whose run waits until it is written or has failed to be."""

    record: Record
    until: float = attrs.field(factory=lambda: time.monotonic() + LETTER_SECONDS)
    written: Future[None] = attrs.field(factory=Future)


Letters: TypeAlias = list[Letter]


class Buffer:
    """Records on their way to the store.

    Args:
        eager: Whether a run waits until its record is written.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self._eager = eager
        self._changed = threading.Condition()
        self._records: deque[Record] = deque()
        self._letters: Letters = []
        self._is_records_turn = False
        self._counts: Counter[Count] = Counter()
        self._seen: dict[str, Record] = {}
        # Final failures that are only counted; records that ever came in, and that are settled.
        self._dropped = self._added = self._settled = 0
        self._bytes = 0
        self._is_stuck = self._is_closing = False

    def add(self, record: Record) -> bool:
        """Take a record from a run.

        While the buffer is full, a record is only counted; a final failure waits for room first.
        """
        with self._changed:
            if self._is_closing:
                return False
            if not self._has_room() and not (record.status in FINAL and self._wait(self._has_room)):
                self._count(record)
                return True
            self._records.append(record)
            self._bytes += record.size
            self._added += 1
            ticket = self._added
            if self._eager or len(self._records) in {1, BATCH}:
                self._changed.notify_all()
            if self._eager:
                self._wait(lambda: self._settled >= ticket)
            return True

    def _count(self, record: Record) -> None:
        """Count a record that is not kept; nobody would find a run of it that waits."""
        if record.is_end:
            return
        if record.status == WAITING:
            record = attrs.evolve(record, status="retried")
        self._counts.update(record.moves(None))
        self._seen[record.group] = record
        self._dropped += record.status in FINAL

    def put_off(self, ends: Sequence[Record]) -> None:
        """Take ends again whose runs another process has not written yet."""
        with self._changed:
            if not self._is_closing:
                self._records.extend(ends)
                self._bytes += sum(one.size for one in ends)
                self._added += len(ends)

    def add_letter(self, letter: Letter) -> bool:
        """Take a dead letter, which goes before all else, however much waits."""
        with self._changed:
            if not self._is_closing:
                self._letters.append(letter)
                self._changed.notify_all()
            return not self._is_closing

    def _has_room(self) -> bool:
        return len(self._records) < MOST_WAITING and self._bytes < MOST_BYTES

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Let a run wait, unless the store cannot be reached: nothing would come of it."""
        return self._changed.wait_for(lambda: self._is_stuck or ready(), WAIT_SECONDS) and ready()

    def take(self, idle: float) -> Batch | Letters | None:
        """Wait for the next batch to write.

        Returns:
            Dead letters; else a batch, which is empty after ``idle`` seconds. None once closed and
            empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._has_any(), idle)
            if not self._eager and self._has_any():
                self._changed.wait_for(self._is_due, BATCH_SECONDS)
            # In turns with full batches, so that neither waits for the other for long.
            if self._letters and not (self._is_records_turn and len(self._records) >= BATCH):
                letters, self._letters, self._is_records_turn = self._letters, [], True
                # Their runs have not given up meanwhile, and from now on cannot.
                return [one for one in letters if one.written.set_running_or_notify_cancel()]
            self._is_records_turn = False
            if self._is_closing and not self._has_any():
                return None
            records = [self._records.popleft() for _ in range(min(BATCH, len(self._records)))]
            self._bytes -= sum(one.size for one in records)
            batch = Batch(records, self._counts, tuple(self._seen.values()), self._dropped)
            self._counts, self._seen, self._dropped = Counter(), {}, 0
            self._changed.notify_all()
            return batch

    def _has_any(self) -> bool:
        return bool(self._records or self._counts or self._letters)

    def _is_due(self) -> bool:
        return self._is_closing or bool(self._letters) or len(self._records) >= BATCH

    def settle(self, batch: Batch) -> None:
        """Note that a batch was written or given up."""
        with self._changed:
            self._settled += len(batch.records)
            self._is_stuck = False
            self._changed.notify_all()

    def put_back(self, batch: Batch, *, is_stuck: bool) -> None:
        """Put a batch back that could not be written."""
        with self._changed:
            self._records.extendleft(reversed(batch.records))
            self._bytes += sum(one.size for one in batch.records)
            self._counts.update(batch.counts)
            self._seen = {one.group: one for one in batch.seen} | self._seen
            self._dropped += batch.dropped
            self._is_stuck = is_stuck
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait before the next try; not beyond the end, and no dead letter waits with it."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or bool(self._letters), seconds)

    @property
    def is_closing(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self._is_closing

    def close(self) -> None:
        """Let ``take`` come to an end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def give_up(self) -> int:
        """Throw away what is not written; return how many records that are."""
        with self._changed:
            lost = self._added - self._settled + sum(self._counts.values())
            self._settled = self._added
            self._records.clear()
            self._bytes = 0
            self._counts.clear()
            self._changed.notify_all()
            return lost

    def __len__(self) -> int:
        """Count the records that wait."""
        return len(self._records)
