"""R15: plugins hear of each final failure once, with the error that the caller will see."""

from __future__ import annotations

import asyncio

import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, TaskFunc, hookimpl
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import (
    PluginError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
    TaskTimeoutError,
)
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


def outcome_of(run, func, *plugins, strict=False):
    """Run; return the error that the caller sees, and what a plugin heard of failures."""
    listener = Listener()
    manager = PluginManager([listener, *plugins], settings={"strict": strict})
    try:
        run(TaskExecutor(func, plugins=manager))
    except BaseException as error:
        return error, listener.failed
    return None, listener.failed


@both_ways
@every_kind
def test_r15_an_error_that_nobody_was_asked_about(kind, run):
    """A failure that is not intercepted is told."""
    error = ValueError("bad")

    assert outcome_of(run, failing(kind, error)) == (error, [error])


@both_ways
@every_kind
@pytest.mark.parametrize("cls", [TaskPluginTriggerError, ValueError])
def test_r15_an_error_that_nobody_recovered(cls, kind, run):
    """A failure that plugins had no opinion on is told, unwrapped."""
    error = cls("bad")
    func = TaskFunc("t", failing(kind, error), intercept=ValueError)

    assert outcome_of(run, func) == (error, [error])


@both_ways
@every_kind
def test_r15_raise(kind, run):
    """What a plugin raises instead is what is told."""
    other = KeyError("clearer")
    func = failing(kind, TaskPluginTriggerError("bad"))

    assert outcome_of(run, func, answering(Raise(other))) == (other, [other])


@both_ways
@every_kind
def test_r15_dead_letter(kind, run):
    """A run that is set aside has failed."""
    func = failing(kind, TaskPluginTriggerError("bad"))

    error, failed = outcome_of(run, func, answering(DeadLetter("later")))

    assert isinstance(error, TaskDeadLetteredError)
    assert failed == [error]


@both_ways
@every_kind
def test_r15_spent_retries(kind, run):
    """Retries are told once, when they are spent, with the last attempt's error."""
    errors = []

    def body(*_):
        errors.append(TaskPluginTriggerError(len(errors)))
        raise errors[-1]

    outcome = outcome_of(run, function_of(kind, body), answering(Retry(limit=2)))

    assert len(errors) == 3
    assert outcome == (errors[-1], [errors[-1]])


@both_ways
@every_kind
def test_r15_a_time_limit(kind, run):
    """A run that ends at its ``max_time`` has failed."""
    with endless(kind, max_time=0.05) as func:
        error, failed = outcome_of(run, func)

    assert isinstance(error, TaskTimeoutError)
    assert failed == [error]


@every_kind
def test_r15_stop_iteration(kind):
    """Even an error that no coroutine can raise is told once."""
    error, failed = outcome_of(run_sync, failing(kind, StopIteration("empty")))

    assert failed == [error]


@both_ways
@every_kind
@pytest.mark.parametrize(
    "hook",
    [
        "task_executor_args_replace",
        "task_executor_run_task",
        "task_executor_run_task_trigger_error",
    ],
)
def test_r15_a_plugin_that_failed_under_strict(hook, kind, run):
    """Under ``strict`` it is a plugin's failure that the caller sees, and that is told."""

    def broken():
        raise OSError("plugin")

    ends_well = hook == "task_executor_run_task"
    func = function_of(kind, lambda *_: 1) if ends_well else failing(kind, TaskPluginTriggerError())

    error, failed = outcome_of(run, func, plugin("faulty", **{hook: broken}), strict=True)

    assert isinstance(error, PluginError)
    assert isinstance(error.__cause__, OSError)
    assert failed == [error]


@both_ways
def test_r15_a_listener_that_fails_under_strict(run):
    """A listener that fails itself is what the caller sees; the others heard of the task's."""

    def broken():
        raise OSError("pager")

    task_error = ValueError("bad")
    pager = plugin("pager", task_executor_task_failed=broken)

    error, failed = outcome_of(run, failing("function", task_error), pager, strict=True)

    assert isinstance(error, PluginError)
    assert error.task_error is task_error
    assert failed == [task_error]


@both_ways
@every_kind
@pytest.mark.parametrize("answer", [0, None, "", Replace(None), Replace(1)], ids=repr)
def test_r15_a_recovered_run_has_not_failed(answer, kind, run):
    """A run with a result is no failure, however many attempts it took."""
    attempts = []

    def body(*_):
        attempts.append(1)
        if len(attempts) < 3 or answer is not None:
            raise TaskPluginTriggerError

    def decide():
        return Retry(limit=2) if len(attempts) < 3 else answer

    decider = plugin("decider", task_executor_run_task_trigger_error=decide)

    assert outcome_of(run, function_of(kind, body), decider) == (None, [])
    assert len(attempts) == 3


@both_ways
@every_kind
def test_r15_a_cancellation_by_ctx_is_not_told(kind, run):
    """A task that cancels its run has not failed."""
    func = function_of(kind, lambda self: self.ctx.cancel("enough"))

    error, failed = outcome_of(run, TaskFunc("t", func, echo=True, intercept=Exception))

    assert isinstance(error, TaskCancelError)
    assert (error.reason, failed) == ("enough", [])


@both_ways
@every_kind
def test_r15_a_cancellation_by_a_plugin_is_not_told(kind, run):
    """Nor has one that a plugin cancels."""
    func = failing(kind, TaskPluginTriggerError())

    error, failed = outcome_of(run, func, answering(Cancel("enough")))

    assert isinstance(error, TaskCancelError)
    assert failed == []


@both_ways
@every_kind
@pytest.mark.parametrize(
    "cls", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_r15_interrupts_are_not_told(cls, kind, run):
    """Neither is what stops the program or the loop's task."""
    error, failed = outcome_of(run, failing(kind, cls()))

    assert isinstance(error, cls)
    assert failed == []


@every_kind
def test_r15_a_cancelled_asyncio_task_is_not_told(kind):
    """Neither is a run that asyncio cancels from outside."""
    listener = Listener()

    async def main(func):
        running = asyncio.create_task(TaskExecutor(func, plugins=[listener]).execute())
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=10)
        return running.cancelled()

    with endless(kind, max_time=60) as func:
        assert asyncio.run(main(func))

    assert listener.failed == []


@both_ways
def test_r15_a_cancelled_inner_run_is_no_failure_of_the_outer_one(run):
    """A cancellation that goes up through nested runs is one for all of them."""
    listener = Listener()
    app = QueueTasks("shop", discover=False, plugins=[listener], intercept=Exception)
    inner = app.task(name="inner", echo=True)(lambda self: self.ctx.cancel())
    outer = app.task(name="outer")(lambda: inner() or None)

    with pytest.raises(TaskCancelError):
        run(TaskExecutor(outer))

    assert listener.failed == listener.asked == []


@both_ways
def test_r15_each_nested_run_is_told(run):
    """An error that leaves two runs is the final failure of both."""
    heard = []

    class Pager:
        name = "pager"

        @hookimpl
        def task_executor_task_failed(self, task_executor, task_func, task_broker, e):
            assert task_executor.task_func is task_func
            assert task_executor.task_broker is task_broker
            heard.append((task_func.name, task_broker.name, e))

    error = ValueError("bad")
    app = QueueTasks("shop", discover=False, plugins=[Pager()])
    inner = app.task(name="inner")(failing("function", error))
    outer = app.task(name="outer")(lambda: inner() or None)

    with pytest.raises(ValueError):
        run(TaskExecutor(outer))

    assert heard == [("inner", "inner", error), ("outer", "outer", error)]


@both_ways
@pytest.mark.parametrize("answer", [0, Raise(KeyError()), Retry(), Cancel()], ids=repr)
def test_r15_nothing_comes_of_an_answer(answer, run):
    """It is too late for answers: the error goes on, whatever a hookimpl returns."""
    error = ValueError("bad")
    calls = []

    def task_failed():
        calls.append(1)
        return answer

    pager = plugin("pager", task_executor_task_failed=task_failed)

    assert outcome_of(run, failing("function", error), pager) == (error, [error])
    assert calls == [1]


@both_ways
def test_r15_async_listeners_are_waited_for(run):
    """A listener may be async, in both ways of running."""
    heard = []

    async def task_failed(e):
        await asyncio.sleep(0)
        heard.append(e)

    error = ValueError("bad")
    outcome_of(run, failing("coroutine", error), plugin("p", task_executor_task_failed=task_failed))

    assert heard == [error]


def test_r15_by_way_of_an_app():
    """Calling an app's task tells its failure once."""
    listener = Listener()
    error = ValueError("bad")
    app = QueueTasks("shop", discover=False, plugins=[listener])
    task = app.task(failing("function", error))

    with pytest.raises(ValueError):
        task()
    with pytest.raises(ValueError):
        run_async(TaskExecutor(task))

    assert listener.failed == [error, error]
