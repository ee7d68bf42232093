"""``memory://``: order, room, delay, cancellation, and what a stop gives up."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import TaskStatus
from qtasks_pluggy.exc import QueueFullError, TaskCancelError
from tests.engines.shops import LONG, Closing, Gate, app_of


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


def test_priorities_without_end_keep_their_order():
    """Each run may have a priority of its own, and cancelled ones hold up nobody."""
    app = app_of("?workers=1")
    gate = Gate(app)
    with app:
        gate.occupy()
        runs = [
            gate.mark.with_options(priority=n * 7 % 100).submit(n * 7 % 100) for n in range(100)
        ]
        for handle in runs[::3]:
            assert handle.cancel()
        gate.mark.with_options(priority=0, delay=0.001).submit("late").cancel()
        kept = {n * 7 % 100 for n in range(100) if n % 3}
        gate.open.set()
    assert sorted(kept, reverse=True) == gate.done


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
def test_a_run_can_wait_for_a_run_that_it_submitted(kind):
    """It needs a second worker for that; a direct call needs none."""
    app = app_of("?workers=2")

    @app.task
    def leaf(number):
        return number

    @app.task
    def plain():
        return leaf.submit(1).result(timeout=LONG) + leaf(2)

    @app.task(name="async")
    async def on_loop():
        return await (await leaf.submit_async(1)) + leaf(2)

    with app:
        assert 3 == app.tasks[kind].submit_sync().result(timeout=LONG)


def test_a_run_that_waits_for_a_run_without_a_worker_waits_on():
    """It keeps its worker while it waits, and neither run is lost."""
    app = app_of("?workers=1")
    waiting = threading.Event()

    @app.task
    def leaf():
        return "leaf"

    @app.task
    def root():
        handle = leaf.submit()
        with contextlib.suppress(TimeoutError):
            handle.result(timeout=0.01)
        waiting.set()
        return handle

    with app:
        handle = root.submit().result(timeout=LONG)
        assert waiting.is_set()
        assert "leaf" == handle.result(timeout=LONG)


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
        while not app.engine._outside:
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
        while not app.engine._outside:
            thread.join(0.001)
        gate.open.set()
        thread.join(LONG)
    assert ["queued", "late"] == gate.done


async def test_whoever_is_let_in_after_its_delay_waits_for_a_free_worker():
    """A run that is due when it gets room does not begin beside the one that made the room."""
    app = app_of("?workers=1&size=1")
    now, most = 0, 0

    @app.task
    async def one():
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1

    async with app:
        handles = [await one.submit(), await one.submit()]
        # Its delay is over long before the first run is.
        handles.append(await one.with_options(delay=0.001).submit())
        for handle in handles:
            await handle
    assert 1 == most


async def test_whoever_is_let_in_after_its_delay_begins_after_the_end_of_the_cancelled():
    """A cancelled run that plugins have seen has a worker until they have seen its end."""
    closing = Closing(Retry(delay=3600))
    app = app_of("?workers=1&size=1", plugins=[closing])
    told = closing.closed

    @app.task(echo=True)
    async def fail(self):
        self.ctx.plugin_error()

    @app.task
    async def late():
        told.append("late begins")

    async with app:
        failing = await fail.submit()
        while not closing.asked.acquire(blocking=False):
            await asyncio.sleep(0)
        while failing.status is not TaskStatus.queued:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(late.with_options(delay=0.001).submit())
        await asyncio.sleep(0.01)
        assert failing.cancel()
        await (await waiting)
    assert ["fail", "late begins", "late"] == told


def test_whoever_is_let_in_by_a_cancellation_begins():
    """The room of a cancelled run goes to one that an idle worker takes at once."""
    app = app_of("?workers=1&size=1")
    gate = Gate(app)
    with app:
        far = gate.mark.with_options(delay=3600).submit("never")
        begun = []
        thread = threading.Thread(target=lambda: begun.append(gate.mark.submit("let in")))
        thread.start()
        while not app.engine._outside:
            thread.join(0.001)
        far.cancel()
        thread.join(LONG)
        assert "let in" == begun[0].result(timeout=LONG)


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="new in Python 3.12")
async def test_a_loop_with_eager_tasks_executes_a_long_queue():
    """Runs that come to an end at their first step do not begin one inside another."""
    app = app_of("?workers=1")
    start = asyncio.Event()

    @app.task
    async def one(what):
        await start.wait()
        return what

    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with app:
        handles = [await one.submit(what) for what in range(2000)]
        start.set()
        assert list(range(2000)) == [await handle for handle in handles]


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
