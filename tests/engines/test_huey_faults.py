"""A database that is full, held, damaged or gone is one clear error, and costs no run."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time

import pytest
import structlog

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import _huey_ledger as ledger_module
from qtasks_pluggy.exc import EngineError
from tests.engines.huey_apps import LONG, app_on
from tests.engines.processes import wait_until
from tests.engines.versions import since

pytestmark = pytest.mark.engines

PAGES = 60


@pytest.fixture
def path(tmp_path):
    """Where the database is to be."""
    return tmp_path / "runs.db"


def shop_on(path, workers=None):
    """An app on a file, whose task gives back what it gets."""
    app = app_on(f"huey+sqlite:///{path}", workers=workers)
    app.task(name="work")(lambda thing: thing)
    return app, app.tasks["work"]


def pragma(app, text):
    """Change the app's own connection to its database."""
    storage = app.engine.native.storage
    with storage.lock:
        storage.conn.execute(f"pragma {text}")


def hold(path):
    """Keep the database locked, as another process would."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    return other


def test_a_full_disk_refuses_what_it_cannot_keep_and_keeps_the_rest(path):
    """Submitting to a full disk is an error; all that was submitted before is done."""
    app, work = shop_on(path)
    handles, refused = [], 0
    with app:
        pragma(app, f"max_page_count={PAGES}")
        for number in range(200):
            try:
                handles.append(work.submit(f"{number} " + "x" * 2000))
            except EngineError as error:
                assert "make room" in str(error)
                assert str(path) in str(error)
                refused += 1
        pragma(app, "max_page_count=100000")
        assert len(handles) >= 10
        assert refused >= 100
        assert len(handles) == app.engine.native.pending_count()
    app.set_engine(app.engine, workers=1)
    with app:
        for handle in handles:
            assert handle.result(timeout=LONG).endswith("x")


def test_a_disk_that_is_full_for_a_while_costs_no_end(path, monkeypatch):
    """A worker whose disk is full keeps at it, and every run ends once there is room."""
    monkeypatch.setattr(ledger_module, "_PAUSES", (0.05,) * 200)
    app, work = shop_on(path, workers=2)
    begun, room = [], threading.Event()

    @app.task
    def big():
        begun.append(1)
        assert len(begun) == 1 or room.wait(LONG)
        return "x" * 400_000

    with app, structlog.testing.capture_logs() as logs:
        handles = [work.submit(number) for number in range(5)]
        pragma(app, f"max_page_count={PAGES}")
        handles.append(big.submit())
        assert wait_until(lambda: "huey_end_not_stored" in {one["event"] for one in logs}, LONG)
        pragma(app, "max_page_count=100000")
        room.set()
        *small, large = [handle.result(timeout=LONG) for handle in handles]
    assert [0, 1, 2, 3, 4] == small
    assert len(large) == 400_000


def test_an_end_that_never_fits_is_told(path, monkeypatch):
    """A result too large for the disk is tried some times; then its run ends in an error."""
    monkeypatch.setattr(ledger_module, "_PAUSES", (0.01,) * 10)
    app, work = shop_on(path, workers=1)
    big = app.task(name="big")(lambda: "x" * 400_000)
    with app, structlog.testing.capture_logs():
        pragma(app, f"max_page_count={PAGES}")
        with pytest.raises(EngineError, match="too large for the disk"):
            big.submit().result(timeout=LONG)
        assert 1 == work.submit(1).result(timeout=LONG)
    assert {} == app.engine.native.all_results()


def test_a_database_that_another_process_holds_is_told(path, monkeypatch):
    """Every use of a locked database is one error that says so; then all goes on."""
    app, work = shop_on(path)
    with app:
        waiting = work.submit(1)
        pragma(app, "busy_timeout=50")
        other = hold(path)
        for use in (
            lambda: work.submit(2),
            lambda: waiting.cancel(),
        ):
            with pytest.raises(EngineError, match="another process holds it"):
                use()
        other.close()
    app.set_engine(app.engine, workers=1)
    with app:
        assert [1, 3] == [waiting.result(timeout=LONG), work.submit(3).result(timeout=LONG)]
    assert {} == app.engine.native.all_results()


def test_a_lock_in_the_midst_of_runs_costs_none(path, monkeypatch):
    """Runs that are being done while another process holds the database end none the less."""
    monkeypatch.setattr(ledger_module, "_PAUSES", (0.05,) * 200)
    app, _ = shop_on(path, workers=2)
    held, gate = threading.Semaphore(0), threading.Event()

    @app.task
    def wait(number):
        held.release()
        assert gate.wait(LONG)
        return number

    with app, structlog.testing.capture_logs():
        handles = [wait.submit(number) for number in range(6)]
        assert held.acquire(timeout=LONG)
        assert held.acquire(timeout=LONG)
        pragma(app, "busy_timeout=20")
        other = hold(path)
        gate.set()
        # Long enough for the workers to fail, several times over.
        end = time.monotonic() + 0.5
        assert wait_until(lambda: time.monotonic() > end, LONG)
        other.close()
        assert list(range(6)) == [handle.result(timeout=LONG) for handle in handles]


@since("huey", "3.5", "Huey's scheduler ends with an error of its storage")
def test_a_delayed_run_survives_a_lock_when_its_time_comes(path, monkeypatch):
    """What the scheduler has taken out and cannot enqueue is found again."""
    app, work = shop_on(path, workers=1)
    native = app.engine.native
    enqueue, failures = native.storage.enqueue, [sqlite3.OperationalError("database is locked")]

    def fail_once(*args):
        if failures and threading.current_thread().name == "Scheduler":
            raise failures.pop()
        return enqueue(*args)

    monkeypatch.setattr(native.storage, "enqueue", fail_once)
    with app, structlog.testing.capture_logs() as logs:
        handle = work.with_options(delay=0.5).submit(1)
        assert 1 == handle.result(timeout=LONG)
    assert [] == failures
    assert "huey_runs_recovered" in {one["event"] for one in logs}


@pytest.mark.parametrize("what", ["text", "damaged"])
def test_a_file_that_is_no_database_is_told(path, what):
    """A file that is something else, or damaged, is one error, and is left as it is."""
    if what == "text":
        path.write_text("a shopping list, and no database at all\n" * 200)
    else:
        app, work = shop_on(path)
        with app:
            for number in range(50):
                work.submit(f"{number} " + "x" * 500)
        app.engine.native.storage.close()
        content = bytearray(path.read_bytes())
        content[100:] = b"\xee" * (len(content) - 100)
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(EngineError, match="move it away") as caught:
        shop_on(path)[0].__enter__()
    assert str(path) in str(caught.value)
    assert before == path.read_bytes()


def test_a_folder_in_the_file_s_place_is_told(path):
    """A folder is no database."""
    path.mkdir()
    with pytest.raises(EngineError, match="unable to open"):
        QueueTasks("shop", engine=f"huey+sqlite:///{path}")


def test_a_file_of_locks_that_cannot_be_opened_is_told(path):
    """What the ledger keeps beside the database is named when it cannot be used."""
    path.with_name(f"{path.name}.workers").mkdir()
    with pytest.raises(EngineError, match=r"\.workers'.*cannot be used.*write there"):
        QueueTasks("shop", engine=f"huey+sqlite:///{path}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_submits_whatever_the_other_threads_are_doing(path):
    """A child has neither the lock that a thread held when it was forked, nor its connection."""
    app, work = shop_on(path, workers=1)
    storage = app.engine.native.storage
    held = threading.Event()

    def keep():
        with storage.lock:
            held.set()
            # Long enough for a fork that does not wait for the lock.
            threading.Event().wait(0.2)

    with app:
        thread = threading.Thread(target=keep)
        thread.start()
        assert held.wait(LONG)
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            try:
                os._exit(0 if storage._conn is None and work.submit(7) else 1)
            finally:
                os._exit(2)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        thread.join(LONG)
        assert 3 == work.submit(3).result(timeout=LONG)


def test_tables_that_are_gone_are_told(path):
    """A database that somebody made anew under the app is one error."""
    app, work = shop_on(path)
    with app:
        with sqlite3.connect(path) as other:
            other.execute("drop table task")
            other.execute("drop table kv")
        other.close()
        with pytest.raises(EngineError, match="start the app again"):
            work.submit(1)


def test_a_consumer_whose_file_may_not_grow_loses_nothing(project, worker):
    """A worker process that reaches its file size limit loses no run: the next one does it."""
    folder = project(
        {
            "app.py": """
                from pathlib import Path
                from qtasks_pluggy import QueueTasks

                path = Path(__file__).parent / "runs.db"
                app = QueueTasks("shop", engine=f"huey+sqlite:///{path}", discover=False)
                huey = app.engine.native

                @app.task
                def grow(number):
                    return f"{number} " + "x" * 20_000
            """,
            "limited.py": """
                import resource, runpy, sys

                resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
                sys.argv = ["huey_consumer", *sys.argv[1:]]
                runpy.run_module("huey.bin.huey_consumer", run_name="__main__")
            """,
        }
    )
    names = {}
    exec((folder / "app.py").read_text(), names | {"__file__": str(folder / "app.py")}, names)  # noqa: S102  # written above
    options = ("app.huey", "-d", "0.01", "-m", "0.05")
    with names["app"] as app:
        handles = list(app.submit_many(names["grow"], range(60)))
        first = worker(sys.executable, "limited.py", *options, cwd=folder, ready="disk I/O error")
        first.kill()
        worker(sys.executable, "-m", "huey.bin.huey_consumer", *options, cwd=folder)
        results = [handle.result(timeout=LONG) for handle in handles]
    assert [str(number) for number in range(60)] == [result.split()[0] for result in results]
