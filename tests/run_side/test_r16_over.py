"""R16: a recovered run is a successful run, and every run is closed once."""

from __future__ import annotations

import asyncio
import gc

import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, TaskPluginTriggerError
from tests.runs import (
    Listener,
    answering,
    both_ways,
    endless,
    every_kind,
    failing,
    function_of,
    plugin,
    run_async,
    run_sync,
)


@both_ways
@every_kind
def test_r16_a_recovered_run_has_a_result(kind, run):
    """It returns the answer like a result, and nothing of the error is left to see."""
    listener = Listener()
    func = failing(kind, TaskPluginTriggerError())
    executor = TaskExecutor(func, plugins=[answering({"price": 0}), listener])

    assert run(executor) == executor.result == {"price": 0}
    assert listener.failed == []
    assert listener.closed == [executor]


@both_ways
@every_kind
@pytest.mark.parametrize(
    "answer",
    [None, 0, Replace(None), Retry(limit=2), Raise(KeyError()), Cancel("x"), DeadLetter("x")],
    ids=repr,
)
@pytest.mark.parametrize("cls", [TaskPluginTriggerError, ValueError])
def test_r16_closed_once_whatever_came(cls, answer, kind, run):
    """Success, recovery, retries, failure and cancellation: one ``task_close`` for each run."""
    listener = Listener()
    executor = TaskExecutor(failing(kind, cls()), plugins=[listener, answering(answer)])

    try:
        run(executor)
    except Exception:
        assert answer != 0 or cls is ValueError

    assert listener.closed == [executor]


@both_ways
@every_kind
def test_r16_an_answer_is_the_result_as_it_is(kind, run):
    """The hook on results is for what the function returned, not for what a plugin supplied."""
    called = []
    doubles = plugin("doubles", task_executor_run_task=lambda result: called.append(result))
    func = failing(kind, TaskPluginTriggerError())

    assert run(TaskExecutor(func, plugins=[answering(3), doubles])) == 3
    assert called == []


@both_ways
@every_kind
def test_r16_a_good_run_is_closed(kind, run):
    """A run without any trouble is closed too."""
    listener = Listener()
    executor = TaskExecutor(function_of(kind, lambda *_: 1), plugins=[listener])

    run(executor)

    assert [("closed", executor)] == listener.heard


@both_ways
@every_kind
@pytest.mark.parametrize(
    "cls", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_r16_interrupts_close_too(cls, kind, run):
    """What is no ``Exception`` goes on, and the run is closed before."""
    listener = Listener()
    executor = TaskExecutor(failing(kind, cls()), plugins=[listener])

    with pytest.raises(cls):
        run(executor)

    assert listener.closed == [executor]


@both_ways
@every_kind
def test_r16_a_time_limit_closes_too(kind, run):
    """A task that is left behind at its ``max_time`` is over for its run."""
    listener = Listener()

    with endless(kind, max_time=0.05) as func, pytest.raises(TimeoutError):
        run(TaskExecutor(func, plugins=[listener]))

    assert len(listener.closed) == 1


@both_ways
def test_r16_close_is_last(run):
    """It comes after the last attempt and after ``task_failed``."""
    listener = Listener()
    func = failing("function", TaskPluginTriggerError())

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(func, plugins=[answering(Retry(limit=1)), listener]))

    assert ["asked", "asked", "failed", "closed"] == [when for when, _ in listener.heard]


@both_ways
def test_r16_its_parameters(run):
    """``task_close`` gets the run, the definition and the message, which agree."""
    seen = []

    def task_close(task_executor, task_func, task_broker):
        seen.append((task_executor, task_func, task_broker))

    executor = TaskExecutor(lambda: 1, plugins=[plugin("p", task_executor_task_close=task_close)])
    run(executor)

    assert seen == [(executor, executor.task_func, executor.task_broker)]


@both_ways
@every_kind
@pytest.mark.parametrize("error", [None, ValueError("bad")], ids=repr)
def test_r16_a_failing_close_changes_nothing(error, kind, run):
    """A hookimpl that fails at the end neither spoils a result nor hides an error."""
    closed = Listener()

    def broken():
        raise OSError("plugin")

    func = function_of(kind, lambda *_: 1) if error is None else failing(kind, error)
    executor = TaskExecutor(func, plugins=[plugin("p", task_executor_task_close=broken), closed])

    if error is None:
        assert run(executor) in (1, [1, 2])
    else:
        with pytest.raises(ValueError) as caught:
            run(executor)
        assert caught.value is error

    assert closed.closed == [executor]


@both_ways
@pytest.mark.parametrize("error", [None, ValueError("bad")], ids=repr)
def test_r16_a_failing_close_under_strict(error, run):
    """Under ``strict`` the plugin's failure is the caller's, with the task's error beside it."""

    def broken():
        raise OSError("plugin")

    strict = PluginManager(
        [plugin("p", task_executor_task_close=broken)], settings={"strict": True}
    )
    func = failing("function", error) if error else (lambda: 1)

    with pytest.raises(PluginError) as caught:
        run(TaskExecutor(func, plugins=strict))

    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.task_error is error


@both_ways
@pytest.mark.parametrize("cls", [asyncio.CancelledError, KeyboardInterrupt])
def test_r16_strict_does_not_stand_in_the_way_of_an_interrupt(cls, run):
    """An interrupt goes on even when ``task_close`` fails under ``strict``."""

    def broken():
        raise OSError("plugin")

    strict = PluginManager(
        [plugin("p", task_executor_task_close=broken)], settings={"strict": True}
    )

    with pytest.raises(cls):
        run(TaskExecutor(failing("function", cls()), plugins=strict))


@both_ways
def test_r16_a_second_execute_closes_nothing(run):
    """One executor is one run: asking for another is an error, and no second end."""
    listener = Listener()
    executor = TaskExecutor(lambda: 1, plugins=[listener])
    run(executor)

    with pytest.raises(RuntimeError, match="has run task '<lambda>' already"):
        run_sync(executor)
    with pytest.raises(RuntimeError, match="has run task '<lambda>' already"):
        run_async(executor)

    assert listener.closed == [executor]


@both_ways
def test_r16_nested_runs_are_closed_each(run):
    """The inner run ends before the outer one."""
    names = []

    def task_close(task_func):
        names.append(task_func.name)

    closing = plugin("p", task_executor_task_close=task_close)
    app = QueueTasks("shop", discover=False, plugins=[closing])
    inner = app.task(name="inner")(failing("function", ValueError("bad")))
    outer = app.task(name="outer")(lambda: inner() or None)

    with pytest.raises(ValueError):
        run(TaskExecutor(outer))

    assert names == ["inner", "outer"]


@pytest.mark.parametrize("how", ["closed", "forgotten"])
@pytest.mark.parametrize("async_close", [True, False])
def test_r16_an_abandoned_run_is_closed(async_close, how):
    """A coroutine that is given up in the middle still starts its ``task_close``, once."""
    started = []

    def plain_close():
        started.append("plain")

    async def close_async():
        started.append("async")
        await asyncio.sleep(0)
        started.append("never waited for")

    close = close_async if async_close else plain_close
    listener = Listener()
    plugins = [listener, plugin("closing", task_executor_task_close=close)]
    running = TaskExecutor(function_of("coroutine", lambda: 1), plugins=plugins).execute()
    running.send(None)

    if how == "closed":
        running.close()
    del running
    gc.collect()

    assert started == ["async" if async_close else "plain"]
    assert len(listener.closed) == 1
    assert listener.failed == []


def test_r16_an_abandoned_run_with_a_failing_close():
    """Giving up a run is quiet, whatever ``task_close`` does."""

    def broken():
        raise OSError("plugin")

    for strict in (True, False):
        manager = PluginManager(
            [plugin("p", task_executor_task_close=broken)], settings={"strict": strict}
        )
        running = TaskExecutor(function_of("coroutine", lambda: 1), plugins=manager).execute()
        running.send(None)
        running.close()
