"""R18: an entry point may name a class or a function that makes the plugin, once for each app."""

from __future__ import annotations

import pytest

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import PluginManager, QueueTasks
from tests.runs import registration_error

COUNTING = """
    from qtasks_hookspecs import hookimpl

    made = []

    class Counter:
        name = "not this one"

        def __init__(self):
            made.append(self)
            self.errors = 0

        @hookimpl
        def qtasks_start(self, settings):
            self.begin = settings["begin"]

        @hookimpl
        def task_executor_run_task_trigger_error(self):
            self.errors += 1
            return self.begin + self.errors

    def make(verbose=False):
        return Counter()
    """


def fails(app: QueueTasks) -> int:
    """Run a failing task of an app; return what the plugin made of it."""
    task = app.tasks.get("fails") or app.task(name="fails", echo=True)(
        lambda self: self.ctx.plugin_error()
    )
    return task()


@pytest.mark.parametrize("target", ["mod:Counter", "mod:make"])
def test_r18_each_app_has_a_plugin_of_its_own(target, distributions):
    """Two apps of one process count apart, by their own settings, under the entry point's name."""
    distributions.add("qtasks-count", {"count": target}, mod=COUNTING)
    first, second = (
        QueueTasks(name, settings={"plugin": {"count": {"begin": begin}}})
        for name, begin in (("first", 10), ("second", 20))
    )

    with first, second:
        assert [11, 12, 21, 13] == [fails(app) for app in (first, first, second, first)]
        plugins = [app.plugins.get_plugin("count") for app in (first, second)]
    with first:
        assert 14 == fails(first)
    assert plugins == __import__("mod").made


def test_r18_a_factory_that_is_switched_off_is_not_called(distributions):
    """Nor is its module imported."""
    distributions.add("qtasks-x", {"x": "mod:make"}, mod="raise OSError")

    assert not PluginManager(discover=True, settings={"disable": ["x"]}).has_plugin("x")


BAD = """
    from qtasks_hookspecs import hookimpl

    class Needy:
        def __init__(self, url):
            pass

    def raises():
        raise OSError("no disk")

    def exits():
        raise SystemExit(3)

    def nothing():
        pass

    async def later():
        pass

    def needs(url):
        pass

    def useless():
        return object()

    @hookimpl
    def task_executor_task_close():
        pass
    """


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("raises", "raises() failed with OSError: no disk"),
        ("exits", "exits() failed with SystemExit: 3"),
        ("nothing", "nothing() returned None; return the plugin"),
        ("later", "later() is async; make the plugin in a plain function"),
        ("Needy", "Needy() failed with TypeError: "),
        ("needs", "is a function; a plugin is the module or the object"),
        ("task_executor_task_close", "is a function; a plugin is the module or the object"),
        ("useless", "object 'x' has no hookimpl"),
    ],
)
def test_r18_a_factory_that_makes_no_plugin_is_a_fault(target, says, distributions):
    """The error names plugin, distribution, what was called and what came of it, and the remedy."""
    distributions.add("qtasks-x", {"x": f"mod:{target}"}, mod=BAD, version="1.2.3")

    (problem,) = registration_error(QueueTasks("shop").__enter__).problems

    for part in ("plugin 'x' (qtasks-x 1.2.3)", says, "QTASKS_PLUGGY_DISABLE=x"):
        assert part in problem


def test_r18_what_the_app_gives_is_no_factory():
    """A class or a function in ``plugins=`` is a slip: the app can make the plugin itself."""

    class Plugin:
        @hookimpl
        def task_executor_task_close(self): ...

    for given in (Plugin, lambda: Plugin(), Plugin().task_executor_task_close):
        assert 1 == len(registration_error(PluginManager, [given]).problems)
