"""R2: which errors plugins are asked about, and as what they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from qtasks_hookspecs import TaskFunc
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import (
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
    TaskTimeoutError,
)
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


class SpecialError(TaskPluginTriggerError):
    """A trigger error of an app's own."""


def asked_about(
    error: BaseException,
    *,
    kind: str = "function",
    run: Callable[[TaskExecutor], Any] = run_sync,
    app: Any = (),
    **task: Any,
) -> list[Any]:
    """Run an app's task that raises; return what a plugin was asked about."""
    listener = Listener()
    queue = QueueTasks("shop", discover=False, plugins=[listener], intercept=app)
    with pytest.raises(type(error)):
        run(TaskExecutor(queue.task(**task)(failing(kind, error))))
    return listener.asked


@both_ways
@every_kind
@pytest.mark.parametrize("cls", [TaskPluginTriggerError, SpecialError])
def test_r2_trigger_errors_reach_plugins_as_themselves(cls, kind, run):
    """A trigger error or a subclass of it, of a function or a generator's body, asks plugins."""
    error = cls("no price")

    asked = asked_about(error, kind=kind, run=run)

    assert [id(error)] == [id(one) for one in asked]


@both_ways
@every_kind
def test_r2_plugin_error_of_ctx_fires(kind, run):
    """``ctx.plugin_error`` is such an error, in each kind of function."""
    listener = Listener()
    func = function_of(kind, lambda self: self.ctx.plugin_error("low", shelf=3))

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(TaskFunc("t", func, echo=True), plugins=[listener]))

    (error,) = listener.asked
    assert (("low",), {"shelf": 3}) == (error.args, error.kwargs)


def test_r2_the_first_step_of_a_generator_can_fire():
    """A generator that raises before its first item asks plugins too."""

    def nothing():
        raise TaskPluginTriggerError
        yield

    assert TaskExecutor(nothing, plugins=[answering("all")]).execute_sync() == "all"


@both_ways
@every_kind
def test_r2_other_errors_do_not_fire_by_default(kind, run):
    """Without ``intercept=`` plugins are not asked about an ordinary exception."""
    assert asked_about(ValueError("bad"), kind=kind, run=run) == []


@both_ways
@every_kind
def test_r2_a_function_outside_of_an_app_intercepts_nothing(kind, run):
    """A plain function in an executor has no ``intercept=``, so plugins are not asked."""
    error = ValueError("bad")

    with pytest.raises(ValueError) as caught:
        run(TaskExecutor(failing(kind, error), plugins=[answering(0)]))

    assert caught.value is error


@both_ways
@every_kind
@pytest.mark.parametrize("where", ["app", "intercept"])
def test_r2_an_intercepted_error_arrives_wrapped(where, kind, run):
    """An error whose class is in ``intercept=`` is the ``cause`` of the error that plugins get."""
    error = ValueError("bad")

    (asked,) = asked_about(error, kind=kind, run=run, **{where: ValueError})

    assert type(asked) is TaskPluginTriggerError
    assert asked.cause is error
    assert asked.__cause__ is error
    assert ((), {}, "bad") == (asked.args, asked.kwargs, asked.message)


def test_r2_a_trigger_error_is_not_wrapped_again():
    """A trigger error that ``intercept=`` names as well arrives once, as itself."""
    error = TaskPluginTriggerError("no")

    asked = asked_about(error, intercept=Exception)

    assert [id(error)] == [id(one) for one in asked]


@pytest.mark.parametrize(
    ("app", "task", "fires"),
    [
        (LookupError, None, True),
        ((), None, False),
        ((OSError, LookupError), None, True),
        ([OSError, LookupError], None, True),
        (OSError, None, False),
        (LookupError, (), False),
        (Exception, [], False),
        (Exception, OSError, False),
        ((), LookupError, True),
        ((), KeyError, True),
        ((), (OSError, KeyError), True),
        ((), {OSError, IndexError}, False),
        (OSError, KeyError, True),
        (Exception, None, True),
        (BaseException, None, True),
    ],
)
def test_r2_the_tasks_intercept_goes_before_the_apps(app, task, fires):
    """One class or several, subclasses too; on a task None means the app's, ``()`` nothing."""
    asked = asked_about(KeyError("k"), app=app, intercept=task)

    assert len(asked) == fires


def test_r2_an_iterator_of_classes_serves_every_run():
    """``intercept=`` is read once, so an iterator is not used up by the first run."""
    app = QueueTasks(
        "shop",
        discover=False,
        plugins=[answering(0)],
        intercept=(cls for cls in (OSError, KeyError)),
    )
    tasks = [app.task(name=str(n))(failing("function", KeyError("k"))) for n in range(2)]

    assert [0, 0, 0] == [tasks[0](), tasks[0](), tasks[1]()]


@pytest.mark.parametrize("wrong", ["ValueError", 3, int, [ValueError, "x"], ValueError("x")])
def test_r2_what_is_no_class_is_refused(wrong):
    """``intercept=`` takes exception classes; anything else is refused where it is given."""
    with pytest.raises(TypeError, match="intercept=: expected an exception class"):
        QueueTasks("shop", discover=False, intercept=wrong)
    with pytest.raises(TypeError, match="intercept=: expected an exception class"):
        QueueTasks("shop", discover=False).task(intercept=wrong)(print)
    with pytest.raises(TypeError, match="intercept=: expected an exception class"):
        TaskFunc("t", print, intercept=wrong)


@both_ways
@every_kind
@pytest.mark.parametrize(
    ("intercept", "fires"),
    [
        (ValueError, False),
        (ExceptionGroup, True),
        (BaseExceptionGroup, True),
        (Exception, True),
        (TaskPluginTriggerError, False),
    ],
)
def test_r2_exception_groups_match_as_themselves(intercept, fires, kind, run):
    """What is inside of a group does not matter, not even a trigger error."""
    group = ExceptionGroup("two", [ValueError("bad"), TaskPluginTriggerError("no")])

    asked = asked_about(group, kind=kind, run=run, intercept=intercept)

    assert len(asked) == fires
    assert all(one.cause is group for one in asked)


@both_ways
@pytest.mark.parametrize("intercept", [TaskTimeoutError, TimeoutError, Exception])
def test_r2_a_time_limit_can_be_intercepted(intercept, run):
    """``max_time`` ends in an error that ``intercept=`` can name."""

    async def endless():
        await asyncio.Event().wait()

    func = TaskFunc("t", endless, max_time=0.01, intercept=intercept)

    assert run(TaskExecutor(func, plugins=[answering("late")])) == "late"


@both_ways
def test_r2_a_dead_letter_of_an_inner_run_can_be_intercepted(run):
    """Of our own errors only a cancellation is out of reach of ``intercept=``."""
    error = TaskDeadLetteredError("x")

    (asked,) = asked_about(error, run=run, intercept=Exception)

    assert asked.cause is error


@both_ways
@every_kind
@pytest.mark.parametrize(
    "cls", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, TaskCancelError]
)
def test_r2_what_is_never_intercepted(cls, kind, run):
    """Interrupts and cancellations never ask plugins, not even with ``intercept=BaseException``."""
    asked = asked_about(cls("stop"), kind=kind, run=run, app=BaseException, intercept=cls)

    assert asked == []


@pytest.mark.parametrize("cls", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_r2_other_base_exceptions_are_nobodys(cls):
    """An exception that is no ``Exception`` goes by, and a group of such ones too."""
    group = BaseExceptionGroup("stop", [cls()])

    assert asked_about(group, app=BaseException) == []


@every_kind
def test_r2_stop_iteration_leaves_a_plain_run_as_itself(kind):
    """A ``StopIteration`` is an error like any other, where Python does not turn it into one."""
    error = StopIteration("empty")

    with pytest.raises((StopIteration, RuntimeError)) as caught:
        run_sync(TaskExecutor(failing(kind, error), plugins=[answering(0)]))

    assert error in {caught.value, caught.value.__cause__}
    assert kind != "function" or caught.value is error


def test_r2_stop_iteration_in_a_worker_thread_is_no_hang():
    """A coroutine cannot raise ``StopIteration``: the caller gets Python's error from it."""
    error = StopIteration("empty")
    executor = TaskExecutor(failing("function", error))

    async def main():
        async with asyncio.timeout(10):
            return await executor.execute()

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        asyncio.run(main())
    assert caught.value.__cause__ is error


@both_ways
@pytest.mark.parametrize("cls", [StopIteration, StopAsyncIteration])
def test_r2_stop_iteration_can_be_intercepted(cls, run):
    """Plugins can recover it, in both ways of running."""
    func = TaskFunc("t", failing("function", cls("empty")), intercept=cls)

    assert run(TaskExecutor(func, plugins=[answering("none")])) == "none"


def test_r2_a_plugins_own_trigger_error_asks_nobody():
    """The trigger is for errors of tasks; a hookimpl that raises one is a plugin that failed."""
    listener = Listener()

    def args_replace():
        raise TaskPluginTriggerError("mine")

    faulty = plugin("faulty", task_executor_args_replace=args_replace)

    assert TaskExecutor(lambda: 1, plugins=[listener, faulty]).execute_sync() == 1
    assert listener.asked == []


@both_ways
@pytest.mark.parametrize("cls", [TaskPluginTriggerError, ValueError])
def test_r2_an_outer_run_asks_again(cls, run):
    """An error that leaves an inner run is asked about again by the run around it."""
    error = cls("no")
    asked = []

    def decide(task_func, e):
        asked.append((task_func.name, e.cause or e))
        return "saved" if task_func.name == "outer" else None

    helper = plugin("helper", task_executor_run_task_trigger_error=decide)
    app = QueueTasks("shop", discover=False, plugins=[helper], intercept=ValueError)
    inner = app.task(name="inner")(failing("function", error))
    outer = app.task(name="outer")(lambda: inner())  # a task of its own

    assert run(TaskExecutor(outer)) == "saved"
    assert [("inner", error), ("outer", error)] == asked
