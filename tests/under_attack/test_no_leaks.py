"""A run that is over keeps nothing alive: no error, no argument, no result."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref

import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Retry, TaskFunc, hookimpl
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import every_kind, function_of, plugin

ENDINGS = {
    "nobody is asked": None,
    "no opinion": [],
    "recovered": [lambda: 0],
    "retried": [lambda: Retry(limit=2)],
    "raised": [lambda: Raise(KeyError("clearer"))],
    "cancelled": [lambda: Cancel("x")],
    "set aside": [lambda: DeadLetter("x")],
    "strict": [lambda: 1 / 0],
}
every_ending = pytest.mark.parametrize("ending", ENDINGS)


class BigError(TaskPluginTriggerError):
    """An error that can be watched."""


class OtherError(Exception):
    """An ordinary error that can be watched."""


class Argument:
    """Something that can be watched."""


@pytest.fixture
def no_gc():
    """Leave everything to the counting of references, and no error to a log record."""
    logging.disable()
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def failing_run(ending, kind, cls):
    """Make an executor whose run fails, and the references to watch."""
    watched = []

    def body(_):
        error = cls("no")
        watched.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error  # else this very frame would keep it

    answers = ENDINGS[ending]
    plugins = [
        plugin(f"p{n}", task_executor_run_task_trigger_error=answer)
        for n, answer in enumerate(answers or ())
    ]
    strict = {"strict": ending == "strict"}
    argument = Argument()
    watched.append(weakref.ref(argument))
    func = TaskFunc(
        "t", function_of(kind, body), intercept=OtherError if answers is not None else ()
    )
    executor = TaskExecutor(func, args=(argument,), plugins=PluginManager(plugins, settings=strict))
    return executor, watched


def left(watched):
    """Say what is still alive."""
    return [one() for one in watched if one() is not None]


def plainly(executor):
    """Run to the end from plain code."""
    with contextlib.suppress(Exception):
        executor.execute_sync()


def on_a_loop(executor):
    """Run to the end from async code."""

    async def main():
        with contextlib.suppress(Exception):
            await executor.execute()

    asyncio.run(main())


@pytest.mark.parametrize("run", [plainly, on_a_loop])
@every_kind
@every_ending
def test_nothing_is_left_of_a_run(ending, kind, run, no_gc):
    """However a run ends, its errors and arguments are gone with it."""
    executor, watched = failing_run(ending, kind, OtherError)

    run(executor)
    del executor
    gc.collect()

    assert left(watched) == []


@pytest.mark.parametrize("run", [plainly, on_a_loop])
@every_kind
@every_ending
@pytest.mark.parametrize("cls", [BigError, OtherError])
def test_no_run_leaves_work_to_the_garbage_collector(cls, ending, kind, run, no_gc):
    """They are gone at once: no frame of ours holds an error whose traceback holds the frame."""
    executor, watched = failing_run(ending, kind, cls)

    run(executor)
    del executor

    assert left(watched) == []


@pytest.mark.parametrize("run", [plainly, on_a_loop])
@every_kind
def test_a_good_run_leaves_nothing(kind, run, no_gc):
    """A result lives as long as somebody holds it, and so does an argument."""
    watched = []

    def body(_):
        result = Argument()
        watched.append(weakref.ref(result))
        return result

    argument = Argument()
    watched.append(weakref.ref(argument))
    executor = TaskExecutor(function_of(kind, body), args=(argument,))
    del argument

    run(executor)
    del executor

    assert left(watched) == []


def test_an_app_keeps_nothing_of_its_runs(no_gc):
    """An app and its plugins hold no run, no error and no message after a thousand runs."""
    watched = []

    @hookimpl
    def watch(task_executor, e):
        watched.extend((weakref.ref(task_executor.task_broker), weakref.ref(e)))
        return 0

    watcher = plugin("watcher")
    watcher.task_executor_run_task_trigger_error = watch
    app = QueueTasks("shop", discover=False, plugins=[watcher], intercept=OtherError)

    @app.task
    def task(number):
        raise OtherError if number % 2 else BigError

    with app:
        assert {task(number) for number in range(1_000)} == {0}

    assert len(watched) == 2_000
    assert left(watched) == []


@pytest.mark.parametrize("run", [plainly, on_a_loop])
def test_what_a_hookimpl_keeps_stays_whole(run):
    """A plugin that keeps the run keeps its trail and its message, and those stay readable."""
    kept = []
    keeps = plugin(
        "keeps", task_executor_task_close=lambda task_executor: kept.append(task_executor)
    )
    executor, _ = failing_run("no opinion", "function", BigError)
    executor = TaskExecutor(executor.task_func, args=executor.args, plugins=[keeps])

    run(executor)
    gc.collect()

    assert kept == [executor]
    assert [record.plugin for record in kept[0].trail] == ["keeps"]
    assert kept[0].task_broker.args == executor.args
