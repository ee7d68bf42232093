"""What an app and its tasks take, and what they refuse by name."""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import structlog

from qtasks_pluggy import BasePlugin, QueueTasks, TaskFunc
from qtasks_pluggy.engines import Capabilities, executor_for, is_started, worker_lifespan
from qtasks_pluggy.engines.memory import MemoryEngine
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskTimeoutError
from tests.runs import answering, plugin

TRIGGER = "task_executor_run_task_trigger_error"


def raising(error: Exception) -> Any:
    """Make a function that fails."""

    def fails() -> None:
        raise error

    return fails


def shop(*plugins: Any, **options: Any) -> QueueTasks:
    """Make an app with nothing but these plugins."""
    return QueueTasks("shop", discover=False, plugins=plugins, **options)


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("intercpt", "intercept"), ("max_tries", "max_retries"), ("Tags", "tags")],
)
def test_r18_a_task_refuses_an_option_that_it_does_not_have(option, nearest):
    """R18: the nearest is named, and where extras go."""
    app = shop()

    with pytest.raises(TypeError, match=f"did you mean '{nearest}'.*extra=") as caught:
        app.task(**{option: "secret"})

    assert "secret" not in str(caught.value)
    assert not app.tasks


def test_extras_go_into_extra():
    """Plugins read them in ``task_func.extra``."""
    assert {"owner": "me"} == shop().task(extra={"owner": "me"})(len).task_func.extra

    with pytest.raises(TypeError, match="extra=... is a mapping"):
        shop().task(extra="me")


def test_max_time_and_delay_take_a_timedelta():
    """R9: seconds either way."""
    assert TaskFunc("t", len, max_time=timedelta(minutes=1)).max_time == 60
    with pytest.raises(ValueError, match="more than 0 seconds"):
        TaskFunc("t", len, max_time=timedelta(0))

    app = shop(engine="memory://")
    task = app.task(name="t")(lambda: "later")
    with app:
        assert task.with_options(delay=timedelta(milliseconds=1)).submit().result(timeout=10)
    with pytest.raises(ValueError, match="seconds from 0"):
        task.with_options(delay=timedelta(seconds=-1))


@pytest.mark.parametrize("wrong", ["ValueError", ["ValueError"]])
def test_r2_intercept_takes_classes_not_their_names(wrong):
    """R2: the whole text is quoted, and what to give instead."""
    with pytest.raises(TypeError, match="got 'ValueError'; give the class itself"):
        shop(intercept=wrong)


def test_a_task_has_no_delay():
    """Who comes from Celery gets a plain AttributeError; ``submit`` is ours."""
    task: Any = shop().task(len)

    with pytest.raises(AttributeError, match="delay"):
        task.delay("abc")


def test_r2_the_apps_intercept_is_read_when_an_error_comes():
    """R2: tasks that do not say have no copy of it; ``()`` on a task still refuses."""
    app = shop(answering("taken"), intercept=LookupError)
    task = app.task(name="t")(raising(KeyError("x")))
    refuses = app.task(name="refuses", intercept=())(raising(KeyError("x")))

    assert task.task_func.intercept is None
    assert task() == "taken"
    with pytest.raises(KeyError):
        refuses()


# --- metadata ----------------------------------------------------------------------------------


def test_r19_metadata_travels_with_a_run():
    """R19: it arrives as ``task_broker.metadata``; a run without it has none."""
    seen = []
    listener = plugin("l", task_executor_task_close=lambda task_broker: seen.append(task_broker))
    app = shop(listener, engine="memory://")
    task = app.task(name="t")(lambda: None)

    with app:
        task.with_options(metadata={"request": "r-7"}).submit().result(timeout=10)
        task.submit().result(timeout=10)

    assert [{"request": "r-7"}, {}] == [message.metadata for message in seen]


def test_options_add_to_those_that_a_task_has():
    """What is not given stays, in any order; metadata is added to what travels already."""
    seen = []
    listener = plugin("l", task_executor_task_close=lambda task_broker: seen.append(task_broker))
    app = shop(listener, engine="memory://")
    task = app.task(name="t")(lambda: None)

    with app:
        traced = task.with_options(metadata={"request": "r-7"}, priority=3)
        traced.with_options(delay=0.001, metadata={"user": 5}).submit().result(timeout=10)
        task.submit().result(timeout=10)

    assert [({"request": "r-7", "user": 5}, 3), ({}, 0)] == [
        (message.metadata, message.priority) for message in seen
    ]


def test_metadata_on_an_engine_that_carries_none():
    """It is refused before anything is sent."""

    class Plain(MemoryEngine):
        def __init__(self) -> None:
            super().__init__("memory://")
            self.capabilities = Capabilities(results=True)

    app = shop(engine=Plain())
    task = app.task(name="t")(lambda: None)

    with app, pytest.raises(CapabilityError, match="carries no metadata, so task 't'"):
        task.with_options(metadata={"request": "r-7"}).submit()


def test_metadata_is_a_mapping():
    """Anything else is refused without being shown."""
    with pytest.raises(TypeError, match=r"metadata=...\): expected a mapping, got str"):
        shop().task(len).with_options(metadata="secret")


# --- a handle from an id -----------------------------------------------------------------------


class Keeps(MemoryEngine):
    """Knows runs by their ids, as engines with a result store do."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.tickets: dict[str, Any] = {}

    def submit(self, message: Any, delay: float | None) -> Any:
        ticket = super().submit(message, delay)
        self.tickets[str(message.uuid)] = ticket
        return ticket

    def ticket_for(self, uuid: str) -> Any:
        return self.tickets[uuid]


def test_a_handle_from_an_id():
    """It has the run's result; the task's name it does not know."""
    app = shop(engine=Keeps())
    task = app.task(name="t")(lambda: 7)

    with app:
        uuid = task.submit().uuid
        for form in (uuid, str(uuid)):
            handle = app.handle(form)
            assert (form, None, 7) == (handle.uuid, handle.task_name, handle.result(timeout=10))
    assert f"<TaskHandle of run {uuid}>" == repr(handle)


def test_a_handle_from_an_id_of_no_run_times_out():
    """Nobody is asked when it is made, and the error names the run alone."""

    class KnowsNothing(Keeps):
        def ticket_for(self, uuid: str) -> Any:
            return uuid

        def result(self, ticket: Any, timeout: float | None) -> Any:
            return None

    with pytest.raises(TimeoutError, match=r"^run r-7 has no end after 0.5 seconds"):
        shop(engine=KnowsNothing()).handle("r-7").result(timeout=0.5)


def test_a_handle_from_an_id_where_there_can_be_none():
    """Without an engine, on ``memory://``, and for what is no id: one clear error each."""
    with pytest.raises(EngineError, match="has no engine"):
        shop().handle("r-7")
    with pytest.raises(CapabilityError, match="engine 'memory' keeps no results that can be found"):
        shop(engine="memory://").handle(uuid4())
    for wrong in (None, 7, ""):
        with pytest.raises(TypeError, match="expected a run's id"):
            shop(engine=Keeps()).handle(wrong)


# --- plugins that were never started -----------------------------------------------------------


def events(logs: list[Any]) -> list[tuple[str, str]]:
    """Return who was said not to be started."""
    return [
        (one["log_level"], one["plugin"]) for one in logs if one["event"] == "plugin_not_started"
    ]


def test_a_plugin_that_is_asked_without_its_start_is_named_once():
    """A task that is called without ``with app:`` asks plugins whose ``qtasks_start`` never was."""
    starts = plugin("starts", qtasks_start=lambda settings: None, **{TRIGGER: lambda: 1})
    app = shop(starts, answering(1, "plain"), type("Old", (BasePlugin,), {"name": "old"}))
    task = app.task(name="t")(len)

    with structlog.testing.capture_logs() as logs:
        assert (3, 3) == (task("abc"), task("abc"))
    assert [("warning", "starts")] == events(logs)
    assert "with app:" in next(one["hint"] for one in logs if one["event"] == "plugin_not_started")


def test_a_plugin_of_a_started_app_is_not_named():
    """Nor when it was started before the first run."""
    app = shop(plugin("starts", qtasks_start=lambda: None))
    task = app.task(name="t")(len)

    with structlog.testing.capture_logs() as logs, app:
        task("abc")
    assert [] == events(logs)


def test_a_disabled_plugin_is_not_said_to_be_asked(monkeypatch):
    """Neither in an app that is not started nor in one that lists whom it asks."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "starts")
    starts = plugin("starts", qtasks_start=lambda: None, **{TRIGGER: lambda: 1})

    with structlog.testing.capture_logs() as logs:
        shop(starts).task(name="t")(len)("abc")
        with shop(starts, engine="memory://"):
            pass

    assert [] == events(logs)
    assert [[]] == [one["plugins"] for one in logs if one["event"] == "worker_asks_plugins"]


def test_what_an_adapter_uses_of_an_app_is_in_engines():
    """The app itself shows only what its users need."""
    app = shop()
    app.task(name="t")(len)

    with worker_lifespan(app):
        assert is_started(app)
    assert not is_started(app)
    with pytest.raises(Exception, match="was stopped"):
        executor_for(app, SimpleNamespace(name="t"))

    kept = {"executor_for", "in_worker", "is_started", "load_plugins", "run_sync", "submit_on"}
    assert not kept & set(dir(app))


def test_a_time_limit_is_no_task_error():
    """``TaskTimeoutError`` still is the error of a limit that was given as a ``timedelta``."""
    task = shop().task(name="t", max_time=timedelta(milliseconds=20))(time.sleep)

    with pytest.raises(TaskTimeoutError, match=r"max_time of 0.02 seconds"):
        task(60)
