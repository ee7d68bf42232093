"""The ledger of a Huey on SQLite: what it keeps, and what it does with what it cannot use."""

from __future__ import annotations

import fcntl
import sqlite3
import stat
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import huey
import pytest
import structlog
from huey.consumer import Consumer

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines.huey import at_least_once, install
from qtasks_pluggy.engines.huey.install import ledger_of
from qtasks_pluggy.engines.huey.ledger import Taken, _taken
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


def queues(native):
    """Name the queues of the messages that are in the file."""
    rows = native.storage.sql("select queue from task", results=True)
    return [queue for (queue,) in rows]


def lose(native, task, *args):
    """Enqueue a run and take it away, as a worker that is killed does."""
    result = task(*args)
    assert native.storage.dequeue()
    return result


def test_a_message_that_cannot_be_read_is_named_and_left(native):
    """It stops no other run: the rest is recovered, and it stays for who can read it."""
    task = native.task(name="work")(lambda number: number)
    lost = lose(native, task, 1)
    dead = ("shop:qtasks_pluggy:dead:1", b"\x80no pickle")
    native.storage.sql("insert into task (queue, data) values (?, ?)", dead, commit=True)
    read = "select data from task where id = 2"
    with structlog.testing.capture_logs() as logs, consuming(native, workers=3):
        assert 1 == lost.get(blocking=True, timeout=LONG)
        assert wait_until(lambda: 3 == len(ledger_of(native)._holders), LONG)
        assert wait_until(lambda: 1 == len(queues(native)), LONG)
    assert [dead[1:]] == native.storage.sql(read, results=True)
    assert [2] == [one["row"] for one in logs if one["event"] == "huey_ledger_entry_unreadable"]
    # The other processes of this consumer, too, know that it was said.
    ledger = ledger_of(native)
    assert ledger._is_at_work(queues(native)[0])
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    with structlog.testing.capture_logs() as logs:
        ledger_of(other).open()
    assert ["huey_ledger_entry_unreadable"] == [one["event"] for one in logs]
    ledger_of(other).close()


def test_the_lock_is_its_user_s_alone(native):
    """Who may not write the file may not keep its consumer from work, whoever reads it."""
    path = Path(ledger_of(native)._lock._path)
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
    ledger_of(other).close()
    with consuming(native):
        assert 2 == task(2).get(blocking=True, timeout=LONG)


def test_an_app_with_workers_does_not_start_beside_another_consumer(native, tmp_path):
    """Its workers could only log it, and its runs would wait for the other one's code."""
    app = QueueTasks("shop", discover=False)
    app.set_engine(huey.SqliteHuey("shop", filename=tmp_path / "runs.db"), workers=1)
    with consuming(native):
        native.task(name="work")(lambda: 1)().get(blocking=True, timeout=LONG)
        with pytest.raises(EngineError, match="another consumer"), app:
            pass
    with app:
        pass


def test_the_app_that_stops_first_leaves_the_lock_to_the_other(tmp_path):
    """Two apps on one Huey: nobody takes the run that the other one executes."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    begun, gate = [], threading.Event()
    first, second = (QueueTasks(name, discover=False) for name in ("first", "second"))
    work = first.task(name="work")(lambda: begun.append(1) or gate.wait(LONG))
    for app in (first, second):
        app.set_engine(native, workers=1)
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    with first:
        handle = work.submit()
        assert wait_until(lambda: begun, LONG)
        with second:
            pass
        with pytest.raises(EngineError, match="another consumer"):
            ledger_of(other).open()
        with second:
            gate.set()
            assert handle.result(timeout=LONG)
    assert [1] == begun
    ledger_of(other).open()
    ledger_of(other).close()


def test_an_app_that_stops_in_another_thread_leaves_no_lock(tmp_path):
    """An async app starts and stops its engine in whatever thread is free."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    app = QueueTasks("shop", discover=False)
    app.set_engine(native, workers=1)
    thread = threading.Thread(target=app.__enter__)
    thread.start()
    thread.join(LONG)
    app.__exit__(None, None, None)
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    ledger_of(other).open()
    ledger_of(other).close()


def test_a_consumer_that_is_stopped_in_haste_keeps_the_lock_while_it_works(tmp_path, monkeypatch):
    """Whoever stops an app with Ctrl-C does not wait for its workers' threads."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    begun, gate = threading.Event(), threading.Event()
    app = QueueTasks("shop", discover=False)
    work = app.task(name="work")(lambda: begun.set() or gate.wait(LONG))
    app.set_engine(native, workers=1)

    def stop(consumer, **_):
        # As after Ctrl-C.
        consumer.stop_flag.set()

    with app:
        work.submit()
        assert begun.wait(LONG)
        monkeypatch.setattr(Consumer, "stop", stop)
    with pytest.raises(EngineError, match="another consumer"):
        ledger_of(other).open()
    gate.set()
    assert wait_until(lambda: not ledger_of(native)._holders, LONG)
    ledger_of(other).open()
    ledger_of(other).close()


@pytest.mark.parametrize("fault", ["the file is locked", "the consumer does not start"])
def test_an_app_that_cannot_start_leaves_no_lock(tmp_path, monkeypatch, fault):
    """Another consumer can begin, and the error says what to do."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db", timeout=0.1)
    app = QueueTasks("shop", discover=False)
    app.set_engine(native, workers=1)
    holder = sqlite3.connect(native.storage.filename, isolation_level=None)
    if fault == "the file is locked":
        holder.execute("begin immediate")
        expected = "app 'shop': .* locked; check that"
    else:
        monkeypatch.setattr(Consumer, "start", lambda _: 1 / 0)
        expected = "division"
    with pytest.raises((EngineError, ZeroDivisionError), match=expected), app:
        pass
    holder.close()
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    ledger_of(other).open()
    ledger_of(other).close()


def test_a_row_that_is_used_again_is_not_deleted(native):
    """A message's row can be another message's when its run is over."""

    @native.task(name="work")
    def work():
        native.storage.sql("update task set queue = 'another'", commit=True)

    with consuming(native):
        work()
        assert wait_until(lambda: ["another"] == queues(native), LONG)
        native.task(name="next")(lambda: 1)().get(blocking=True, timeout=LONG)
    assert ["another"] == queues(native)


def test_another_queue_in_the_same_file_has_a_consumer_of_its_own(native, tmp_path):
    """One consumer for each Huey, of which a file may have several."""
    other = huey.SqliteHuey("other/queue", filename=tmp_path / "runs.db")
    at_least_once(other)
    with consuming(native):
        ledger_of(other).open()
    ledger_of(other).close()


def test_a_lock_that_cannot_be_opened_is_no_matter_of_a_client(tmp_path):
    """Clients submit; a consumer is told which file it cannot open."""
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
    with Path(ledger_of(native)._lock._path).open() as theirs:
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


def test_a_due_message_stays_in_the_schedule_until_it_is_enqueued(native):
    """One that cannot be enqueued is read again; one that two consumers read is enqueued once."""
    task = native.task(name="work")(print)
    native.add_schedule(task.s(1))
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    at_least_once(other)
    (same,) = other.storage.read_schedule(datetime.now(UTC))
    (due,) = native.read_schedule()
    native.storage.sql("pragma query_only = 1")
    with pytest.raises(sqlite3.OperationalError):
        native.enqueue(due)
    native.storage.sql("pragma query_only = 0")
    for again in native.read_schedule():
        native.enqueue(again)
    assert (1, 0) == (native.pending_count(), native.scheduled_count())
    other.storage.enqueue(same)
    assert 1 == native.pending_count()


def test_a_due_message_that_cannot_be_read_stays_in_the_schedule(native):
    """Huey logs it once, and not every second."""
    unread = b"\x80no pickle"
    write = "insert into schedule (queue, data, timestamp) values ('shop', ?, 0)"
    native.storage.sql(write, (unread,), commit=True)
    now = datetime.now(UTC)
    assert [[unread], []] == [native.storage.read_schedule(now) for _ in range(2)]
    assert 1 == native.scheduled_count()


def test_a_recovered_run_knows_that_it_was_delivered_before(native):
    """Whatever a worker had taken; what waits comes for the first time."""
    plugin = Keeps("again", "first")

    @native.task(name="fail")
    def fail(number):
        raise OSError(number)

    install(native, [plugin], discover=False)
    taken, waits = lose(native, fail, 1), fail(2)
    with consuming(native):
        assert {"again", "first"} == {
            one.get(blocking=True, timeout=LONG) for one in (taken, waits)
        }
    assert [((1,), True), ((2,), False)] == [
        (message.args, message.redelivered) for message in plugin.messages
    ]


def test_a_recovered_run_waits_where_others_do(native):
    """Huey's own ways find it, in the order of its priority, and any worker executes it."""
    seen = []
    task = native.task(name="work")(seen.append)
    native.enqueue(task.s(1, priority=1))
    assert native.storage.dequeue()
    native.enqueue(task.s(2, priority=5))
    ledger_of(native).open()
    ledger_of(native).close()
    assert [2, 1] == [waiting.args[0] for waiting in native.pending()]
    plain = huey.SqliteHuey("shop", filename=native.storage.filename)
    plain.task(name="work")(seen.append)
    with consuming(plain):
        assert wait_until(lambda: len(seen) == 2, LONG)
    assert [2, 1] == seen


def test_whoever_takes_a_recovered_run_knows_that_it_is_one(native):
    """A consumer can have many processes, and one of them recovers what another one takes."""
    other = huey.SqliteHuey("shop", filename=native.storage.filename)
    at_least_once(other)
    task, _ = (each.task(name="fail")(lambda number: 1 / number) for each in (native, other))
    plugin = Keeps("answer", "answer")
    install(other, [plugin], discover=False)
    lost = lose(native, task, 0)
    ledger_of(native).open()
    ledger_of(native).close()
    with consuming(other):
        assert "answer" == lost.get(blocking=True, timeout=LONG)
        task(0).get(blocking=True, timeout=LONG)
    assert [True, False] == [message.redelivered for message in plugin.messages]


def test_the_mark_of_a_run_that_a_plain_worker_took_is_nobody_s(native):
    """SQLite gives the row's id to another message."""
    task = native.task(name="work")(lambda number: number)
    lose(native, task, 1)
    ledger_of(native).open()
    ledger_of(native).close()
    plain = huey.SqliteHuey("shop", filename=native.storage.filename)
    assert plain.storage.dequeue()
    task(2)
    assert native.storage.dequeue()
    assert Taken(row=1, again=False) == _taken.get()


@pytest.mark.parametrize("delay", [None, 3600])
def test_a_run_that_goes_on_later_is_at_one_place(native, monkeypatch, delay):
    """Whenever its worker is killed, the run is not done again beside its next attempt."""
    ledger = ledger_of(native)

    @native.task(retries=1, retry_delay=3600, name="work")
    def work():
        raise OSError

    monkeypatch.setattr(ledger, "_delete", lambda: None)
    native.enqueue(work.s() if delay is None else work.s(delay=delay))
    with consuming(native):
        assert wait_until(native.scheduled_count, LONG)
    assert ([], 1) == (queues(native), native.scheduled_count())


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
        known.append(len(queues(native)))
        put(data, priority)
        known.append(len(queues(native)))

    result = native.enqueue(one.s().then(two))
    native.storage.enqueue = enqueue
    with consuming(native):
        assert [1, 2] == result.get(blocking=True, timeout=LONG)
        assert wait_until(lambda: not queues(native), LONG)
    assert [1] == seen
    assert [1, 2] == known


def test_a_result_that_cannot_be_stored_ends_its_run(native):
    """Huey logs it, and the run is not done again at every start."""
    task = native.task(name="lock")(threading.Lock)
    with consuming(native):
        task()
        assert wait_until(lambda: not queues(native), LONG)
