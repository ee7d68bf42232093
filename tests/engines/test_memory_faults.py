"""``memory://`` where it is used wrongly or short of means: no run is lost in silence."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines.memory import MemoryEngine
from qtasks_pluggy.exc import EngineError, NotRunningError, TaskCancelError
from tests.engines.processes import told_by_a_fork, wait_until
from tests.engines.shops import LONG, Closing, Gate, app_of


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("method", ["submit_sync", "result", "cancel"])
def test_a_fork_does_not_wait_for_what_it_cannot_hear(method):
    """A task and its handle say in a fork that the runs are executed elsewhere."""
    app = app_of("?workers=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        handle = gate.mark.submit(1)

        call = getattr(handle, method, gate.hold.submit_sync)
        text = told_by_a_fork(call)
        assert ("NotRunningError" if method == "submit_sync" else "EngineError") in text
        assert "forked from" in text
        gate.open.set()
        assert 1 == handle.result(timeout=LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("ends_block", [False, True])
async def test_a_fork_can_start_the_app_anew(ends_block):
    """The parent's runs are not the fork's, which does those that it submits itself."""
    app = app_of("?workers=1")
    gate = Gate(app)

    def use() -> None:
        if ends_block:
            app.__exit__(None, None, None)
        with app:
            assert [1] == [one.result(LONG) for one in app.submit_many(gate.mark, [1])]
            with pytest.raises(EngineError, match="forked from"):
                handle.result(LONG)

    async with app:
        handle = await gate.hold.submit_async()
        assert "no error" == told_by_a_fork(use)
        gate.open.set()
        await handle


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_does_no_run_of_its_parent_though_the_event_loop_rested():
    """Else both processes would do it."""
    app, done = app_of(), []
    task = app.task(name="later")(lambda: done.append(1))

    def run() -> None:
        with pytest.raises(NotRunningError, match="forked from"):
            task.submit_sync()
        loop.run_until_complete(asyncio.sleep(0.02))
        assert not done

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(app.__aenter__())
        handle = loop.run_until_complete(task.with_options(delay=0.01).submit_async())
        assert "no error" == told_by_a_fork(run)
        loop.run_until_complete(asyncio.wait_for(handle, LONG))
        loop.run_until_complete(app.__aexit__(None, None, None))
    assert [1] == done


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
        with pytest.raises(
            EngineError, match="already executes the runs of app 'one'; give app 'two'"
        ):
            two.__enter__()
        assert 1 == gate.mark.submit(1).result(timeout=LONG)


def test_a_system_without_threads_fails_the_runs_and_keeps_their_place(monkeypatch):
    """A run for which no thread can be made ends in that error, and the next one has its place."""
    app = app_of("?workers=1")
    gate = Gate(app)

    def refuses(_):
        raise RuntimeError("can't start new thread")

    @app.task
    async def hold_the_worker():
        while not gate.open.is_set():
            await asyncio.sleep(0.001)

    with app:
        with monkeypatch.context() as short:
            short.setattr(threading.Thread, "start", refuses)
            hold_the_worker.submit_sync()
            # More than could begin one inside another.
            handles = [gate.mark.submit(n) for n in range(2000)]
            gate.open.set()
            for handle in handles:
                with pytest.raises(RuntimeError, match="new thread"):
                    handle.result(timeout=LONG)
        assert 4 == gate.mark.submit(4).result(timeout=LONG)
    assert [4] == gate.done


def test_a_loop_that_closed_under_the_app_leaves_no_coroutine_behind(recwarn):
    """A run that no event loop can begin is refused, without a warning of Python's."""
    app = app_of()

    @app.task
    async def on_loop():
        pass

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(app.__aenter__())
    with pytest.raises(RuntimeError, match="closed"):
        on_loop.submit_sync()
    gc.collect()
    assert [] == list(recwarn)


def test_an_app_of_async_tasks_starts_no_thread():
    """Threads are for plain tasks; they are started when there is a run for them."""
    app = app_of("?workers=400")
    gate = Gate(app)

    @app.task
    async def on_loop():
        pass

    def threads() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == "qtasks-pluggy-memory"}

    before = threads()
    with app:
        on_loop.submit_sync().result(timeout=LONG)
        assert not threads() - before
        gate.mark.submit(1).result(timeout=LONG)
        assert 1 == len(threads() - before)


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

    def give_up_slowly(native=engine._give_up, **given):
        # The stop's own step, before it looks whether all is over.
        native(**given)
        gate.set()
        assert moving.wait(LONG)

    with app:
        handle = fail.submit()
        assert entered.wait(LONG)

        def put_slowly(*args, native=engine._put):
            moving.set()
            # Long enough for a stop that does not wait for the lock.
            threading.Event().wait(0.2)
            return native(*args)

        monkeypatch.setattr(engine, "_put", put_slowly)
        monkeypatch.setattr(engine, "_give_up", give_up_slowly)
    with pytest.raises(OSError, match="broken"):
        handle.result(timeout=LONG)
    assert [1, 1] == seen


class Argument:
    """What a run is given; whether anything still holds it can be seen from outside."""


@pytest.mark.parametrize("delay", [None, 100_000])
def test_cancelled_runs_leave_the_queue(delay):
    """Runs that are cancelled long before their turn do not stay in memory until then."""
    app = app_of("?workers=1&size=1000000")
    gate = Gate(app)
    given: list[weakref.ref[Argument]] = []
    with app:
        gate.occupy()
        later = gate.mark.with_options(delay=delay)

        def submit_and_cancel() -> None:
            argument = Argument()
            given.append(weakref.ref(argument))
            assert later.submit(argument).cancel()

        for _ in range(1000):
            submit_and_cancel()
        # As many as asyncio keeps of cancelled timers, and a few.
        assert wait_until(lambda: sum(one() is not None for one in given) <= 110, LONG)
        kept = later.submit("kept")
        assert kept.cancel()
        with pytest.raises(TaskCancelError):
            kept.result(timeout=LONG)
        gate.open.set()
        assert "soon" == gate.mark.submit("soon").result(timeout=LONG)
    assert ["soon"] == gate.done


async def test_a_delayed_run_that_is_cancelled_is_garbage_at_once():
    """Its timer does not hold it until its time comes."""
    app = app_of()
    gate = Gate(app)
    async with app:
        argument = Argument()
        held = weakref.ref(argument)
        handle = await gate.mark.with_options(delay=100_000).submit_async(argument)
        assert handle.cancel()
        del argument, handle
        gc.collect()
        assert held() is None


def test_a_task_that_hangs_does_not_keep_the_process_from_ending():
    """Past its grace a stop leaves a plain run in its thread, and the interpreter exits."""
    code = """if True:
        import threading
        from qtasks_pluggy import QueueTasks
        from qtasks_pluggy.engines import memory

        memory._CLEANUP_SECONDS = 0.1
        app = QueueTasks("shop", engine="memory://?grace=0", discover=False)
        entered = threading.Event()

        @app.task
        def hang():
            entered.set()
            threading.Event().wait()

        with app:
            handle = hang.submit()
            entered.wait()
        print(handle.status)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=True
    )
    assert "cancelled" == done.stdout.strip()
    assert "memory_engine_gave_up" in done.stderr
