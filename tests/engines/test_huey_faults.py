"""A database that is full, held, damaged or gone is one clear error, and costs no run."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import sys

import pytest
from huey import SqliteHuey

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines.huey import at_least_once
from qtasks_pluggy.exc import EngineError
from tests.engines.huey_apps import LONG, app_on, consuming
from tests.engines.processes import wait_until

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
                assert "full; check that" in str(error)
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


@contextlib.contextmanager
def room_for(path, size):
    """Let no file of this process grow beyond what the database has, and this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = max(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (held + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["app", "own"])
def test_a_submission_that_a_full_disk_refuses_is_never_done(path, kind):
    """Wherever the disk fills up, what was refused is not done later, and the rest is done."""
    done = []
    app = huey = None
    if kind == "app":
        app = app_on(f"huey+sqlite:///{path}", workers=None)
        huey = app.engine.native
        send = app.task(name="work")(lambda number, _: done.append(number)).submit
    else:
        huey = SqliteHuey("shop", filename=path)
        at_least_once(huey)
        send = huey.task(name="work")(lambda number, _: done.append(number))
    taken, refused = [], []
    with app or contextlib.nullcontext():
        for number in range(60):
            try:
                with room_for(path, number * 1024):
                    send(number, "x" * 3000)
            except (EngineError, sqlite3.Error):
                refused.append(number)
            else:
                taken.append(number)
            if number % 10 == 9:
                # The log is short again, so that the disk fills up elsewhere in it.
                huey.storage.sql("pragma wal_checkpoint(truncate)", results=True)
    assert min(len(taken), len(refused)) >= 5
    with consuming(huey):
        assert wait_until(lambda: len(done) >= len(taken), LONG)
        look = huey.storage.sql
        assert wait_until(lambda: not look("select * from task", results=True), LONG)
    assert taken == done


def test_a_database_that_another_process_holds_is_told(path):
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
            with pytest.raises(EngineError, match="locked; check that"):
                use()
        other.close()
    app.set_engine(app.engine, workers=1)
    with app:
        assert [1, 3] == [waiting.result(timeout=LONG), work.submit(3).result(timeout=LONG)]
    assert {} == app.engine.native.all_results()


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
    with pytest.raises(EngineError, match="not a database|malformed") as caught:
        shop_on(path)[0].__enter__()
    assert str(path) in str(caught.value)
    assert before == path.read_bytes()


def test_a_folder_in_the_file_s_place_is_told(path):
    """A folder is no database."""
    path.mkdir()
    with pytest.raises(EngineError, match="unable to open"):
        QueueTasks("shop", engine=f"huey+sqlite:///{path}")


def test_tables_that_are_gone_are_told(path):
    """A database that somebody replaces while the app runs is one error."""
    app, work = shop_on(path)
    with app:
        with sqlite3.connect(path) as other:
            other.execute("drop table task")
            other.execute("drop table kv")
        other.close()
        with pytest.raises(EngineError, match="no such table: task; check that"):
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
