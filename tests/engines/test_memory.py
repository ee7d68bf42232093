"""``memory://``: order, room, delay, cancellation, and what a stop gives up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from qtasks_pluggy import TaskStatus
from qtasks_pluggy.exc import QueueFullError, TaskCancelError
from tests.engines.processes import wait_until
from tests.engines.shops import LONG, Gate, app_of


def test_higher_priority_goes_first_and_equals_in_order():
    """Among those queued, the highest priority is next; equals keep the order of submission."""
    app = app_of("?workers=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        for what, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)]:
            gate.mark.with_options(priority=priority).submit(what)
        gate.open.set()
    assert ["b", "d", "a", "c", "e"] == gate.done


def test_a_declared_priority_counts():
    """``@app.task(priority=)`` is the priority of every run that does not say."""
    app = app_of("?workers=1")
    gate = Gate(app)

    @app.task(priority=1)
    def urgent():
        gate.done.append("urgent")

    with app:
        gate.occupy()
        gate.mark.submit("usual")
        urgent.submit()
        gate.open.set()
    assert ["urgent", "usual"] == gate.done


def test_no_more_runs_at_a_time_than_workers():
    """``?workers=`` bounds the runs that are going on, in threads and on the loop alike."""
    app = app_of("?workers=3")
    now, most, lock = [0], [0], threading.Lock()

    def count(change: int) -> None:
        with lock:
            now[0] += change
            most[0] = max(most[0], now[0])

    @app.task
    def plain():
        count(1)
        count(-1)

    @app.task
    async def on_loop():
        count(1)
        await asyncio.sleep(0)
        count(-1)

    with app:
        handles = [task.submit_sync() for _ in range(100) for task in (plain, on_loop)]
        for handle in handles:
            handle.result(timeout=LONG)
    assert 1 <= most[0] <= 3


def test_a_delayed_run_waits_for_its_time():
    """``with_options(delay=)`` keeps a run queued, behind those that come at once."""
    app = app_of("?workers=1")
    gate = Gate(app)
    with app:
        late = gate.mark.with_options(delay=0.2).submit("late")
        later = gate.mark.with_options(delay=0.3).submit("later")
        soon = gate.mark.with_options(delay=0.1).submit("soon")
        gate.mark.submit("now")

        assert late.status is TaskStatus.queued
        assert ["late", "later", "soon"] == [h.result(timeout=LONG) for h in (late, later, soon)]
    assert ["now", "soon", "late", "later"] == gate.done


def test_options_are_for_submitting_alone():
    """Options that a direct call would ignore are refused there, and nonsense at once."""
    gate = Gate(app_of())
    with pytest.raises(RuntimeError, match="with_options"):
        gate.mark.with_options(delay=1)("x")
    for delay in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="delay="):
            gate.mark.with_options(delay=delay)


def test_a_full_queue_lets_plain_code_wait():
    """Back-pressure: whoever submits to a full queue from a thread waits for room."""
    app = app_of("?workers=1&size=2")
    gate = Gate(app)
    submitted = []

    def submit_all() -> None:
        for handle in app.submit_many(gate.mark, range(10)):
            submitted.append(handle)  # noqa: PERF402  # seen from outside as it grows

    with app:
        gate.occupy()
        thread = threading.Thread(target=submit_all)
        thread.start()
        while len(submitted) < 2:
            thread.join(0.01)
        thread.join(0.05)
        assert 2 == len(submitted)
        gate.open.set()
        thread.join(LONG)
    assert list(range(10)) == gate.done


async def test_a_full_queue_lets_async_code_wait():
    """Back-pressure: ``await submit`` waits for room, and can be given up."""
    app = app_of("?workers=1&size=1")
    start, done = asyncio.Event(), []

    @app.task
    async def one(what):
        await start.wait()
        done.append(what)

    async with app:
        await one.submit("running")
        await one.submit("queued")
        given_up = asyncio.create_task(one.submit("given up"))
        waiting = asyncio.create_task(one.submit("waiting"))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        with pytest.raises(QueueFullError, match=r"await task\.submit_async"):
            one.submit_sync("blocking the loop")
        start.set()
        await (await waiting)
    assert ["running", "queued", "waiting"] == done


def test_a_run_never_waits_for_room():
    """A run that submits to its own full queue is told so: all runs could be waiting."""
    app = app_of("?workers=1&size=1")
    gate = Gate(app)

    @app.task
    def fill():
        for what in range(3):
            gate.mark.submit(what)

    with app, pytest.raises(QueueFullError, match="size="):
        fill.submit().result(timeout=LONG)
    assert [0] == gate.done


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_run_that_waits_for_another_lends_its_place(kind):
    """Runs can wait for runs that they submit, however few workers there are."""
    app = app_of("?workers=1")

    @app.task
    def plain(depth):
        return 1 + plain.submit(depth - 1).result(timeout=LONG) if depth else 0

    @app.task(name="async")
    async def on_loop(depth):
        return 1 + await (await on_loop.submit(depth - 1)) if depth else 0

    with app:
        assert 5 == app.tasks[kind].submit_sync(5).result(timeout=LONG)


async def test_a_blocking_wait_on_its_own_loop_is_refused():
    """``result()`` on the thread of the runs' event loop would wait for ever."""
    app = app_of()
    never = asyncio.Event()

    @app.task
    async def wait():
        await never.wait()

    async with app:
        handle = await wait.submit()
        with pytest.raises(RuntimeError, match="await the handle"):
            handle.result()
        assert handle.cancel()


def test_a_wait_that_expires_gives_the_lent_place_back():
    """A run that looks whether another has ended lends its place no longer than it looks."""
    lock, at_work, most = threading.Lock(), [], []
    looked = [threading.Event() for _ in range(8)]
    looked[7].set()
    app = app_of("?workers=1")

    @app.task
    def work(left):
        with lock:
            at_work.append(left)
            most.append(len(at_work))
        # At the same time each of two could lend its place.
        assert looked[left + 1].wait(LONG)
        if left:
            with contextlib.suppress(TimeoutError):
                work.submit(left - 1).result(timeout=0)
            looked[left].set()
            # Time in which others could begin, if there were places.
            time.sleep(0.02)
        with lock:
            at_work.remove(left)

    with app:
        work.submit(6).result(timeout=LONG)
        assert wait_until(lambda: len(most) == 7 and not at_work, LONG)
    assert max(most) <= 2


def test_a_queued_run_is_cancelled():
    """A run that is cancelled before its turn never begins."""
    app = app_of("?workers=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        handle = gate.mark.submit("never")
        assert handle.cancel("not needed")
        assert not handle.cancel()
        gate.open.set()
        with pytest.raises(TaskCancelError, match="not needed"):
            handle.result(timeout=LONG)
        assert handle.status is TaskStatus.cancelled
    assert [] == gate.done


def test_cancelling_makes_room():
    """The room of a cancelled run goes to who waits for it."""
    app = app_of("?workers=1&size=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        queued = gate.mark.submit("cancelled")
        thread = threading.Thread(target=gate.mark.submit, args=("let in",))
        thread.start()
        while not app.engine._queue.outside:
            thread.join(0.001)
        queued.cancel()
        thread.join(LONG)
        assert not thread.is_alive()
        gate.open.set()
    assert ["let in"] == gate.done


def test_a_delayed_run_that_waited_for_room_begins_at_its_time():
    """Whoever is let in late still has a timer."""
    app = app_of("?workers=1&size=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        gate.mark.submit("queued")
        submit = gate.mark.with_options(delay=0.05).submit
        thread = threading.Thread(target=submit, args=("late",))
        thread.start()
        while not app.engine._queue.outside:
            thread.join(0.001)
        gate.open.set()
        thread.join(LONG)
    assert ["queued", "late"] == gate.done


def test_whoever_is_let_in_by_a_cancellation_begins():
    """The room of a cancelled run goes to one that an idle worker takes at once."""
    app = app_of("?workers=1&size=1")
    gate = Gate(app)
    with app:
        far = gate.mark.with_options(delay=3600).submit("never")
        begun = []
        thread = threading.Thread(target=lambda: begun.append(gate.mark.submit("let in")))
        thread.start()
        while not app.engine._queue.outside:
            thread.join(0.001)
        far.cancel()
        thread.join(LONG)
        assert "let in" == begun[0].result(timeout=LONG)


def test_a_run_lends_its_place_for_as_long_as_it_waits():
    """A run that waits for several others at once lends its place until all have ended."""
    app = app_of("?workers=1")

    @app.task
    async def leaf(number):
        await asyncio.sleep(0.001)
        return number

    @app.task
    async def root():
        handles = [await leaf.submit(number) for number in range(3)]
        return await asyncio.gather(*handles)

    with app:
        assert [0, 1, 2] == root.submit_sync().result(timeout=LONG)


async def test_plain_runs_that_wait_for_each_other_have_a_thread_each():
    """In an async app too, no pool of threads is full of runs that wait for one another."""
    app = app_of("?workers=64")

    @app.task
    def leaf(number):
        return number

    @app.task
    def root(number):
        return leaf.submit(number).result(timeout=LONG)

    async with app:
        handles = [await root.submit_async(number) for number in range(64)]
        assert list(range(64)) == await asyncio.wait_for(asyncio.gather(*handles), LONG)


@pytest.mark.parametrize("priority", ["high", 1.5, True, None, float("nan"), [1]])
def test_a_priority_is_a_whole_number(priority):
    """Anything else is refused when the task is declared."""
    app = app_of()
    with pytest.raises(TypeError, match="priority=: expected a whole number"):
        app.task(priority=priority)(print)


def test_the_very_exception_reaches_the_caller():
    """R6: a ``StopIteration`` too comes out as itself."""
    app = app_of()
    error = StopIteration(3)

    @app.task
    def fail():
        raise error

    with app, pytest.raises(StopIteration) as caught:
        fail.submit().result(timeout=LONG)
    assert error is caught.value
