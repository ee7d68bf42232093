"""Where settings come from, which source is stronger, and what each gets for nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy._settings import KEYS, load
from qtasks_pluggy.exc import SettingsError
from tests.runs import answering

VALUES: dict[str, Any] = {
    "enable": ["retry"],
    "disable": ["a", "b"],
    "allow": ["c"],
    "order": ["b", "a"],
    "observe": ["d"],
    "strict": True,
    "safe_mode": True,
    "on_fault": "skip",
    "timeout": 0.25,
    "timeouts": {"a": 2.5},
    "start_timeout": 2.5,
    "quarantine_after": 2,
    "quarantine_seconds": 1.5,
    "log_values": True,
    "plugin": {"a": {"url": "here"}},
}
every_key = pytest.mark.parametrize("key", KEYS)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder without settings, two levels below one that tests may fill."""
    folder = tmp_path / "project" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


def as_toml(values: dict[str, Any]) -> str:
    """Write settings as TOML, whose values are JSON's here; tables inline."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{name} = {text(one)}" for name, one in value.items()) + "}"
        return json.dumps(value)

    return "".join(f"{key} = {text(value)}\n" for key, value in values.items())


def as_variable(value: Any) -> str:
    """Write a value as an operator does in the environment."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, str):
        return value
    return json.dumps(value)


def expected(key: str) -> Any:
    """Return what a key's value becomes."""
    value = VALUES[key]
    return tuple(value) if isinstance(value, list) else value


@every_key
@pytest.mark.parametrize("source", ["app", "environment", "own file", "shared file"])
def test_every_key_can_come_from_every_source(key, source, monkeypatch):
    """The app, a variable and both kinds of file can set every key; the source is known."""
    given = {}
    if source == "app":
        given = {key: VALUES[key]}
    elif source == "environment":
        monkeypatch.setenv(f"QTASKS_PLUGGY_{key.upper()}", as_variable(VALUES[key]))
    elif source == "own file":
        Path("qtasks_pluggy.toml").write_text(as_toml({key: VALUES[key]}), "utf-8")
    else:
        text = "[tool.qtasks_pluggy]\n" + as_toml({key: VALUES[key]})
        Path("pyproject.toml").write_text(text, "utf-8")

    loaded = load(given, read_environment=True)

    assert expected(key) == getattr(loaded.settings, key)
    told = {"app": "app", "environment": "QTASKS_PLUGGY_", "own file": "qtasks_pluggy.toml"}
    assert told.get(source, "pyproject.toml") in loaded.sources[key]


def test_environment_over_file_over_app(monkeypatch):
    """A stronger source replaces a value, and a list whole."""
    given = {"order": ["app"], "disable": ["app"], "observe": ["app"], "timeout": 1.0}
    Path("qtasks_pluggy.toml").write_text('order = ["file"]\ndisable = ["file", "f2"]\n', "utf-8")
    monkeypatch.setenv("QTASKS_PLUGGY_ORDER", "environment")

    settings = load(given, read_environment=True).settings

    assert ("environment",) == settings.order
    assert ("file", "f2") == settings.disable
    assert (("app",), 1.0) == (settings.observe, settings.timeout)
    assert ("app",) == load(given).settings.order


def test_the_nearest_file_counts_and_the_own_one_wins():
    """A file of the current folder hides those of its parents; of two in one folder ours wins."""
    Path("../../pyproject.toml").write_text("[tool.qtasks_pluggy]\ntimeout = 1.0\n", "utf-8")
    assert 1.0 == load(read_environment=True).settings.timeout
    Path("../pyproject.toml").write_text("[project]\nname = 'no section of ours'\n", "utf-8")
    assert 1.0 == load(read_environment=True).settings.timeout
    Path("../pyproject.toml").write_text("[tool.qtasks_pluggy]\ntimeout = 2.0\n", "utf-8")
    assert 2.0 == load(read_environment=True).settings.timeout
    Path("../qtasks_pluggy.toml").write_text("timeout = 3.0\n", "utf-8")
    assert 3.0 == load(read_environment=True).settings.timeout


WRONG = [
    ({"strict": "maybe"}, "true or false"),
    ({"timeout": 0}, "more than 0 seconds"),
    ({"timeout": -1}, "more than 0 seconds"),
    ({"timeout": "soon"}, "more than 0 seconds"),
    ({"timeout": float("inf")}, "more than 0 seconds"),
    ({"timeout": float("nan")}, "more than 0 seconds"),
    ({"timeout": 10**400}, "more than 0 seconds"),
    ({"timeout": True}, "more than 0 seconds"),
    ({"start_timeout": 0}, "more than 0 seconds"),
    ({"on_fault": "go on"}, "'stop' or 'skip', got 'go on'"),
    ({"on_fault": True}, "'stop' or 'skip'"),
    ({"disable": None}, "list of plugin names"),
    ({"order": ["a", "a"]}, "none twice"),
    ({"order": "a"}, "list of plugin names"),
    ({"disable": [1]}, "list of plugin names"),
    ({"allow": [""]}, "list of plugin names"),
    ({"timeouts": {"a": 0}}, "more than 0"),
    ({"timeouts": [1]}, "table"),
    ({"quarantine_after": 0}, "1 or more"),
    ({"quarantine_after": True}, "1 or more"),
    ({"quarantine_seconds": 0}, "more than 0"),
    ({"plugin": {"a": 5}}, "tables"),
    ({"ordr": []}, "'order'"),
]


@pytest.mark.parametrize(
    ("wrong", "says"), WRONG, ids=[str(number) for number in range(len(WRONG))]
)
def test_nonsense_is_refused_when_the_app_is_made(wrong, says):
    """A wrong value or key is one clear error, at once."""
    with pytest.raises(SettingsError, match=says):
        QueueTasks("shop", settings=wrong)


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("TIMEOUT", "soon", "expected seconds"),
        ("TIMEOUT", "0", "more than 0 seconds"),
        ("STRICT", "maybe", "expected true or false"),
        ("QUARANTINE_AFTER", "many", "expected a whole number"),
        ("TIMEOUTS", "a=1", "JSON table"),
        ("TIMEOUTS", "[1]", "table"),
        ("ORDER", "a,a", "none twice"),
        ("ON_FAULT", "ignore", "'stop' or 'skip', got 'ignore'"),
        ("START_TIMEOUT", "-1", "more than 0 seconds"),
        ("TIMEOUTT", "1", "QTASKS_PLUGGY_TIMEOUT"),
        ("FIL", "here.toml", "QTASKS_PLUGGY_FILE"),
    ],
)
def test_nonsense_in_the_environment_names_the_variable(variable, text, says, monkeypatch):
    """The error names the variable and what it takes, when the app starts or first runs."""
    monkeypatch.setenv(f"QTASKS_PLUGGY_{variable}", text)
    app = QueueTasks("shop", discover=False)

    with pytest.raises(SettingsError, match=says) as raised, app:
        pass

    assert f"QTASKS_PLUGGY_{variable}" in str(raised.value)


def test_an_unknown_key_in_a_file_names_file_and_nearest():
    """A key of the file that nobody knows names the file and the nearest key."""
    Path("qtasks_pluggy.toml").write_text("timeot = 1\n", "utf-8")

    with pytest.raises(
        SettingsError, match=r"qtasks_pluggy\.toml: unknown key 'timeot'.*'timeout'"
    ):
        load(read_environment=True)


def test_each_plugin_gets_its_own_section():
    """``qtasks_start`` is given the plugin's section and none of the others'."""
    seen: dict[str, Any] = {}

    def starting(name: str) -> Any:
        @hookimpl
        def qtasks_start(settings: Any, app: Any) -> None:
            seen[name] = (app.name, settings)

        return SimpleNamespace(name=name, qtasks_start=qtasks_start)

    Path("qtasks_pluggy.toml").write_text("[plugin.a]\nx = 1\n[plugin.b]\ny = 2\n", "utf-8")
    plugins = [starting(name) for name in ("a", "b", "c")]
    with structlog.testing.capture_logs(), QueueTasks("shop", plugins=plugins, discover=False):
        pass

    assert {"a": ("shop", {"x": 1}), "b": ("shop", {"y": 2}), "c": ("shop", {})} == seen


def test_a_name_that_no_plugin_has_is_a_warning_with_a_near_one():
    """Names in lists and tables that nobody bears are warned of, once each."""
    settings = {
        "disable": ["prcies", "nothing-such"],
        "timeouts": {"stokc": 1},
        "enable": ["retri"],
    }

    with structlog.testing.capture_logs() as events:
        PluginManager(
            [answering(1, "prices"), answering(1, "stock")], settings=settings, discover=True
        )

    told = {(e["setting"], e["name"]): e["did_you_mean"] for e in events if "name" in e}
    assert "prices" == told["disable", "prcies"]
    assert told["disable", "nothing-such"] is None
    assert "stock" == told["timeouts", "stokc"]
    assert "retry" == told["enable", "retri"]


def test_a_disabled_plugin_of_the_app_is_not_asked(monkeypatch):
    """The environment switches off a plugin that the app adds, from the first run on."""
    app = QueueTasks("shop", plugins=[answering(1, "off"), answering(2, "on")], discover=False)
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "on")
    task = app.task(intercept=Exception)(lambda: 1 / 0)

    assert 1 == task()
    off = [one for one in app.plugins.list_plugin_info() if not one.enabled]
    assert [("on", "disabled (QTASKS_PLUGGY_DISABLE)")] == [(one.name, one.reason) for one in off]


def test_a_bare_manager_reads_neither_file_nor_environment(monkeypatch):
    """What stands alone is what its constructor says."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "one")
    executor = TaskExecutor(lambda: 1, plugins=PluginManager([answering(1, "one")]))

    assert 1 == executor.execute_sync()
    assert PluginManager([answering(1, "one")]).list_plugin_info()[0].enabled


DEEP = 100_000


@pytest.mark.parametrize("key", ["plugin", "timeouts"])
def test_a_table_of_the_environment_that_is_nested_too_deeply(key, monkeypatch):
    """No parser takes it: an error of the settings, which names the variable."""
    monkeypatch.setenv(f"QTASKS_PLUGGY_{key.upper()}", "[" * DEEP + "]" * DEEP)

    with pytest.raises(SettingsError, match=f"QTASKS_PLUGGY_{key.upper()}: expected a JSON table"):
        load(read_environment=True)


def test_a_value_that_is_nested_too_deeply():
    """What the app gives is no parser's business; the error shows its beginning."""
    value: list[Any] = []
    for _ in range(DEEP):
        value = [value]

    with pytest.raises(SettingsError, match=r"settings= of the app: order takes .*, got [([.]+"):
        load({"order": value})


def test_a_long_value_is_cut():
    """However long a list is, the error is one that people can read."""
    with pytest.raises(SettingsError) as raised:
        load({"disable": ["a" * 1000] * 1000})

    assert len(str(raised.value)) < 300


SWITCHES = {
    True: ("1", "true", "T", "yes", "y", " on "),
    False: ("0", "False", "f", "no", "n", "off"),
}


@pytest.mark.parametrize("expected", [True, False])
def test_the_ways_to_write_a_switch(expected, monkeypatch):
    """A switch in the environment takes the words that people use for one."""
    for text in SWITCHES[expected]:
        monkeypatch.setenv("QTASKS_PLUGGY_STRICT", text)

        assert load(read_environment=True).settings.strict is expected


KUBERNETES = [
    "SERVICE_HOST",
    "SERVICE_PORT",
    "SERVICE_PORT_HTTP",
    "PORT",
    "PORT_8080_TCP",
    "PORT_8080_TCP_ADDR",
    "WEB_SERVICE_HOST",
    "WEB_PORT_80_TCP_PROTO",
]


@pytest.mark.parametrize("name", KUBERNETES)
def test_what_kubernetes_sets_for_a_service_is_no_setting(name, monkeypatch):
    """A service whose name is or begins with qtasks-pluggy keeps no app from starting."""
    monkeypatch.setenv(f"QTASKS_PLUGGY_{name}", "tcp://10.0.0.1:8080")

    assert load(read_environment=True) == load()
