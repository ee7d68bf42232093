"""Asking plugins about an error without a run: the answer of a run, and no effect."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from qtasks_hookspecs import (
    Cancel,
    DeadLetter,
    OutcomeStatus,
    Raise,
    Replace,
    Retry,
    TaskFunc,
    hookimpl,
    on_error,
)
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor, TaskMessage
from qtasks_pluggy.exc import PluginError, TaskCancelError, TaskPluginTriggerError
from tests.runs import KINDS, answering, function_of, plugin

ANSWERS = {
    "recovered": Replace(None),
    "retried": Retry(delay=60),
    "failed": Raise(LookupError("other")),
    "cancelled": Cancel("why"),
    "dead_lettered": DeadLetter("why"),
}


def ask_sync(executor: TaskExecutor, error: Exception) -> Any:
    """Ask from plain code."""
    return executor.ask_about_sync(error)


def ask_async(executor: TaskExecutor, error: Exception) -> Any:
    """Ask from async code."""

    async def main() -> Any:
        return await executor.ask_about(error)

    return asyncio.run(main())


both_ways = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])


class HearsAll:
    """A plugin that writes down each hook of a run but the trigger."""

    name = "hears-all"

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def task_executor_args_replace(self):
        self.heard.append("args")

    @hookimpl
    def task_executor_dead_letter(self):
        self.heard.append("letter")

    @hookimpl
    def task_executor_attempt_ended(self):
        self.heard.append("ended")

    @hookimpl
    def task_executor_task_failed(self):
        self.heard.append("failed")

    @hookimpl
    def task_executor_task_close(self):
        self.heard.append("close")


@both_ways
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", ANSWERS)
def test_every_decision_is_told_and_none_is_carried_out(status, kind, ask):
    """Nothing runs, nothing waits, no other hook is called; status, plugin and trail say it all."""
    ran, hears = [], HearsAll()
    task = TaskFunc("t", function_of(kind, lambda: ran.append(1)))
    manager = PluginManager([hears, answering(ANSWERS[status])])
    executor, error = TaskExecutor(task, plugins=manager), TaskPluginTriggerError("x")

    outcome = ask(executor, error)

    assert (OutcomeStatus(status), "answering") == (outcome.status, outcome.decided_by)
    assert [True] == [one.won for one in executor.trail]
    assert ([], []) == (ran, hears.heard)
    assert not hasattr(error, "__notes__")
    assert error.__cause__ is None


@both_ways
def test_nobody_s_opinion_is_a_failure_with_the_error_itself(ask):
    """Without an answer the attempt would fail, and nobody has decided."""
    error = TaskPluginTriggerError("x")

    outcome = ask(TaskExecutor(lambda: 1, plugins=[answering(None)]), error)

    assert ("failed", None, error) == (outcome.status, outcome.decided_by, outcome.error)


def test_who_is_shown_an_error_is_as_in_a_run():
    """Intercept and consent decide, as they do when the task raises it."""
    app = QueueTasks("shop", discover=False, plugins=[answering(1)])

    @app.on_error(KeyError)
    def use_last():
        return 2

    task = app.task(name="t")(lambda: None)
    open_task = app.task(name="open", intercept=ValueError)(lambda: None)
    closed = app.task(name="closed", intercept=())(lambda: None)

    def decided(task, error):
        return TaskExecutor(task).ask_about_sync(error).decided_by

    assert "use_last" == decided(task, KeyError("x"))
    assert decided(task, ValueError("x")) is None
    assert "answering" == decided(open_task, ValueError("x"))
    assert decided(closed, KeyError("x")) is None
    assert decided(open_task, TaskCancelError("x")) is None


def test_the_attempt_is_that_of_the_message():
    """Retries that are spent are no opinion, so the last other answer wins."""
    plugins = [answering(Replace(1), "falls-back"), answering(Retry(limit=3), "retries")]

    def decided(attempt):
        message = TaskMessage("t", attempt=attempt)
        executor = TaskExecutor(TaskFunc("t", print), message, plugins=plugins)
        return executor.ask_about_sync(TaskPluginTriggerError()).decided_by

    assert ["retries", "retries", "falls-back"] == [decided(one) for one in (1, 3, 4)]


def test_order_observe_and_time_limits_are_as_in_a_run():
    """The operator's settings hold."""

    async def hang():
        await asyncio.Event().wait()

    manager = PluginManager(
        [
            answering(1, "first"),
            answering(2, "second"),
            answering(3, "watched"),
            plugin("hangs", task_executor_run_task_trigger_error=hang),
        ],
        settings={"order": ["first"], "observe": ["watched"], "timeouts": {"hangs": 0.01}},
    )
    executor = TaskExecutor(lambda: 1, plugins=manager)

    assert "first" == executor.ask_about_sync(TaskPluginTriggerError()).decided_by
    assert {
        "first": "answered",
        "second": "answered",
        "watched": "answered",
        "hangs": "timed_out",
    } == {one.plugin: one.status for one in executor.trail}


def test_quarantine_neither_keeps_out_nor_counts():
    """Questions that a plugin fails leave it as it was, and one in quarantine is asked."""
    calls: list[int] = []

    def fail():
        calls.append(1)
        raise ZeroDivisionError

    broken = plugin("broken", task_executor_run_task_trigger_error=fail)
    manager = PluginManager([broken], settings={"quarantine_after": 2})

    def ask():
        executor = TaskExecutor(lambda: 1, plugins=manager)
        executor.ask_about_sync(TaskPluginTriggerError())
        return executor.trail[0].status

    def run():
        def task():
            raise TaskPluginTriggerError

        executor = TaskExecutor(task, plugins=manager)
        with pytest.raises(TaskPluginTriggerError):
            executor.execute_sync()
        return executor.trail[0].status

    assert ["raised"] * 5 == [ask() for _ in range(5)]
    assert ["raised", "raised", "quarantined"] == [run() for _ in range(3)]
    assert "raised" == ask()
    assert "quarantined" == run()


def test_a_handler_sees_error_run_and_arguments():
    """What ``on_error`` offers is there, and the app."""
    seen = []

    @on_error(KeyError)
    def look(error, run, task_broker):
        seen.append((error.args, run.args, dict(run.kwargs), run.app.name, task_broker.uuid))

    app = QueueTasks("shop", discover=False, plugins=[SimpleNamespace(name="looks", look=look)])
    task = app.task(name="t")(lambda x, y: None)
    message = TaskMessage("t", (1,), {"y": 2}, uuid="old")

    TaskExecutor(task, message).ask_about_sync(KeyError("k"))

    assert [(("k",), (1,), {"y": 2}, "shop", "old")] == seen


def test_one_executor_is_for_one_question_or_one_run():
    """A second use is refused, as a second run is."""
    executor = TaskExecutor(lambda: 1)
    executor.ask_about_sync(ValueError())

    with pytest.raises(RuntimeError, match="has run"):
        executor.ask_about_sync(ValueError())
    with pytest.raises(RuntimeError, match="has run"):
        executor.execute_sync()


def test_strict_raises_what_fails():
    """Under strict a failing plugin ends the question."""

    def fail():
        raise ZeroDivisionError

    broken = plugin("broken", task_executor_run_task_trigger_error=fail)
    manager = PluginManager([broken], settings={"strict": True})

    with pytest.raises(PluginError, match="broken"):
        TaskExecutor(lambda: 1, plugins=manager).ask_about_sync(TaskPluginTriggerError())
