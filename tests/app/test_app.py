"""``QueueTasks`` and its plugins: adding them, removing them, whose they are."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import PluginManager, QueueTasks
from qtasks_pluggy.exc import PluginRegistrationError, TaskPluginTriggerError
from tests.runs import answering, failing, plugin


def app_with(*plugins, **options):
    """Make an app with nothing but these plugins."""
    return QueueTasks("shop", discover=False, plugins=plugins, **options)


def phases(name, said):
    """Make a plugin that writes down when it is started and stopped."""
    return plugin(
        name,
        qtasks_start=lambda: said.append(f"{name} start"),
        qtasks_stop=lambda: said.append(f"{name} stop"),
    )


@pytest.mark.parametrize("given", [answering(1, "p"), f"{__name__}:BLOCKED"])
def test_add_plugin_refuses_a_blocked_name(given, monkeypatch):
    """What is not registered is not said to be."""
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(BLOCKED=answering(1, "p")))
    app = app_with()
    app.plugins.set_blocked("p")

    with pytest.raises(PluginRegistrationError, match=r"plugin 'p' is blocked.*unblock\('p'\)"):
        app.add_plugin(given)

    app.plugins.unblock("p")
    assert "p" == app.add_plugin(given)


def test_add_plugin_has_the_last_word():
    """A plugin that is added comes behind those that are there, and says under which name."""
    app = app_with(answering("first", "one"))
    task = app.task(failing("function", _trigger()))

    assert app.add_plugin(answering("second", "two")) == "two"
    assert app.add_plugin(answering("third"), "three") == "three"
    assert app.add_plugin(SimpleNamespace(qtasks_stop=hookimpl(lambda: None))) == "SimpleNamespace"
    assert task() == "third"

    app.remove_plugin("three")
    assert task() == "second"


@pytest.mark.parametrize("faulty", [True, False])
def test_add_plugin_names_one_that_is_switched_off(faulty):
    """A plugin that the settings disable has a name all the same, faulty or not."""
    app = app_with(settings={"disable": ["off"]})
    off = SimpleNamespace(name="off") if faulty else answering(1, "off")

    assert app.add_plugin(off) == "off"


def test_a_plugin_added_to_a_started_app_is_asked_but_not_started():
    """``qtasks_start`` is called when the app starts, and at no other time."""
    said = []
    with app_with() as app:
        task = app.task(failing("function", _trigger()))
        late = phases("late", said)
        late.task_executor_run_task_trigger_error = hookimpl(lambda: "saved")
        app.add_plugin(late)

        assert task() == "saved"
        assert said == []


def test_a_removed_plugin_is_not_stopped():
    """What is gone is not called any more."""
    said = []
    with app_with(phases("a", said), phases("b", said)) as app:
        app.remove_plugin("a")

    assert said == ["a start", "b start", "b stop"]


def test_removing_what_is_not_there():
    """The error names the nearest plugin that is."""
    app = app_with(answering(0, "fallback"), answering(0, "pager"))

    with pytest.raises(PluginRegistrationError, match="'falback'; did you mean 'fallback'?"):
        app.remove_plugin("falback")
    with pytest.raises(PluginRegistrationError, match="there are no plugins"):
        app_with().remove_plugin("any")


def test_plugins_is_the_apps_own_manager():
    """``app.plugins`` is a ``PluginManager``, and two apps share nothing."""
    one, other = app_with(answering("one")), app_with()
    tasks = [app.task(failing("function", _trigger())) for app in (one, other)]

    assert isinstance(one.plugins, PluginManager)
    assert one.plugins is not other.plugins
    assert tasks[0]() == "one"
    with pytest.raises(TaskPluginTriggerError):
        tasks[1]()


def test_one_plugin_may_serve_two_apps():
    """The object is the plugin's own; each app has its own place for it."""
    shared = answering("saved")
    apps = [app_with(shared), app_with(shared)]
    apps[0].remove_plugin("answering")

    assert apps[1].task(failing("function", _trigger()))() == "saved"


def test_repr_says_how_far_the_app_is():
    """A person sees the name, the state and the number of tasks."""
    app = app_with()
    app.task(print)

    assert repr(app) == "<QueueTasks 'shop', not started, 1 tasks>"
    with app:
        assert "started" in repr(app)
    assert "stopped" in repr(app)


def _trigger():
    return TaskPluginTriggerError("no")
