"""Plugins are told apart by what they are, whatever they make of ``==``, ``bool`` and ``dir``."""

from __future__ import annotations

import dataclasses

import pytest

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import BasePlugin, PluginManager, QueueTasks
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, failing, registration_error


@dataclasses.dataclass
class Equal:
    """A plugin that equals every other of its kind."""

    answer: int = dataclasses.field(compare=False)

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        """Answer."""
        return self.answer

    @hookimpl(optionalhook=True)
    def task_executor_of_next_year(self):
        """Wait for the hook to come."""


class Incomparable(Equal):
    """A plugin that cannot be compared with anything."""

    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


class Falsy(Equal):
    """A plugin that counts as nothing, like an empty collection; pluggy 1.6 keeps its name."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __len__(self):
        return 0


every_class = pytest.mark.parametrize("cls", [Equal, Incomparable, Falsy])


def asked(manager):
    """Return the winning answer to an error, or None."""
    app = QueueTasks("shop", discover=False)
    app.plugins = manager
    try:
        return app.task(failing("function", TaskPluginTriggerError("no")))()
    except TaskPluginTriggerError:
        return None


@every_class
def test_two_plugins_that_are_equal_are_two(cls):
    """Both are registered, each has its name, and the last one wins."""
    first, last, other = cls(1), cls(2), cls(3)
    manager = PluginManager([first])

    assert "last" == manager.register(last, "last")
    assert [cls.__name__, "last", None] == [manager.get_name(one) for one in (first, last, other)]
    assert [True, True, False] == [manager.is_registered(one) for one in (first, last, other)]
    assert 2 == asked(manager)


@every_class
@pytest.mark.parametrize("how", ["plugin", "name"])
def test_of_two_plugins_that_are_equal_the_right_one_goes(cls, how):
    """The other stays with its hookimpls, in whatever order they came, and the name is free."""
    for gone in (0, 1):
        plugins, names = [cls(1), cls(2)], ["first", "last"]
        manager = PluginManager()
        for plugin, name in zip(plugins, names, strict=True):
            manager.register(plugin, name)

        given = plugins[gone] if how == "plugin" else names[gone]
        assert manager.unregister(**{how: given}) is plugins[gone]

        assert plugins[1 - gone].answer == asked(manager)
        assert manager.get_name(plugins[gone]) is None
        assert not manager.has_plugin(names[gone])
        assert names[gone] == manager.register(plugins[gone], names[gone])
        assert plugins[gone].answer == asked(manager)


@every_class
def test_a_plugin_that_is_registered_already_is_still_found(cls):
    """The same one under another name is refused, as for any plugin."""
    plugin = cls(1)
    manager = PluginManager([cls(0)])
    manager.register(plugin, "first")

    assert "registered already, as 'first'" in str(
        registration_error(manager.register, plugin, "second")
    )


def test_a_base_plugin_that_is_registered_already():
    """It is found through its adapter, by itself and for a second registration."""
    plugin = BasePlugin("mine")
    manager = PluginManager([plugin])

    assert "mine" == manager.get_name(plugin)
    assert "registered already, as 'mine'" in str(
        registration_error(manager.register, plugin, "second")
    )


class Nameless:
    """A plugin whose name cannot be read."""

    @property
    def name(self):
        raise LookupError("no name yet")

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        return 1


class Opaque:
    """A plugin that cannot be looked into."""

    name = "opaque"

    def __dir__(self):
        raise LookupError("nothing to see")


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (Nameless, ["plugin 'Nameless'", "its name", "LookupError: no name yet", "name="]),
        (Opaque, ["plugin 'opaque'", "inspecting it", "LookupError: nothing to see"]),
    ],
)
def test_a_plugin_that_fails_when_it_is_looked_at(cls, says):
    """It is a fault like any other: with who and what, told with the faults of the rest."""
    for give in (
        lambda: PluginManager([cls(), object()]),
        lambda: QueueTasks("shop", discover=False).add_plugin(cls()),
    ):
        error = registration_error(give)
        told = [one for one in error.problems if says[0] in one]
        assert 1 == len(told)
        assert all(part in told[0] for part in (*says, "QTASKS_PLUGGY_DISABLE="))

    assert 2 == len(registration_error(PluginManager, [cls(), object()]).problems)


def test_a_plugin_whose_name_cannot_be_read_takes_one():
    """With a ``name=`` nobody reads its own."""
    manager = PluginManager()

    assert "fine" == manager.register(Nameless(), "fine")
    assert 1 == asked(manager)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"plugin": "pries"}, ["'pries' is not registered", "name='prices'"]),
        ({"plugin": "prices"}, ["'prices' is not registered", "name='prices'"]),
        ({"plugin": Nameless()}, ["'Nameless' is not registered", "name='prices'"]),
        ({"plugin": Nameless(), "name": "stok"}, ["'stok' is not registered", "name='stock'"]),
    ],
)
def test_unregistering_what_is_not_registered(call, says):
    """A name that is given for a plugin, or one that is not there: the nearest is named."""
    manager = PluginManager([answering(1, "prices"), answering(2, "stock")])

    message = str(registration_error(manager.unregister, **call))

    assert all(part in message for part in says)
    assert "there are no plugins" in str(registration_error(PluginManager().unregister, **call))


def test_unregistering_under_the_wrong_name():
    """A plugin and the name of another do not go together, and neither goes."""
    prices, stock = answering(1, "prices"), answering(2, "stock")
    manager = PluginManager([prices, stock])

    error = registration_error(manager.unregister, prices, "stock")

    assert "plugin 'prices' cannot be unregistered as 'stock'" in str(error)
    assert 2 == asked(manager)
    assert manager.unregister(prices, "prices") is prices


def test_unregistering_a_name_that_nobody_has():
    """By name it is no error, as in pluggy: whoever blocks a name need not know who has it."""
    manager = PluginManager()

    assert manager.unregister(name="nobody") is None
    manager.set_blocked("nobody")
    assert manager.unregister(name="nobody") is None
    assert manager.is_blocked("nobody")
    with pytest.raises(TypeError, match="a plugin or a name="):
        manager.unregister()
