"""The ledger of a Huey on SQLite: what it keeps, and what it does with what it cannot use."""

from __future__ import annotations

import fcntl
import pickle
import stat
import threading
import time
from pathlib import Path

import huey
import pytest
import structlog

from qtasks_pluggy.engines.huey import at_least_once, install
from qtasks_pluggy.engines.huey.ledger import ledger_of
from qtasks_pluggy.exc import EngineError
from tests.engines.huey_apps import LONG, Keeps, consuming
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


@pytest.fixture
def native(tmp_path):
    """A Huey of somebody's own, with a ledger."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    at_least_once(native)
    return native


def entries(native):
    """Name the runs in the ledger."""
    return [key for key in native.all_results() if "ledger" in key]


def lose(native, task, *args):
    """Enqueue a run and take it away, as a worker that is killed does."""
    result = task(*args)
    assert native.storage.dequeue()
    return result


@pytest.mark.parametrize("what", ["damaged", "later", "earlier"])
def test_an_entry_that_cannot_be_read_is_named_and_left(native, what):
    """It stops no other run: the rest is recovered, and the entry stays for who can read it."""
    task = native.task(name="work")(lambda number: number)
    lost = lose(native, task, 1)
    ledger = ledger_of(native)
    known = pickle.loads(native.storage.peek_data(f"qtasks-ledger:{lost.id}"))
    raw = {
        "damaged": b"\x80no pickle",
        "later": pickle.dumps({**known, "version": known["version"] + 1, "more": 1}),
        "earlier": pickle.dumps((known["data"], None, None, 0)),
    }[what]
    native.storage.put_data("qtasks-ledger:other", raw)
    with structlog.testing.capture_logs() as logs, consuming(native):
        assert 1 == lost.get(blocking=True, timeout=LONG)
        assert wait_until(lambda: ["qtasks-ledger:other"] == entries(native), LONG)
    assert raw == bytes(native.storage.peek_data("qtasks-ledger:other"))
    told = {entry["uuid"] for entry in logs if entry["event"] == "huey_ledger_entry_unreadable"}
    assert {"other"} == told
    assert ledger.get("other") is None


def test_the_lock_is_its_user_s_alone(native):
    """Who may not write the file may not keep its consumer from work, whoever reads it."""
    path = Path(ledger_of(native)._consumer._path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_second_consumer_is_refused_until_the_first_has_ended(native, tmp_path):
    """In one process, too; and the lock goes with the last worker thread."""
    task = native.task(name="work")(lambda number: number)
    other = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    at_least_once(other)
    with consuming(native, workers=2):
        assert 1 == task(1).get(blocking=True, timeout=LONG)
        with pytest.raises(EngineError, match="another consumer holds the lock"):
            ledger_of(other).open()
    ledger_of(other).open()
    ledger_of(other)._consumer.release()


def test_another_queue_in_the_same_file_has_a_consumer_of_its_own(native, tmp_path):
    """One consumer for each Huey, of which a file may have several."""
    other = huey.SqliteHuey("other/queue", filename=tmp_path / "runs.db")
    at_least_once(other)
    with consuming(native):
        ledger_of(other).open()
    ledger_of(other)._consumer.release()


def test_a_lock_that_cannot_be_opened_is_no_matter_of_a_client(tmp_path, monkeypatch):
    """Clients submit; a consumer is told which file it cannot lock."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    (tmp_path / "runs.db-shop.lock").mkdir()
    at_least_once(native)
    task = native.task(name="work")(lambda number: number)
    task(1)
    with pytest.raises(EngineError, match=r"runs.db-shop.lock'.*give this user write access"):
        ledger_of(native).open()


def test_a_lock_of_somebody_else_s_is_never_waited_for(native):
    """A consumer says at once that it cannot begin."""
    native.task(name="work")(lambda number: number)
    with Path(ledger_of(native)._consumer._path).open() as theirs:
        fcntl.flock(theirs, fcntl.LOCK_SH)
        with pytest.raises(EngineError, match="another consumer"):
            ledger_of(native).open()


def test_what_is_due_when_a_consumer_begins_is_done_once(native):
    """The recovery takes nothing for lost that the scheduler is about to enqueue."""
    seen, put = [], native.storage.enqueue
    task = native.task(name="work")(seen.append)
    for number in range(20):
        native.add_schedule(task.s(number))

    def enqueue(*args):
        time.sleep(0.1)
        put(*args)

    native.storage.enqueue = enqueue
    with consuming(native):
        assert wait_until(lambda: len(seen) >= 20 and not native.pending_count(), LONG)
    assert list(range(20)) == seen


def test_a_recovered_run_knows_that_it_was_delivered_before(native):
    """Only what a worker had begun; what nobody began comes for the first time."""
    plugin = Keeps("again", "first")

    @native.task(name="fail")
    def fail(number):
        raise OSError(number)

    install(native, [plugin], discover=False)
    begun, waited = lose(native, fail, 1), lose(native, fail, 2)
    ledger = ledger_of(native)
    ledger._begin(fail.task_class((1,), id=begun.id))
    ledger._consumer.token = ledger._consumer.token[::-1]
    with consuming(native):
        assert {"again", "first"} == {
            one.get(blocking=True, timeout=LONG) for one in (begun, waited)
        }
    assert {(1,): True, (2,): False} == {
        message.args: message.redelivered for message in plugin.messages
    }


def test_a_task_that_another_follows_is_kept_until_that_is_enqueued(native):
    """A pipeline leaves nothing in the ledger, and at no moment is it in none."""
    seen = []

    @native.task(name="one")
    def one():
        return 1

    @native.task(name="two")
    def two(number):
        seen.append(number)
        return number + 1

    put, known = native.storage.enqueue, []

    def enqueue(data, priority=None):
        known.append(len(entries(native)))
        put(data, priority)
        known.append(len(entries(native)))

    native.storage.enqueue = enqueue
    with consuming(native):
        result = native.enqueue(one.s().then(two))
        assert [1, 2] == result.get(blocking=True, timeout=LONG)
        assert wait_until(lambda: not entries(native), LONG)
    assert [1] == seen
    assert [0, 1, 1, 1] == known


def test_a_result_that_cannot_be_stored_fails_its_run(native):
    """Once: without an end it would be done again at every start."""
    task = native.task(name="lock")(threading.Lock)
    with structlog.testing.capture_logs(), consuming(native):
        with pytest.raises(huey.exceptions.TaskException, match="cannot pickle"):
            task().get(blocking=True, timeout=LONG)
        assert wait_until(lambda: not entries(native), LONG)
