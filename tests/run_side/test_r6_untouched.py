"""R6: the error that leaves a run is the one that the function raised, as it raised it."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from qtasks_hookspecs import Raise, TaskFunc, hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import (
    Listener,
    answering,
    both_ways,
    every_kind,
    failing,
    function_of,
    plugin,
    run_sync,
)

every_error = pytest.mark.parametrize(
    ("cls", "intercept"),
    [(TaskPluginTriggerError, ()), (ValueError, ()), (ValueError, ValueError)],
    ids=["trigger", "ordinary", "intercepted"],
)


def caught_from(run, executor):
    """Run while the caller handles another error; return what leaves the run."""

    def plainly():
        try:
            raise LookupError("the caller's own")
        except LookupError:
            try:
                executor.execute_sync()
            except Exception as error:
                return error

    async def on_a_loop():
        try:
            raise LookupError("the caller's own")
        except LookupError:
            try:
                await executor.execute()
            except Exception as error:
                return error

    return plainly() if run is run_sync else asyncio.run(on_a_loop())


@both_ways
@every_kind
@every_error
def test_r6_the_very_error_goes_on(cls, intercept, kind, run):
    """Where nobody answers, the caller gets that very object; an intercepted one unwrapped."""
    error = cls("no")
    func = TaskFunc("t", failing(kind, error), intercept=intercept)

    with pytest.raises(cls) as caught:
        run(TaskExecutor(func, plugins=[Listener()]))

    assert caught.value is error


@both_ways
@every_kind
@every_error
def test_r6_traceback_is_whole(cls, intercept, kind, run):
    """The traceback leads from the caller down to the very line of the task."""

    def deepest(*_):
        raise cls("no")

    func = TaskFunc("t", function_of(kind, lambda *_: deepest()), intercept=intercept)
    error = caught_from(run, TaskExecutor(func, plugins=[Listener()]))
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    assert names[0] in {"plainly", "on_a_loop"}
    assert names[-3:] == [kind.replace(" ", "_"), "<lambda>", "deepest"]
    assert names.count("deepest") == 1


@both_ways
@every_kind
@every_error
@pytest.mark.parametrize("inside", [True, False], ids=["inside an except", "in the open"])
def test_r6_context_is_untouched(inside, cls, intercept, kind, run):
    """``__context__`` is what it was when the error left the function, wherever the caller is."""
    seen = []

    def body(*_):
        try:
            if not inside:
                raise cls("no")
            try:
                raise KeyError("the task's own")
            except KeyError:
                raise cls("no")  # noqa: B904  # the implicit context is the subject
        except cls as error:
            seen.append((error, error.__context__, error.__cause__, error.__suppress_context__))
            raise

    func = TaskFunc("t", function_of(kind, body), intercept=intercept)
    error = caught_from(run, TaskExecutor(func, plugins=[Listener()]))

    assert seen == [(error, error.__context__, error.__cause__, error.__suppress_context__)]
    assert not inside or isinstance(error.__context__, KeyError)


@both_ways
@every_kind
@every_error
def test_r6_an_error_that_is_raised_again_keeps_its_context(cls, intercept, kind, run):
    """An error that one object stands for, run after run, collects nothing on its way."""
    error = cls("no")
    func = TaskFunc("t", failing(kind, error), intercept=intercept)
    for _ in range(3):
        with pytest.raises(cls):
            run(TaskExecutor(func, plugins=[Listener()]))

    assert error.__context__ is None
    assert error.__cause__ is None


@both_ways
@pytest.mark.parametrize("suppress", [True, False])
def test_r6_cause_is_untouched(suppress, run):
    """``raise ... from`` in the task stays what it said, None included."""
    cause = None if suppress else OSError("disk")

    def task():
        try:
            raise KeyError("k")
        except KeyError:
            raise TaskPluginTriggerError("no") from cause

    error = caught_from(run, TaskExecutor(task, plugins=[Listener()]))

    assert error.__cause__ is cause
    assert error.__suppress_context__


@both_ways
@every_error
def test_r6_a_failing_plugin_is_not_its_context(cls, intercept, run):
    """What a hookimpl raises meanwhile leaves no trace on the task's error but a note."""

    def broken():
        def fail():
            raise OSError("plugin")

        return fail

    hooks = ("run_task_trigger_error", "task_failed", "task_close")
    faulty = plugin("faulty", **{f"task_executor_{hook}": broken() for hook in hooks})
    func = TaskFunc("t", failing("coroutine", cls("no")), intercept=intercept)

    error = caught_from(run, TaskExecutor(func, plugins=[faulty]))

    assert not isinstance(error.__context__, OSError)
    assert error.__cause__ is None
    assert any("faulty" in note for note in error.__notes__)


@both_ways
def test_r6_what_a_hookimpl_sees_is_not_changed_by_looking(run):
    """A hookimpl that raises the error it was given, and catches it, does no harm."""

    class Curious:
        name = "curious"

        @hookimpl
        def task_executor_run_task_trigger_error(self, e):
            try:
                raise KeyError("plugin")
            except KeyError:
                with pytest.raises(ValueError, match="no"):
                    raise e.cause from None

    error = ValueError("no")
    func = TaskFunc("t", failing("function", error), intercept=ValueError)

    with pytest.raises(ValueError) as caught:
        run(TaskExecutor(func, plugins=[Curious()]))

    assert caught.value is error


@both_ways
def test_r6_raise_keeps_the_context_of_its_error(run):
    """An error that a plugin raises instead has the task's as its cause, and no other context."""
    other = RuntimeError("clearer")
    error = ValueError("no")
    func = TaskFunc("t", failing("function", error), intercept=ValueError)

    caught = caught_from(run, TaskExecutor(func, plugins=[answering(Raise(other))]))

    assert caught is other
    assert caught.__cause__ is error
    assert caught.__context__ is None


@pytest.mark.parametrize("asynchronous", [True, False])
def test_r6_by_way_of_an_app(asynchronous):
    """Calling the app's task changes nothing of it."""
    error = TaskPluginTriggerError("no")
    app = QueueTasks("shop", discover=False, plugins=[Listener()])
    task = app.task(failing("coroutine" if asynchronous else "function", error))

    async def main():
        try:
            raise LookupError
        except LookupError:
            await task()

    with pytest.raises(TaskPluginTriggerError) as caught:
        asyncio.run(main()) if asynchronous else task()

    assert caught.value is error
