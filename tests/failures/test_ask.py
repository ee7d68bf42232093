"""Recorded errors, made again, and what today's plugins would make of them; without effect."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from types import SimpleNamespace

import attrs
import pytest
from sqlalchemy import text

from qtasks_hookspecs import Replace, Retry, hookimpl, on_error, when
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import TaskPluginTriggerError
from qtasks_pluggy.failures.ask import ask, rebuilt
from qtasks_pluggy.failures.claims import Claims
from qtasks_pluggy.failures.connection import engine_for, shown
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.replay import OtherArguments


class PaymentError(Exception):
    """Made of two things, of which its text has one."""

    def __init__(self, code, note):
        super().__init__(code, note)
        self.code = code

    def __str__(self):
        return f"code {self.code}"


class OddError(Exception):
    """Made of one thing, and keeps another: it does not take what it says it was made of."""

    def __init__(self, code):
        super().__init__(f"code {code}", "twice")
        self.code = code


def _app(place, **options):
    section = {"plugin": {"failures": {"url": shown(place.url)}}, "enable": ["failures"]}
    app = QueueTasks("shop", discover=False, settings=section, **options)

    @app.task
    def fails(error, *_):
        raise ERRORS[error]

    return app


ERRORS = {
    "key": KeyError("tea"),
    "payment": PaymentError(Decimal("1.50"), "late"),
    "odd": OddError(7),
    "trigger": TaskPluginTriggerError("no price", kind="price"),
    "object": ValueError(object()),
    "group": ExceptionGroup("both", [KeyError("a"), ValueError("b")]),
    "exit": SystemExit(3),
}


@pytest.fixture
def recorded(place):
    """Record one run for each of the errors; return the newest of each."""
    app = _app(place, intercept=Exception)
    with app:
        for name in ERRORS:
            with pytest.raises((Exception, SystemExit)):
                app.tasks["fails"](name)

    def find(name):
        runs = place.reader().runs(Filters())
        (uuid,) = [run.uuid for run in runs if place.reader().run(run.uuid).args == [name]]
        return next(Claims(place.url).find([uuid]))

    return find


@pytest.mark.parametrize("name", ["key", "payment", "trigger"])
def test_an_error_is_made_again_as_it_was(recorded, name):
    """Class, arguments with their types, and the keywords of a trigger error."""
    error, is_stand_in = rebuilt(recorded(name))

    assert not is_stand_in
    assert type(ERRORS[name]) is type(error)
    assert (ERRORS[name].args, str(ERRORS[name])) == (error.args, str(error))
    assert getattr(ERRORS[name], "kwargs", {}) == getattr(error, "kwargs", {})


@pytest.mark.parametrize("name", ["odd", "object"])
def test_a_stand_in_has_the_class_where_that_is_loaded(recorded, name):
    """Arguments that do not fit, or were not kept: handlers of the class are asked all the same."""
    error, is_stand_in = rebuilt(recorded(name))

    assert is_stand_in
    assert type(ERRORS[name]) is type(error)
    assert (recorded(name).message,) == error.args


def test_a_stand_in_has_the_name_where_the_class_is_not_loaded(recorded, tmp_path, monkeypatch):
    """Nothing is imported because a record says so; filters by name know the error."""
    (tmp_path / "other_worker.py").write_text("class GoneError(Exception): pass", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    run = attrs.evolve(recorded("payment"), error="other_worker.GoneError")

    error, is_stand_in = rebuilt(run)

    assert (True, "other_worker.GoneError", "code 1.50") == (
        is_stand_in,
        f"{type(error).__module__}.{type(error).__qualname__}",
        str(error),
    )
    assert "other_worker" not in sys.modules


def test_a_group_of_errors_is_stood_in_for_by_name(recorded):
    """What it holds is not recorded as values."""
    error, is_stand_in = rebuilt(recorded("group"))

    assert (True, "ExceptionGroup") == (is_stand_in, type(error).__name__)


def test_what_is_no_exception_is_asked_about_by_nobody(recorded, place):
    """Plugins are not asked about SystemExit in a run, so neither here."""
    asked = []
    app = _app(place, intercept=Exception)
    app.on_error()(lambda error: asked.append(error))

    with app:
        (answer,) = ask(app, [recorded("exit")], OtherArguments())

    assert ("failed", None, []) == (answer.status, answer.decided_by, asked)


def dump(place):
    """Return all that is in a store."""
    with engine_for(place.url, seconds=5, writes=False).connect() as connection:
        tables = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        return {
            table: connection.execute(text(f"SELECT * FROM {table}")).all()  # noqa: S608  # ours
            for table in tables.all()
        }


def test_plugins_of_today_answer_and_nothing_else_happens(recorded, place):
    """No task runs, no decision is carried out, no hook of an end is called, nothing is written."""
    runs = [recorded(name) for name in ERRORS]
    before, heard, ran = dump(place), [], []
    app = _app(place, intercept=Exception)

    @app.task(name="other")
    def other():
        ran.append(1)

    @on_error(KeyError)
    def use_last(error, run):
        return Replace(error.args[0] + run.args[0])

    @hookimpl
    @when(error="tests.failures.test_ask.PaymentError")
    def task_executor_run_task_trigger_error(e):
        return Retry(delay=3600)

    @hookimpl
    def task_executor_attempt_ended(outcome):
        heard.append(outcome)

    hooks = {
        one.__name__: one
        for one in (task_executor_run_task_trigger_error, task_executor_attempt_ended)
    }
    app.add_plugin(SimpleNamespace(name="last", use_last=use_last))
    app.add_plugin(SimpleNamespace(name="by-name", **hooks))

    with app:
        answers = list(ask(app, runs, OtherArguments()))

    expected = {
        "key": ("recovered", "last", "Replace"),
        "payment": ("retried", "by-name", "Retry"),
    }
    assert [expected.get(name, ("failed", None, None)) for name in ERRORS] == [
        (one.status, one.decided_by, one.decision) for one in answers
    ]
    assert ([], []) == (heard, ran)
    assert before == dump(place)
    notes = [vars(ERRORS[name]).get("__notes__") for name in ERRORS]
    assert not any("made again" in note for some in notes for note in some or ())


def test_a_made_error_says_that_it_is(recorded, place):
    """Handlers find a note on it that names the run."""
    notes = []
    app = _app(place)
    app.on_error(KeyError)(lambda error: notes.extend(error.__notes__))
    run = recorded("key")

    with app:
        list(ask(app, [run], OtherArguments()))

    assert [f"qtasks_pluggy: made again from what is recorded of run {run.uuid}"] == notes


def test_what_cannot_be_asked_about_is_named(place):
    """A task that is gone, and arguments that cannot be read."""
    from qtasks_pluggy.failures.store import Batch

    place.store().write(
        Batch(
            [
                place.record(uuid="gone", task="gone"),
                place.record(uuid="object", task="fails", args=(object(),)),
            ]
        )
    )
    app = _app(place)
    runs = Claims(place.url).find(["gone", "object"])

    with app:
        gone, unread = ask(app, runs, OtherArguments())

    assert "no task 'gone'" in gone.why_not
    assert "args[0] is an object" == unread.why_not


def test_error_arguments_that_are_secret_are_not_kept(place):
    """A keyword of a redacted name keeps the error from being made again, and is not stored."""
    app = _app(place)

    @app.task
    def log_in():
        raise TaskPluginTriggerError("no", password="hunter".upper())

    with app, pytest.raises(TaskPluginTriggerError):
        log_in()

    assert "HUNTER" not in json.dumps({k: str(v) for k, v in dump(place).items()})
    (run,) = place.reader().runs(Filters())
    assert rebuilt(next(Claims(place.url).find([run.uuid])))[1]
