"""Huey behind an app: what it is given, what it can do, and what it refuses."""

from __future__ import annotations

import os
import threading

import huey
import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks, TaskStatus
from qtasks_pluggy.engines.huey.install import ledger_of
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskCancelError
from tests.engines.huey_apps import LONG, Keeps, app_on
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


@pytest.fixture
def file(tmp_path):
    """The URL of a new database."""
    return f"huey+sqlite:///{tmp_path}/runs.db"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("huey+sqlite://", "has no file"),
        ("huey+sqlite:///", "has no file"),
        ("huey+sqlite:///runs.db?leger=0", "did you mean 'ledger'"),
        ("huey+sqlite:///runs.db?ledger=maybe", "expected 0 or 1"),
        ("huey+sqlite:///:memory:", "use memory://"),
        ("huey+sqlite:////no/such/folder/runs.db", "unable to open database file; check"),
        ("huey+redis://user:secret@host", "no engine has this scheme"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_to_do(url, text):
    """A wrong URL is one ``EngineError`` that says what to write, and tells no password."""
    with pytest.raises(EngineError, match=text) as caught:
        QueueTasks("shop", engine=url)
    assert "secret" not in str(caught.value)


def test_a_url_s_path_is_relative_or_absolute(tmp_path, monkeypatch):
    """Three slashes are a path from here, four are one from the top; %20 is a space."""
    monkeypatch.chdir(tmp_path)
    for url in ("huey+sqlite:///one.db", f"huey+sqlite:///{tmp_path}/two%20words.db"):
        with app_on(url, workers=None):
            pass

    assert {"one.db", "two words.db"} <= {path.name for path in tmp_path.iterdir()}


def test_a_relative_path_is_one_file_wherever_the_process_goes(tmp_path, monkeypatch):
    """Threads that begin after a change of the folder use the same file."""
    monkeypatch.chdir(tmp_path)
    app = app_on("huey+sqlite:///runs.db")
    work = app.task(name="work")(lambda: 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with app:
        assert 1 == work.submit().result(timeout=LONG)
    assert [] == list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("kind", "capable"),
    [
        (lambda path: huey.SqliteHuey(filename=path), {"at_least_once", "delay", "priority"}),
        (lambda path: huey.MemoryHuey(), {"delay", "priority"}),
        (lambda path: huey.MemoryHuey(immediate=True), {"priority"}),
        (lambda path: huey.RedisHuey(), {"delay"}),
        (lambda path: huey.PriorityRedisHuey(), {"delay", "priority"}),
    ],
)
def test_capabilities_are_those_of_the_huey(tmp_path, kind, capable):
    """What an engine claims is what the Huey it was given can do."""
    native = kind(tmp_path / "runs.db")
    app = QueueTasks("shop", engine=native)

    assert native is app.engine.native
    for name in ("at_least_once", "delay", "priority"):
        assert (name in capable) is getattr(app.engine.capabilities, name), name
    assert app.engine.capabilities.results
    assert app.engine.capabilities.dead_letter


def test_a_huey_without_results_says_so():
    """A Huey that keeps no results refuses ``result()`` with a text, and does the runs."""
    done = threading.Event()
    app = app_on(huey.MemoryHuey(results=False))
    task = app.task(name="work")(lambda: done.set())
    with app:
        handle = task.submit()
        with pytest.raises(CapabilityError, match="results=True"):
            handle.result(timeout=LONG)
        assert done.wait(LONG)


def test_an_immediate_huey_runs_where_it_is_submitted():
    """Immediate mode, for tests, runs at once, retries too, and refuses a delay."""
    plugin = Keeps(Retry(), "second")
    app = app_on(huey.MemoryHuey(immediate=True), plugin, workers=None, intercept=OSError)

    @app.task
    def work():
        raise OSError

    with app:
        assert "second" == work.submit().result(timeout=LONG)
        with pytest.raises(CapabilityError, match="delay"):
            work.with_options(delay=1).submit()
    assert [1, 2] == [message.attempt for message in plugin.messages]


def test_the_message_is_whole(file):
    """A worker's message has the run's id, time, priority, queue and attempt."""
    plugin = Keeps(Retry(), Retry(delay=0.01), "third")
    app = app_on(file, plugin, intercept=OSError)

    @app.task(priority=3)
    def work(*args, **kwargs):
        raise OSError

    with app:
        handle = work.submit(1, two=2)
        assert "third" == handle.result(timeout=LONG)
        plain = work.with_options(priority=0).submit()
        with pytest.raises(OSError):
            plain.result(timeout=LONG)
    *messages, last = plugin.messages
    assert [1, 2, 3] == [message.attempt for message in messages]
    assert {(str(handle.uuid), 3)} == {(str(one.uuid), one.priority) for one in messages}
    assert {("work", (1,), 2, "huey")} == {
        (one.name, one.args, one.kwargs["two"], one.engine) for one in messages
    }
    assert (0, False, app.engine.native.name) == (last.priority, last.redelivered, last.queue)


def test_runs_of_higher_priority_go_first(file):
    """Higher goes first, and equals keep their order."""
    order, begun, gate = [], threading.Event(), threading.Event()
    app = app_on(file)

    @app.task
    def wait():
        begun.set()
        assert gate.wait(LONG)

    @app.task
    def note(name):
        order.append(name)

    with app:
        wait.submit()
        assert begun.wait(LONG)
        handles = [
            note.with_options(priority=priority).submit(name)
            for name, priority in [("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0)]
        ]
        gate.set()
        for handle in handles:
            handle.result(timeout=LONG)
    assert ["b", "d", "a", "e", "c"] == order


def test_a_run_has_no_status_before_its_end(file):
    """Queued or running is None, as on other engines."""
    gate = threading.Event()
    app = app_on(file)

    @app.task
    def wait():
        assert gate.wait(LONG)

    with app:
        first, second = wait.submit(), wait.submit()
        assert [None, None] == [first.status, second.status]
        gate.set()
        assert second.result(timeout=LONG) is None
        assert [TaskStatus.succeeded] * 2 == [first.status, second.status]


@pytest.mark.parametrize("ledger", [0, 1])
@pytest.mark.parametrize("delay", [0, 3600])
def test_a_queued_run_is_cancelled(file, ledger, delay):
    """A run that waits for its turn or its time is cancelled; its caller knows at once."""
    ran, gate = [], threading.Event()
    app = app_on(f"{file}?ledger={ledger}")

    @app.task
    def wait():
        assert gate.wait(LONG)

    @app.task
    def work():
        ran.append(1)

    with app:
        first = wait.submit()
        assert wait_until(lambda: app.engine.native.pending_count() == 0, LONG)
        second = work.with_options(delay=delay).submit()
        if delay:
            gate.set()
            assert wait_until(lambda: app.engine.native.scheduled_count() == 1, LONG)
        assert second.cancel("not now")
        with pytest.raises(TaskCancelError, match="not now"):
            second.result(timeout=LONG)
        assert TaskStatus.cancelled is second.status
        assert not second.cancel("again")
        assert not first.cancel("too late")
        gate.set()
        first.result(timeout=LONG)
        work.submit().result(timeout=LONG)
    assert [1] == ran
    if not delay:
        assert [] == app.engine.native.storage.sql("select * from task", results=True)


def test_a_cancellation_is_told_however_soon_a_worker_drops_the_run(file, monkeypatch):
    """Whoever cancelled hears that he did, and whoever waits hears his reason."""
    begun, gate, dropped = threading.Event(), threading.Event(), threading.Event()
    app = app_on(file)
    native = app.engine.native
    wait = app.task(name="wait")(lambda: begun.set() or gate.wait(LONG))
    work = app.task(name="work")(lambda: 1)
    native.signal("revoked")(lambda *_: dropped.set())

    def revoke_and_drop(*args, revoke=native.revoke_by_id, **options):
        revoke(*args, **options)
        gate.set()
        assert dropped.wait(LONG)

    monkeypatch.setattr(native, "revoke_by_id", revoke_and_drop)
    with app:
        wait.submit()
        assert begun.wait(LONG)
        second = work.submit()
        assert second.cancel("not now")
        with pytest.raises(TaskCancelError, match="not now"):
            second.result(timeout=LONG)


def test_a_run_that_a_worker_takes_meanwhile_is_not_cancelled(file, monkeypatch):
    """Whoever hears that he has cancelled a run finds that nobody executed it."""
    begun, gate = threading.Event(), threading.Event()
    app = app_on(file)
    native = app.engine.native
    wait = app.task(name="wait")(lambda: begun.set() or gate.wait(LONG))
    work = app.task(name="work")(lambda: 1)

    def execute_and_revoke(uuid, revoke=native.revoke_by_id, **options):
        gate.set()
        rows = "select * from task"
        assert wait_until(lambda: not native.storage.sql(rows, results=True), LONG)
        revoke(uuid, **options)

    monkeypatch.setattr(native, "revoke_by_id", execute_and_revoke)
    with app:
        first = wait.submit()
        assert begun.wait(LONG)
        second = work.submit()
        assert not second.cancel("too late")
        assert 1 == second.result(timeout=LONG)
        assert first.result(timeout=LONG)
    assert {} == native.all_results()


def test_a_cancellation_reads_the_one_message(file, monkeypatch):
    """A queue of many thousand messages is not read for it."""
    app = app_on(file, workers=None)
    work = app.task(name="work")(lambda number: number)
    with app:
        handles = [work.submit(number) for number in range(50)]
        serializer = app.engine.native.serializer
        read = []

        def deserialize(data, native=serializer.deserialize):
            read.append(data)
            return native(data)

        monkeypatch.setattr(serializer, "deserialize", deserialize)
        assert handles[40].cancel()
    assert len(read) < 5


def test_a_recovered_run_is_cancelled(file):
    """It waits as others do."""
    app = app_on(file, workers=None)
    native = app.engine.native
    work = app.task(name="work")(lambda: 1)
    with app:
        handle = work.submit()
        assert native.storage.dequeue()
        ledger_of(native).open()
        ledger_of(native).close()
        assert 1 == native.pending_count()
        assert handle.cancel("not now")


def test_what_huey_drops_has_an_end(file):
    """A run that was revoked by Huey's own means ends in ``TaskCancelError``."""
    app = app_on(file)
    work = app.task(name="work")(lambda: 1)
    with app:
        app.engine.native.revoke_all(app.engine.tasks["work"])
        with pytest.raises(TaskCancelError, match="revoked"):
            work.submit().result(timeout=LONG)


def test_two_apps_share_a_huey(tmp_path):
    """Apps on one Huey each have their tasks done, and a name can be one's only."""
    native = huey.SqliteHuey(filename=tmp_path / "runs.db")
    one, two = app_on(native), app_on(native, workers=None)
    first = one.task(name="first")(lambda: 1)
    second = two.task(name="second")(lambda: 2)
    with pytest.raises(EngineError, match="first"):
        two.task(name="first")(lambda: 3)
    with two, one:
        assert [1, 2] == [task.submit().result(timeout=LONG) for task in (first, second)]


def test_an_adapter_is_behind_one_app(file):
    """The adapter of one app is refused to another, naming the first."""
    one = app_on(file)
    one.task(name="first")(lambda: 1)
    two = QueueTasks("two", engine=one.engine, discover=False)
    with pytest.raises(EngineError, match="already executes the runs of app 'shop'"):
        two.task(name="second")(lambda: 2)


def test_everybody_who_waits_for_a_run_has_its_result(file):
    """Several threads that wait by one handle all get the end, which Huey stores once."""
    app = app_on(file)
    gate = threading.Event()

    @app.task
    def work():
        assert gate.wait(LONG)
        return 42

    results = []
    with app:
        handle = work.submit()
        threads = [
            threading.Thread(target=lambda: results.append(handle.result(timeout=LONG)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join(LONG)
    assert [42] * 4 == results


def test_a_look_for_an_end_waits_for_nothing(file, monkeypatch):
    """``result(timeout=0)``, by which async code looks too, keeps no thread waiting."""
    app = app_on(file, workers=None)
    work = app.task(name="work")(lambda: 1)
    storage = app.engine.native.storage
    with app:
        handle = work.submit()
        monkeypatch.setattr(storage, "wait_result", lambda *_, **__: pytest.fail("it waits"))
        with pytest.raises(TimeoutError):
            handle.result(timeout=0)
        app.engine.native.put_result(str(handle.uuid), 5)
        assert 5 == handle.result(timeout=0)


def test_a_run_that_is_not_submitted_leaves_nothing_behind(file):
    """A priority that the file cannot keep is named, and no worker stumbles over it later."""
    app = app_on(file)
    work = app.task(name="work")(lambda: 1)
    with app:
        with pytest.raises(EngineError, match="task 'work'.*too large"):
            work.with_options(priority=2**63).submit()
        assert {} == app.engine.native.storage.result_items()
    with app:
        assert 1 == work.submit().result(timeout=LONG)


def test_a_run_that_waits_for_its_retry_is_queued_and_cancelled(file):
    """Between two attempts a run waits like any other, and can be cancelled."""
    app = app_on(file, Keeps(Retry(delay=1000)))

    @app.task(intercept=Exception)
    def fail():
        raise OSError

    with app:
        handle = fail.submit()
        assert wait_until(lambda: app.engine.native.scheduled_count() == 1, LONG)

        assert handle.status is None
        assert handle.cancel("enough")
        with pytest.raises(TaskCancelError, match="enough"):
            handle.result(timeout=LONG)


def test_a_server_that_is_not_there_is_told():
    """A Huey on a Redis that does not answer is one error at start, without its password."""
    app = QueueTasks("shop", engine=huey.RedisHuey(url="redis://user:secret@127.0.0.1:1/0"))
    with pytest.raises(
        EngineError, match="app 'shop'.*'RedisStorage'.*check that it is there"
    ) as caught:
        app.__enter__()
    assert "secret" not in str(caught.value)


def test_runs_over_a_real_redis(redis_url):
    """Redis carries runs, decisions, delays and cancellation too; it has no ledger."""
    plugin = Keeps(Retry(), "second")
    app = app_on(huey.RedisHuey(f"test-{os.getpid()}", url=redis_url), plugin, intercept=OSError)
    gate = threading.Event()

    @app.task
    def work(number=None):
        if number is None:
            raise OSError
        return number

    @app.task
    def wait():
        assert gate.wait(LONG)

    with app:
        assert 1 == work.submit(1).result(timeout=LONG)
        assert "second" == work.submit().result(timeout=LONG)
        first = wait.submit()
        assert wait_until(lambda: app.engine.native.pending_count() == 0, LONG)
        second = work.submit(2)
        assert second.cancel("why")
        assert not first.cancel("too late")
        gate.set()
        with pytest.raises(TaskCancelError, match="why"):
            second.result(timeout=LONG)
