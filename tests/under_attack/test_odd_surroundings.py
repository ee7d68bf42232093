"""Odd surroundings: forks, full pools, stopped loops, folders that are gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from qtasks_hookspecs import Retry, TaskFunc, TaskMessage, blocking, hookimpl, when
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import SettingsError, TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"


def failing_run(*plugins: Any, error: BaseException | None = None, **settings: Any) -> TaskExecutor:
    """Make a run that fails, with these plugins."""
    func = failing("function", error or TaskPluginTriggerError("no"))
    manager = PluginManager(plugins, settings=settings)
    return TaskExecutor(TaskFunc("fails", func, intercept=Exception), plugins=manager)


def test_a_fork_while_another_thread_holds_the_locks():
    """A child of a process that was loading its plugins can run its tasks."""
    code = """
        import importlib.metadata, os, threading
        from qtasks_pluggy import QueueTasks

        app = QueueTasks("shop")
        task = app.task(name="t")(lambda: 7)
        loading, forked = threading.Event(), threading.Event()
        original = importlib.metadata.distributions

        def slowly():
            loading.set()
            forked.wait(30)
            return original()

        importlib.metadata.distributions = slowly
        thread = threading.Thread(target=task)
        thread.start()
        loading.wait()
        child = os.fork()
        if child == 0:
            importlib.metadata.distributions = original
            os._exit(task())
        forked.set()
        thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    assert "7\n" == done.stdout


def test_a_fork_while_another_thread_counts_a_failure():
    """A child that was forked while a quarantine's clock was read counts failures of its own."""
    code = """
        import os, signal, threading
        from qtasks_hookspecs import hookimpl
        from qtasks_pluggy import PluginManager, TaskExecutor
        from qtasks_pluggy.exc import TaskPluginTriggerError

        class Broken:
            @hookimpl
            def task_executor_run_task_trigger_error(self):
                raise OSError("plugin")

        def fails():
            raise TaskPluginTriggerError

        def run():
            try:
                TaskExecutor(fails, plugins=manager).execute_sync()
            except TaskPluginTriggerError:
                return 7

        reading, forked = threading.Event(), threading.Event()

        def clock():
            reading.set()
            forked.wait(30)
            return 0.0

        manager = PluginManager([Broken()], settings={"quarantine_after": 1}, clock=clock)
        thread = threading.Thread(target=run)
        thread.start()
        reading.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(15)  # were it to hang, its own end
            forked.set()
            os._exit(run())
        forked.set()
        thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    assert "7\n" == done.stdout


def test_r16_a_forked_process_looks_at_no_task_of_its_parent():
    """A child that was forked by a task which is being cancelled recovers its own runs."""
    code = """
        import asyncio, os, signal
        from qtasks_hookspecs import hookimpl
        from qtasks_pluggy import PluginManager, TaskExecutor
        from qtasks_pluggy.exc import TaskPluginTriggerError

        class Answers:
            @hookimpl
            def task_executor_run_task_trigger_error(self):
                return 7

        async def fails():
            raise TaskPluginTriggerError

        async def recovers():
            return await TaskExecutor(fails, plugins=[Answers()]).execute()

        async def parent():
            await recovers()
            asyncio.current_task().cancel()
            child = os.fork()
            if child == 0:
                signal.alarm(15)  # were it to hang, its own end
                try:
                    os._exit(asyncio.run(recovers()))
                finally:
                    os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        codes = []

        async def main():
            codes.append(await parent())

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            print(codes)
    """

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    assert "[7]\n" == done.stdout


def test_plain_runs_within_async_runs_within_plain_runs():
    """However many plain and async runs wait for each other, there is a thread for each."""

    def bottom() -> int:
        return 7

    async def between() -> Any:
        return await TaskExecutor(bottom).execute()

    def middle() -> Any:
        return TaskExecutor(between).execute_sync()

    async def top() -> Any:
        return await asyncio.gather(*[TaskExecutor(middle).execute() for _ in range(40)])

    assert [7] * 40 == TaskExecutor(top).execute_sync()


def test_a_loop_that_is_stopped_goes_on():
    """An async task that stops the background loop stops nobody else."""

    async def stops() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "stopped"

    assert ["stopped"] * 2 == [TaskExecutor(stops).execute_sync() for _ in range(2)]


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch):
    """Where there is no current folder there is no settings file, and runs go on."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()

    assert 5 == QueueTasks("shop", discover=False).task(lambda: 5)()


def test_a_folder_that_may_not_be_looked_into(monkeypatch):
    """A parent that refuses the question has no settings file for us."""

    def refuses(_: Any) -> bool:
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.is_file", refuses)

    assert 5 == QueueTasks("shop", discover=False).task(lambda: 5)()


def test_tags_and_keys_of_odd_types():
    """Tags that are no strings, and keys of settings that are none, are refused at once."""
    with pytest.raises(TypeError, match="tags=: expected strings"):
        TaskFunc("t", len, tags=[{"a": 1}])
    with pytest.raises(Exception, match="unknown key '1'"):
        QueueTasks("shop", settings={1: 2})


@both_ways
def test_a_wrapper_that_is_filtered_out_leaves_its_record(run):
    """The trail tells of a wrapper, too, that it was not asked."""

    class Filtered:
        name = "filtered"

        @hookimpl(wrapper=True)
        @when(task="other")
        def task_executor_run_task_trigger_error(self) -> Any:
            return (yield)

    executor = failing_run(Filtered(), answering(1))

    assert 1 == run(executor)
    assert ["filtered", "answered"] == [record.status for record in executor.trail]


def test_what_a_hookimpl_leaves_running_is_not_the_hookimpl():
    """A task that a hookimpl started may fail later, and the plugin is asked about it."""

    async def main() -> Any:
        over = asyncio.Event()
        left: list[asyncio.Task[Any]] = []

        async def later() -> Any:
            await over.wait()
            return await failing_task()

        async def answers() -> int:
            if not left:
                left.append(asyncio.create_task(later()))
            return 5

        app = QueueTasks(
            "shop", plugins=[plugin("p", **{TRIGGER: answers})], intercept=Exception, discover=False
        )

        @app.task
        async def failing_task() -> float:
            return 1 / 0

        first = await failing_task()
        over.set()
        return first, await left[0]

    assert (5, 5) == asyncio.run(main())


def test_keywords_may_have_any_name():
    """``self`` and ``cls`` are names like any other, for an error and for a task."""
    app = QueueTasks(
        "shop",
        plugins=[plugin("p", **{TRIGGER: lambda e: (e.args, e.kwargs)})],
        discover=False,
    )

    @app.task(echo=True)
    def asks(view: Any) -> None:
        view.ctx.plugin_error("x", cls="Order", self=1)

    @app.task
    def named(self: int) -> int:
        return self

    assert (("x",), {"cls": "Order", "self": 1}) == asks()
    assert 4 == named(self=4)


@both_ways
def test_what_a_plugin_does_to_the_message_stays_there(run):
    """The function is called with what the message said when the run began."""
    seen: list[int] = []

    def fails(n: int) -> None:
        seen.append(n)
        raise TaskPluginTriggerError("no")

    def spoils(task_broker: Any) -> Any:
        task_broker.kwargs["n"] = 99
        return Retry(limit=1)

    message = TaskMessage("t", kwargs={"n": 1})
    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(fails, message, plugins=[plugin("spoils", **{TRIGGER: spoils})]))

    assert [1, 1] == seen


def test_limits_that_mean_never():
    """A limit longer than threads can wait is as good as none."""

    @blocking
    def blocks() -> int:
        return 7

    run = failing_run(plugin("blocks", **{TRIGGER: blocks}), timeout=1e12)

    assert 7 == run.execute_sync()


@both_ways
def test_where_answers_are_ignored_nobody_wins(run):
    """A value from task_close is recorded, but it is not what was used."""
    executor = TaskExecutor(lambda: 5, plugins=[plugin("p", task_executor_task_close=lambda: 1)])

    assert 5 == run(executor)
    assert [("answered", False)] == [(record.status, record.won) for record in executor.trail]


def test_settings_that_are_no_mapping():
    """A list of settings is refused with a reason."""
    with pytest.raises(SettingsError, match="takes a mapping"):
        QueueTasks("shop", settings=["strict"])
