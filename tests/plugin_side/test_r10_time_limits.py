"""R10: each hookimpl has its own time limit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import blocking, hookimpl
from qtasks_pluggy import PluginManager, TaskExecutor, TaskFunc
from qtasks_pluggy.exc import PluginError, TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin, run_sync

LIMIT = 0.05


def executor(*plugins: Any, **settings: Any) -> TaskExecutor:
    """Make a run that fails, with a short limit for its plugins."""
    manager = PluginManager(plugins, settings={"timeout": LIMIT, **settings})
    func = TaskFunc("failing", failing("function", TaskPluginTriggerError("no")))
    return TaskExecutor(func, plugins=manager)


def statuses(run: TaskExecutor) -> dict[str, str]:
    """Return each plugin's status."""
    return {record.plugin: record.status for record in run.trail}


class Hanging:
    """An async plugin that waits for ever, and says how it ended."""

    name = "hanging"

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    @hookimpl
    async def task_executor_run_task_trigger_error(self) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "never"


@both_ways
def test_r10_an_async_hookimpl_is_cancelled_at_its_limit(run):
    """An async hookimpl is cancelled at its limit, named, and the others are asked all the same."""
    hanging = Hanging()
    failing_run = executor(answering("first", "first"), hanging)

    assert "first" == run(failing_run)
    assert hanging.cancelled.wait(5)
    assert {"first": "answered", "hanging": "timed_out"} == statuses(failing_run)


@both_ways
def test_r10_an_async_hookimpl_that_swallows_its_cancellation_is_left_behind(run):
    """One that swallows its cancellation is left behind and named; the run goes on without it."""
    release, ended = threading.Event(), threading.Event()

    class Stubborn:
        name = "stubborn"

        @hookimpl
        async def task_executor_run_task_trigger_error(self) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                try:
                    # The end of the test's own loop cancels once more, and that one counts.
                    while not release.is_set():
                        await asyncio.sleep(0.01)
                finally:
                    ended.set()

    failing_run = executor(answering("first", "first"), Stubborn(), strict=True)

    with pytest.raises(PluginError, match="'stubborn'.*swallowed its cancellation"):
        run(failing_run)
    release.set()
    assert ended.wait(10)

    assert "timed_out" == statuses(failing_run)["stubborn"]


@both_ways
def test_r10_a_blocking_hookimpl_is_left_in_its_thread(run):
    """A late @blocking hookimpl is left in its daemon thread, and its answer is not used."""
    release = threading.Event()
    seen: list[threading.Thread] = []

    @blocking
    def late() -> str:
        seen.append(threading.current_thread())
        release.wait(10)
        return "late"

    failing_run = executor(
        answering("first", "first"), plugin("late", task_executor_run_task_trigger_error=late)
    )
    try:
        assert "first" == run(failing_run)
        assert seen[0].daemon
        assert "timed_out" == statuses(failing_run)["late"]
    finally:
        release.set()


@both_ways
def test_r10_a_plain_hookimpl_cannot_be_cut_and_its_answer_counts(run):
    """A plain hookimpl that is late answers all the same; its overrun is logged with its name."""
    late = plugin("late", task_executor_run_task_trigger_error=lambda: time.sleep(2 * LIMIT) or 7)
    failing_run = executor(late)

    with structlog.testing.capture_logs() as events:
        assert 7 == run(failing_run)

    assert "answered" == statuses(failing_run)["late"]
    (overrun,) = [event for event in events if event["event"] == "plugin_overran"]
    assert "late" == overrun["plugin"]
    assert "failing" == overrun["task"]
    assert LIMIT == overrun["timeout"]


@both_ways
def test_r10_an_async_hookimpl_that_never_yields_is_answered_late(run):
    """An async hookimpl that holds up its loop cannot be cut, as a plain one: its answer counts."""

    async def hog() -> str:
        time.sleep(3 * LIMIT)  # noqa: ASYNC251  # the fault under test
        return "hog"

    async def quick() -> None:
        await asyncio.sleep(0)

    failing_run = executor(
        plugin("hog", task_executor_run_task_trigger_error=hog),
        plugin("quick", task_executor_run_task_trigger_error=quick),
        answering("last", "last"),
    )

    assert "last" == run(failing_run)
    assert {"hog": "answered", "quick": "no_opinion", "last": "answered"} == statuses(failing_run)


def test_r10_timeouts_by_plugin_come_before_the_general_one():
    """``timeouts`` sets a plugin's own limit."""
    slow = plugin("slow", task_executor_run_task_trigger_error=lambda: asyncio.sleep(3 * LIMIT, 5))

    assert 5 == run_sync(executor(slow, timeouts={"slow": 30}))


def test_r10_the_limit_counts_from_the_hookimpls_own_first_step():
    """Time that others spend on the loop before a hookimpl begins is not its own."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()

        async def quick() -> str:
            return "quick"

        failing_run = executor(plugin("quick", task_executor_run_task_trigger_error=quick))
        running = asyncio.ensure_future(failing_run.execute())
        loop.call_soon(time.sleep, 3 * LIMIT)
        return await running, statuses(failing_run)

    assert ("quick", {"quick": "answered"}) == asyncio.run(main())


@both_ways
def test_r10_task_failed_has_the_limit_too(run):
    """A hookimpl of task_failed is held to the same limit, and the task's error goes on."""
    failing_run = executor(plugin("slow", task_executor_task_failed=lambda: asyncio.Event().wait()))

    with pytest.raises(TaskPluginTriggerError, match="no"):
        run(failing_run)

    assert {"slow": "timed_out"} == statuses(failing_run)


@both_ways
def test_r10_a_late_hookimpl_is_told_like_a_failing_one(run):
    """A time limit is logged at error level, noted on the task's error, and in the trail."""
    failing_run = executor(Hanging())

    with (
        structlog.testing.capture_logs() as events,
        pytest.raises(TaskPluginTriggerError) as raised,
    ):
        run(failing_run)

    (told,) = [event for event in events if event["event"] == "plugin_timed_out"]
    assert ("error", "hanging", "failing") == (told["log_level"], told["plugin"], told["task"])
    (note,) = raised.value.__notes__
    assert "'hanging' timed out" in note


def test_r10_a_runs_own_max_time_does_not_tick_while_plugins_are_asked():
    """``max_time`` bounds the task's function, not the plugins that are asked afterwards."""

    def fails() -> None:
        raise TaskPluginTriggerError("no")

    patient = plugin(
        "patient", task_executor_run_task_trigger_error=lambda: asyncio.sleep(0.2, "kept")
    )
    func = TaskFunc("quick", fails, max_time=0.1)

    assert "kept" == TaskExecutor(func, plugins=[patient]).execute_sync()


def test_r10_cancelling_a_run_cancels_the_hookimpl_that_works():
    """Cancelling a run while a hookimpl works cancels the hookimpl, and the run is cancelled."""
    hanging = Hanging()

    async def main() -> None:
        failing_run = executor(hanging, timeout=30)
        running = asyncio.ensure_future(failing_run.execute())
        while not failing_run.trail and not running.done():
            await asyncio.sleep(0)
            if hanging_has_begun(running):
                break
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    def hanging_has_begun(_: Any) -> bool:
        return len(asyncio.all_tasks()) > 2

    asyncio.run(main())

    assert hanging.cancelled.is_set()


def test_r10_what_is_left_behind_does_not_hold_up_the_end_of_the_interpreter():
    """A @blocking hookimpl and a plugin's stubborn coroutine leave the interpreter free to end."""
    code = """
        import asyncio, time
        from qtasks_hookspecs import blocking, hookimpl
        from qtasks_hookspecs.exc import TaskPluginTriggerError
        from qtasks_pluggy import PluginManager, TaskExecutor

        class Late:
            @hookimpl
            @blocking
            def task_executor_run_task_trigger_error(self):
                time.sleep(600)

        class Stubborn:
            @hookimpl
            async def task_executor_run_task_trigger_error(self):
                while True:
                    try:
                        await asyncio.sleep(600)
                    except asyncio.CancelledError:
                        pass

        def task():
            raise TaskPluginTriggerError("no")

        plugins = PluginManager([Late(), Stubborn()], settings={"timeout": 0.05})
        try:
            TaskExecutor(task, plugins=plugins).execute_sync()
        except TaskPluginTriggerError:
            print("over")
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "over\n" == done.stdout
    assert "Traceback" not in done.stderr
