"""Installed plugins: found by their entry points, loaded at the start or the first run."""

from __future__ import annotations

import sys
import threading

import pytest

from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginRegistrationError, TaskPluginTriggerError
from tests.runs import answering

SILENT = """
    from qtasks_hookspecs import hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error():
        return None
    """


def fail():
    """Do what a task does that asks plugins."""
    raise TaskPluginTriggerError("no")


def asked(plugins, distributions):
    """Run a failing task; return who was asked, in order."""
    executor = TaskExecutor(fail, plugins=plugins)
    try:
        executor.execute_sync()
    except TaskPluginTriggerError:
        pass
    return distributions.own(record.plugin for record in executor.trail)


def outcome(app):
    """Run a failing task of an app; return the answer, or its error."""
    try:
        return app.task(name=f"task {len(app.tasks)}")(fail)()
    except TaskPluginTriggerError as error:
        return str(error)


def test_an_installed_plugin_answers(distributions):
    """A module that an entry point names is asked, without a word in the app's code."""
    distributions.answering("prices", 123)

    assert outcome(QueueTasks("shop")) == 123


@pytest.mark.parametrize("target", ["mod:plugin", "mod:Space.plugin", "mod:Old", "mod:old", "mod"])
def test_what_an_entry_point_may_name(target, distributions):
    """A module, an object in one, a ``BasePlugin`` or a subclass of it."""
    distributions.add(
        "qtasks-x",
        {"x": target},
        mod="""
        from types import SimpleNamespace
        from qtasks_hookspecs import hookimpl
        from qtasks_pluggy import BasePlugin

        @hookimpl
        def task_executor_run_task_trigger_error():
            return "saved"

        hooks = {"task_executor_run_task_trigger_error": task_executor_run_task_trigger_error}
        plugin = SimpleNamespace(**hooks)

        class Space:
            plugin = SimpleNamespace(**hooks)

        class Old(BasePlugin):
            def trigger(self, name, **kwargs):
                return "saved" if name.endswith("trigger_error") else None

        old = Old("its own name")
        """,
    )
    manager = PluginManager(discover=True)
    executor = TaskExecutor(fail, plugins=manager)

    assert executor.execute_sync() == "saved"
    (record,) = [one for one in executor.trail if one.won]
    assert (record.plugin, record.distribution, record.version) == ("x", "qtasks-x", "1.0")


def test_a_plugin_is_named_after_its_entry_point(distributions):
    """Not after its module, nor after a name of its own."""
    distributions.add("qtasks-x", {"the-name": "mod"}, mod=f"{SILENT}\n    name = 'other'\n")
    manager = PluginManager(discover=True)

    assert distributions.own(name for name, _ in manager.list_name_plugin()) == ["the-name"]
    assert manager.has_plugin("the-name")


def test_one_distribution_may_have_several_plugins(distributions):
    """Each entry point is a plugin, which can be switched off alone."""
    distributions.add(
        "qtasks-x", {"a": "mod_a", "b": "mod_b"}, mod_a=SILENT, mod_b=SILENT, version="2.5"
    )

    assert asked(PluginManager(discover=True), distributions) == ["a", "b"]
    only_b = PluginManager(discover=True, settings={"disable": ["a"]})
    assert asked(only_b, distributions) == ["b"]


def test_installed_plugins_are_asked_by_name_and_before_the_apps(distributions):
    """Sorted by entry point name, however they are installed; what the app adds comes last."""
    for name in ("b", "c", "a"):
        distributions.answering(name, None)
    app = QueueTasks("shop", plugins=[answering(None, "0 given")])
    app.add_plugin(answering(None, "0 added"))
    with app:
        app.add_plugin(answering(None, "0 late"))
        order = asked(app.plugins, distributions)

    assert order == ["a", "b", "c", "0 given", "0 added", "0 late"]


def test_the_app_overrides_what_pip_installed(distributions):
    """Of an installed and an added plugin, the added one has the last word."""
    distributions.answering("prices", "installed")

    assert outcome(QueueTasks("shop", plugins=[answering("added")])) == "added"


# --- when --------------------------------------------------------------------------------------


def test_building_an_app_imports_nothing(distributions):
    """Discovery happens at the start or the first run, never when the app object is built."""
    distributions.answering("prices")
    app = QueueTasks("shop")
    app.task(len)

    assert "prices_plugin" not in sys.modules

    app.tasks["len"]("")

    assert "prices_plugin" in sys.modules


def test_starting_an_app_imports_before_its_body(distributions):
    """So that a plugin that cannot be loaded is found before any work is done."""
    distributions.add(
        "qtasks-x",
        {"x": "mod"},
        mod="""
        from qtasks_hookspecs import hookimpl
        said = []

        @hookimpl
        def qtasks_start():
            said.append("start")

        @hookimpl
        def qtasks_stop():
            said.append("stop")
        """,
    )
    with QueueTasks("shop"):
        said = sys.modules["mod"].said
        said.append("body")

    assert said == ["start", "body", "stop"]


def test_discover_false_imports_nothing(distributions):
    """An app, a manager and an executor that do not discover leave installed plugins alone."""
    distributions.answering("prices")

    app = QueueTasks("shop", discover=False)
    assert outcome(app) == "no"
    with app:
        assert outcome(app) == "no"
    with pytest.raises(TaskPluginTriggerError):
        TaskExecutor(fail, plugins=[]).execute_sync()
    PluginManager()
    assert "prices_plugin" not in sys.modules


def test_it_is_done_once(distributions):
    """What is installed while the app runs, or before it starts again, is for the next app."""
    distributions.answering("a", 1)
    app = QueueTasks("shop")

    assert outcome(app) == 1

    distributions.answering("b", 2)
    for _ in range(2):
        with app:
            assert outcome(app) == 1
    assert outcome(QueueTasks("shop")) == 2


COUNTING = """
    import time
    from qtasks_hookspecs import hookimpl
    from counted import imports

    imports.append(1)
    time.sleep(0.05)  # long enough for every thread to come by

    @hookimpl
    def task_executor_run_task_trigger_error():
        return "saved"
    """


def test_threads_that_do_the_first_run_at_once(distributions):
    """One of them discovers and the others wait for it: all are answered, none twice."""
    distributions.add("qtasks-x", {"x": "mod"}, counted="imports = []", mod=COUNTING)
    app = QueueTasks("shop")
    task = app.task(fail)
    together, results = threading.Barrier(8), []

    def first_run():
        together.wait(10)
        results.append(task())

    threads = [threading.Thread(target=first_run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert results == ["saved"] * 8
    assert sys.modules["counted"].imports == [1]
    assert asked(app.plugins, distributions) == ["x"]


def test_a_first_run_that_cannot_load_runs_nothing(distributions):
    """The error comes instead of the run, each time, until the plugin is mended."""
    distributions.add("qtasks-x", {"x": "mod"}, mod="raise OSError('broken')")
    ran = []
    app = QueueTasks("shop")
    task = app.task(lambda: ran.append(1))

    for _ in range(2):
        with pytest.raises(PluginRegistrationError, match="OSError: broken"):
            task()
        with pytest.raises(PluginRegistrationError, match="OSError: broken"):
            app.__enter__()
    assert ran == []

    distributions.mend("mod", SILENT)
    task()
    with app:
        task()
    assert ran == [1, 1]
    assert asked(app.plugins, distributions) == ["x"]


def test_single_variables_reach_an_installed_plugin(distributions, monkeypatch):
    """Its name is known once it is loaded, and so are its settings, also without an app."""
    distributions.add("qtasks-x", {"next-rate": "mod"}, mod=SILENT)
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_NEXT_RATE_TOKEN", "t")

    manager = PluginManager(discover=True)

    assert {"next-rate": {"token": "t"}} == manager.settings.plugin
    assert [] == manager.dead_settings()


# --- what is switched off ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["environment", "constructor"])
def test_a_disabled_plugin_is_not_imported(where, distributions, monkeypatch):
    """Its module is never looked at, however broken it is; the others are loaded."""
    source = "import imported_by_mod\nraise SystemExit('not to be imported')"
    distributions.add("qtasks-x", {"x": "mod"}, mod=source, imported_by_mod="")
    distributions.answering("prices")
    settings = {}
    if where == "environment":
        monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "x")
    else:
        settings = {"disable": ["x"]}

    assert outcome(QueueTasks("shop", settings=settings)) == "saved"
    assert "imported_by_mod" not in sys.modules


def test_disable_is_read_when_it_matters(distributions, monkeypatch):
    """At the start or the first run: not when the app is built."""
    distributions.answering("prices")
    app = QueueTasks("shop")
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "prices")

    assert outcome(app) == "no"
    assert "prices_plugin" not in sys.modules


def test_disabling_a_plugin_of_a_running_program(distributions, monkeypatch):
    """With the next start a plugin that had been loaded is not asked any more."""
    distributions.answering("prices")
    app = QueueTasks("shop")
    outcomes = []
    for text in ("", "prices", ""):
        monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", text)
        with app:
            outcomes.append(outcome(app))

    assert outcomes == ["saved", "no", "saved"]
    assert 1 == [one.name for one in app.plugins.list_plugin_info()].count("prices")


def test_a_removed_plugin_stays_away(distributions):
    """``remove_plugin`` works for installed ones, and the next start does not bring it back."""
    distributions.answering("prices")
    app = QueueTasks("shop")

    assert outcome(app) == "saved"
    app.remove_plugin("prices")
    assert outcome(app) == "no"
    with app:
        assert outcome(app) == "no"


# --- who claims what ---------------------------------------------------------------------------


def test_two_distributions_with_one_name(distributions):
    """Neither is loaded; the error names both, with their versions, and what to do."""
    distributions.add("qtasks-one", {"x": "mod_1"}, mod_1=SILENT, version="1.2")
    distributions.add("qtasks-two", {"x": "mod_2"}, mod_2=SILENT, version="3.4")

    with pytest.raises(PluginRegistrationError) as caught:
        PluginManager(discover=True)

    for part in ("'x'", "qtasks-one 1.2", "qtasks-two 3.4", "QTASKS_PLUGGY_DISABLE=x"):
        assert part in str(caught.value)
    assert not {"mod_1", "mod_2"} & set(sys.modules)


def test_two_distributions_that_name_one_object(distributions):
    """It is the name that is claimed twice, even where both mean the same."""
    distributions.add("qtasks-one", {"x": "mod"}, mod=SILENT)
    distributions.add("qtasks-two", {"x": "mod"})

    with pytest.raises(PluginRegistrationError, match="both claim this name"):
        PluginManager(discover=True)


@pytest.mark.parametrize("spelling", ["qtasks-prices", "qtasks_prices", "Qtasks.Prices"])
def test_a_distribution_that_is_found_twice_is_one(spelling, distributions):
    """One that stands twice on the import path counts once, as the one that is imported."""
    distributions.answering("prices", "behind", version="1.0", site="behind")
    distributions.add(
        spelling,
        {"prices": "prices_plugin"},
        version="2.0",
        site="in_front",
        prices_plugin=SILENT.replace("None", "'in front'"),
    )
    executor = TaskExecutor(fail, plugins=PluginManager(discover=True))

    assert executor.execute_sync() == "in front"
    (record,) = [one for one in executor.trail if one.won]
    assert (record.distribution, record.version) == (spelling, "2.0")


def test_an_entry_point_that_is_written_twice_is_one(distributions):
    """Identical lines are one plugin."""
    distributions.add("qtasks-x", "[qtasks_pluggy]\nx = mod\nx = mod\n", mod=SILENT)

    assert asked(PluginManager(discover=True), distributions) == ["x"]


def test_one_name_for_two_objects_of_one_distribution(distributions):
    """Lines that differ are a fault of it."""
    distributions.add(
        "qtasks-x", "[qtasks_pluggy]\nx = mod_1\nx = mod_2\n", mod_1=SILENT, mod_2=SILENT
    )

    with pytest.raises(PluginRegistrationError, match="plugin 'x'.*qtasks-x 1.0"):
        PluginManager(discover=True)


def test_one_module_under_two_names(distributions):
    """A module can be one plugin only: the second name is refused, and both are told."""
    distributions.add("qtasks-x", {"a": "mod", "b": "mod"}, mod=SILENT)
    manager = PluginManager()

    with pytest.raises(PluginRegistrationError) as caught:
        manager.discover()

    for part in ("plugin 'b' (qtasks-x 1.0)", "'a'", "QTASKS_PLUGGY_DISABLE=b"):
        assert part in str(caught.value)
    assert not manager.has_plugin("a")


def test_an_installed_name_that_the_app_has_taken(distributions):
    """The error names both, and giving the app's another name is the remedy."""
    distributions.answering("prices")
    with pytest.raises(PluginRegistrationError) as caught:
        outcome(QueueTasks("shop", plugins=[answering(1, "prices")]))

    for part in ("qtasks-prices 1.0", "is taken by plugin 'prices'", "name="):
        assert part in str(caught.value)


def test_other_groups_are_other_peoples(distributions):
    """Entry points of another group are not looked at."""
    distributions.add("qtasks-x", "[qtasks]\nx = mod\n[pytest11]\ny = mod\n", mod="raise OSError")

    assert asked(PluginManager(discover=True), distributions) == []
