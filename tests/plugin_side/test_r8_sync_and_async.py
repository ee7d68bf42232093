"""R8: both kinds of hookimpl under both kinds of task and caller."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from qtasks_hookspecs import TaskFunc, blocking, hookimpl
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy.exc import PluginError, TaskPluginTriggerError
from tests.runs import answering, both_ways, every_kind, failing, plugin, run_async, run_sync

TRIGGER = "task_executor_run_task_trigger_error"


def failing_run(*plugins: Any, kind: str = "function", **settings: Any) -> TaskExecutor:
    """Make a run that fails, with these plugins."""
    func = TaskFunc("fails", failing(kind, TaskPluginTriggerError("no")))
    return TaskExecutor(func, plugins=PluginManager(plugins, settings=settings))


@both_ways
@every_kind
def test_r8_mixed_chains_are_asked_one_after_another(run, kind):
    """Plain, async and blocking hookimpls take turns in order; the last answer wins."""
    calls: list[str] = []

    async def awaited() -> str:
        calls.append("async begins")
        await asyncio.sleep(0)
        calls.append("async ends")
        return "async"

    @blocking
    def blocks() -> str:
        calls.append("blocking")
        return "blocking"

    def plain() -> None:
        calls.append("plain")

    plugins = [
        plugin(name, **{TRIGGER: function})
        for name, function in (("a", awaited), ("b", blocks), ("c", plain))
    ]

    assert "blocking" == run(failing_run(*plugins, kind=kind))
    assert ["async begins", "async ends", "blocking", "plain"] == calls


@both_ways
def test_r8_a_coroutine_that_ends_in_none_is_no_opinion(run):
    """An async hookimpl declines by returning None, like a plain one."""

    async def declines() -> None:
        await asyncio.sleep(0)

    run_of = failing_run(answering(1), plugin("declines", **{TRIGGER: declines}))

    assert 1 == run(run_of)
    assert ["answered", "no_opinion"] == [record.status for record in run_of.trail]


@both_ways
def test_r8_a_coroutine_from_a_plain_function_is_awaited(run):
    """A plain function that returns a coroutine, as decorators make them, is async all the same."""

    async def inner() -> int:
        await asyncio.sleep(0)
        return 7

    assert 7 == run(failing_run(plugin("p", **{TRIGGER: lambda: inner()})))


@both_ways
def test_r8_async_hookimpls_see_the_callers_context_variables(run):
    """A context variable of the caller is seen by async and by blocking hookimpls."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def awaited() -> str:
        await asyncio.sleep(0)
        return variable.get()

    @blocking
    def blocks() -> str:
        return variable.get()

    def call(function: Any) -> Any:
        variable.set("the caller's")
        return run(failing_run(plugin("p", **{TRIGGER: function})))

    assert "the caller's" == contextvars.copy_context().run(call, awaited)
    assert "the caller's" == contextvars.copy_context().run(call, blocks)


@both_ways
def test_r8_blocking_leaves_the_callers_thread_and_plain_does_not(run):
    """A @blocking hookimpl runs in another thread, on either side of the mark; a plain one here."""
    threads: dict[str, threading.Thread] = {}

    class Where:
        name = "where"

        @hookimpl
        @blocking
        def task_executor_run_task_trigger_error(self) -> None:
            threads["inside"] = threading.current_thread()

        @blocking
        @hookimpl
        def task_executor_task_failed(self) -> None:
            threads["outside"] = threading.current_thread()

        @hookimpl
        def task_executor_task_close(self) -> None:
            threads["plain"] = threading.current_thread()

    with pytest.raises(TaskPluginTriggerError):
        run(failing_run(Where()))

    here = threading.current_thread()
    assert threads["plain"] is here
    assert here not in {threads["inside"], threads["outside"]}


def test_r8_blocking_leaves_the_loop_free():
    """While a @blocking hookimpl waits, the event loop goes on."""
    released = threading.Event()

    @blocking
    def waits() -> str:
        assert released.wait(10)
        return "released"

    async def main() -> Any:
        running = asyncio.ensure_future(failing_run(plugin("p", **{TRIGGER: waits})).execute())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(released.set)
        return await running

    assert "released" == asyncio.run(main())


def test_r8_execute_runs_a_def_task_in_a_worker_thread():
    """A plain task does not hold up the loop that awaits it."""
    assert run_async(TaskExecutor(threading.current_thread)) is not threading.current_thread()
    assert run_sync(TaskExecutor(threading.current_thread)) is threading.current_thread()


def test_r8_execute_sync_runs_async_tasks_on_one_background_loop():
    """Plain code uses one loop of the process for all that is async."""

    async def loop() -> Any:
        return asyncio.get_running_loop()

    first, second = (TaskExecutor(loop).execute_sync() for _ in range(2))
    in_another_thread: list[Any] = []
    thread = threading.Thread(
        target=lambda: in_another_thread.append(TaskExecutor(loop).execute_sync())
    )
    thread.start()
    thread.join()

    assert first is second is in_another_thread[0]


def test_r8_the_background_loop_cannot_wait_for_itself():
    """Plain code on the background loop that needs it fails with a clear text, and never waits."""

    async def never() -> None:
        raise AssertionError

    async def on_the_loop() -> Any:
        run_of = failing_run(plugin("inner", **{TRIGGER: never}), strict=True)
        return run_of.execute_sync()

    with pytest.raises(PluginError, match="'inner'.*background event loop"):
        TaskExecutor(on_the_loop).execute_sync()


def test_r8_a_forked_process_makes_a_loop_of_its_own():
    """After a fork the background loop is made again, and works."""
    code = """
        import os, sys
        from qtasks_pluggy import TaskExecutor

        async def answer():
            return 42

        assert TaskExecutor(answer).execute_sync() == 42
        child = os.fork()
        if child == 0:
            os._exit(TaskExecutor(answer).execute_sync())
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), TaskExecutor(answer).execute_sync())
    """

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    assert "42 42\n" == done.stdout


def test_r8_cancelling_a_run_cancels_the_hookimpl_that_waits():
    """A real cancellation goes through the hookimpl and ends the run as cancelled."""
    ended: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def waits() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        running = asyncio.ensure_future(failing_run(plugin("p", **{TRIGGER: waits})).execute())
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())

    assert ["cancelled"] == ended
