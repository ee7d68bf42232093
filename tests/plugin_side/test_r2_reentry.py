"""R2: while a hookimpl runs, it is not asked about errors of tasks that it runs itself."""

from __future__ import annotations

import asyncio

import pytest

from qtasks_hookspecs import blocking, hookimpl
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, TaskPluginTriggerError
from tests.runs import Listener, both_ways, failing, plugin, run_async, run_sync

ERROR = TaskPluginTriggerError("no")


class Helper:
    """A plugin that runs a failing task to answer for another."""

    name = "helper"

    def __init__(self, func=None):
        self.calls = 0
        self.inner = None
        self.func = func or failing("function", TaskPluginTriggerError("inner"))
        self.plugins = PluginManager([self, Listener()])

    def run(self):
        """Run the inner task, whose error nobody recovers."""
        self.calls += 1
        self.inner = TaskExecutor(self.func, plugins=self.plugins)
        with pytest.raises(TaskPluginTriggerError, match="inner"):
            self.inner.execute_sync()
        return "saved"

    @property
    def statuses(self):
        """What the trail of the inner run says of the trigger, by plugin."""
        return [
            (record.plugin, record.status)
            for record in self.inner.trail
            if record.hook == "task_executor_run_task_trigger_error"
        ]


class Plain(Helper):
    @hookimpl
    def task_executor_run_task_trigger_error(self):
        return self.run()


class Blocking(Helper):
    @hookimpl
    @blocking
    def task_executor_run_task_trigger_error(self):
        return self.run()


class Async(Helper):
    @hookimpl
    async def task_executor_run_task_trigger_error(self):
        self.calls += 1
        self.inner = TaskExecutor(self.func, plugins=self.plugins)
        with pytest.raises(TaskPluginTriggerError, match="inner"):
            await self.inner.execute()
        return "saved"


class Wrapper(Helper):
    @hookimpl(wrapper=True)
    def task_executor_run_task_trigger_error(self):
        yield
        return self.run()


class WrapperBefore(Helper):
    @hookimpl(wrapper=True)
    def task_executor_run_task_trigger_error(self):
        saved = self.run()
        yield
        return saved


@both_ways
@pytest.mark.parametrize("kind", [Plain, Blocking, Async, Wrapper, WrapperBefore])
def test_r2_a_hookimpl_is_not_asked_about_its_own_tasks(kind, run):
    """Its trail status there is ``reentered``; the other plugins are asked all the same."""
    helper = kind()

    assert run(TaskExecutor(failing("coroutine", ERROR), plugins=helper.plugins)) == "saved"
    assert helper.calls == 1
    assert sorted(helper.statuses) == [("helper", "reentered"), ("listener", "no_opinion")]


@both_ways
@pytest.mark.parametrize("kind", [Plain, Blocking, Async, Wrapper, WrapperBefore])
def test_r2_a_hookimpl_is_asked_again_afterwards(kind, run):
    """Once it has answered, the next error reaches it again."""
    helper = kind()

    for _ in range(2):
        run(TaskExecutor(failing("function", ERROR), plugins=helper.plugins))

    assert helper.calls == 2


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_r2_a_hookimpl_that_failed_is_asked_again(error, strict):
    """A hookimpl that raised is at work no longer, whatever it raised and however that is taken."""
    calls = []

    def decide():
        calls.append(1)
        raise error

    manager = PluginManager(
        [plugin("faulty", task_executor_run_task_trigger_error=decide)], settings={"strict": strict}
    )

    for _ in range(2):
        with pytest.raises((TaskPluginTriggerError, PluginError, KeyboardInterrupt)):
            TaskExecutor(failing("function", ERROR), plugins=manager).execute_sync()

    assert len(calls) == 2


@both_ways
def test_r2_by_way_of_the_apps_task(run):
    """A hookimpl may run a task of its own app, whose error then goes on as itself."""
    seen = []

    def decide():
        with pytest.raises(TaskPluginTriggerError) as caught:
            task()
        seen.append(caught.value)
        return "saved"

    helper = plugin("helper", task_executor_run_task_trigger_error=decide)
    app = QueueTasks("shop", discover=False, plugins=[helper])
    task = app.task(failing("function", ERROR))

    assert run(TaskExecutor(task)) == "saved"
    assert [id(ERROR)] == [id(one) for one in seen]


@both_ways
def test_r2_task_failed_is_a_hook_with_an_error_too(run):
    """A ``task_failed`` hookimpl that runs a failing task does not hear of it, so it ends."""
    heard = []

    def task_failed(e):
        heard.append(e)
        with pytest.raises(ValueError, match="inner"):
            TaskExecutor(failing("function", ValueError("inner")), plugins=manager).execute_sync()

    manager = PluginManager([plugin("pager", task_executor_task_failed=task_failed)])
    error = KeyError("outer")

    with pytest.raises(KeyError):
        run(TaskExecutor(failing("function", error), plugins=manager))

    assert [error] == heard


def test_r2_another_hookimpl_of_the_same_plugin_is_asked():
    """It is the hookimpl that is left out, not the plugin."""

    class Careful(Plain):
        def __init__(self):
            self.failures = []
            super().__init__()

        @hookimpl
        def task_executor_task_failed(self, e):
            self.failures.append(str(e))

    helper = Careful()

    assert run_sync(TaskExecutor(failing("function", ERROR), plugins=helper.plugins)) == "saved"
    assert helper.failures == ["inner"]


def test_r2_runs_side_by_side_are_not_inside_of_each_other():
    """A hookimpl that waits in one run is asked about a run of somebody else meanwhile."""
    asked = []

    async def main():
        both = asyncio.Barrier(2)

        async def decide(task_func):
            asked.append(task_func.name)
            await both.wait()
            return "saved"

        manager = PluginManager([plugin("slow", task_executor_run_task_trigger_error=decide)])
        runs = (
            TaskExecutor(failing("coroutine", TaskPluginTriggerError()), plugins=manager).execute()
            for _ in range(2)
        )
        async with asyncio.timeout(10):
            return await asyncio.gather(*runs)

    assert asyncio.run(main()) == ["saved", "saved"]
    assert len(asked) == 2


def test_r2_what_a_hookimpl_began_may_outlive_it():
    """A task that a hookimpl left running asks it again, once the hookimpl has ended."""
    asked = []

    async def main():
        begun = []

        async def later(go):
            await go.wait()
            return await TaskExecutor(failing("coroutine", ERROR), plugins=manager).execute()

        async def decide(task_func):
            asked.append(task_func.name)
            if not begun:
                go = asyncio.Event()
                begun.extend((asyncio.create_task(later(go)), go))
            return "saved"

        spawns = plugin("spawns", task_executor_run_task_trigger_error=decide)
        manager = PluginManager([spawns, Listener()])
        first = await TaskExecutor(failing("coroutine", ERROR), plugins=manager).execute()
        task, go = begun
        go.set()
        async with asyncio.timeout(10):
            return first, await task

    assert asyncio.run(main()) == ("saved", "saved")
    assert len(asked) == 2


def test_r2_a_run_inside_of_a_run_inside_of_a_hookimpl():
    """However deep: a hookimpl that is at work is not asked, one that has ended is."""
    depth = []

    def decide(task_func):
        depth.append(task_func.name)
        return TaskExecutor(outer, plugins=manager).execute_sync()

    def outer():
        try:
            TaskExecutor(failing("function", ERROR), plugins=manager).execute_sync()
        except TaskPluginTriggerError:
            return "went by"

    manager = PluginManager([plugin("deep", task_executor_run_task_trigger_error=decide)])

    assert run_async(TaskExecutor(failing("coroutine", ERROR), plugins=manager)) == "went by"
    assert depth == ["coroutine"]
