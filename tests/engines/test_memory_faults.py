"""``memory://`` where it is used wrongly or short of means: no run is lost in silence."""

from __future__ import annotations

import os
import threading

import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines.memory import MemoryEngine
from qtasks_pluggy.exc import EngineError, TaskCancelError
from tests.engines.shops import LONG, Closing, Gate, app_of


def told_by_a_fork(call):
    """Call something in a fork of this process; give the text of its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call()
            os.write(writing, b"no error")
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("method", ["result", "cancel"])
def test_a_fork_does_not_wait_for_what_it_cannot_hear(method):
    """A handle's own methods say in a fork that the runs are done elsewhere."""
    app = app_of("?workers=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        handle = gate.mark.submit(1)

        assert "EngineError" in (text := told_by_a_fork(getattr(handle, method)))
        assert "forked from" in text
        gate.open.set()
        assert 1 == handle.result(timeout=LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_stops_at_once():
    """A fork that leaves the app's block waits for no run, for none is done there."""
    app = app_of("?grace=1000")
    gate = Gate(app)
    with app:
        gate.occupy()

        assert "no error" == told_by_a_fork(lambda: app.__exit__(None, None, None))
        gate.open.set()


def test_one_engine_is_behind_one_app():
    """An adapter that is at work for one app is refused to another, which then starts nothing."""
    engine = MemoryEngine("memory://")
    one = QueueTasks("one", engine=engine, discover=False)
    two = QueueTasks("two", engine=engine, discover=False)
    gate = Gate(one)
    with one:
        with pytest.raises(EngineError, match="behind app 'one' already"):
            two.__enter__()
        assert 1 == gate.mark.submit(1).result(timeout=LONG)


def test_a_system_without_threads_fails_the_run_and_keeps_its_place(monkeypatch):
    """A run for which no thread can be made ends in that error, and the next one has its place."""
    app = app_of("?workers=1")
    gate = Gate(app)

    def refuses(_):
        raise RuntimeError("can't start new thread")

    with app:
        with monkeypatch.context() as short:
            short.setattr(threading.Thread, "start", refuses)
            handles = [gate.mark.submit(n) for n in range(3)]
            for handle in handles:
                with pytest.raises(RuntimeError, match="new thread"):
                    handle.result(timeout=LONG)
        assert 4 == gate.mark.submit(4).result(timeout=LONG)
    assert [4] == gate.done


def test_a_stop_waits_for_a_run_on_its_way_to_its_next_attempt(monkeypatch):
    """A run that a stop meets between two attempts is in neither place, and not gone."""
    app = app_of("?workers=1", plugins=[Closing(Retry(limit=1, delay=0.01))])
    entered, moving = threading.Event(), threading.Event()
    gate, engine, seen = threading.Event(), app.engine, []

    @app.task(intercept=OSError)
    def fail():
        seen.append(1)
        entered.set()
        assert gate.wait(LONG)
        raise OSError("broken")

    def give_up_slowly(runs, native=engine._give_up):
        # The stop's own step, before it looks whether all is over.
        native(runs)
        gate.set()
        assert moving.wait(LONG)

    with app:
        handle = fail.submit()
        assert entered.wait(LONG)

        def put_slowly(*args, native=engine._queue.put):
            moving.set()
            # Long enough for a stop that does not wait for the lock.
            threading.Event().wait(0.2)
            return native(*args)

        monkeypatch.setattr(engine._queue, "put", put_slowly)
        monkeypatch.setattr(engine, "_give_up", give_up_slowly)
    with pytest.raises(OSError, match="broken"):
        handle.result(timeout=LONG)
    assert [1, 1] == seen


def test_cancelled_runs_leave_the_queue():
    """Runs that are cancelled long before their time do not stay in memory until then."""
    app = app_of("?workers=1&size=1000000")
    gate = Gate(app)
    with app:
        later = gate.mark.with_options(delay=100_000)
        for number in range(1000):
            assert later.submit(number).cancel()
        queue = app.engine._queue

        assert 0 == queue.queued
        assert len(queue._later) <= 101
        kept = [later.submit(number) for number in range(200)]
        for handle in kept[:150]:
            handle.cancel()
        gate.mark.with_options(delay=0.01).submit("soon").result(timeout=LONG)

        assert 50 == queue.queued
        for handle in kept:
            handle.cancel()
            with pytest.raises(TaskCancelError):
                handle.result(timeout=LONG)
    assert ["soon"] == gate.done
