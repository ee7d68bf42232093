"""The built-in plugins ``fallback`` and ``retry``, by settings alone."""

from __future__ import annotations

import builtins
from json import JSONDecodeError
from typing import Any

import pytest
import structlog

from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.builtin import Fallback, RetryPlugin
from qtasks_pluggy.exc import PluginError, TaskPluginTriggerError
from qtasks_pluggy.testing import assert_outcome, run_with
from tests.runs import answering


class ShopError(LookupError):
    """An error of the app's own."""


def app_with(name: str, section: dict[str, Any], **options: Any) -> QueueTasks:
    """Make an app whose settings enable a built-in plugin."""
    settings = {"enable": [name], "plugin": {name: section}}
    return QueueTasks("shop", settings=settings, intercept=Exception, discover=False, **options)


def raising(error: BaseException) -> Any:
    """Make a function that fails."""

    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({"task": "price_*"}, True),
        ({"task": "stock_*"}, False),
        ({"tag": "slow"}, True),
        ({"tag": "fast"}, False),
        ({"error": "LookupError"}, True),
        ({"error": ["ValueError", f"{__name__}.ShopError"]}, True),
        ({"error": "ValueError"}, False),
        ({"error": "other.ShopError"}, False),
        ({"task": "price_*", "error": "ValueError"}, False),
    ],
)
def test_fallback_answers_with_the_result_of_a_rule_that_fits(rule, fits):
    """A rule is for a task, a tag and error classes; all that it names must fit."""
    section = {"rules": [{**rule, "result": None}]}
    run = run_with(
        Fallback, raising(ShopError()), settings=section, name="price_tea", tags=["slow"]
    )

    if fits:
        assert_outcome(run, "recovered", result=None, decided_by="fallback")
    else:
        assert_outcome(run, "failed", error=ShopError, decided_by=None)


@pytest.mark.parametrize(
    ("made", "section"),
    [
        (Fallback, {"rules": [{"error": "json.JSONDecodeError", "result": 0}]}),
        (RetryPlugin, {"errors": "json.JSONDecodeError", "delay": 0, "jitter": 0, "limit": 1}),
    ],
)
def test_an_error_may_be_named_as_its_users_import_it(made, section):
    """``json.JSONDecodeError`` says of itself that it is of ``json.decoder``."""
    run = run_with(made, raising(JSONDecodeError("", "", 0)), settings=section)

    assert any(one.status == "answered" for one in run.trail)


def test_fallback_takes_the_first_rule_that_fits():
    """Rules are looked at in order."""
    rules = [{"task": "a", "result": 1}, {"task": "*", "result": 2}, {"task": "b", "result": 3}]
    first, second = (
        run_with(Fallback, raising(ShopError()), settings={"rules": rules}, name=name)
        for name in "ab"
    )

    assert (1, 2) == (first.result, second.result)


@pytest.mark.parametrize("name", ["fallback", "retry"])
def test_a_built_in_that_has_read_no_settings_says_so_once(name):
    """Enabled, and asked by an app that was never started: the operator reads what to do."""
    app = QueueTasks("shop", discover=False, settings={"enable": [name]})

    @app.task(echo=True)
    def ask(self):
        self.ctx.plugin_error()

    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(TaskPluginTriggerError):
                ask()
    told = [one for one in logs if one["event"] == "plugin_not_started"]
    assert [(name, "warning")] == [(one["plugin"], one["log_level"]) for one in told]
    assert "with app:" in told[0]["hint"]


def test_built_ins_come_first_so_that_the_app_has_the_last_word():
    """A plugin that the app adds overrides a built-in one."""
    app = app_with("fallback", {"rules": [{"task": "*", "result": 1}]}, plugins=[answering(2)])
    task = app.task(name="t")(raising(ShopError()))

    with app:
        assert 2 == task()


def test_retry_tries_again_by_error_class_later_and_later(monkeypatch):
    """Named errors are retried, each time after a longer delay, up to the limit."""
    slept: list[float] = []
    monkeypatch.setattr("qtasks_pluggy._waiting.time.sleep", slept.append)
    section = {
        "errors": ["LookupError"],
        "limit": 4,
        "delay": 0.5,
        "factor": 3,
        "max_delay": 10,
        "jitter": 0,
    }
    app = app_with("retry", section)
    listed, other = (
        app.task(name=name)(raising(error))
        for name, error in (("listed", ShopError()), ("other", OSError()))
    )

    with app:
        with pytest.raises(ShopError):
            listed()
        with pytest.raises(OSError):  # it has no text
            other()

    assert [0.5, 1.5, 4.5, 10] == slept


def test_retry_adds_a_random_part():
    """Jitter keeps many runs from trying again at one moment."""
    section = {"errors": "LookupError", "delay": 0, "jitter": 0.001}
    run = run_with(RetryPlugin, raising(ShopError()), settings=section)

    delays = [one.delay for one in run.outcomes[:-1]]
    assert_outcome(run, "failed", error=ShopError, attempts=4)
    assert all(0 <= seconds <= 0.001 for seconds in delays)
    assert len({*delays}) > 1


FALLBACK = [
    ({"rule": []}, "'rules'"),
    ({"rules": {"task": "a", "result": 1}}, "list of tables"),
    ({"rules": [5]}, "rule 1: expected a table"),
    ({"rules": [{"task": "a"}]}, "needs result"),
    ({"rules": [{"result": 1}]}, "at least one of"),
    ({"rules": [{"task": "a", "result": 1}, {"taks": "a", "result": 1}]}, "rule 2.*'task'"),
    ({"rules": [{"task": 5, "result": 1}]}, "task takes a text"),
    ({"rules": [{"error": "ValeuError", "result": 1}]}, "'ValueError'"),
    ({"rules": [{"error": [], "result": 1}]}, "name of an exception"),
]
RETRY = [
    ({}, "needs errors"),
    ({"errors": "OSErorr"}, "'OSError'"),
    ({"errors": "OSError", "limt": 1}, "'limit'"),
    ({"errors": "OSError", "limit": 0}, "limit takes"),
    ({"errors": "OSError", "limit": True}, "limit takes"),
    ({"errors": "OSError", "delay": -1}, "delay takes"),
    ({"errors": "OSError", "delay": "1"}, "delay takes"),
    ({"errors": "OSError", "factor": 0.5}, "factor takes"),
    ({"errors": "OSError", "jitter": float("inf")}, "jitter takes"),
]


@pytest.mark.parametrize(
    ("name", "section", "says"),
    [("fallback", *one) for one in FALLBACK] + [("retry", *one) for one in RETRY],
    ids=[str(number) for number in range(len(FALLBACK) + len(RETRY))],
)
def test_a_section_that_makes_no_sense_keeps_the_app_from_starting(name, section, says):
    """The error names the plugin, the rule or key, and what it takes."""
    with pytest.raises(PluginError, match=says) as raised, app_with(name, section):
        pass

    assert f"plugin {name!r}" in str(raised.value)


def test_retry_without_its_extra_names_it(monkeypatch):
    """Where tenacity is missing, the error says what to install."""
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tenacity"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)

    with (
        pytest.raises(PluginError, match=r"qtasks-pluggy\[retry\]"),
        app_with("retry", {"errors": "OSError"}),
    ):
        pass


def test_built_ins_are_off_until_they_are_enabled(monkeypatch):
    """Nothing is loaded without ``enable``; the environment can take an app's choice back."""
    assert [] == PluginManager().list_plugin_info()
    app = app_with("fallback", {"rules": [{"task": "*", "result": 1}]})
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "")
    task = app.task(name="t")(raising(ShopError()))

    with app, pytest.raises(ShopError):
        task()
    (info,) = app.plugins.list_plugin_info()
    assert ("fallback", False, "not enabled") == (info.name, info.enabled, info.reason)


def test_enabled_in_a_bare_manager():
    """A manager that stands alone takes them from its own settings."""
    manager = PluginManager(settings={"enable": ["fallback"]})

    assert ["fallback"] == [one.name for one in manager.list_plugin_info()]
    with pytest.raises(ShopError):
        TaskExecutor(raising(ShopError()), plugins=manager).execute_sync()


@pytest.mark.parametrize(
    ("name", "told", "not_told"),
    [
        (
            "SMTPException",
            "'SMTPException' is not a built-in exception; a class outside",
            "did you",
        ),
        ("ConectionError", "did you mean 'ConnectionError'? If not, a class outside", "name 2"),
        ("hunter2", "name 2 is not a built-in exception; a class outside", "hunter"),
    ],
)
def test_a_class_without_its_module_is_named(name, told, not_told):
    """What cannot be the name of a class is not shown, for it may be a secret."""
    app = app_with("retry", {"errors": ["KeyError", name]})

    with pytest.raises(PluginError) as caught, app:
        pass

    text = f"{caught.value} {caught.value.__cause__}"
    assert told in text
    assert "of builtins needs its module, 'smtplib.SMTPException'" in text
    assert not_told not in text
