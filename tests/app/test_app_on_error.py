"""``app.on_error``: a handler of the app's own, each a plugin with the name of its function."""

from __future__ import annotations

import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from qtasks_pluggy.testing import run_with
from tests.runs import both_ways, failing


def names(app):
    """Return the names of the app's plugins."""
    return [name for name, _ in app.plugins.list_name_plugin()]


@both_ways
def test_naming_a_class_is_consent(run):
    """A handler is asked about what it names where ``intercept`` says nothing."""
    app = QueueTasks("shop", discover=False)

    @app.task
    def price(sku):
        return {"tea": 3}[sku]

    @app.on_error(KeyError)
    def use_last_known(run, error):
        return (run.args[0], type(error))

    assert run(TaskExecutor(price, args=("rare",))) == ("rare", KeyError)
    with pytest.raises(TypeError):
        price([])


def test_an_explicit_intercept_of_nothing_refuses_consent():
    """``()`` of a task or of an app shows nothing to anybody."""
    silent = QueueTasks("shop", discover=False, intercept=())
    app = QueueTasks("shop", discover=False)
    tasks = [
        silent.task(name="t")(lambda: {}[1]),
        app.task(name="t", intercept=())(lambda: {}[1]),
    ]
    for one in (silent, app):
        one.on_error(KeyError)(lambda: "taken")

    for task in tasks:
        with pytest.raises(KeyError):
            task()


def test_a_handler_keeps_its_name_in_a_test_of_it_alone():
    """``run_with`` takes a handler of an app as it takes any plugin."""
    app = QueueTasks("shop", discover=False)

    @app.on_error(KeyError)
    def use_zero():
        return 0

    run = run_with(app.plugins.get_plugin("use_zero"), lambda: {}["key"])
    assert ("use_zero", 0) == (run.outcome.decided_by, run.result)


def test_each_handler_is_a_plugin_named_as_its_function():
    """Names that are taken get a number; the function itself comes back."""
    app = QueueTasks("shop", discover=False)

    def make():
        def handler(error):
            return None

        return handler

    functions = [make() for _ in range(3)]
    assert functions == [app.on_error(ValueError)(one) for one in functions]
    assert ["handler", "handler-2", "handler-3"] == names(app)
    app.remove_plugin("handler-2")
    assert ["handler", "handler-3"] == names(app)


def test_a_later_handler_has_the_last_word():
    """As any plugin that the app adds; and it can be put on observe by its name."""
    app = QueueTasks("shop", discover=False, settings={"observe": ["second"]})
    task = app.task(name="t")(lambda: {}[1])
    app.on_error(KeyError)(_named("first", 1))
    app.on_error(KeyError)(_named("second", 2))
    app.on_error(LookupError, task="other*")(_named("third", 3))

    assert task() == 1


def _named(name, answer):
    def handler():
        return answer

    handler.__name__ = name
    return handler


def test_a_handler_may_answer_a_decision():
    """A retry, say, in an app whose tasks say nothing."""
    app = QueueTasks("shop", discover=False)
    attempts = []

    @app.task
    def flaky():
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return "done"

    @app.on_error(ConnectionError)
    def try_again():
        return Retry(limit=3)

    assert (flaky(), len(attempts)) == ("done", 3)


@pytest.mark.parametrize("wrong", ["ValueError", KeyboardInterrupt])
def test_what_is_no_class_to_ask_about_is_refused(wrong):
    """At once, with nothing added."""
    app = QueueTasks("shop", discover=False)

    with pytest.raises(TypeError, match="on_error"):
        app.on_error(wrong)
    assert [] == names(app)


@both_ways
def test_the_error_of_a_trigger_error_is_itself(run):
    """``error`` is what the task raised, also where a trigger error was raised from another one."""
    app = QueueTasks("shop", discover=False)

    @app.task
    def price():
        raise TaskPluginTriggerError("no price", kind="price") from KeyError("tea")

    @app.on_error(TaskPluginTriggerError)
    def by_kind(error):
        return error.kwargs["kind"]

    assert run(TaskExecutor(price)) == "price"


def test_plugins_of_one_function_name_classes_of_their_own():
    """Stacked decorators, and two apps that share a handler, ask it once about each error."""
    heard = []
    app = QueueTasks("shop", discover=False)
    other = QueueTasks("other", discover=False)

    @app.on_error(KeyError)
    @app.on_error(ValueError)
    def listens(*, error=None, run):
        heard.append((run.app.name, type(error)))

    other.on_error(KeyError)(listens)
    tasks = [
        (one.task(name=cls.__name__)(failing("function", cls())), cls)
        for one in (app, other)
        for cls in (KeyError, ValueError)
    ]
    with app, other:
        for task, cls in tasks:
            with pytest.raises(cls):
                task()

    assert [("shop", KeyError), ("shop", ValueError), ("other", KeyError)] == heard
    assert ["listens", "listens-2"] == names(app)


def test_a_method_of_an_object_is_a_handler():
    """Each instance's method is a plugin of its own, and the class stays unmarked."""

    class Prices:
        def __init__(self, price):
            self.price = price

        def last_known(self, error):
            return self.price

    apps = [QueueTasks("shop", discover=False) for _ in range(2)]
    for price, app in enumerate(apps):
        app.on_error(KeyError)(Prices(price).last_known)

    assert [0, 1] == [app.task(name="t")(failing("function", KeyError()))() for app in apps]
    assert not vars(Prices.last_known)
