"""Single values for plugins' sections: ``QTASKS_PLUGGY_PLUGIN_<NAME>_<KEY>``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import SettingsError

PREFIX = "QTASKS_PLUGGY_PLUGIN_"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of the surroundings to be read: no variable, no file."""
    for variable in [one for one in os.environ if one.startswith("QTASKS_PLUGGY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def sections(*names: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Start an app with plugins of these names; return the section that each was given."""
    seen: dict[str, Any] = {}

    def reading(name: str) -> Any:
        @hookimpl
        def qtasks_start(settings: Any) -> None:
            seen[name] = settings

        return SimpleNamespace(name=name, qtasks_start=qtasks_start)

    plugins = [reading(name) for name in names]
    with QueueTasks("shop", plugins=plugins, discover=False, settings=settings):
        return seen


@pytest.mark.parametrize(
    ("name", "variable"), [("prices", "PRICES"), ("last-rate", "LAST_RATE"), ("a.b_c", "A_B_C")]
)
def test_a_variable_sets_one_key_of_a_plugins_section(name, variable, monkeypatch):
    """The name is in upper case, with ``_`` for what a variable cannot have; so is the key."""
    monkeypatch.setenv(f"{PREFIX}{variable}_MAX_AGE_DAYS", "5")

    assert {name: {"max_age_days": 5}, "other": {}} == sections(name, "other")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ('["a", 1]', ["a", 1]),
        ('{"a": {"b": 1}}', {"a": {"b": 1}}),
        ('"5"', "5"),
        ("postgres://u:p@h", "postgres://u:p@h"),
        ("", ""),
        ("[1", "[1"),
        ("[" * 100_000, "[" * 100_000),
        ("9" * 5000, "9" * 5000),
    ],
    ids=range(12),
)
def test_a_variable_is_json_where_it_parses_and_else_text(text, value, monkeypatch):
    """So a number needs no quotes, and a token needs none either."""
    monkeypatch.setenv(f"{PREFIX}P_KEY", text)

    assert {"p": {"key": value}} == sections("p")


def test_of_two_names_that_fit_the_longer_one_is_meant(monkeypatch):
    """However they are registered; the shorter one gets what is left."""
    monkeypatch.setenv(f"{PREFIX}LAST_RATE_AGE", "1")
    monkeypatch.setenv(f"{PREFIX}LAST_AGE", "2")
    expected = {"last": {"age": 2}, "last-rate": {"age": 1}}

    assert expected == sections("last", "last-rate")
    assert expected == sections("last-rate", "last")
    assert {"last": {"age": 2, "rate_age": 1}} == sections("last")


def test_a_variable_goes_before_the_rest_of_the_section(monkeypatch):
    """It replaces its key, whatever the source of the section, and leaves the other keys."""
    monkeypatch.setenv(f"{PREFIX}P_B", "3")

    assert {"p": {"a": 1, "b": 3}} == sections("p", settings={"plugin": {"p": {"a": 1, "b": 2}}})

    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN", json.dumps({"p": {"b": 1, "c": 1}}))

    assert {"p": {"b": 3, "c": 1}} == sections("p")


def test_a_variable_reaches_an_enabled_built_in_plugin(monkeypatch):
    """They are named as all others are."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")
    monkeypatch.setenv(f"{PREFIX}FALLBACK_RULES", '[{"task": "*", "result": 7}]')
    app = QueueTasks("shop", discover=False, intercept=Exception)
    task = app.task(lambda: 1 / 0)

    with app:
        assert 7 == task()


def test_a_variable_reaches_a_plugin_that_is_added_later(monkeypatch):
    """What counts is who is there when the app starts."""
    monkeypatch.setenv(f"{PREFIX}LATE_KEY", "1")
    seen: list[Any] = []
    app = QueueTasks("shop", discover=False)
    app.task(len)("")
    app.add_plugin(
        SimpleNamespace(qtasks_start=hookimpl(lambda settings: seen.append(settings))), name="late"
    )
    with app:
        pass

    assert [{"key": 1}] == seen


def test_a_variable_for_a_plugin_that_is_not_there_is_told_and_stops_nothing(monkeypatch):
    """The same environment may be for apps that have that plugin."""
    monkeypatch.setenv(f"{PREFIX}PRCIES_URL", "here")
    with structlog.testing.capture_logs() as events:
        assert {"prices": {}} == sections("prices")

    expected = {
        "event": "unknown_plugin_name",
        "log_level": "warning",
        "setting": "plugin",
        "source": f"{PREFIX}PRCIES_URL",
        "name": "prcies_url",
        "did_you_mean": "prices",
    }
    assert [expected] == events


def test_a_variable_says_in_the_settings_where_they_come_from(monkeypatch):
    """``doctor`` shows the source of each key; of sections there may be several."""
    monkeypatch.setenv(f"{PREFIX}P_KEY", "1")
    app = QueueTasks(
        "shop",
        discover=False,
        plugins=[SimpleNamespace(name="p", qtasks_start=hookimpl(lambda: None))],
        settings={"plugin": {"p": {"a": 1}}},
    )
    app.task(len)("")

    assert f"app, {PREFIX}P_KEY" == app.plugins.loaded.sources["plugin"]


def test_a_misspelt_variable_that_is_no_plugins_is_still_an_error(monkeypatch):
    """The prefix is what makes it a plugin's."""
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGINS_P_KEY", "1")

    with pytest.raises(SettingsError, match="QTASKS_PLUGGY_PLUGINS_P_KEY: unknown setting"):
        sections("p")
