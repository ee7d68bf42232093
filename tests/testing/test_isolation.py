"""Isolated apps, a clock, recorded hooks, and retries that do not wait."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from qtasks_hookspecs import Replace, Retry, on_error
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginRegistrationError, SettingsError
from qtasks_pluggy.testing import (
    FakeClock,
    RecordingPlugin,
    assert_outcome,
    installed_app,
    isolated_app,
    isolated_settings,
    no_delays,
    run_with,
)
from tests.plugins.conftest import distributions  # noqa: F401  # a fixture
from tests.runs import answering, failing, plugin


def test_neither_environment_nor_file_reaches_an_isolated_app(tmp_path, monkeypatch):
    """Whatever is set here, the app has the settings of the test, and the environment stays."""
    (tmp_path / "qtasks_pluggy.toml").write_text("strict = 'no such value'", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "answering")
    monkeypatch.setenv("QTASKS_PLUGGY_NO_SUCH_KEY", "1")
    before = dict(os.environ)

    run = run_with(answering(1), failing("function", KeyError()))

    assert_outcome(run, "recovered", result=1)
    assert dict(os.environ) == before


def test_the_apps_own_settings_count_in_isolated_settings(monkeypatch):
    """For an app that the test does not make."""
    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "no such value")
    app = QueueTasks("shop", discover=False, settings={"timeout": 0.5})

    with isolated_settings(), isolated_settings(), app:
        assert app.plugins.settings.timeout == 0.5
    with pytest.raises(SettingsError), app:
        pass


def test_an_isolated_app_leaves_the_environment_alone(monkeypatch):
    """What a test sets in ``isolated_settings`` is still there for the app that it starts next."""
    with isolated_settings():
        monkeypatch.setenv("QTASKS_PLUGGY_TIMEOUT", "0.5")
        with isolated_app() as isolated, QueueTasks("shop", discover=False) as app:
            assert [isolated.plugins.settings.timeout, app.plugins.settings.timeout] == [5.0, 0.5]
    with capture_logs() as logged, isolated_app():
        pass

    assert "settings_file_used" not in [one["event"] for one in logged]
    assert "QTASKS_PLUGGY_TIMEOUT" not in os.environ


def test_threads_may_be_isolated_at_once(monkeypatch):
    """The last one to leave puts the environment back."""
    monkeypatch.setenv("QTASKS_PLUGGY_NO_SUCH_KEY", "1")
    before = dict(os.environ)

    def start(_):
        with isolated_app(answering(1)):
            return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(start, range(200)))
    assert dict(os.environ) == before


def test_installed_plugins_are_left_out_unless_the_test_asks(distributions):  # noqa: F811  # the fixture
    """Another plugin of the environment, which answers everything, changes no test."""
    distributions.answering("greedy", "eaten")
    distributions.answering("mine", "mine")

    assert_outcome(run_with(answering(None), failing("function", KeyError())), "failed")
    with installed_app("qtasks-mine") as app:
        assert [one.name for one in app.plugins.list_plugin_info() if one.enabled] == ["mine"]
        assert app.task(failing("function", KeyError()))() == "mine"
    assert run_with("mine", failing("function", KeyError())).result == "mine"


def test_a_distribution_that_is_not_there_or_has_no_plugin_is_an_error():
    """The error says what to do."""
    with pytest.raises(PluginRegistrationError, match="is not installed in .* --editable"):
        installed_app("qtasks-no-such")
    with pytest.raises(PluginRegistrationError, match="no entry point in the group"):
        installed_app("attrs")


def test_the_clock_moves_a_quarantine():
    """A plugin that keeps failing is left out, until the seconds are over."""
    clock = FakeClock()
    asked = []

    def break_down():
        asked.append(clock())
        raise ZeroDivisionError

    broken = plugin("broken", task_executor_run_task_trigger_error=break_down)
    keys = {"strict": False, "quarantine_after": 2, "quarantine_seconds": 60}
    app = isolated_app(broken, settings=keys, clock=clock)
    task = app.task(failing("function", KeyError()))

    with app:
        for passing in (0, 0, 0, 59, 1):
            clock.advance(passing)
            with pytest.raises(KeyError):
                task()

    assert asked == [0, 0, 60]
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_a_recording_plugin_hears_every_hook_in_order():
    """With what each was about; it has no opinion."""
    recording = RecordingPlugin()
    app = isolated_app(recording)

    @app.task
    def price(item):
        if item == "tea":
            raise KeyError(item)
        return 3

    with app:
        price("rice")
        with pytest.raises(KeyError) as raised:
            price("tea")

    run = ["task_executor_args_replace", "task_executor_run_task"]
    error = ["task_executor_args_replace", "task_executor_run_task_trigger_error"]
    end, failed, close = (
        f"task_executor_{one}" for one in ("attempt_ended", "task_failed", "task_close")
    )
    assert recording.hooks == [
        "qtasks_start",
        *(*run, end, close),
        *(*error, end, failed, close),
        "qtasks_stop",
    ]
    assert recording.heard[1].value == (("rice",), {})
    assert recording.heard[2].value == 3
    assert recording.asked == recording.failed == [raised.value]
    assert [str(one.status) for one in recording.outcomes] == ["succeeded", "failed"]
    assert [str(one.status) for one in recording.closed] == ["succeeded", "failed"]


LATER = Retry(delay=60, limit=50)  # made before any no_delays()


def test_no_delays_makes_retries_immediate_and_bounds_them():
    """Also a ``Retry`` that was made before; afterwards all is as it was."""
    begin = time.monotonic()
    with no_delays(attempts=4):
        run = run_with(answering(LATER), failing("function", KeyError()), max_retries=None)
        assert_outcome(run, "failed", attempts=4, delays=[0, 0, 0])
        with no_delays(attempts=2):
            assert (Retry(limit=5).limit, LATER.limit, LATER.delay) == (1, 1, 0)
        assert LATER.limit == 3

    assert time.monotonic() - begin < 30
    assert (LATER.delay, LATER.limit, repr(LATER)) == (60, 50, "Retry(delay=60, limit=50)")


def test_no_delays_keeps_the_decision_and_its_checks():
    """Who decided stays who decided, a smaller limit holds, and a wrong value is refused."""
    with no_delays():
        run = run_with(answering(Retry(limit=1), "mine"), failing("function", KeyError()))
        assert run.outcomes[0].decided_by == "mine"
        assert len(run.outcomes) == 2
        with pytest.raises(TypeError):
            Retry(delay="5")
        with pytest.raises(ValueError, match="0 or more"), no_delays():
            Retry(limit=-1)
    for attempts in (0, True, "1"):
        with pytest.raises(ValueError, match="1 or more"), no_delays(attempts):
            pass


async def test_no_delays_covers_engines_of_this_process():
    """The memory engine does all attempts at once."""
    app = isolated_app(answering(LATER), engine="memory://")

    @app.task
    async def price():
        raise KeyError

    with no_delays(attempts=3):
        async with app:
            handle = await price.submit()
            with pytest.raises(KeyError):
                await handle
    assert len([one for one in handle.trail if one.status == "answered"]) == 2


@pytest.mark.engines
def test_no_delays_covers_celery_in_this_process():
    """With ``task_always_eager`` a decision to retry is carried out at once."""
    from celery import Celery

    from qtasks_pluggy.engines.celery import install

    attempts = []
    celery = Celery("shop", set_as_current=False)
    celery.conf.update(task_always_eager=True, broker_url="memory://")

    @celery.task(name="price")
    def price():
        attempts.append(1)
        if len(attempts) < 3:
            raise KeyError
        return 7

    with isolated_settings(), no_delays(attempts=5):
        install(celery, plugins=[answering(LATER)], discover=False)
        assert price.delay().get(timeout=30) == 7
    assert len(attempts) == 3


def test_an_app_with_several_plugins_keeps_their_order():
    """The last one has the last word, as in every app."""

    class Late:
        @on_error(KeyError)
        def answer(self):
            return Replace("late")

    app = isolated_app(answering("early"), Late)
    with app:
        executor = TaskExecutor(app.task(failing("function", KeyError())))
        assert executor.execute_sync() == "late"
    assert [one.name for one in app.plugins.list_plugin_info()] == ["answering", "Late"]
