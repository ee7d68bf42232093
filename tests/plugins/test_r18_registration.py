"""R18: all faults are told together, and nothing is registered by halves."""

from __future__ import annotations

import pickle
import re
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pluggy
import pytest

from qtasks_hookspecs import TaskFunc, blocking, hookimpl, hookspec
from qtasks_pluggy import BasePlugin, PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, PluginRegistrationError, TaskPluginTriggerError
from tests.runs import answering, failing, registration_error

TRIGGER = "task_executor_run_task_trigger_error"


def test_r18_all_faults_of_all_plugins_are_told_together(distributions):
    """Of each plugin each fault, whatever its kind, in one error."""
    distributions.add(
        "qtasks-one",
        {"one": "mod_1"},
        mod_1=f"""
        from qtasks_hookspecs import hookimpl

        @hookimpl
        def {TRIGGER}(error, *, task):
            yield 1

        @hookimpl
        def task_executor_closed():
            return 1

        def qtasks_start():
            return 1
        """,
    )
    distributions.add("qtasks-two", {"two": "mod_2"}, mod_2="raise OSError('no disk')")
    distributions.add("qtasks-three", {"three": "mod_3"}, mod_3="")
    distributions.add("qtasks-four", {"four": "mod_4"}, mod_4="")
    distributions.add("qtasks-five", {"four": "mod_5"}, mod_5="")
    distributions.answering("good")

    error = registration_error(QueueTasks("shop").__enter__)

    told = sorted(re.match(r"plugin '(\w+)'", problem)[1] for problem in error.problems)
    assert told == ["four", "one", "one", "one", "one", "one", "three", "two"]
    assert all("QTASKS_PLUGGY_DISABLE=" in problem for problem in error.problems)
    assert str(error).startswith("8 problems:\n- plugin ")


def test_r18_nothing_is_half_registered(distributions):
    """Beside a faulty plugin a good one is not registered either, nor asked, nor started."""
    distributions.add("qtasks-bad", {"bad": "mod"}, mod="")
    distributions.answering("good")
    app = QueueTasks("shop", plugins=[answering("app's", "mine")])

    registration_error(app.__enter__)

    assert [name for name, _ in app.plugins.list_name_plugin()] == ["mine"]
    with pytest.raises(PluginRegistrationError):
        app.task(len)("")


def test_r18_a_list_of_plugins_is_taken_whole_or_not_at_all():
    """Several that are given at once are checked before the first is registered."""
    good, bad, worse = answering(0, "good"), SimpleNamespace(name="bad"), SimpleNamespace()

    error = registration_error(PluginManager, [good, bad, worse])

    assert len(error.problems) == 2


def test_r18_a_manager_is_as_before_after_a_fault():
    """What was registered stays, and goes on being asked."""
    app = QueueTasks("shop", discover=False, plugins=[answering("saved", "good")])

    def fail():
        raise TaskPluginTriggerError

    task = app.task(fail)
    registration_error(app.add_plugin, SimpleNamespace(name="bad"))
    registration_error(app.add_plugin, answering(0, "good"))

    assert task() == "saved"
    assert app.add_plugin(answering("better", "bad")) == "bad"
    assert task() == "better"


def test_r18_each_disabled_plugin_is_one_fault_less(distributions, monkeypatch):
    """The settings that the faults name can be joined; then the rest is loaded."""
    distributions.add("qtasks-one", {"one": "mod_1"}, mod_1="")
    distributions.add("qtasks-two", {"two": "mod_2"}, mod_2="raise OSError")
    distributions.answering("good")

    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "one")
    (problem,) = registration_error(QueueTasks("shop").__enter__).problems
    assert "plugin 'two'" in problem

    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "one,two")
    with QueueTasks("shop") as app:
        names = distributions.own(name for name, _ in app.plugins.list_name_plugin())
    assert names == ["good"]


def test_r18_a_faulty_plugin_of_the_apps_own_can_be_switched_off(monkeypatch):
    """The remedy works for a plugin that is in the app's code, too."""
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "bad")
    app = QueueTasks("shop", discover=False, plugins=[SimpleNamespace(name="bad")])

    app.add_plugin(SimpleNamespace(), name="bad")

    with app:
        assert app.plugins.get_plugins() == set()


def test_r18_an_installed_plugin_that_fails_to_start(distributions, monkeypatch):
    """It is an error of another class, told by the same parts and with the same remedy."""
    distributions.add(
        "qtasks-x",
        {"x": "mod"},
        version="1.2.3",
        mod="""
        from qtasks_hookspecs import hookimpl

        @hookimpl
        def qtasks_start():
            raise OSError("no disk")
        """,
    )

    with pytest.raises(PluginError) as caught:
        QueueTasks("shop").__enter__()

    assert not isinstance(caught.value, PluginRegistrationError)
    for part in ("plugin 'x' (qtasks-x 1.2.3)", "'qtasks_start'", "OSError: no disk"):
        assert part in str(caught.value)
    assert "QTASKS_PLUGGY_DISABLE=x" in str(caught.value)
    monkeypatch.setenv("QTASKS_PLUGGY_DISABLE", "x")
    with QueueTasks("shop"):
        assert True


# --- what is no function of a module -----------------------------------------------------------


class Plugin:
    """A plugin that is an object."""

    @hookimpl
    def task_executor_task_close(self):
        """Do nothing."""


def test_r18_a_class_instead_of_an_instance():
    """It is refused with the remedy; only a ``BasePlugin`` subclass is instantiated."""
    message = str(registration_error(PluginManager, [Plugin]))

    for part in ("plugin 'Plugin'", "is the class Plugin", "add an instance, Plugin()"):
        assert part in message
    assert "QTASKS_PLUGGY_DISABLE=Plugin" in message
    assert PluginManager([Plugin()]).has_plugin("Plugin")


@pytest.mark.parametrize(
    "nothing",
    [None, object(), 3, "mod", [], {}, len, lambda: 1, ModuleType("mod"), mock.Mock()],
    ids=lambda one: type(one).__name__,
)
def test_r18_what_has_no_hookimpl(nothing):
    """Whatever is given, it is refused with a text, and not taken for an empty plugin."""
    assert "QTASKS_PLUGGY_DISABLE=" in str(registration_error(PluginManager, [nothing]))


def test_r18_an_unknown_trigger_of_a_base_plugin():
    """A key of ``handlers`` that is no hook is such a fault."""

    class Old(BasePlugin):
        handlers = {"task_executor_closed": None, "task_failed": None}  # noqa: RUF012  # as they do

    error = registration_error(PluginManager, [Old])

    assert len(error.problems) == 2
    for part in ("plugin 'Old'", "'task_executor_closed'", "'task_executor_task_close'"):
        assert part in error.problems[0]


def test_r18_a_name_that_is_taken():
    """Two plugins cannot have one name; the second is told who has it."""
    manager = PluginManager([answering(1, "x")])

    for wrong in (
        lambda: manager.register(answering(2, "x")),
        lambda: manager.register(Plugin(), "x"),
    ):
        message = str(registration_error(wrong))
        for part in ("plugin 'x'", "its name is taken by plugin 'x'", "another name="):
            assert part in message


def test_r18_a_plugin_that_is_registered_already():
    """One object is one plugin, whatever the second name."""
    plugin = Plugin()
    manager = PluginManager([plugin])

    for part in ("plugin 'other'", "'Plugin'", "once"):
        assert part in str(registration_error(manager.register, plugin, "other"))
    assert "is taken by plugin 'Plugin'" in str(registration_error(PluginManager, [plugin, plugin]))


def test_r18_optionalhook_stays_exempt():
    """A hookimpl for a hook that may not exist is no fault, and is not called."""

    class Optional(Plugin):
        @hookimpl(optionalhook=True)
        def task_executor_of_next_year(self, anything):
            raise AssertionError("called")

    assert TaskExecutor(lambda: 1, plugins=[Optional()]).execute_sync() == 1


@hookspec(lastresult=True)
def shop_reports(total: int) -> Any:
    """A hook of a host."""


HOST = SimpleNamespace(shop_reports=shop_reports)


def waiting(function, name="waits"):
    """Make a plugin whose hook may not exist yet."""
    return SimpleNamespace(name=name, shop_reports=hookimpl(optionalhook=True)(function))


def test_r18_a_hook_that_comes_later_adopts_who_waited_for_it():
    """A plugin may be there before the host's own hooks are, and is asked in its place."""
    manager = PluginManager([waiting(lambda total: total + 1), answering(1)])
    manager.add_hookspecs(HOST)
    manager.register(waiting(lambda: None, "late"))

    assert 6 == manager.hook.shop_reports(total=5)
    assert ["waits", "late"] == [
        impl.plugin_name for impl in manager.hook.shop_reports.get_hookimpls()
    ]
    manager.unregister(name="waits")
    assert manager.hook.shop_reports(total=5) is None
    with pytest.raises(ValueError, match="known already"):
        manager.add_hookspecs(HOST)


def test_r18_a_hook_that_comes_later_refuses_who_cannot_be_asked():
    """All faults come together, the hook is not added, and the plugins stay as they were."""
    manager = PluginManager([waiting(lambda summ, *, tax: 1), waiting(lambda total: total, "good")])

    error = registration_error(manager.add_hookspecs, HOST)

    assert 2 == len(error.problems)
    for part in ("plugin 'waits': hook 'shop_reports'", "'summ'", "the hook has total"):
        assert part in error.problems[0]
    manager.unregister(name="waits")
    manager.add_hookspecs(HOST)
    assert 5 == manager.hook.shop_reports(total=5)


@pytest.mark.parametrize("give", ["QueueTasks", "PluginManager", "TaskExecutor", "add_plugin"])
@pytest.mark.parametrize("target", ["mod", "mod:Space.plugin"])
def test_r18_a_plugin_may_be_given_by_name(give, target, distributions):
    """``"module"`` or ``"module:attribute"`` is imported, wherever plugins are given."""
    site = distributions.site()
    site.joinpath("mod.py").write_text(
        "from types import SimpleNamespace\n"
        "from qtasks_hookspecs import hookimpl\n"
        "@hookimpl\n"
        f"def {TRIGGER}():\n"
        "    return 7\n"
        "class Space:\n"
        f"    plugin = SimpleNamespace(name='inner', {TRIGGER}={TRIGGER})\n"
    )
    app = QueueTasks("shop", plugins=[target] if give == "QueueTasks" else [], discover=False)
    plugins = app.plugins
    if give == "add_plugin":
        assert ("inner" if ":" in target else "mod") == app.add_plugin(target)
    elif give != "QueueTasks":
        plugins = PluginManager([target]) if give == "PluginManager" else [target]
    task = TaskFunc("t", failing("function", TaskPluginTriggerError()))

    assert 7 == TaskExecutor(task, plugins=plugins).execute_sync()


@pytest.mark.parametrize("name", ["no_such_module", "json:no_such", "mod", "", "a b", "os:path:x"])
def test_r18_a_name_that_cannot_be_imported(name, distributions):
    """The error has the name, the reason, and what a name looks like."""
    distributions.site().joinpath("mod.py").write_text("raise OSError('no disk')")

    (problem,) = registration_error(PluginManager, [name]).problems

    assert f"{name!r} cannot be imported: " in problem
    assert "name 'module' or 'module:attribute'" in problem


@pytest.mark.parametrize(
    "one", [answering(1), "shop.plugins", SimpleNamespace, BasePlugin, 5, {}, None]
)
def test_r18_one_plugin_instead_of_several(one):
    """``plugins=`` takes several, and says so."""
    for give in (PluginManager, lambda plugins: QueueTasks("shop", plugins=plugins)):
        with pytest.raises(
            TypeError, match=r"plugins=: expected a list of plugins.*put it in \[\]"
        ):
            give(one)


def test_r18_two_of_one_class_in_a_list():
    """What the error advises can be done in a list: a ``.name`` of its own."""
    one, other = Plugin(), Plugin()

    assert ".name of its own" in str(registration_error(PluginManager, [one, other]))
    other.name = "other"
    assert 2 == len(PluginManager([one, other]).list_plugin_info())


def test_r18_optionalhook_alone_is_a_hookimpl():
    """A plugin of nothing but such hookimpls is none that forgot its marks."""

    class Optional:
        @hookimpl(optionalhook=True)
        def task_executor_of_next_year(self):
            """Do nothing."""

    assert PluginManager([Optional()]).has_plugin("Optional")


def test_r18_what_is_no_fault():
    """Static methods, class methods, defaults, keywords and other attributes are all right."""
    said = []

    class Fine:
        name = "fine"
        qtasks_limit = 3

        @property
        def broken(self):
            raise AssertionError("read")

        def helper(self):
            """Do nothing."""

        @staticmethod
        @hookimpl
        def task_executor_task_failed(e):
            said.append("failed")

        @classmethod
        @hookimpl
        def task_executor_task_close(cls, task_func, task_broker=None, *, task_executor):
            said.append(("close", task_func, task_broker, task_executor))

        @hookimpl
        @blocking
        def task_executor_run_task_trigger_error(self, e, **others):
            said.append(sorted(others))

    def fail():
        raise TaskPluginTriggerError

    executor = TaskExecutor(fail, plugins=[Fine()])
    with pytest.raises(TaskPluginTriggerError):
        executor.execute_sync()

    assert said[0] == ["task_broker", "task_executor", "task_func"]
    assert said[1] == "failed"
    assert said[2] == ("close", executor.task_func, executor.task_broker, executor)


def test_r18_pluggys_own_marker_serves():
    """A plugin may use nothing of ours but the project's name."""
    mark = pluggy.HookimplMarker("qtasks_pluggy")
    plugin = SimpleNamespace(name="bare", task_executor_run_task=mark(lambda result: result + 1))

    assert TaskExecutor(lambda: 1, plugins=[plugin]).execute_sync() == 2


def test_r18_problems_travel():
    """The error is whole after a trip to another process."""
    error = registration_error(
        PluginManager, [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    )
    other = pickle.loads(pickle.dumps(error))

    assert (other.problems, str(other)) == (error.problems, str(error))
