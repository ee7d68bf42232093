"""What waits to be written, against a plain model: nothing is lost, and letters go first."""

from __future__ import annotations

from collections import Counter
from itertools import count
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qtasks_pluggy.failures import buffer
from qtasks_pluggy.failures.buffer import Buffer, Letter
from qtasks_pluggy.failures.records import FINAL, STATUSES
from tests.failures.places import Place

BATCH, MOST, MOST_BYTES = 3, 6, 4_000


class Buffering(RuleBasedStateMachine):
    """Runs, a writer, and a store that fails as it likes; by one thread, so that nobody waits."""

    def __init__(self) -> None:
        super().__init__()
        bounds = {"BATCH": BATCH, "BATCH_SECONDS": 0, "MOST_WAITING": MOST, "WAIT_SECONDS": 0}
        self.patches = [
            patch.object(buffer, name, value)
            for name, value in {**bounds, "MOST_BYTES": MOST_BYTES}.items()
        ]
        for one in self.patches:
            one.start()
        self.buffer = Buffer()
        self.place = Place.__new__(Place)
        self.place._numbers = count(1)
        # The model: what waits in order, what is only counted, and where everything else went.
        self.waiting: list[str] = []
        self.letters: list[Letter] = []
        self.counted: Counter[str] = Counter()
        self.dropped = 0
        self.sizes: dict[str, int] = {}
        self.closed = self.were_letters = False

    def teardown(self) -> None:
        for one in self.patches:
            one.stop()

    def has_room(self) -> bool:
        return len(self.waiting) < MOST and sum(map(self.sizes.get, self.waiting)) < MOST_BYTES

    @rule(status=st.sampled_from(STATUSES), length=st.sampled_from([0, 10, 3_000]))
    def a_run_ends(self, status, length):
        """It waits to be written, or there is no room and it is counted."""
        record = self.place.record(ValueError("x" * length), status=status)
        has_room = self.has_room()

        assert self.buffer.add(record) is not self.closed

        if self.closed:
            return
        if has_room:
            self.waiting.append(record.uuid)
            self.sizes[record.uuid] = record.size
        else:
            # Of a run that waits and is not kept nobody would learn the end.
            self.counted["retried" if status == "waiting" else status] += 1
            self.dropped += status in FINAL

    @rule()
    def a_run_is_set_aside(self):
        """Its letter waits, however much else does."""
        letter = Letter(self.place.record(status="dead_lettered"))

        assert self.buffer.add_letter(letter) is not self.closed

        if not self.closed:
            self.letters.append(letter)

    @precondition(lambda self: self.letters)
    @rule()
    def a_run_gives_up_on_its_letter(self):
        """Nobody writes it then."""
        assert self.letters.pop().written.cancel()

    @rule(store=st.sampled_from(["works", "fails", "is stuck"]))
    def the_writer_takes(self, store):
        """Letters first, unless it was their turn and a batch is full; else records in order."""
        is_batch_next = self.were_letters and len(self.waiting) >= BATCH
        taken = self.buffer.take(0)
        self.were_letters = isinstance(taken, list)
        if self.were_letters:
            assert not is_batch_next
            assert self.letters == taken
            self.letters = []
            return
        assert is_batch_next or not self.letters
        if taken is None:
            assert self.closed
            assert ([], Counter()) == (self.waiting, self.counted)
            return
        records = [one.uuid for one in taken.records]
        assert self.waiting[:BATCH] == records
        counted: Counter[str] = Counter()
        for (_, _, status, _), runs in taken.counts.items():
            counted[status] += runs
        assert (self.counted, self.dropped) == (counted, taken.dropped)
        assert bool(taken.seen) == bool(counted)
        if store == "works":
            self.buffer.settle(taken)
            del self.waiting[: len(records)]
            self.counted, self.dropped = Counter(), 0
        else:
            self.buffer.put_back(taken, is_stuck=store == "is stuck")

    @precondition(lambda self: len(self.waiting) >= MOST)
    @rule()
    def the_app_stops(self):
        """Nothing more is taken, and what waits is still there."""
        self.buffer.close()
        self.closed = True

    @precondition(lambda self: self.closed)
    @rule()
    def the_stop_takes_too_long_and_the_app_starts_again(self):
        """What is thrown away is counted."""
        lost = self.buffer.give_up()
        assert len(self.waiting) + sum(self.counted.values()) == lost
        self.buffer, self.closed, self.were_letters = Buffer(), False, False
        self.waiting, self.letters = [], []
        self.counted, self.dropped = Counter(), 0

    @invariant()
    def as_many_wait_as_the_model_says(self):
        """The bound is on what waits, in records and in bytes, and one record may exceed it."""
        assert len(self.waiting) == len(self.buffer)
        assert len(self.buffer) <= MOST


Buffering.TestCase.__test__ = True
TestBuffering = Buffering.TestCase
