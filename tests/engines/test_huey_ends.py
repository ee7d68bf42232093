"""However a run on Huey ends, its caller is told, and its worker goes on."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import SimpleNamespace

import huey
import pytest
import structlog

from qtasks_hookspecs import Cancel, DeadLetter, hookimpl
from qtasks_pluggy import QueueTasks, TaskStatus
from qtasks_pluggy.exc import EngineError, TaskCancelError, TaskDeadLetteredError
from tests.engines.huey_apps import LONG, Keeps, app_on
from tests.engines.processes import wait_until
from tests.engines.versions import since

pytestmark = pytest.mark.engines


@pytest.fixture
def file(tmp_path):
    """The URL of a new database."""
    return f"huey+sqlite:///{tmp_path}/runs.db"


class OddError(Exception):
    """An error that pickles, and cannot be made again."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class ShyError(Exception):
    """An error that pickles, and cannot be shown."""

    def __repr__(self):
        raise LookupError("no repr")


class MuteError(Exception):
    """An error that has no text, and does not pickle."""

    def __str__(self):
        raise LookupError("no text")

    def __reduce__(self):
        raise self


class Odd:
    """A value that pickles, and cannot be read again."""

    def __reduce__(self):
        return int, ("not a number",)


@pytest.mark.parametrize("decision", [Cancel("why"), DeadLetter("why")])
def test_ends_without_a_result_leave_nothing_behind(file, decision):
    """A run that was cancelled or set aside is in no queue, and the ledger has forgotten it."""
    app = app_on(file, Keeps(decision), intercept=OSError)

    @app.task
    def work():
        raise OSError

    with app, pytest.raises((TaskCancelError, TaskDeadLetteredError), match="why"):
        work.submit().result(timeout=LONG)
    native = app.engine.native
    assert ([], [], {}) == (native.pending(), native.scheduled(), native.all_results())


@pytest.mark.parametrize(
    "end",
    [
        SystemExit,
        GeneratorExit,
        KeyboardInterrupt,
        asyncio.CancelledError,
        OddError,
        ShyError,
        MuteError,
    ],
)
def test_no_error_of_a_task_ends_its_worker(file, end):
    """Whatever a task raises ends its own run, and the worker goes on."""

    def raises():
        raise end(1, 2)

    app = app_on(file)
    bad, good = app.task(name="bad")(raises), app.task(name="good")(lambda: 1)
    told = {
        asyncio.CancelledError: TaskCancelError,
        OddError: EngineError,
        MuteError: EngineError,
        # Whoever waits is not to be ended.
        **dict.fromkeys((SystemExit, GeneratorExit, KeyboardInterrupt), EngineError),
    }
    expected = told.get(end, end)
    with app:
        with pytest.raises(expected) as caught:
            bad.submit().result(timeout=LONG)
        assert 1 == good.submit().result(timeout=LONG)
    if end in {OddError, MuteError}:
        text = (
            "1 and 2" if end is OddError else "task 'bad': tests.engines.test_huey_ends.MuteError"
        )
        assert text in str(caught.value)


def test_values_that_cannot_be_read_again_are_told(file):
    """A result that cannot be made again in another process is an error of its run."""
    app = app_on(file)
    work = app.task(name="work")(lambda: [Odd()])
    with (
        app,
        pytest.raises(EngineError, match="task 'work', a list, cannot be stored"),
    ):
        work.submit().result(timeout=LONG)


def test_an_argument_that_does_not_travel_is_named(file):
    """The error of a submission names the argument and its type, not its value."""
    app = app_on(file)
    work = app.task(name="work")(lambda *args, **kwargs: 1)
    with app:
        with pytest.raises(EngineError, match=r"argument 2, a lock,"):
            work.submit(1, threading.Lock())
        with pytest.raises(EngineError, match=r"argument 'key', a lock,"):
            work.submit(1, key=threading.Lock())
        assert {} == app.engine.native.all_results()


@pytest.mark.parametrize("ledger", [0, 1])
@since("huey", "3.5", "Huey lists no tasks of which it does not know one")
def test_a_task_that_the_worker_does_not_know_ends(file, ledger):
    """An unknown task's run ends in an error that tells what the worker has; it lives on."""
    client, app = app_on(f"{file}?ledger={ledger}", workers=None), app_on(f"{file}?ledger={ledger}")
    new = client.task(name="new")(lambda: 1)
    old = app.task(name="old")(lambda: 2)
    with client:
        handle = new.submit()
        # Listing what waits is nobody's end.
        assert [] == app.engine.native.pending()
        assert handle.status is None
        with app, structlog.testing.capture_logs():
            with pytest.raises(
                EngineError, match="new not found in TaskRegistry.*import every module"
            ):
                handle.result(timeout=LONG)
            assert 2 == old.submit().result(timeout=LONG)


def test_an_end_that_cannot_be_read_here_is_told(file, monkeypatch):
    """A result of a class that the caller lacks is an ``EngineError``, not a riddle."""
    module = SimpleNamespace(__name__="elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    module.Thing = type("Thing", (), {"__module__": "elsewhere"})
    app = app_on(file)
    work = app.task(name="work")(lambda: module.Thing())
    with app:
        handle = work.submit()
        assert wait_until(lambda: str(handle.uuid) in app.engine.native.all_results(), LONG)
        del module.Thing
        assert TaskStatus.failed is handle.status
        with pytest.raises(EngineError, match="cannot be read here"):
            handle.result(timeout=LONG)


def test_a_task_that_cancels_itself_by_huey_s_own_means_is_cancelled(file):
    """``CancelExecution`` ends a run as cancelled, with its text, and leaves nothing behind."""
    app = app_on(file)

    @app.task
    def work():
        error = huey.CancelExecution(retry=False)
        error.args = ("not today",)
        raise error

    with app:
        handle = work.submit()
        with pytest.raises(TaskCancelError, match="not today"):
            handle.result(timeout=LONG)
        assert TaskStatus.cancelled is handle.status
    assert {} == app.engine.native.all_results()


def test_a_task_that_asks_for_another_attempt_by_cancelling_has_no_end_yet(file):
    """A run that ``CancelExecution(retry=True)`` puts back is told to wait, not to have ended."""
    begun, gate, seen = threading.Event(), threading.Event(), []
    app = app_on(file)

    @app.task
    def wait():
        begun.set()
        assert gate.wait(LONG)

    @app.task
    def work():
        # In between the two attempts, the only worker waits.
        if not seen:
            seen.append(wait.submit())
            raise huey.CancelExecution(retry=True)
        return 5

    with app:
        handle = work.submit()
        assert begun.wait(LONG)
        assert handle.status is None
        gate.set()
        assert 5 == handle.result(timeout=LONG)


def test_plugins_of_a_worker_live_from_its_first_thread_to_its_last(tmp_path):
    """In a worker process the plugins start once and stop once, however many threads it has."""
    plugin = Keeps()
    app = QueueTasks("shop", engine=huey.MemoryHuey(), plugins=[plugin], discover=False)
    work = app.task(name="work")(lambda: threading.get_ident())
    native = app.engine.native
    consumer = native.create_consumer(workers=3, initial_delay=0.01, max_delay=0.01)
    consumer._set_signal_handlers = lambda: None
    consumer.start()
    # One that begins when the others have ended is another first.
    assert wait_until(lambda: app.engine._workers == 3, LONG)
    task = app.engine.tasks["work"]((), {})
    native.enqueue(task)
    assert wait_until(lambda: native.result_count() == 1, LONG)
    consumer.stop(graceful=True)

    assert ["start", "close", "stop"] == plugin.heard
    assert work.name == "work"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_plugin_that_cannot_start_keeps_the_worker_from_taking_runs():
    """A worker without its plugins takes no run, and says why."""

    class Broken:
        @hookimpl
        def qtasks_start(self):
            raise LookupError("no settings")

    app = QueueTasks("shop", engine=huey.MemoryHuey(), plugins=[Broken()], discover=False)
    app.task(name="work")(lambda: 1)
    native = app.engine.native
    native.enqueue(app.engine.tasks["work"]((), {}))
    consumer = native.create_consumer(workers=2)
    consumer._set_signal_handlers = lambda: None
    with structlog.testing.capture_logs() as logs:
        consumer.start()
        consumer._join_workers = lambda: None
        for _, thread in consumer.worker_threads:
            thread.join(LONG)
    consumer.stop_flag.set()
    consumer.scheduler.join(LONG)

    assert 1 == native.pending_count()
    assert "worker_cannot_start" in {one["event"] for one in logs}
