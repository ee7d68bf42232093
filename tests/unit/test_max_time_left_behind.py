"""``max_time`` and an ``async def`` task that does not end when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import pytest

from qtasks_hookspecs import TaskFunc
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import TaskTimeoutError
from tests.runs import Listener, both_ways


class Stubborn:
    """An async function that swallows every cancellation until it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.told = 0
        self.begun, self.release, self.ended = (threading.Event() for _ in range(3))

    async def function(self):
        self.begun.set()
        while not self.release.is_set():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                self.told += 1
        self.ended.set()
        if self.error is not None:
            raise self.error

    async def items(self):
        yield 1
        await self.function()


async def event(there: threading.Event) -> None:
    """Wait for an event of whatever thread."""
    async with asyncio.timeout(10):
        while not there.is_set():
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def letting_go(stubborn: Stubborn):
    """Let the function end, whatever becomes of the test."""
    try:
        yield
    finally:
        stubborn.release.set()


def run_sync(func: TaskFunc, stubborn: Stubborn, *plugins) -> BaseException:
    """Run from plain code, then let the function end; return the error of the run."""
    with letting_go(stubborn):
        with pytest.raises(TaskTimeoutError) as caught:
            TaskExecutor(func, plugins=[*plugins]).execute_sync()
        assert not stubborn.ended.is_set()
    assert stubborn.ended.wait(10)
    return caught.value


def run_async(func: TaskFunc, stubborn: Stubborn, *plugins) -> BaseException:
    """Do the same from async code."""

    async def main():
        with letting_go(stubborn):
            with pytest.raises(TaskTimeoutError) as caught:
                await TaskExecutor(func, plugins=[*plugins]).execute()
            assert not stubborn.ended.is_set()
        await event(stubborn.ended)
        return caught.value

    return asyncio.run(main())


either_way = pytest.mark.parametrize("run", [run_sync, run_async])


@either_way
@pytest.mark.parametrize("kind", ["function", "items"])
def test_max_time_abandons_an_async_task_that_swallows_its_cancellation(kind, run, caplog):
    """The run ends without it; the log names the task and the limit, as for a plain task."""
    stubborn, listener = Stubborn(), Listener()
    func = TaskFunc("heavy", getattr(stubborn, kind), max_time=0.02)

    error = run(func, stubborn, listener)

    assert "'heavy'" in str(error)
    assert error.__cause__ is None
    assert ["failed", "closed"] == [when for when, _ in listener.heard]
    (record,) = [one for one in caplog.records if "task_abandoned" in one.getMessage()]
    assert record.levelname == "WARNING"
    assert "'heavy'" in record.getMessage()
    assert "0.02" in record.getMessage()


@either_way
def test_max_time_and_the_error_of_an_abandoned_task(run, caplog):
    """What it raises in the end is nobody's, and nobody complains of that."""
    stubborn = Stubborn(ValueError("nobody sees this"))

    run(TaskFunc("heavy", stubborn.function, max_time=0.02), stubborn)
    gc.collect()

    assert "never retrieved" not in caplog.text


def test_max_time_over_for_a_run_that_was_cancelled(caplog):
    """A run that is cancelled is cancelled, also where its function does not end for that."""
    stubborn = Stubborn()

    async def main():
        func = TaskFunc("heavy", stubborn.function, max_time=0.05)
        run = asyncio.create_task(TaskExecutor(func).execute())
        await event(stubborn.begun)
        with letting_go(stubborn):
            run.cancel()
            await asyncio.wait([run], timeout=10)
            assert not stubborn.ended.is_set()
        await event(stubborn.ended)
        return run.cancelled()

    assert asyncio.run(main())
    assert stubborn.told == 2
    assert "task_abandoned" in caplog.text


def test_max_time_over_and_the_run_cancelled_after_it(caplog):
    """A cancellation that comes while the function is given time to end is the run's end."""
    stubborn = Stubborn()

    async def main():
        func = TaskFunc("heavy", stubborn.function, max_time=0.01)
        run = asyncio.create_task(TaskExecutor(func).execute())
        with letting_go(stubborn):
            async with asyncio.timeout(10):
                while not stubborn.told:
                    await asyncio.sleep(0)
            run.cancel()
            await asyncio.wait([run], timeout=10)
        await event(stubborn.ended)
        return run.cancelled()

    assert asyncio.run(main())
    assert "task_abandoned" in caplog.text


def test_max_time_kept_by_a_task_that_swallows_a_cancellation():
    """A function that is cancelled in its time and returns all the same has its result."""

    async def keeps_on():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "done"

    async def main():
        run = asyncio.create_task(TaskExecutor(TaskFunc("t", keeps_on, max_time=60)).execute())
        await event(begun)
        run.cancel()
        return await run

    begun = threading.Event()
    assert asyncio.run(main()) == "done"


@pytest.mark.parametrize("order", [1, -1])
def test_max_time_and_a_loop_that_is_shut_down(order):
    """A loop that cancels all its tasks tells the function once: it can clean up."""
    told, inner = [], []

    async def cleans_up():
        inner.append(asyncio.current_task())
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for step in range(3):
                await asyncio.sleep(0)
                told.append(step)

    async def main():
        run = asyncio.create_task(TaskExecutor(TaskFunc("t", cleans_up, max_time=60)).execute())
        await event(begun)
        for task in [run, *inner][::order]:
            task.cancel()
        await asyncio.wait([run], timeout=10)
        return run.cancelled()

    begun = threading.Event()
    assert asyncio.run(main())
    assert [0, 1, 2] == told


@both_ways
def test_max_time_and_an_exit_while_cleaning_up(run, caplog):
    """A ``SystemExit`` on the way out is not made into a time-out, nor into a complaint."""

    async def leaves():
        try:
            await asyncio.Event().wait()
        finally:
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        run(TaskExecutor(TaskFunc("t", leaves, max_time=0.01)))

    assert caught.value.code == 3
    del caught
    gc.collect()
    assert "never retrieved" not in caplog.text
