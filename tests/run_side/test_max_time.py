"""``max_time``: how long one attempt may take, and what becomes of one that takes longer."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
import time

import pytest

from qtasks_hookspecs import Retry, TaskFunc
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import QTasksError, TaskTimeoutError
from tests.runs import (
    Listener,
    answering,
    both_ways,
    endless,
    every_kind,
    failing,
    function_of,
    plugin,
    run_sync,
)


@both_ways
@every_kind
def test_max_time_ends_in_a_time_out_error(kind, run):
    """It is one of our errors and a ``TimeoutError``, and names the task and the limit."""
    with endless(kind, max_time=0.05) as func, pytest.raises(TaskTimeoutError) as caught:
        run(TaskExecutor(func))

    assert isinstance(caught.value, QTasksError)
    assert isinstance(caught.value, TimeoutError)
    assert "'endless'" in str(caught.value)
    assert "0.05 seconds" in str(caught.value)
    assert caught.value.__cause__ is None


@both_ways
@every_kind
def test_max_time_does_not_touch_a_task_that_keeps_it(kind, run):
    """A task that is done in time has its result."""
    func = TaskFunc("t", function_of(kind, lambda: "done"), max_time=60)

    assert run(TaskExecutor(func)) in ("done", [1, 2])


@both_ways
@every_kind
@pytest.mark.parametrize("cls", [ValueError, TimeoutError, TaskTimeoutError])
def test_max_time_leaves_the_tasks_own_errors_alone(cls, kind, run):
    """A task that fails in time fails with its own error, be it a time-out of its own."""
    error = cls("mine")
    func = TaskFunc("t", failing(kind, error), max_time=60)

    with pytest.raises(cls) as caught:
        run(TaskExecutor(func))

    assert caught.value is error


@both_ways
@every_kind
def test_max_time_is_counted_for_each_attempt(kind, run):
    """An attempt after one that was cut has the whole time again."""
    attempts = []

    def decide(task_executor, e):
        attempts.append((task_executor.attempt, type(e.cause)))
        return Retry(limit=2)

    retries = plugin("retries", task_executor_run_task_trigger_error=decide)
    with (
        endless(kind, max_time=0.05, intercept=TimeoutError) as func,
        pytest.raises(TaskTimeoutError),
    ):
        run(TaskExecutor(func, plugins=[retries]))

    assert attempts == [(n, TaskTimeoutError) for n in (1, 2, 3)]


@both_ways
def test_max_time_of_a_later_attempt(run):
    """Time that earlier attempts took is not held against one that is quick."""
    slow = threading.Event()
    attempts = []

    def task():
        attempts.append(1)
        if len(attempts) == 1:
            slow.wait(60)
        return "done"

    func = TaskFunc("t", task, max_time=0.3, intercept=TimeoutError)
    try:
        result = run(TaskExecutor(func, plugins=[answering(Retry())]))
    finally:
        slow.set()

    assert (result, len(attempts)) == ("done", 2)


@both_ways
def test_max_time_cancels_an_async_task(run):
    """An async task is cancelled, and cleans up before plugins hear of it."""
    order = []

    async def task():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            order.append("cleaned up")

    asks = plugin("p", task_executor_run_task_trigger_error=lambda: order.append("asked") or 0)
    func = TaskFunc("t", task, max_time=0.02, intercept=TimeoutError)

    assert run(TaskExecutor(func, plugins=[asks])) == 0
    assert order == ["cleaned up", "asked"]


@both_ways
def test_r2_a_task_that_swallows_its_cancellation_holds_its_run(run):
    """As everywhere in asyncio: the run goes on until the function ends, with what it returns."""

    async def task():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "late"

    assert run(TaskExecutor(TaskFunc("t", task, max_time=0.02))) == "late"


@both_ways
def test_r2_attempts_never_overlap(run):
    """An attempt whose time is over has ended before the next one begins."""
    order = []

    async def task():
        order.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.15)
            order.append("ends")

    func = TaskFunc("t", task, max_time=0.02, intercept=TimeoutError)
    with pytest.raises(TaskTimeoutError):
        run(TaskExecutor(func, plugins=[answering(Retry(limit=1))]))

    assert order == ["begins", "ends"] * 2


@both_ways
def test_max_time_and_an_error_while_cleaning_up(run):
    """An error that the cancelled task raises on its way out is the run's error."""

    async def task():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("cannot clean up") from None

    with pytest.raises(OSError, match="cannot clean up"):
        run(TaskExecutor(TaskFunc("t", task, max_time=0.02)))


@both_ways
def test_max_time_and_an_exit_while_cleaning_up(run):
    """A ``SystemExit`` on the way out is not made into a time-out."""

    async def leaves():
        try:
            await asyncio.Event().wait()
        finally:
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        run(TaskExecutor(TaskFunc("t", leaves, max_time=0.01)))

    assert caught.value.code == 3


def test_max_time_kept_by_a_task_that_swallows_a_cancellation():
    """A function that is cancelled in its time and returns all the same has its result."""

    async def keeps_on():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "done"

    async def main():
        run = asyncio.create_task(TaskExecutor(TaskFunc("t", keeps_on, max_time=60)).execute())
        await asyncio.sleep(0)
        run.cancel()
        return await run

    assert asyncio.run(main()) == "done"


def test_max_time_is_not_mistaken_for_a_cancellation():
    """A run that is cancelled from outside in its time ends in that cancellation."""

    async def main(func):
        run = asyncio.create_task(TaskExecutor(func).execute())
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run], timeout=10)
        return run.cancelled()

    for kind in ("function", "coroutine"):
        with endless(kind, max_time=60) as func:
            assert asyncio.run(main(func))


@both_ways
@pytest.mark.parametrize("kind", ["function", "generator"])
def test_max_time_runs_a_plain_task_in_a_daemon_thread(kind, run):
    """A plain task with a limit runs in a thread that nobody has to wait for."""
    threads = []
    func = function_of(kind, lambda: threads.append(threading.current_thread()))

    run(TaskExecutor(TaskFunc("t", func, max_time=60)))

    assert threads[0].daemon
    assert threads[0] is not threading.current_thread()


@both_ways
@pytest.mark.parametrize("kind", ["function", "generator"])
def test_max_time_abandons_a_plain_task(kind, run, caplog):
    """It goes on unseen; the log names the task and the limit, and its result is nobody's."""
    release, ended = threading.Event(), threading.Event()

    def body():
        release.wait(60)
        ended.set()
        raise ValueError("nobody sees this")

    func = TaskFunc("heavy", function_of(kind, body), max_time=0.05)

    with pytest.raises(TaskTimeoutError):
        run(TaskExecutor(func))

    assert not ended.is_set()
    (record,) = [one for one in caplog.records if "task_abandoned" in one.getMessage()]
    assert record.levelname == "WARNING"
    assert "'heavy'" in record.getMessage()
    assert "0.05" in record.getMessage()
    release.set()
    assert ended.wait(10)


@both_ways
@pytest.mark.parametrize("kind", ["coroutine", "async generator"])
def test_max_time_does_not_call_a_cancelled_task_abandoned(kind, run, caplog):
    """An async task that gives in is over when its run is, and the log says nothing of it."""
    with endless(kind, max_time=0.02) as func, pytest.raises(TaskTimeoutError):
        run(TaskExecutor(func))

    assert "task_abandoned" not in caplog.text


@both_ways
@every_kind
def test_max_time_keeps_context_variables(kind, run):
    """The function sees its caller's context variables, in whatever thread it runs."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []
    func = TaskFunc("t", function_of(kind, lambda: seen.append(variable.get())), max_time=60)
    token = variable.set("the caller's")
    try:
        run(TaskExecutor(func))
    finally:
        variable.reset(token)

    assert seen == ["the caller's"]


@both_ways
def test_max_time_does_not_count_the_plugins(run):
    """The limit is the function's: what hookimpls take before it is not counted."""
    waits = plugin("w", task_executor_args_replace=lambda: time.sleep(0.35))
    func = TaskFunc("t", lambda: "done", max_time=0.3)

    assert run(TaskExecutor(func, plugins=[waits])) == "done"


def test_max_time_from_a_tasks_decorator():
    """``@app.task(max_time=)`` is that limit; without one there is none."""
    app = QueueTasks("shop", discover=False)

    assert app.task(max_time=1.5)(print).task_func.max_time == 1.5
    assert app.task(len).task_func.max_time is None


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_max_time_is_more_than_no_seconds(wrong, error):
    """Anything else is refused when the task is made, with the value."""
    with pytest.raises(error, match="max_time=: expected .*seconds.*, got") as caught:
        QueueTasks("shop", discover=False).task(max_time=wrong)(print)

    assert repr(wrong) in str(caught.value)


def test_max_time_does_not_hold_up_the_interpreters_exit():
    """A program ends although a task that it left behind goes on."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", ABANDONS],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )

    assert (ended.returncode, ended.stdout.split()) == (0, ["TaskTimeoutError"] * 2)
    assert "Traceback" not in ended.stderr


ABANDONS = """
import asyncio, threading
from qtasks_pluggy import TaskExecutor, TaskFunc

func = TaskFunc("endless", lambda: threading.Event().wait(), max_time=0.05)

async def main():
    await TaskExecutor(func).execute()

for run in (lambda: asyncio.run(main()), lambda: TaskExecutor(func).execute_sync()):
    try:
        run()
    except TimeoutError as error:
        print(type(error).__name__, flush=True)
"""


def test_max_time_failure_is_told_once():
    """Plugins hear once of the failure of an abandoned task, also after it has ended."""
    listener = Listener()
    with endless("function", max_time=0.02) as func, pytest.raises(TaskTimeoutError):
        run_sync(TaskExecutor(func, plugins=[listener]))

    assert ["failed", "closed"] == [when for when, _ in listener.heard]
