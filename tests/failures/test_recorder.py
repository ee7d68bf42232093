"""Between the hooks and the store: nothing is lost unless it is counted, and no run waits long."""

from __future__ import annotations

import sqlite3
import threading
import time

import attrs
import pytest
import structlog

from qtasks_pluggy.failures import buffer, recorder
from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.recorder import Recorder
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch, News


class Sluggish:
    """A store that waits until it may write, and remembers what it wrote."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_write = threading.Event()
        self.asked = threading.Event()
        self.error = error
        self.batches = []

    def write(self, batch):
        """Take a batch."""
        self.asked.set()
        self.may_write.wait(30)
        if self.error is not None:
            raise self.error
        self.batches.append(batch)
        return News(batch.records, ())

    def retain(self, _):
        """Have nothing to delete."""
        return False

    def close(self):
        """Let go of nothing."""


@pytest.fixture
def recording(place):
    """Record into the place's store; whatever the test does, no thread is left."""
    made = []

    def start(store=None):
        made.append(Recorder(lambda: store or place.store(), "the store"))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_what_waits_is_written_at_the_stop(place, recording):
    """A stop waits for the records, and for the thread's end."""
    taking = recording()
    for _ in range(1200):
        taking.add(place.record())

    taking.close()

    assert {"failed": 1200} == place.counts()
    assert "qtasks-failures" not in {thread.name for thread in threading.enumerate()}


def test_records_are_written_without_a_stop(place, recording):
    """A single record is in the store some moments later."""
    taking = recording()
    taking.add(place.record())

    deadline = time.monotonic() + 30
    while not _is_there(place):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_there(place):
    try:
        return place.reader().runs(Filters())
    except StoreError:
        return False


def test_a_new_group_is_told_at_error_level_once(place, recording, told):
    """500 failures of one cause are one event, with the group and the class of the error."""
    taking = recording()
    for _ in range(500):
        taking.add(place.record())
    taking.close()

    (one,) = told
    assert ("failure_group_new", "a-group", "error") == tuple(
        one[name] for name in ("event", "group", "log_level")
    )
    assert ("price", "KeyError") == (one["task"], one["error"])


@pytest.mark.parametrize("storm", [5_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_a_storm_is_kept_or_counted_and_memory_is_bounded(place, recording, monkeypatch, storm):
    """Every failure of a storm is written, or counted as dropped; what waits is bounded."""
    monkeypatch.setattr(buffer, "MOST_WAITING", storm // 10)
    monkeypatch.setattr(recorder, "DRAIN_SECONDS", 60.0)
    taking = recording()
    record = place.record(group="storm")
    most = 0
    for number in range(storm):
        taking.add(attrs.evolve(record, uuid=str(number)))
        most = max(most, len(taking._buffer))
    taking.close()

    reader = place.reader()
    kept = len(reader.runs(Filters(limit=200_000)))
    assert {"failed": storm} == place.counts("storm")
    assert storm == kept + reader.dropped()
    assert most <= buffer.MOST_WAITING + buffer.BATCH


def test_recovered_runs_beyond_the_bound_become_counts(place, recording, monkeypatch):
    """While the buffer is full a recovered run is only counted, at once."""
    monkeypatch.setattr(buffer, "MOST_WAITING", 10)
    store = Sluggish()
    taking = recording(store)
    begun = time.monotonic()
    for _ in range(50):
        taking.add(place.record(status="recovered", decided_by="fallback"))
    took = time.monotonic() - begun
    store.may_write.set()
    taking.close()

    assert took < buffer.WAIT_SECONDS
    counted = sum(runs for batch in store.batches for runs in batch.counts.values())
    assert 50 == counted + sum(len(batch.records) for batch in store.batches)
    assert counted >= 30
    assert 0 == sum(batch.dropped for batch in store.batches)


def test_a_final_failure_waits_for_room_and_is_counted_as_dropped_without(
    place, recording, monkeypatch
):
    """It waits for the bound of a run's waiting, and no longer."""
    monkeypatch.setattr(buffer, "MOST_WAITING", 1)
    monkeypatch.setattr(buffer, "WAIT_SECONDS", 0.2)
    store = Sluggish()
    taking = recording(store)
    taking.add(place.record())
    assert store.asked.wait(30)
    taking.add(place.record())

    begun = time.monotonic()
    taking.add(place.record())
    took = time.monotonic() - begun
    store.may_write.set()
    taking.close()

    assert took >= 0.2
    assert 1 == sum(batch.dropped for batch in store.batches)


def test_a_final_failure_that_waits_gets_the_room_that_comes(place, recording, monkeypatch):
    """The writer takes a batch, and the run that waited goes on with its record kept."""
    monkeypatch.setattr(buffer, "MOST_WAITING", 1)
    store = Sluggish()
    taking = recording(store)
    taking.add(place.record())
    assert store.asked.wait(30)
    taking.add(place.record())
    threading.Timer(0.1, store.may_write.set).start()

    taking.add(place.record())
    taking.close()

    assert [0, 3] == [
        sum(batch.dropped for batch in store.batches),
        sum(len(batch.records) for batch in store.batches),
    ]


def test_a_store_that_is_locked_is_told_once_and_tried_again(place, recording, told, monkeypatch):
    """While another program holds the lock runs go on; afterwards everything is written."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 0.05)
    monkeypatch.setattr(recorder, "FIRST_PAUSE", 0.05)
    place.store().write(Batch([place.record()]))
    with sqlite3.connect(place.path, isolation_level=None) as locker:
        locker.execute("BEGIN IMMEDIATE")
        taking = recording()
        slowest = 0.0
        deadline = time.monotonic() + 30
        while not told:
            begun = time.monotonic()
            taking.add(place.record())
            slowest = max(slowest, time.monotonic() - begun)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        locker.execute("ROLLBACK")
    locker.close()
    taking.close()

    (one,) = told
    assert "failures_store_unavailable" == one["event"]
    assert ("the store", 0) == (one["store"], one["lost"])
    assert "database is locked" in one["why"]
    assert "INSERT" not in one["why"]
    assert place.counts()["failed"] >= 2
    assert slowest < 1


@pytest.mark.parametrize("error", [StoreError("a newer one"), PermissionError("no"), OSError("x")])
def test_a_store_that_stays_away_holds_up_neither_runs_nor_the_stop(
    place, recording, told, monkeypatch, error
):
    """Runs beyond the bound do not wait for it, a stop gives up, and says how many are lost."""
    monkeypatch.setattr(buffer, "MOST_WAITING", 5)
    store = Sluggish(error)
    store.may_write.set()
    taking = recording(store)
    taking.add(place.record())
    deadline = time.monotonic() + 30
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    begun = time.monotonic()
    for _ in range(100):
        taking.add(place.record())
    taking.close()
    took = time.monotonic() - begun

    assert took < 3
    assert [0, 101] == [one["lost"] for one in told]


def test_a_record_that_no_store_takes_blocks_nobody(place, recording, told):
    """A batch that is itself at fault is given up and told; the next one is written."""
    taking = recording()
    taking.add(place.record(reason=None))
    deadline = time.monotonic() + 30
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    taking.add(place.record(uuid="good"))
    taking.close()

    (one,) = [one for one in told if one["event"] == "failures_store_unavailable"]
    assert 1 == one["lost"]
    assert ["good"] == [run.uuid for run in place.reader().runs(Filters())]


def test_a_log_that_fails_costs_no_record(place, recording, monkeypatch):
    """What the app's own logging raises does not end the thread that writes."""
    structlog.configure(processors=[lambda *_: 1 / 0])
    monkeypatch.setattr(buffer, "BATCH", 1)
    store = Sluggish()
    taking = recording(store)
    for _ in range(3):
        taking.add(place.record())
    store.may_write.set()
    taking.close()

    assert [1, 1, 1] == [len(batch.records) for batch in store.batches]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stop_tells_of_records_whose_writer_has_ended(place, recording, told):
    """Whatever ended the thread, what it left is no silent loss."""
    store = Sluggish(SystemExit())
    taking = recording(store)
    taking.add(place.record())
    store.may_write.set()
    taking.close()

    (one,) = told
    assert ("the thread that writes has ended", 1) == (one["why"], one["lost"])


def test_records_after_a_stop_are_written_too(place, recording):
    """A run that ends late finds a recorder that takes its record."""
    taking = recording()
    taking.add(place.record())
    taking.close()
    taking.add(place.record())
    taking.close()

    assert {"failed": 2} == place.counts()


def test_a_stop_during_a_fork_writes_what_waits(place, recording, told):
    """The writer that the fork holds up goes on after it, though the recorder has let go of it."""
    taking = recording()
    taking.add(place.record())
    taking.before_fork()
    stop = threading.Thread(target=taking.close)
    stop.start()
    while taking._writer is not None:
        time.sleep(0.001)
    taking.after_fork(in_child=False)
    stop.join()

    assert {"failed": 1} == place.counts()
    assert ["failure_group_new"] == [one["event"] for one in told]


def test_a_stop_waits_for_a_lock_to_go_away(place, recording, monkeypatch):
    """A store that another process holds at the stop is written once it lets go."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 0.05)
    place.store().write(Batch([place.record()]))
    with sqlite3.connect(place.path, isolation_level=None, check_same_thread=False) as locker:
        locker.execute("BEGIN IMMEDIATE")
        taking = recording()
        taking.add(place.record())
        threading.Timer(0.5, locker.execute, ["ROLLBACK"]).start()
        taking.close()
    locker.close()

    assert {"failed": 2} == place.counts()
