"""``BasePlugin``: plugins of the old shape, adapted to hookimpls."""

from __future__ import annotations

import asyncio

import pytest

from qtasks_hookspecs import Replace
from qtasks_pluggy import BasePlugin, PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginRegistrationError, TaskPluginTriggerError
from tests.runs import answering, both_ways, every_kind, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"
RUN = {"task_executor", "task_func", "task_broker"}
HOOKS = {
    "task_executor_args_replace": RUN | {"args", "kwargs"},
    "task_executor_run_task": RUN | {"result"},
    TRIGGER: RUN | {"e"},
    "task_executor_attempt_ended": RUN | {"outcome"},
    "task_executor_task_failed": RUN | {"e"},
    "task_executor_task_close": RUN | {"outcome"},
}


class Keeps(BasePlugin):
    """Keeps every trigger, and answers with what it was made with."""

    def __init__(self, name=None, *, answer=None, handlers=None):
        super().__init__(name)
        self.answer = answer
        self.calls = []
        if handlers is not None:
            self.handlers = handlers

    def trigger(self, name, **kwargs):
        self.calls.append((name, kwargs))
        return self.answer if name == TRIGGER else None

    @property
    def triggers(self):
        """The names of the triggers, in order."""
        return [name for name, _ in self.calls]


class KeepsAsync(Keeps):
    """The same, in async code."""

    async def trigger(self, name, **kwargs):
        await asyncio.sleep(0)
        return super().trigger(name, **kwargs)


both_shapes = pytest.mark.parametrize("shape", [Keeps, KeepsAsync])


def trigger_error():
    """Make an error that asks."""
    return TaskPluginTriggerError("no")


@both_ways
@every_kind
@both_shapes
@pytest.mark.parametrize("answer", [123, 0, "", [], {}, {"result": 1}, False], ids=repr)
def test_its_answer_is_the_result(answer, shape, kind, run):
    """What ``trigger`` returns is the answer to the hook, falsy values and dicts included."""
    executor = TaskExecutor(failing(kind, trigger_error()), plugins=[shape(answer=answer)])

    assert run(executor) == answer


@both_ways
@both_shapes
def test_none_is_no_opinion(shape, run):
    """So an earlier plugin's answer stands, or the error goes on."""
    saved = TaskExecutor(failing("function", trigger_error()), plugins=[answering(1), shape()])

    assert run(saved) == 1
    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(failing("function", trigger_error()), plugins=[shape()]))


@both_ways
@both_shapes
def test_decisions_work_too(shape, run):
    """A decision is an answer like any other."""
    executor = TaskExecutor(
        failing("function", trigger_error()), plugins=[answering(1), shape(answer=Replace(None))]
    )

    assert run(executor) is None


@both_ways
@both_shapes
def test_trigger_gets_exactly_the_hooks_parameters(shape, run):
    """By keyword, all of them and nothing else, for each hook of a run."""
    keeps = shape()
    error = trigger_error()

    run(TaskExecutor(lambda x: x, args=(1,), plugins=[keeps]))
    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(failing("function", error), plugins=[keeps]))

    assert {name: set(kwargs) for name, kwargs in keeps.calls} == HOOKS
    given = dict(keeps.calls)[TRIGGER]
    assert given["e"] is error
    assert given["task_func"] is given["task_executor"].task_func
    assert given["task_broker"] is given["task_executor"].task_broker


@both_ways
def test_without_handlers_it_is_asked_for_every_trigger(run):
    """A plugin that has no ``handlers`` sees all hooks of a run; start and stop are methods."""
    keeps = Keeps()
    app = QueueTasks("shop", discover=False, plugins=[keeps])
    with app:
        run(TaskExecutor(app.task(len), args=("",)))

    assert keeps.triggers == [
        "task_executor_args_replace",
        "task_executor_run_task",
        "task_executor_attempt_ended",
        "task_executor_task_close",
    ]


@both_ways
def test_handlers_limit_the_triggers(run):
    """A plugin that has the dict is asked for its keys alone."""
    keeps = Keeps(answer=1, handlers={TRIGGER: None})

    assert run(TaskExecutor(failing("function", trigger_error()), plugins=[keeps])) == 1
    assert keeps.triggers == [TRIGGER]


def test_empty_handlers_mean_no_trigger():
    """An empty dict is a dict."""
    keeps = Keeps(handlers={})

    TaskExecutor(lambda: 1, plugins=[keeps]).execute_sync()

    assert keeps.triggers == []


def test_handlers_that_are_no_dict_limit_nothing():
    """Only a dict of that name is taken for the triggers; anything else is the plugin's own."""
    keeps = Keeps(handlers=["mine"])

    TaskExecutor(lambda: 1, plugins=[keeps]).execute_sync()

    assert "task_executor_task_close" in keeps.triggers


def test_handlers_are_read_when_it_is_added():
    """What is put into the dict later is not seen."""
    keeps = Keeps(handlers={})
    manager = PluginManager([keeps])
    keeps.handlers["task_executor_task_close"] = None

    TaskExecutor(lambda: 1, plugins=manager).execute_sync()

    assert keeps.triggers == []


@pytest.mark.parametrize("names", [[TRIGGER], (TRIGGER,), {TRIGGER}, iter([TRIGGER])])
def test_trigger_names_limit_it(names):
    """``add_plugin(trigger_names=)`` is the app's own choice of triggers."""
    keeps = Keeps(answer=1)
    app = QueueTasks("shop", discover=False)
    app.add_plugin(keeps, trigger_names=names)

    assert app.task(failing("function", trigger_error()))() == 1
    assert keeps.triggers == [TRIGGER]


def test_trigger_names_and_handlers():
    """Of both, what is in both; no name at all leaves start and stop."""
    handlers = {TRIGGER: None, "task_executor_task_close": None}
    both, neither = Keeps("both", handlers=handlers), Keeps("neither")
    app = QueueTasks("shop", discover=False)
    app.add_plugin(both, trigger_names=[TRIGGER, "task_executor_run_task"])
    app.add_plugin(neither, trigger_names=[])

    with pytest.raises(TaskPluginTriggerError):
        app.task(failing("function", trigger_error()))()
    app.task(len)("")

    assert both.triggers == [TRIGGER]
    assert neither.triggers == []


@pytest.mark.parametrize("where", ["handlers", "trigger_names"])
def test_an_unknown_trigger_is_a_fault(where):
    """It names the plugin and the nearest trigger that there is."""
    wrong = "task_executor_task_closed"
    app = QueueTasks("shop", discover=False)

    with pytest.raises(PluginRegistrationError) as caught:
        if where == "handlers":
            app.add_plugin(Keeps("old", handlers={wrong: None}))
        else:
            app.add_plugin(Keeps("old"), trigger_names=[wrong])

    for part in ("plugin 'old'", f"{wrong!r}", "did you mean 'task_executor_task_close'?"):
        assert part in str(caught.value)
    assert "QTASKS_PLUGGY_DISABLE=old" in str(caught.value)


def test_trigger_names_are_for_base_plugins():
    """Other plugins say what they implement by their marks, so a limit is a mistake."""
    app = QueueTasks("shop", discover=False)

    with pytest.raises(PluginRegistrationError, match="trigger_names= limits a BasePlugin"):
        app.add_plugin(plugin("p", task_executor_task_close=lambda: None), trigger_names=[TRIGGER])


# --- start and stop ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["with", "async with"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_start_and_stop(asynchronous, how):
    """They are called when the app starts and stops; plain or async, and with ``super()``."""
    said = []

    class Plain(BasePlugin):
        def start(self, *args, **kwargs):
            said.append("start")
            return super().start(*args, **kwargs)

        def stop(self, *args, **kwargs):
            said.append("stop")
            return super().stop(*args, **kwargs)

    class Async(BasePlugin):
        async def start(self, *args, **kwargs):
            await asyncio.sleep(0)
            said.append("start")
            return super().start(*args, **kwargs)

        async def stop(self, *args, **kwargs):
            await asyncio.sleep(0)
            said.append("stop")
            return super().stop(*args, **kwargs)

    app = QueueTasks("shop", discover=False, plugins=[Async() if asynchronous else Plain()])

    async def main():
        async with app:
            said.append("body")

    if how == "with":
        with app:
            said.append("body")
    else:
        asyncio.run(main())

    assert said == ["start", "body", "stop"]


def test_the_bases_own_methods():
    """They do nothing and return None, so that ``super()`` is always safe to call."""
    base = BasePlugin()

    assert base.start(1, worker=2) is None
    assert base.stop(1, worker=2) is None
    assert base.trigger("any", e=1) is None


# --- how it is added ---------------------------------------------------------------------------


def test_its_name():
    """The one it was made with, else its class's; ``add_plugin(name=)`` goes before both."""
    app = QueueTasks("shop", discover=False)

    assert Keeps().name == "Keeps"
    assert app.add_plugin(Keeps("given")) == "given"
    assert app.add_plugin(Keeps()) == "Keeps"
    assert app.add_plugin(Keeps(), name="other") == "other"
    assert app.add_plugin(Keeps("mine"), name="yours") == "yours"


def test_a_class_is_instantiated():
    """A subclass instead of an instance will do."""
    app = QueueTasks("shop", discover=False)

    class Saves(BasePlugin):
        def trigger(self, name, **kwargs):
            return "saved" if name == TRIGGER else None

    assert app.add_plugin(Saves) == "Saves"
    assert app.task(failing("function", trigger_error()))() == "saved"


def test_a_class_that_cannot_be_instantiated():
    """That is a fault of the plugin, with its error."""

    class Needs(BasePlugin):
        def __init__(self, url):
            super().__init__()

    with pytest.raises(PluginRegistrationError, match=r"Needs\(\) failed with TypeError: .*url"):
        QueueTasks("shop", discover=False).add_plugin(Needs)


def test_a_subclass_may_forget_its_base():
    """Without a call of the base's ``__init__`` it is named after its class."""

    class Hasty(BasePlugin):
        def __init__(self):
            self.handlers = {TRIGGER: None}

        def trigger(self, name, **kwargs):
            return "saved"

    app = QueueTasks("shop", discover=False)

    assert app.add_plugin(Hasty()) == "Hasty"
    assert app.task(failing("function", trigger_error()))() == "saved"


def test_it_is_removed():
    """By its name from the app, or as itself from the manager."""
    keeps, other = Keeps("one", answer=1), Keeps("two", answer=2)
    app = QueueTasks("shop", discover=False, plugins=[keeps, other])
    task = app.task(failing("function", trigger_error()))

    assert task() == 2
    app.remove_plugin("two")
    assert task() == 1
    assert app.plugins.unregister(keeps) is keeps
    with pytest.raises(TaskPluginTriggerError):
        task()


@both_ways
@both_shapes
def test_one_that_raises_is_isolated(shape, run, caplog):
    """It is logged with its name, and the others are asked all the same."""

    class Broken(shape):
        def trigger(self, name, **kwargs):
            raise OSError("broken")

    executor = TaskExecutor(
        failing("function", trigger_error()), plugins=[answering("saved"), Broken("faulty")]
    )

    assert run(executor) == "saved"
    assert "plugin='faulty'" in caplog.text
    assert ("faulty", "raised") in [(record.plugin, record.status) for record in executor.trail]
