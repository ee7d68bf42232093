"""Settings: what the environment and the app say, who goes first, and what is refused."""

from __future__ import annotations

import os

import pytest

from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, SettingsError, TaskPluginTriggerError
from tests.runs import answering, failing, plugin


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """Leave nothing of the surroundings to be read: no variable, no file."""
    for variable in os.environ:
        if variable.startswith("QTASKS_PLUGGY_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def broken():
    """Make a plugin that fails when it is asked."""

    def fail():
        raise OSError("plugin")

    return plugin("broken", task_executor_run_task_trigger_error=fail)


def outcome(app):
    """Run a failing task of an app; return its result, or the class of its error."""
    name = f"task {len(app.tasks)}"
    try:
        return app.task(name=name)(failing("function", TaskPluginTriggerError()))()
    except (PluginError, TaskPluginTriggerError) as error:
        return type(error)


def shop(*plugins, **settings):
    """Make an app with these plugins and settings."""
    return QueueTasks("shop", discover=False, plugins=plugins, settings=settings)


# --- disable -----------------------------------------------------------------------------------


def test_disable_in_the_constructor():
    """A plugin of the app itself that is named is not asked."""
    app = shop(answering("one", "a"), answering("two", "b"), disable=["b"])

    assert outcome(app) == "one"


@pytest.mark.parametrize("text", ["b,c", " b , c ", "c,b,", "b,,c"])
def test_disable_in_the_environment(text, monkeypatch):
    """Names are separated by commas; spaces and empty places do not matter."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", text)

    assert outcome(shop(*(answering(name, name) for name in "abc"))) == "a"


def test_a_disabled_plugin_is_neither_started_nor_stopped():
    """It takes no part in anything."""
    said = []
    silent = plugin(
        "silent",
        qtasks_start=lambda: said.append("start"),
        qtasks_stop=lambda: said.append("stop"),
        task_executor_task_close=lambda: said.append("close"),
    )
    with shop(silent, disable=["silent"]) as app:
        app.task(len)("")

    assert said == []


def test_the_environment_goes_before_the_constructor(monkeypatch):
    """A list of the environment replaces the app's, and does not add to it."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "a")

    assert outcome(shop(answering("one", "a"), answering("two", "b"), disable=["b"])) == "two"


def test_an_empty_list_is_a_list(monkeypatch):
    """An empty variable switches nothing off, whatever the app says."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "")

    assert outcome(shop(answering("one", "a"), disable=["a"])) == "one"


# --- strict ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_strict_in_the_constructor(strict):
    """With it a plugin's failure is the caller's; without it the task's error goes on."""
    expected = PluginError if strict else TaskPluginTriggerError

    assert outcome(shop(broken(), strict=strict)) is expected


@pytest.mark.parametrize(
    ("text", "strict"),
    [("1", True), ("true", True), ("True", True), ("yes", True), ("0", False), ("no", False)],
)
def test_strict_in_the_environment(text, strict, monkeypatch):
    """It is read like any switch, and goes before the constructor."""
    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", text)
    expected = PluginError if strict else TaskPluginTriggerError

    assert outcome(shop(broken(), strict=not strict)) is expected


def test_strict_names_its_own_switch(monkeypatch):
    """The error says how to be rid of it, and that works."""
    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "true")
    app = shop(broken())

    with pytest.raises(PluginError, match="set QTASKS_PLUGGY_STRICT=false") as caught:
        app.task(failing("function", TaskPluginTriggerError()))()
    for part in ("plugin 'broken'", "task_executor_run_task_trigger_error", "OSError: plugin"):
        assert part in str(caught.value)

    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "false")
    assert outcome(shop(broken())) is TaskPluginTriggerError


# --- when they are read ------------------------------------------------------------------------


def test_the_environment_is_read_at_the_first_run(monkeypatch):
    """Not when the app is built, and not again at each run."""
    app = shop(answering("one", "a"))
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "a")

    assert outcome(app) is TaskPluginTriggerError

    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "")

    assert outcome(app) is TaskPluginTriggerError


def test_the_environment_is_read_at_each_start(monkeypatch):
    """An operator's change is taken with the next start, for plugins that are there already."""
    app = shop(answering("one", "a"))
    outcomes = []
    for text in ("a", "", "a"):
        monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", text)
        with app:
            outcomes.append(outcome(app))

    assert outcomes == [TaskPluginTriggerError, "one", TaskPluginTriggerError]


def test_an_executor_alone_reads_no_environment(monkeypatch):
    """``plugins=[...]`` of an executor is asked as it is: there is no app to be operated."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "a")
    executor = TaskExecutor(
        failing("function", TaskPluginTriggerError()), plugins=[answering("one", "a")]
    )

    assert executor.execute_sync() == "one"


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"), [("disabled", "disable"), ("strikt", "strict"), ("DISABLE", "disable")]
)
def test_an_unknown_key_is_refused_when_the_app_is_built(key, nearest):
    """The error names it, where it stands, and the nearest that there is."""
    for build in (shop, lambda **settings: PluginManager(settings=settings)):
        with pytest.raises(SettingsError) as caught:
            build(**{key: []})

        assert f"unknown key {key!r}" in str(caught.value)
        assert f"did you mean {nearest!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [("DISABLED", "DISABLE"), ("STRIKT", "STRICT"), ("NAME", "ENABLE")],
)
def test_an_unknown_variable_is_refused_at_the_start(variable, nearest, monkeypatch):
    """The whole prefix is ours, so a misspelt variable is an error that names the nearest."""
    monkeypatch.setenv(f"QTASKS_PLUGGY_{variable}", "x")
    app = shop()
    task = app.task(len)

    for begin in (app.__enter__, lambda: task("")):
        with pytest.raises(SettingsError) as caught:
            begin()

        assert f"QTASKS_PLUGGY_{variable}" in str(caught.value)
        assert f"did you mean QTASKS_PLUGGY_{nearest}?" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strict": "yes"}, "strict takes true or false, got 'yes'"),
        ({"strict": 1}, "strict takes true or false, got 1"),
        ({"disable": "a"}, "disable takes a list of plugin names, none twice, got 'a'"),
        ({"disable": ["a", 1]}, "disable takes a list of plugin names"),
        ({"disable": ["a", "a"]}, "disable takes a list of plugin names, none twice"),
        ({"disable": [""]}, "disable takes a list of plugin names"),
        ({"disable": None}, "disable takes a list of plugin names"),
    ],
)
def test_a_wrong_value_is_refused(settings, says):
    """The error names the key, what it takes, and what it got."""
    with pytest.raises(SettingsError) as caught:
        shop(**settings)

    assert says in str(caught.value)


def test_a_wrong_value_in_the_environment(monkeypatch):
    """The error names the variable, what it takes, and what it got."""
    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "perhaps")

    with pytest.raises(SettingsError, match="QTASKS_PLUGGY_STRICT: .*true or false.*'perhaps'"):
        shop().__enter__()


def test_an_app_starts_once_its_settings_are_mended(monkeypatch):
    """A start that settings keep from happening leaves nothing behind."""
    said = []
    app = shop(plugin("a", qtasks_start=lambda: said.append("start")))
    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "perhaps")
    with pytest.raises(SettingsError):
        app.__enter__()

    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "true")
    with app:
        pass

    assert said == ["start"]


def test_what_the_app_gave_cannot_be_changed_afterwards():
    """The settings are the app's own once it is built."""
    settings = {"disable": ["a"]}
    app = QueueTasks("shop", discover=False, plugins=[answering("one", "a")], settings=settings)
    settings["strict"] = "nonsense"

    assert outcome(app) is TaskPluginTriggerError
