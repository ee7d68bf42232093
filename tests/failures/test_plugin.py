"""The plugin in an app: what each end of a run becomes, and that no run changes because of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from types import SimpleNamespace

import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_hookspecs.exc import PluginError, PluginRegistrationError
from qtasks_pluggy import QueueTasks, TaskExecutor, TaskMessage
from qtasks_pluggy.failures import Failures
from qtasks_pluggy.failures.acts import change_groups
from qtasks_pluggy.failures.records import Filters


class NoPriceError(Exception):
    """What a plugin raises instead."""


DECISIONS = {
    "replace": Replace(1),
    "retry": Retry(delay=0.001, limit=2),
    "raise": Raise(NoPriceError("none")),
    "cancel": Cancel("not today"),
    "dead": DeadLetter("look at it"),
}


@hookimpl
def decide(e):
    """Decide as the error's text says; no opinion about others."""
    return DECISIONS.get(str(e.cause))


PLUGIN = SimpleNamespace(name="policy", task_executor_run_task_trigger_error=decide)


@pytest.fixture
def shop(place):
    """Make an app that records into the place's store."""

    def make(**section):
        section = {"url": f"sqlite:///{place.path}"} | section
        app = QueueTasks(
            "shop",
            plugins=[PLUGIN],
            intercept=Exception,
            discover=False,
            settings={"enable": ["failures"], "plugin": {"failures": section}},
        )

        @app.task
        def price(kind, /, *, to="EUR", password=None):
            if kind == "good":
                return 2
            raise ValueError(kind)

        @app.task
        async def later(kind):
            raise ValueError(kind)

        @app.task
        def sign_in(user, password):
            raise ValueError

        return app

    return make


def _try(task, *args, **kwargs):
    try:
        task(*args, **kwargs)
    except Exception:
        return


ENDS = {
    "replace": ("recovered", "Replace", 1, "ValueError", ""),
    "retry": ("failed", None, 3, "ValueError", ""),
    "raise": ("failed", "Raise", 1, f"{__name__}.NoPriceError", ""),
    "cancel": ("cancelled", "Cancel", 1, "ValueError", "not today"),
    "dead": ("dead_lettered", "DeadLetter", 1, "ValueError", "look at it"),
    "anything": ("failed", None, 1, "ValueError", ""),
}


@pytest.mark.parametrize("kind", ENDS)
def test_each_end_is_recorded_with_who_decided_what_and_why(place, shop, kind):
    """One run each: its status, its attempts, its decision, and its trail."""
    status, decision, attempts, error, reason = ENDS[kind]
    app = shop()
    with app:
        _try(app.tasks["price"], kind)
        _try(app.tasks["price"], "good")

    (run,) = place.reader().runs(Filters())
    whole = place.reader().run(run.uuid)
    assert (status, decision, attempts, error, reason) == (
        run.status,
        run.decision,
        run.attempts,
        run.error,
        run.reason,
    )
    assert ("policy" if decision else None) == run.decided_by
    assert ("price", "shop", None) == (run.task, run.app, run.engine)
    assert [*range(1, attempts + 1)] == [one.attempt for one in whole.attempts]
    assert {status: 1} == place.counts(run.group)
    for one in whole.attempts:
        (asked,) = [
            line for line in one.trail if line["hook"] == "task_executor_run_task_trigger_error"
        ]
        assert "policy" == asked["plugin"]
    assert "in price\n    raise ValueError(kind)\n" in whole.attempts[0].traceback


async def test_async_tasks_are_recorded_alike(place, shop):
    """An async run is in the store with its frames."""
    app = shop()
    async with app:
        with pytest.raises(ValueError, match="x"):
            await app.tasks["later"]("x")

    (run,) = place.reader().runs(Filters())
    assert ("later", "failed") == (run.task, run.status)
    assert "in later" in place.reader().run(run.uuid).attempts[0].traceback


async def test_a_cancelled_run_is_no_failure(place, shop):
    """A cancellation from outside is not recorded."""
    app = shop()

    @app.task
    async def wait():
        await asyncio.sleep(600)

    async with app:
        run = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        with pytest.raises(ValueError, match="x"):
            await app.tasks["later"]("x")

    assert ["later"] == [run.task for run in place.reader().runs(Filters())]


@pytest.mark.parametrize(("kind", "status"), [("x", "failed"), ("dead", "dead_lettered")])
def test_a_run_that_ends_while_the_app_stops_is_recorded(place, shop, monkeypatch, kind, status):
    """A stop in the middle of a hook costs neither a record nor a letter."""
    make, recorders = Failures._record, []

    def stop_first(self, *given):
        recorders.append(self._recorder)
        self.qtasks_stop()
        return make(self, *given)

    monkeypatch.setattr(Failures, "_record", stop_first)
    with shop() as app:
        _try(app.tasks["price"], kind)
    (recorder,) = recorders
    recorder.close()

    assert [status] == [run.status for run in place.reader().runs(Filters())]


def test_failures_of_one_cause_are_one_group_and_others_another(place, shop):
    """Values make no group; the task and the class of the error do."""
    app = shop()
    with app:
        for number in range(5):
            _try(app.tasks["price"], f"price-{number}")
            _try(app.tasks["sign_in"], f"user-{number}", "x")

    groups = place.reader().groups(Filters())
    assert [("price", {"failed": 5}), ("sign_in", {"failed": 5})] == sorted(
        (group.task, group.counts) for group in groups
    )


def test_secrets_are_never_stored(place, shop):
    """By keyword, by the parameter's name, in mappings and in objects; the rest can be read."""
    app = shop()
    with app:
        _try(app.tasks["sign_in"], "ann", password="hunter2")  # noqa: S106  # the claim
        _try(app.tasks["sign_in"], "ann", "hunter2")
        _try(app.tasks["sign_in"], {"access_token": "hunter2"}, None)

    stored = b"".join(path.read_bytes() for path in place.path.parent.iterdir())
    assert b"hunter2" not in stored
    assert b"ann" in stored


@pytest.mark.parametrize("arguments", ["keep", "hide", "drop"])
def test_arguments_are_kept_hidden_or_dropped(place, shop, arguments):
    """Hidden ones are in the store and not shown; dropped ones are not in it."""
    app = shop(arguments=arguments)
    with app:
        _try(app.tasks["price"], "some-value")

    (run,) = place.reader().runs(Filters())
    whole = place.reader().run(run.uuid)
    assert (["some-value"] if arguments == "keep" else None) == whole.args
    assert ("drop" not in arguments) == run.replayable


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"url": "sqlit:///x.db"}, "did you mean 'sqlite'"),
        ({"url": "postgresq://u:hunter2@h/d"}, "did you mean 'postgresql+psycopg'"),
        ({"keep_day": 3}, "did you mean 'keep_days'"),
        ({"keep_days": -1}, "'keep_days' takes a number above 0"),
        ({"keep_days": 0}, "'keep_days' takes a number above 0"),
        ({"keep_runs": 0}, "'keep_runs' takes a number, 1 or more"),
        ({"arguments": "hunter2"}, "'arguments' takes keep, hide, drop"),
        ({"most_bytes": "hunter2"}, "most_bytes"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_shows_no_value(shop, section, told):
    """The key and what it takes are named; nothing of the value is."""
    app = shop(**section)

    with pytest.raises((PluginError, PluginRegistrationError)) as caught, app:
        pass

    assert told in f"{caught.value} {caught.value.__cause__}"
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_without_the_extra_the_start_says_what_to_install(shop, monkeypatch):
    """The error names the package and the extra."""
    for name in ("connection", "store", "recorder"):
        monkeypatch.delitem(sys.modules, f"qtasks_pluggy.failures.{name}", raising=False)
        package = sys.modules["qtasks_pluggy.failures"]
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    with pytest.raises(PluginError) as caught, shop():
        pass

    assert "qtasks-pluggy[failures]" in str(caught.value.__cause__)


@pytest.mark.parametrize("fault", ["folder", "stranger", "full path"])
def test_no_run_changes_because_of_the_store(shop, tmp_path, caplog, fault):
    """Results and errors are those without it; one event says what is wrong."""
    path = tmp_path / "here"
    if fault == "folder":
        path.mkdir()
    elif fault == "stranger":
        path.write_text("not a database " * 500)
    else:
        path.write_text("")
        path = path / "failures.db"
    app = shop(url=f"sqlite:///{path}")
    with caplog.at_level(logging.ERROR), app:
        assert 2 == app.tasks["price"]("good")
        assert 1 == app.tasks["price"]("replace")
        with pytest.raises(ValueError, match="anything"):
            app.tasks["price"]("anything")

    told = [one.getMessage() for one in caplog.records]
    assert 1 == len([one for one in told if one.startswith("failures_store_unavailable")])
    assert not any("plugin_failed" in one for one in told)


def test_arguments_that_cannot_be_kept_change_no_run(place, shop):
    """50 MB, cycles, surrogates, NaN, and errors of 10 MB are recorded as far as they can be."""
    cycle = []
    cycle.append(cycle)
    app = shop()
    with app:
        for value in (b"x" * 50_000_000, cycle, "\ud800\x00", float("nan"), "x" * 10_000_000):
            with pytest.raises(ValueError):
                app.tasks["price"](value)

    runs = place.reader().runs(Filters())
    assert [False, True, True, False, False] == [run.replayable for run in runs]
    assert all(len(run.message) < 70_000 for run in runs)
    assert place.path.stat().st_size < 1_000_000


def test_a_run_before_the_start_says_once_that_nothing_is_recorded(place, shop, caplog):
    """An app that is used without being started has no settings to record by."""
    app = shop()
    with caplog.at_level(logging.WARNING):
        _try(app.tasks["price"], "x")
        _try(app.tasks["price"], "x")

    told = [one.getMessage() for one in caplog.records if "plugin_not_started" in one.getMessage()]
    assert 1 == len(told)
    assert not place.path.exists()


def test_an_app_that_starts_again_records_again(place, shop):
    """Two lives of one app write one store."""
    app = shop()
    for _ in range(2):
        with app:
            _try(app.tasks["price"], "x")

    (group,) = place.reader().groups(Filters())
    assert {"failed": 2} == group.counts


def test_a_new_group_is_one_event_at_error_level(shop, caplog):
    """It names the task, the group and the class of the error, and no value."""
    app = shop()
    with caplog.at_level(logging.ERROR), app:
        for _ in range(100):
            _try(app.tasks["price"], "hunter2")

    (told,) = [one for one in caplog.records if "failure_group_new" in one.getMessage()]
    assert ("ERROR", True) == (told.levelname, "error='ValueError'" in told.getMessage())
    assert "task='price'" in told.getMessage()
    assert "status='failed' decided_by=None" in told.getMessage()
    assert "hunter2" not in told.getMessage()


def test_a_new_group_s_event_says_that_a_plugin_saved_the_run(shop, caplog):
    """An alert can leave out what did not fail in the end."""
    app = shop()
    app.on_error(ValueError)(use_last_known := lambda: 0)
    with caplog.at_level(logging.ERROR), app:
        assert 0 == app.tasks["price"]("x")

    (told,) = [one for one in caplog.records if "failure_group_new" in one.getMessage()]
    decided_by = use_last_known.__name__
    assert f"status='recovered' decided_by={decided_by!r}" in told.getMessage()


def test_a_regression_is_one_event_at_error_level(place, shop, caplog):
    """A resolved group that fails again in two apps is told once; an ignored one never."""
    here, there = shop(), shop()
    with here:
        _try(here.tasks["price"], "mended")
        _try(here.tasks["sign_in"], "ann", "ignored")
    ids = {group.task: group.id for group in place.reader().groups(Filters())}
    change_groups(place.url, "resolve", [ids["price"]], who="ann", scope="")
    change_groups(place.url, "ignore", [ids["sign_in"]], who="ann", scope="")

    caplog.clear()
    with caplog.at_level(logging.ERROR), here, there:
        for app in (here, there, here):
            _try(app.tasks["price"], "mended")
            _try(app.tasks["sign_in"], "ann", "ignored")

    (told,) = [one for one in caplog.records if "failure_group" in one.getMessage()]
    assert "ERROR" == told.levelname
    for part in ("failure_group_regressed", "task='price'", "error='ValueError'", ids["price"]):
        assert part in told.getMessage()
    states = {group.task: group.state for group in place.reader().groups(Filters())}
    assert {"price": "regressed", "sign_in": "ignored"} == states


def test_a_replayed_run_knows_its_original(place, shop):
    """A run that the app repeats, and that fails again, is linked with the first one."""
    app = shop()

    @app.task
    def again():
        raise ValueError

    message = TaskMessage("again")
    with app:
        with pytest.raises(ValueError):
            TaskExecutor(again, message).execute_sync()
        second = app.replay(message)

    assert str(message.uuid) == place.reader().run(str(second)).run.replay_of
    (replay,) = place.reader().run(str(message.uuid)).replays
    assert (str(second), "failed") == (replay.uuid, replay.status)


def test_the_trail_says_who_was_asked_in_which_version(place, shop):
    """A line of the trail has what a run's trail has, as JSON."""
    app = shop()
    with app:
        _try(app.tasks["price"], "replace")
    (run,) = place.reader().runs(Filters())

    (line,) = place.reader().run(run.uuid).attempts[0].trail

    assert {"plugin", "distribution", "version", "hook", "status", "kind", "won"} <= set(line)
    assert (True, "answered", "Replace") == (line["won"], line["status"], line["kind"])
    json.dumps(line, allow_nan=False)


async def test_submitted_runs_are_recorded_with_their_engine(place, shop):
    """Runs that an engine carries are found by the ids of their handles."""
    app = shop()
    app.set_engine("memory://")
    async with app:
        handles = [await app.tasks["later"].submit(kind) for kind in ("x", "replace", "retry")]
        for handle in handles:
            with contextlib.suppress(ValueError):
                await handle

    runs = {run.uuid: run for run in place.reader().runs(Filters())}
    assert {"memory"} == {run.engine for run in runs.values()}
    assert ["failed", "recovered", "failed"] == [runs[str(one.uuid)].status for one in handles]
    assert [1, 2, 3] == [one.attempt for one in place.reader().run(str(handles[2].uuid)).attempts]
