"""Handles and submissions: what they pass on, whoever asks, on whatever loop or thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from qtasks_pluggy import QueueTasks, TaskExecutor, TaskStatus
from qtasks_pluggy.engines import NoRoomError, RunResult, is_started
from qtasks_pluggy.engines.memory import MemoryEngine
from qtasks_pluggy.exc import EngineError
from tests.engines.harness import Blocking, Pool
from tests.runs import plugin

LONG = 30.0


def test_a_handle_passes_on_what_the_engine_knows():
    """``ticket``, ``trail`` and ``status`` are the engine's, until the run has ended."""
    app = QueueTasks("shop", engine=Pool().engine(), discover=False)
    gate = threading.Event()
    task = app.task(name="price")(lambda: gate.wait(LONG))
    with app:
        handle = task.submit()
        assert handle.status is TaskStatus.queued
        gate.set()
        assert handle.result(timeout=LONG)
        assert (handle.ticket.done(), handle.trail) == (True, None)
        assert not handle.cancel()


async def test_an_async_engine_is_reached_from_any_loop_and_thread():
    """``async def`` methods run on the loop that the engine names, whoever calls them."""

    class Homesick(MemoryEngine):
        async def submit(self, message, delay):
            assert asyncio.get_running_loop() is self.loop
            return MemoryEngine.submit(self, message, delay)

    app = QueueTasks("shop", engine=Homesick("memory://"), discover=False)
    task = app.task(name="price")(lambda: 7)

    def elsewhere() -> list[Any]:
        async def main() -> Any:
            return await (await task.submit_async())

        return [asyncio.run(main()), task.submit_sync().result(timeout=LONG)]

    async with app:
        assert [7, 7] == await asyncio.to_thread(elsewhere)
        assert 7 == await (await task.submit_async())
        with pytest.raises(RuntimeError, match="its submit here would never end; use 'await task."):
            task.submit_sync()


def test_a_wait_outlasts_a_pause_of_the_engine_s_loop():
    """Another thread may submit while the engine's loop rests between two of its runs."""
    resting = threading.Event()

    class Homesick(MemoryEngine):
        async def submit(self, message, delay):
            return MemoryEngine.submit(self, message, delay)

    app = QueueTasks("shop", engine=Homesick("memory://"), discover=False)
    task = app.task(name="price")(lambda: 7)
    with contextlib.closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as pool:
        loop.run_until_complete(app.__aenter__())
        looked = loop.is_running

        def is_running():
            resting.set()
            return looked()

        loop.is_running = is_running
        submitting = pool.submit(task.submit_sync)
        assert resting.wait(LONG)
        handle = loop.run_until_complete(asyncio.wrap_future(submitting, loop=loop))
        assert 7 == loop.run_until_complete(asyncio.wait_for(handle, LONG))
        loop.run_until_complete(app.__aexit__(None, None, None))


async def test_a_result_that_an_engine_cancels_cancels_those_who_await_it():
    """Async code gets asyncio's ``CancelledError``, which is no ``Exception``."""
    cancelled: Future[RunResult] = Future()
    assert cancelled.cancel()

    class Cancels(MemoryEngine):
        def result(self, ticket, timeout):
            return cancelled

    app = QueueTasks("shop", engine=Cancels("memory://"), discover=False)
    task = app.task(name="price")(lambda: 7)
    async with app:
        handle = await task.submit_async()
        with pytest.raises(asyncio.CancelledError):
            await handle


async def test_handles_that_are_awaited_hold_no_thread():
    """However many wait on a loop, its few threads stay free for what else there is to do."""
    engine, limits = Blocking().engine(), []

    def result(ticket, timeout, native=engine.result):
        limits.append(timeout)
        return native(ticket, timeout)

    engine.result = result
    app = QueueTasks("shop", engine=engine, discover=False)
    gate = threading.Event()
    task = app.task(name="wait")(lambda: gate.wait(LONG))
    async with app:
        handles = [await task.submit_async() for _ in range(20)]
        waiting = asyncio.gather(*handles)
        while len(limits) < 40:
            await asyncio.sleep(0.01)
        gate.set()
        assert [True] * 20 == await waiting
    assert {0} == set(limits)


def test_a_loop_that_closes_before_the_end_is_left_alone(caplog):
    """Whoever gave up waiting, and closed its event loop, is not told of the run's end."""
    app = QueueTasks("shop", engine="memory://", discover=False)
    gate = threading.Event()
    task = app.task(name="wait")(lambda: gate.wait(LONG))
    with app:
        handle = task.submit()

        async def give_up() -> None:
            await asyncio.wait_for(handle, 0.001)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        gate.set()
        assert handle.result(timeout=LONG)
    assert [] == [record for record in caplog.records if record.name == "concurrent.futures"]


async def test_async_code_submits_many():
    """``async for`` over ``submit_many`` submits as the handles are asked for."""
    app = QueueTasks("shop", engine="memory://", discover=False)
    task = app.task(name="double")(lambda number: 2 * number)
    async with app:
        handles = [handle async for handle in app.submit_many(task, range(5))]
        assert [0, 2, 4, 6, 8] == [await handle for handle in handles]


async def test_options_of_an_async_task_are_for_submitting_too():
    """Awaiting ``task.with_options(...)`` is refused, as calling it is."""
    app = QueueTasks("shop", engine="memory://", discover=False)

    @app.task
    async def price():
        return 1

    with pytest.raises(RuntimeError, match="with_options"):
        await price.with_options(priority=1)()


def test_an_end_can_bring_its_trail():
    """A trail that came with the end, from another process, is the handle's."""
    trail = TaskExecutor(lambda: 1).trail

    class Carrying(MemoryEngine):
        def result(self, ticket, timeout):
            return RunResult(TaskStatus.succeeded, 1, trail=trail)

    app = QueueTasks("shop", engine=Carrying("memory://"), discover=False)
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        assert 1 == handle.result()
        assert handle.trail is trail


class Interrupted(Future):
    """Something to wait for, and whoever waits for it presses Ctrl-C."""

    def result(self, timeout=None):
        """Wait."""
        raise KeyboardInterrupt


def test_an_interrupted_wait_for_a_result_leaves_it_to_others():
    """Ctrl-C while one waits for a run: the others who wait for it still hear of its end."""
    end = Interrupted()

    class Waiting(MemoryEngine):
        def result(self, ticket, timeout):
            return end

    app = QueueTasks("shop", engine=Waiting("memory://"), discover=False)
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        with pytest.raises(KeyboardInterrupt):
            handle.result()
    assert not end.cancelled()


def test_async_code_waits_for_a_blocking_engine_in_slices():
    """Awaiting a handle goes on after a slice of the wait in which the run did not end."""
    ends = [None, None, RunResult(TaskStatus.succeeded, 7)]

    class Slow(MemoryEngine):
        blocking = True

        def result(self, ticket, timeout):
            return ends.pop(0)

    app = QueueTasks("shop", engine=Slow("memory://"), discover=False)
    task = app.task(name="one")(lambda: 1)

    async def main():
        async with app:
            return await (await task.submit_async())

    assert 7 == asyncio.run(main())
    assert [] == ends


class GoneError(Exception):
    """What a client of a server raises; often it is no ``OSError``."""


@pytest.mark.engines
def test_a_result_that_cannot_be_read_now_can_be_read_later(monkeypatch):
    """A result backend that fails for a moment is an error of that moment, not the run's end."""
    from huey import MemoryHuey

    app = QueueTasks("shop", engine=MemoryHuey("shop"), discover=False)
    task = app.task(name="one")(lambda: 1)
    ends = [GoneError("no connection"), RunResult(TaskStatus.succeeded, 7)]

    def read(ticket):
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(app.engine, "read", read)
    with app:
        handle = task.submit()
        with pytest.raises(EngineError, match="cannot be read here: GoneError: no connection"):
            handle.result(timeout=LONG)
        assert 7 == handle.result(timeout=LONG)


def test_an_interrupted_wait_for_room_gives_it_up():
    """Ctrl-C while a submission waits for room: it is not submitted later."""

    class Full(MemoryEngine):
        def submit(self, message, delay):
            raise NoRoomError(room)

    room = Interrupted()
    app = QueueTasks("shop", engine=Full("memory://"), discover=False)
    task = app.task(name="one")(lambda: 1)
    with app, pytest.raises(KeyboardInterrupt):
        task.submit()
    assert room.cancelled()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (float("nan"), ValueError),
        (-1, ValueError),
        (1e300, ValueError),
        (10**400, ValueError),
        (float("inf"), ValueError),
        ("5", TypeError),
        (True, TypeError),
    ],
    ids=["nan", "negative", "long", "huge", "inf", "text", "bool"],
)
def test_odd_numbers_of_seconds_are_refused(given, error):
    """A delay and a timeout are seconds that a system can wait."""
    app = QueueTasks("shop", engine="memory://", discover=False)
    task = app.task(name="one")(lambda: 1)
    with pytest.raises(error, match="seconds"):
        task.with_options(delay=given)
    with app, pytest.raises(error, match="seconds"):
        task.submit().result(timeout=given)


def test_an_error_that_is_asked_for_again_and_again_does_not_grow():
    """Whoever waits sees the run's traceback and his own frames, not those who asked before."""
    app = QueueTasks("shop", engine="memory://", discover=False)

    @app.task
    def fail():
        raise OSError

    with app:
        handle, depths = fail.submit(), []
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                handle.result(timeout=LONG)
            depths.append(len(caught.traceback))
            assert "fail" == caught.traceback[-1].name
    assert 1 == len(set(depths))


@pytest.mark.parametrize("error", [None, EngineError("no server")])
async def test_a_start_that_is_cancelled_leaves_nothing_started(error):
    """A blocking engine whose start was cancelled half-way is stopped again if it has started."""
    engine, begun, gate, calls = Blocking().engine(), threading.Event(), threading.Event(), []

    def start(app, workers):
        begun.set()
        assert gate.wait(LONG)
        calls.append("start")
        if error is not None:
            raise error

    engine.start, engine.stop = start, lambda: calls.append("stop")
    app = QueueTasks("shop", engine=engine, discover=False)
    starting = asyncio.create_task(app.__aenter__())
    assert await asyncio.to_thread(begun.wait, LONG)
    starting.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert (["start", "stop"] if error is None else ["start"]) == calls
    assert not is_started(app)


async def test_a_stop_that_is_cancelled_stops_no_plugin_before_the_engine():
    """A blocking engine whose stop was cancelled half-way may still do runs, which ask plugins."""
    engine, begun, gate, calls = Blocking().engine(), threading.Event(), threading.Event(), []

    def stop():
        begun.set()
        assert gate.wait(LONG)
        calls.append("engine")

    engine.start, engine.stop = lambda app, workers: None, stop
    stops = plugin("stops", qtasks_stop=lambda: calls.append("plugin"))
    app = QueueTasks("shop", engine=engine, plugins=[stops], discover=False)
    await app.__aenter__()
    stopping = asyncio.create_task(app.__aexit__(None, None, None))
    assert await asyncio.to_thread(begun.wait, LONG)
    stopping.cancel()
    for _ in range(9):  # a cancellation needs some steps of the loop to arrive
        await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert ["engine", "plugin"] == calls
    assert not is_started(app)


def test_a_reason_is_a_text():
    """A cancellation whose reason is None asks for nothing: engines take that for no request."""
    app = QueueTasks("shop", engine="memory://", discover=False)
    task = app.task(name="work")(lambda: 1)
    with app:
        handle = task.with_options(delay=1000).submit()
        with pytest.raises(TypeError, match="task 'work'.*a string, got NoneType"):
            handle.cancel(None)
        assert handle.cancel()


def test_many_are_submitted_of_an_app_s_own_tasks_alone():
    """Another app's task of the same name, or what is no task, is refused at once."""
    app = QueueTasks("shop", engine="memory://", discover=False)
    app.task(name="price")(lambda: 1)
    other = QueueTasks("other", discover=False).task(name="price")(lambda: 2)
    for task in (other, len, None):
        with pytest.raises(TypeError, match="one of its own tasks.*its tasks are price"):
            app.submit_many(task, [()])
    with pytest.raises(TypeError, match=r"app 'shop'.*task 'price'.*an iterable.*got int; for one"):
        app.submit_many(app.tasks["price"], 5)


def test_a_wait_that_is_given_up_gives_its_thread_back():
    """A cancelled ``await handle`` of a blocking engine holds up neither loop nor exit."""
    app = QueueTasks("shop", engine=Blocking().engine(), discover=False)
    gate = threading.Event()
    task = app.task(name="wait")(lambda: gate.wait(LONG))

    async def main():
        handle = await task.submit_async()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.05)

    with app:
        asyncio.run(main())
        assert not gate.is_set()
        gate.set()
