"""R18: fault by fault, what is wrong with a plugin is told with who, where, what and a remedy."""

from __future__ import annotations

import importlib
import re
from textwrap import dedent

import pytest

from qtasks_pluggy import PluginManager, QueueTasks
from tests.runs import registration_error

TRIGGER = "task_executor_run_task_trigger_error"

HEAD = """
    from types import SimpleNamespace
    from qtasks_hookspecs import blocking, hookimpl, when
    from qtasks_pluggy import BasePlugin
    name = "x"
    """

# A module that a plugin author could write, and what the error has to say of it.
FAULTS = {
    "unknown hook": (
        """
        @hookimpl
        def task_executor_run_task_triger_error(e):
            return 1
        """,
        ["'task_executor_run_task_triger_error'", f"did you mean {TRIGGER!r}?"],
    ),
    "unknown hook by specname": (
        """
        @hookimpl(specname="task_executor_closed")
        def mine():
            return 1
        """,
        ["'task_executor_closed'", "did you mean 'task_executor_task_close'?"],
    ),
    "a hook's name without the mark": (
        """
        def task_executor_task_close():
            return 1

        @hookimpl
        def task_executor_task_failed():
            return 1
        """,
        ["'task_executor_task_close'", "not marked", "@hookimpl"],
    ),
    "only a hook's name without the mark": (
        """
        def task_executor_task_close():
            return 1
        """,
        ["'task_executor_task_close'", "not marked", "@hookimpl"],
    ),
    "no hookimpl": ("def helper():\n            return 1", ["no hookimpl", "@hookimpl"]),
    "an empty module": ("", ["no hookimpl", "@hookimpl"]),
    "the mark of another project": (
        """
        import pluggy

        @pluggy.HookimplMarker("qtasks")
        def task_executor_task_close():
            return 1
        """,
        ["'task_executor_task_close'", "not marked", "@hookimpl"],
    ),
    "one function under two names": (
        """
        @hookimpl
        def task_executor_task_close():
            return 1

        task_executor_task_failed = task_executor_task_close
        """,
        ["one function", "'task_executor_task_close'", "'task_executor_task_failed'"],
    ),
    "wrong parameter": (
        f"""
        @hookimpl
        def {TRIGGER}(error):
            return 1
        """,
        [TRIGGER, "'error'", "e, task_broker, task_executor, task_func"],
    ),
    "wrong parameter by keyword": (
        """
        @hookimpl
        def task_executor_task_close(*, task_exectuor):
            return 1
        """,
        ["task_executor_task_close", "'task_exectuor'", "task_broker, task_executor, task_func"],
    ),
    "wrong parameter with a default": (
        """
        @hookimpl
        def task_executor_task_close(retries=3):
            return 1
        """,
        ["task_executor_task_close", "'retries'"],
    ),
    "another hook's parameter": (
        """
        @hookimpl
        def task_executor_task_close(e):
            return 1
        """,
        ["task_executor_task_close", "'e'", "task_broker, task_executor, task_func"],
    ),
    "parameters by star": (
        """
        @hookimpl
        def task_executor_task_close(*args):
            return 1
        """,
        ["task_executor_task_close", "'*args'"],
    ),
    "a generator without wrapper=True": (
        f"""
        @hookimpl
        def {TRIGGER}():
            yield 1
        """,
        [TRIGGER, "generator", "wrapper=True"],
    ),
    "an async generator": (
        f"""
        @hookimpl
        async def {TRIGGER}():
            yield 1
        """,
        [TRIGGER, "async generator", "plain generator"],
    ),
    "an async wrapper": (
        f"""
        @hookimpl(wrapper=True)
        async def {TRIGGER}():
            yield 1
        """,
        [TRIGGER, "async generator", "plain generator"],
    ),
    "wrapper=True without a yield": (
        f"""
        @hookimpl(wrapper=True)
        def {TRIGGER}():
            return 1
        """,
        [TRIGGER, "wrapper=True", "yield"],
    ),
    "pluggy's old kind of wrapper": (
        f"""
        @hookimpl(hookwrapper=True)
        def {TRIGGER}():
            yield
        """,
        [TRIGGER, "hookwrapper=True", "wrapper=True"],
    ),
    "a blocking wrapper": (
        f"""
        @blocking
        @hookimpl(wrapper=True)
        def {TRIGGER}():
            yield
        """,
        [TRIGGER, "@blocking"],
    ),
    "a blocking coroutine": (
        f"""
        @hookimpl
        @blocking
        async def {TRIGGER}():
            return 1
        """,
        [TRIGGER, "@blocking", "async"],
    ),
    "something marked that is no function": (
        f"""
        class Callable:
            def __call__(self):
                return 1

        {TRIGGER} = hookimpl(Callable())
        """,
        [TRIGGER, "Callable", "mark a function"],
    ),
}
every_fault = pytest.mark.parametrize("fault", FAULTS)


def module_of(source, distributions):
    """Import a plugin's module as an app does, without installing it."""
    distributions.site().joinpath("mod.py").write_text(with_head(source), "utf-8")
    importlib.invalidate_caches()
    return importlib.import_module("mod")


def with_head(source):
    """Put the imports in front of a module's source."""
    return dedent(HEAD) + dedent(source)


@every_fault
def test_r18_a_fault_of_an_installed_plugin(fault, distributions, monkeypatch):
    """The error at the start says who, where and what, and the remedy that it names works."""
    source, parts = FAULTS[fault]
    distributions.add("qtasks-x", {"x": "mod"}, mod=with_head(source), version="1.2.3")
    app = QueueTasks("shop")

    error = registration_error(app.__enter__)

    assert len(error.problems) == 1
    for part in ("plugin 'x'", "qtasks-x 1.2.3", *parts):
        assert part in str(error)
    assert registration_error(app.task(len), "").problems == error.problems
    variable, value = re.search(r"(QTASKS_PLUGGY_\w+)=([\w.-]+)", str(error)).groups()
    monkeypatch.setenv(variable, value)
    with app:
        assert not app.plugins.has_plugin("x")


@every_fault
@pytest.mark.parametrize("where", ["add_plugin", "QueueTasks", "PluginManager", "register"])
def test_r18_a_fault_of_a_plugin_that_the_app_adds(fault, where, distributions):
    """It is told at once, wherever the plugin is given, and the plugin is not registered."""
    source, parts = FAULTS[fault]
    plugin = module_of(source, distributions)
    manager, app = PluginManager(), QueueTasks("shop", discover=False)
    give = {
        "add_plugin": app.add_plugin,
        "QueueTasks": lambda one: QueueTasks("other", plugins=[one]),
        "PluginManager": lambda one: PluginManager([one]),
        "register": manager.register,
    }[where]

    error = registration_error(give, plugin)

    for part in ("plugin 'x'", "QTASKS_PLUGGY_DISABLE=x", *parts):
        assert part in str(error)
    for one in (manager, app.plugins):
        assert one.get_plugins() == set()
        assert all(not hook.get_hookimpls() for hook in vars(one.hook).values())


@pytest.mark.parametrize("error", ["OSError('no disk')", "SystemExit('bye')", "KeyError('k')"])
def test_r18_an_entry_point_that_fails_to_import(error, distributions):
    """Whatever its module raises, the error says so, with the entry point."""
    distributions.add("qtasks-x", {"x": "mod"}, mod=f"raise {error}", version="1.2.3")

    message = str(registration_error(QueueTasks("shop").__enter__))

    for part in ("plugin 'x'", "qtasks-x 1.2.3", "'mod'", *re.findall(r"\w+", error)):
        assert part in message
    assert "QTASKS_PLUGGY_DISABLE=x" in message


BAD_TEXT = """
class Unspeakable(Exception):
    def __str__(self):
        raise ZeroDivisionError

"""


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("mod", "raise Unspeakable"),
        (
            "mod:Plugin",
            """
            from qtasks_pluggy import BasePlugin

            class Plugin(BasePlugin):
                def __init__(self):
                    raise Unspeakable
            """,
        ),
    ],
    ids=["import", "constructor"],
)
def test_r18_an_error_that_has_no_text(target, source, distributions):
    """A plugin whose own error cannot even be shown is told of like the others."""
    distributions.add("qtasks-x", {"x": target}, mod=BAD_TEXT + dedent(source), version="1.2.3")

    message = str(registration_error(QueueTasks("shop").__enter__))

    for part in ("plugin 'x'", "qtasks-x 1.2.3", "Unspeakable", "__str__", "ZeroDivisionError"):
        assert part in message


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere", "ModuleNotFoundError"),
        ("mod.sub", "ModuleNotFoundError"),
        ("mod:nothing", "AttributeError"),
        ("mod:nothing.at.all", "AttributeError"),
        ("mod:none", "None"),
        ("no module!", "'no module!'"),
        ("mod:", "'mod:'"),
    ],
)
def test_r18_an_entry_point_that_leads_nowhere(target, says, distributions):
    """A module or an attribute that is not there is such a failure."""
    distributions.add("qtasks-x", {"x": target}, mod="none = None")

    message = str(registration_error(QueueTasks("shop").__enter__))

    for part in ("plugin 'x'", "qtasks-x 1.0", says, "QTASKS_PLUGGY_DISABLE=x"):
        assert part in message


def test_r18_entry_points_that_cannot_be_read(distributions):
    """Where the file itself is broken, the error names its distribution, and that is all."""
    distributions.add("qtasks-x", "[qtasks_pluggy]\nx : mod\n", version="1.2.3")
    distributions.answering("good")

    assert "qtasks-x 1.2.3" in str(registration_error(QueueTasks("shop").__enter__))


def test_r18_an_import_that_is_interrupted(distributions):
    """Ctrl-C while plugins are imported is no fault of a plugin."""
    distributions.add("qtasks-x", {"x": "mod"}, mod="raise KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt):
        QueueTasks("shop").__enter__()
