"""R16 and R7: a ``CancelledError`` that nobody asked for is a plugin's failure, at any time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import Listener, answering, endless, plugin


def stray():
    """Raise what nobody asked for, as a plugin does whose own inner task was cancelled."""
    raise asyncio.CancelledError


async def awaited_stray():
    """Raise it after a suspension."""
    await asyncio.sleep(0)
    stray()


@hookimpl(wrapper=True)
def stray_wrapper():
    """Raise it around the others."""
    yield
    stray()


@hookimpl(wrapper=True)
def awaited_stray_wrapper():
    """Raise it in what is awaited around the others."""
    yield
    return awaited_stray()


def cancelled_and_closed_by(*plugins):
    """Cancel a run while its function waits; return its executor."""

    async def main(func):
        executor = TaskExecutor(func, plugins=[*plugins])
        run = asyncio.create_task(executor.execute())
        await asyncio.sleep(0.01)
        run.cancel()
        await asyncio.wait([run], timeout=10)
        assert run.cancelled()
        return executor

    with endless("coroutine") as func:
        return asyncio.run(main(func))


@pytest.mark.parametrize(
    "close",
    [stray, awaited_stray, stray_wrapper, awaited_stray_wrapper],
    ids=lambda it: it.__name__,
)
def test_r16_a_stray_cancellation_while_a_cancelled_run_is_closed(close):
    """It is no second cancellation: the others' close is called, and the trail has the failure."""
    listener = Listener()
    wayward = plugin("wayward", task_executor_task_close=lambda: None)
    wayward.task_executor_task_close = (
        close if hasattr(close, "qtasks_pluggy_impl") else hookimpl(close)
    )

    executor = cancelled_and_closed_by(wayward, listener)

    assert [executor] == listener.closed
    assert ("wayward", "raised", "CancelledError") in [
        (record.plugin, record.status, record.kind) for record in executor.trail
    ]


def test_r16_a_stray_cancellation_in_a_task_that_caught_a_real_one_before():
    """Code that caught its own cancellation and goes on has its plugins asked, all of them."""
    listener = Listener()
    wayward = plugin("wayward", task_executor_run_task_trigger_error=awaited_stray)

    async def fails():
        raise TaskPluginTriggerError("no")

    async def main():
        try:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass
        with pytest.raises(TaskPluginTriggerError):
            await TaskExecutor(fails, plugins=[wayward, listener]).execute()

    asyncio.run(main())

    assert 1 == len(listener.asked)


@pytest.mark.parametrize("cancelled", [False, True], ids=["before", "before and meanwhile"])
@pytest.mark.parametrize("context", [None, LookupError()], ids=["alone", "with a context"])
def test_r16_only_a_cancellation_since_the_run_began_voids_a_decision(cancelled, context):
    """A task that swallowed one before, and awaits a run, gets what the plugins decide."""

    async def swallow():
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    async def fails():
        if cancelled:
            await swallow()
        error = TaskPluginTriggerError("no")
        error.__context__ = context
        raise error

    async def main():
        await swallow()
        return await TaskExecutor(fails, plugins=[answering(7)]).execute()

    if cancelled:
        with pytest.raises(TaskPluginTriggerError):
            asyncio.run(main())
    else:
        assert 7 == asyncio.run(main())


@pytest.mark.parametrize("limited", [True, False])
def test_r16_a_cancellation_asked_for_between_two_waits_is_real(limited):
    """It is met in the next hookimpl that waits, and is that hookimpl's failure no more than ever.

    A task group that fails while its task is being cancelled asks for it again, just so.
    """
    hook = "task_executor_run_task_trigger_error" if limited else "task_executor_task_close"
    listener = Listener()
    cancels = plugin("cancels", **{hook: lambda: asyncio.current_task().cancel() and None})
    waits = plugin("waits", **{hook: lambda: asyncio.sleep(0)})

    async def fails():
        raise TaskPluginTriggerError("no")

    async def main():
        run = asyncio.create_task(TaskExecutor(fails, plugins=[cancels, waits, listener]).execute())
        await asyncio.wait([run], timeout=10)
        return run.cancelled()

    assert asyncio.run(main())
    assert not (listener.asked if limited else listener.closed)


def test_r16_a_run_given_up_in_a_callback_of_the_loop():
    """There no task can be cancelled; what can be started of an async close is."""
    started = []

    async def close():
        started.append("closed")

    run = TaskExecutor(asyncio.Event().wait, plugins=[plugin("p", task_executor_task_close=close)])

    async def main():
        given_up = asyncio.Event()

        def give_up():
            life = run.execute()
            life.send(None)
            life.close()
            given_up.set()

        asyncio.get_running_loop().call_soon(give_up)
        await asyncio.wait_for(given_up.wait(), 10)

    asyncio.run(main())

    assert ["closed"] == started
