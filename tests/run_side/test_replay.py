"""Running a message's task again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from qtasks_hookspecs import Retry, TaskFunc, hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor, TaskMessage
from qtasks_pluggy.exc import (
    CapabilityError,
    NotRunningError,
    TaskNameError,
    TaskPluginTriggerError,
)
from tests.runs import plugin


class Replays:
    """Runs a failed run once more, with other arguments, and writes down all runs."""

    name = "replays"

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.ids: list[Any] = []

    @hookimpl
    def task_executor_task_close(self, task_executor, task_broker, outcome):
        self.runs.append((task_broker.uuid, task_broker.args, dict(task_broker.metadata)))
        if outcome.status == "failed" and task_broker.args == (0,):
            self.ids.append(task_executor.app.replay(task_broker, args=(1,)))


@pytest.mark.parametrize("engine", [None, "memory://?workers=1"])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_plugin_can_have_a_run_repeated(is_async, engine):
    """In place it runs now, on an engine it is sent; its message says whose repetition it is."""
    replays = Replays()
    app = QueueTasks("shop", discover=False, plugins=[replays], engine=engine)

    def divide(x):
        return 1 / x

    async def divide_async(x):
        return 1 / x

    task = app.task(name="divide")(divide_async if is_async else divide)
    with app, pytest.raises(ZeroDivisionError):
        if engine is None:
            TaskExecutor(task, args=(0,)).execute_sync()
        else:
            task.submit_sync(0).result(timeout=30)

    # In place the repetition is over before the run that asked for it.
    (first, args, metadata), (second, others, lineage) = replays.runs
    assert ((0,), {}) == (args, metadata)
    assert (1,) == others
    assert {"replay_of": str(first)} == lineage
    assert [second] == replays.ids


def shop(**options):
    """Make an app with one task."""
    app = QueueTasks("shop", discover=False, **options)
    app.task(name="price")(lambda currency="EUR": currency)
    return app


def test_a_message_of_another_app_is_refused():
    """The nearest task is named."""
    for app in (shop(), shop(engine="memory://")):
        with app, pytest.raises(TaskNameError, match="did you mean 'price'"):
            app.replay(TaskMessage("prize"))


def test_what_a_replay_needs_is_said():
    """After the stop, before the start of an engine, a delay in place, arguments of no use."""
    message = TaskMessage("price")
    app = shop()
    with app:
        assert isinstance(str(app.replay(message)), str)
    with pytest.raises(NotRunningError):
        app.replay(message)
    with pytest.raises(NotRunningError, match="with app"):
        shop(engine="memory://").replay(message)
    with pytest.raises(CapabilityError, match="leave delay= out"):
        shop().replay(message, delay=timedelta(seconds=1))
    for wrong in ({"args": "EUR"}, {"kwargs": [1]}, {"metadata": 3}):
        with pytest.raises(TypeError, match=f"replay.{next(iter(wrong))}="):
            shop().replay(message, **wrong)
    with pytest.raises(TypeError, match="expected a TaskMessage, got str"):
        shop().replay("price")


def test_a_replay_that_fails_in_place_is_for_the_plugins(caplog):
    """Whoever asked for it gets the id; the plugins hear how it ended."""
    failed = []
    hears = plugin(
        "hears", task_executor_task_failed=lambda task_broker: failed.append(task_broker)
    )
    app = shop(plugins=[hears])

    assert [app.replay(TaskMessage("price", (1, 2)))] == [one.uuid for one in failed]
    assert "replay_failed" in caplog.text


def test_what_stays_and_what_is_added():
    """Arguments are replaced whole, metadata is added to."""
    seen = []
    hears = plugin("hears", task_executor_task_close=lambda task_broker: seen.append(task_broker))
    app = shop(plugins=[hears])
    message = TaskMessage("price", (), {"currency": "USD"}, metadata={"tenant": "a"})

    app.replay(message)
    app.replay(message, kwargs={"currency": "GBP"}, metadata={"by": "me"})

    assert [{"currency": "USD"}, {"currency": "GBP"}] == [one.kwargs for one in seen]
    assert [["replay_of", "tenant"], ["by", "replay_of", "tenant"]] == [
        sorted(one.metadata) for one in seen
    ]


def test_r10_time_spans_are_seconds():
    """R9: a ``timedelta`` says the same as a number of seconds."""
    assert Retry(delay=timedelta(minutes=1)) == Retry(delay=60.0)
    assert TaskFunc("t", len, max_time=timedelta(seconds=2)).max_time == 2.0
    for wrong in (timedelta(seconds=-1), timedelta.max):
        with pytest.raises(ValueError, match="seconds"):
            Retry(delay=wrong)
    with pytest.raises(ValueError, match="max_time"):
        TaskFunc("t", len, max_time=timedelta(0))


def test_an_executor_of_an_apps_task_has_the_apps_plugins_and_settings(monkeypatch):
    """What an operator has disabled is not asked, also where the executor is made by hand."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "saves")
    saves = plugin("saves", task_executor_run_task_trigger_error=lambda: "saved")
    app = QueueTasks("shop", discover=False, plugins=[saves])

    @app.task
    def fails():
        raise TaskPluginTriggerError

    with pytest.raises(TaskPluginTriggerError):
        TaskExecutor(fails).execute_sync()
    assert TaskExecutor(fails).app is app
    assert TaskExecutor(len).app is None
