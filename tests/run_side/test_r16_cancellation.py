"""R16: wherever asyncio cancels a run, it is closed once, and the cancellation goes on."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading

import pytest
import structlog

from qtasks_hookspecs import Retry, TaskFunc, blocking, hookimpl
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import Listener, endless, every_kind, function_of, plugin

MOST_POINTS = 40


class Everywhere:
    """A plugin that waits in every hook, and that keeps where it has been."""

    name = "everywhere"

    def __init__(self, stop_at: str = "") -> None:
        self.been: list[str] = []
        self.stop_at = stop_at
        self.stopped = asyncio.Event()

    async def wait(self, place: str) -> None:
        """Take some steps of the event loop, or as many as there are."""
        self.been.append(place)
        if place == self.stop_at:
            self.stopped.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0.0001)

    @hookimpl
    async def task_executor_args_replace(self):
        await self.wait("args")

    @hookimpl
    async def task_executor_run_task(self):
        await self.wait("result")

    @hookimpl
    async def task_executor_run_task_trigger_error(self):
        await self.wait("asked")
        return Retry(delay=0.0001, limit=1)

    @hookimpl
    async def task_executor_task_failed(self):
        await self.wait("failed")

    @hookimpl
    async def task_executor_task_close(self):
        await self.wait("closed")


class CancelledAt:
    """Awaits a run, and cancels its asyncio task at one of its points of suspension."""

    def __init__(self, life, point: int, *, again: bool) -> None:
        self.life = life
        self.point = point
        self.again = again
        self.points = 0

    def __await__(self):
        steps = self.life.__await__()
        step, value = steps.send, None
        while True:
            try:
                waits_for = step(value)
            except StopIteration as end:
                return end.value
            self.points += 1
            if self.points == self.point or (self.again and self.points > self.point):
                asyncio.current_task().cancel()
            try:
                step, value = steps.send, (yield waits_for)
            except BaseException as error:
                step, value = steps.throw, error


def cancelled_at(kind: str, body, point: int, *, again: bool = False) -> tuple[bool, Everywhere]:
    """Run; return whether the run was cancelled, and the plugin."""

    async def main():
        plugin = Everywhere()
        life = TaskExecutor(function_of(kind, body), plugins=[plugin]).execute()
        run = CancelledAt(life, point, again=again)

        async def running():
            return await run

        done, _ = await asyncio.wait([asyncio.ensure_future(running())], timeout=10)
        (task,) = done
        assert run.points < MOST_POINTS
        assert task.cancelled() == (run.points >= point)
        assert task.cancelled() or task.exception() or task.result()
        return task.cancelled(), plugin

    return asyncio.run(main())


def succeeds(*_):
    """Do what a good task does."""
    return "good"


def fails(*_):
    """Do what a task does that is tried twice."""
    raise TaskPluginTriggerError


@every_kind
@pytest.mark.parametrize("body", [succeeds, fails])
@pytest.mark.parametrize("point", range(1, MOST_POINTS))
def test_r16_closed_once_wherever_it_is_cancelled(point, body, kind):
    """At each point of suspension of a good and of a failing run, that of the close included."""
    _, plugin = cancelled_at(kind, body, point)

    assert plugin.been.count("closed") == 1
    assert plugin.been[-1] == "closed"


@every_kind
@pytest.mark.parametrize("point", range(1, MOST_POINTS))
def test_r16_closed_once_however_often_it_is_cancelled(point, kind):
    """A cancellation that comes while another is dealt with changes nothing of it."""
    _, plugin = cancelled_at(kind, fails, point, again=True)

    assert plugin.been.count("closed") == 1


@every_kind
def test_r16_the_points_are_real(kind):
    """A run that waits in every hook has many points of suspension, and the first is one."""
    assert cancelled_at(kind, fails, 1)[0]
    assert cancelled_at(kind, fails, 10)[0]
    assert not cancelled_at(kind, fails, MOST_POINTS)[0]


@every_kind
@pytest.mark.parametrize(
    ("stop_at", "been"),
    [
        ("args", ["args", "closed"]),
        ("asked", ["args", "asked", "closed"]),
        ("failed", ["args", "asked", "args", "asked", "failed", "closed"]),
        ("closed", ["args", "asked", "args", "asked", "failed", "closed"]),
    ],
)
def test_r16_no_other_hook_is_called_after_a_cancellation(stop_at, been, kind):
    """Where a run is cancelled in a hookimpl, only ``task_close`` comes after it."""

    async def main():
        plugin = Everywhere(stop_at)
        run = asyncio.create_task(
            TaskExecutor(function_of(kind, fails), plugins=[plugin]).execute()
        )
        async with asyncio.timeout(10):
            await plugin.stopped.wait()
            run.cancel()
            await asyncio.wait([run])
        return run.cancelled(), plugin.been

    assert asyncio.run(main()) == (True, been)


def test_r16_cancelled_while_it_waits_to_try_again():
    """The delay before the next attempt can be cancelled: no other attempt, one close."""
    attempts = []

    async def main():
        listener = Listener()
        delays = plugin("delays", task_executor_run_task_trigger_error=lambda: Retry(delay=3600))

        async def task():
            attempts.append(1)
            raise TaskPluginTriggerError

        executor = TaskExecutor(task, plugins=[delays, listener])
        run = asyncio.create_task(executor.execute())
        while not listener.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run], timeout=10)
        assert run.cancelled()
        return [when for when, _ in listener.heard]

    assert asyncio.run(main()) == ["asked", "closed"]
    assert attempts == [1]


@pytest.mark.parametrize("hook", ["run_task_trigger_error", "task_failed", "task_close"])
def test_r16_cancelled_while_a_blocking_hookimpl_runs(hook):
    """The run does not wait for the hookimpl's thread: it is closed, and its caller cancelled."""
    inside, release = threading.Event(), threading.Event()

    @blocking
    def hang():
        inside.set()
        release.wait(60)

    async def main():
        listener = Listener()
        plugins = [listener, plugin("hangs", **{f"task_executor_{hook}": hang})]
        run = asyncio.create_task(
            TaskExecutor(function_of("coroutine", fails), plugins=plugins).execute()
        )
        while not inside.is_set():
            await asyncio.sleep(0.001)
        run.cancel()
        await asyncio.wait([run], timeout=10)
        assert run.cancelled()
        return listener.closed

    try:
        assert len(asyncio.run(main())) == 1
    finally:
        release.set()


def test_r16_an_error_of_a_hookimpl_that_is_cancelled_with_its_run_is_logged(caplog):
    """By the plugin's name; the run is cancelled all the same, and asyncio finds nothing lost."""
    inside = asyncio.Event()

    async def clean_up_fails():
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError

    fragile = plugin("fragile", task_executor_run_task_trigger_error=clean_up_fails)

    async def main():
        run = asyncio.create_task(TaskExecutor(fails, plugins=[fragile]).execute())
        await inside.wait()
        run.cancel()
        await asyncio.wait([run], timeout=10)
        assert run.cancelled()

    with structlog.testing.capture_logs() as logs:
        asyncio.run(main())
        gc.collect()

    failed = [(one["event"], one["plugin"], one["error"]) for one in logs]
    assert [("plugin_failed", "fragile", "OSError")] == failed
    assert [] == caplog.records


@every_kind
def test_r16_the_task_itself_is_cancelled(kind):
    """A cancellation while the function runs reaches an async one, and leaves a thread alone."""
    listener = Listener()

    async def main(func):
        run = asyncio.create_task(TaskExecutor(func, plugins=[listener]).execute())
        await asyncio.sleep(0.01)
        run.cancel()
        await asyncio.wait([run], timeout=10)
        assert run.cancelled()

    with endless(kind, max_time=60) as func:
        asyncio.run(main(func))

    assert ["closed"] == [when for when, _ in listener.heard]


@pytest.mark.parametrize("where", ["task", "hookimpl"])
def test_r16_a_thread_that_ends_after_its_loop_is_no_news(where, caplog):
    """What a cancelled run left in a thread finds nobody to tell, and does not complain of it."""
    inside, release, ended = threading.Event(), threading.Event(), threading.Event()
    others = set(threading.enumerate())

    def hang():
        inside.set()
        release.wait(60)
        ended.set()

    hangs = plugin("hangs", task_executor_task_failed=blocking(lambda: hang()))
    func = TaskFunc("t", hang, max_time=60) if where == "task" else fails

    async def main():
        run = asyncio.create_task(TaskExecutor(func, plugins=[hangs]).execute())
        while not inside.is_set():
            await asyncio.sleep(0.001)
        run.cancel()
        await asyncio.wait([run], timeout=10)

    asyncio.run(main())
    (thread,) = [
        one
        for one in threading.enumerate()
        if one.name == "qtasks-pluggy-blocking" and one not in others
    ]
    release.set()
    thread.join(10)

    assert ended.is_set()
    assert "Traceback" not in caplog.text


def test_r16_a_task_that_cleans_up_does_so_before_the_close():
    """The ``finally`` of a cancelled task comes before ``task_close``, awaits included."""
    order = []

    async def main():
        begun = asyncio.Event()

        async def items():
            try:
                yield 1
                begun.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                order.append("cleaned up")

        closing = plugin("p", task_executor_task_close=lambda: order.append("closed"))
        run = asyncio.create_task(TaskExecutor(items, plugins=[closing]).execute())
        async with asyncio.timeout(10):
            await begun.wait()
            run.cancel()
            await asyncio.wait([run])

    asyncio.run(main())

    assert order == ["cleaned up", "closed"]


def test_r16_a_run_under_a_time_limit_of_asyncio():
    """``asyncio.timeout`` around a run cancels it, and the run is closed."""
    listener = Listener()

    async def main(func):
        async with asyncio.timeout(0.01):
            await TaskExecutor(func, plugins=[listener]).execute()

    with endless("coroutine") as func, pytest.raises(TimeoutError):
        asyncio.run(main(func))

    assert ["closed"] == [when for when, _ in listener.heard]


def test_r16_an_interrupt_while_plain_code_waits():
    """Ctrl-C in a plain program cancels the async task it waits for, and closes the run."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.split()) == ["cancelled", "closed", "interrupted"]


INTERRUPTED = """
import asyncio, os, signal, threading
from types import SimpleNamespace
from qtasks_hookspecs import hookimpl
from qtasks_pluggy import TaskExecutor

cancelled = threading.Event()

async def task():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        cancelled.set()
        raise

@hookimpl
def task_executor_task_close():
    print("closed", flush=True)

plugin = SimpleNamespace(name="p", task_executor_task_close=task_executor_task_close)
try:
    TaskExecutor(task, plugins=[plugin]).execute_sync()
except KeyboardInterrupt:
    print("interrupted", flush=True)
cancelled.wait(30)
"""
