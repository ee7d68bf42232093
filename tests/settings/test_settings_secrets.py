"""What errors of the settings show: of a plugin's section the names, never a value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import PluginError, SettingsError

SECRET = "S3CRET"  # noqa: S105  # what must not be shown
DSN = f"postgres://user:{SECRET}@host"
WRONG = {
    "a section beside one that is none": (
        {"db": {"dsn": DSN}, "other": 1},
        "int for plugin 'other'",
    ),
    "a section that is a text": ({"db": DSN}, "str for plugin 'db'"),
    "a list of sections": ([{"dsn": DSN}], "list"),
    "a text": (DSN, "str"),
}
wrong = pytest.mark.parametrize(("value", "says"), WRONG.values(), ids=WRONG)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder without settings."""
    monkeypatch.chdir(tmp_path)


def refused(**settings: object) -> str:
    """Start an app; return the error's text, with all that hangs on it."""
    with (
        pytest.raises(SettingsError) as raised,
        QueueTasks("shop", discover=False, settings=settings),
    ):
        pass
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    return str(raised.value)


@wrong
def test_sections_that_the_app_gives(value, says):
    """The error names the key, the plugin and the type."""
    told = refused(plugin=value)

    assert f"plugin takes a table of plugin names and tables, got {says}" in told
    assert SECRET not in told


@wrong
def test_sections_in_the_environment(value, says, monkeypatch):
    """The same for JSON that is not as it should be."""
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN", json.dumps(value))

    told = refused()

    assert "QTASKS_PLUGGY_PLUGIN: " in told
    assert says in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "text", [f'{{"db": {{"dsn": "{DSN}"}}', DSN, f'{{"db": {{"dsn": {DSN}}}}}']
)
def test_json_that_does_not_parse(text, monkeypatch):
    """The error says where it stopped to be JSON, not what stands there."""
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN", text)

    told = refused()

    assert "QTASKS_PLUGGY_PLUGIN: expected a JSON table, (" in told
    assert "column" in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "text",
    [
        f'[plugin]\ndb = "{DSN}"\n',
        f'[plugin]\nlevel = 3\n[plugin.db]\ndsn = "{DSN}"\n',
        f'[plugin.db]\ndsn = "{DSN}\n',
        f"[plugin.db]\ndsn = {DSN}\n",
    ],
)
def test_sections_in_a_file(text):
    """Whether the file is TOML or not."""
    Path("qtasks_pluggy.toml").write_text(text, "utf-8")

    told = refused()

    assert "qtasks_pluggy.toml" in told
    assert SECRET not in told


def test_settings_that_are_no_mapping():
    """They may hold sections all the same."""
    with pytest.raises(SettingsError) as raised:
        QueueTasks("shop", settings=[("plugin", {"db": {"dsn": DSN}})])

    assert str(raised.value) == (
        "settings= of the app: takes a mapping of keys and values, got list"
    )


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("fallback", {"rules": SECRET}),
        ("fallback", {"rules": [SECRET]}),
        ("fallback", {"rules": [{"task": [SECRET], "result": 1}]}),
        ("fallback", {"rules": [{"error": {"name": SECRET}, "result": 1}]}),
        ("fallback", {"rules": [{"error": ["OSError", SECRET], "result": 1}]}),
        ("retry", {"errors": SECRET}),
        ("retry", {"errors": "OSError", "limit": SECRET}),
        ("retry", {"errors": "OSError", "delay": SECRET}),
    ],
)
def test_the_built_in_plugins_show_no_value_either(name, section):
    """Their errors name the key, the rule and the type."""
    settings = {"enable": [name], "plugin": {name: section}}

    with (
        pytest.raises(PluginError, match=f"plugin.{name}") as raised,
        QueueTasks("shop", discover=False, settings=settings),
    ):
        pass

    assert SECRET not in f"{raised.value} {raised.value.__cause__}"


def test_the_settings_own_text_has_no_sections():
    """Whoever logs them, or reads a traceback with locals, sees every key but that one."""
    app = QueueTasks("shop", discover=False, settings={"plugin": {"db": {"dsn": DSN}}})

    assert SECRET not in repr(app.plugins.loaded)
