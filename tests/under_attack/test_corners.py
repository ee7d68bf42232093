"""Corners that no rule names: what is refused, and what must not break all the same."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from qtasks_hookspecs import Replace, Retry, TaskFunc, hookimpl, hookspec, when
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor, Trail
from qtasks_pluggy._waiting import run_to_completion
from qtasks_pluggy.exc import PluginRegistrationError, TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"


def test_decisions_cannot_be_subclassed():
    """A decision is told by its class, so a subclass is refused where it is made."""
    with pytest.raises(TypeError, match="Later: a decision cannot be subclassed"):
        type("Later", (Retry,), {})


@pytest.mark.parametrize(
    "ways",
    [
        {"lastresult": True, "pipeline": "x"},
        {"anytrue": True, "pipeline": "x"},
        {"anytrue": True, "lastresult": True},
    ],
)
def test_the_ways_of_a_hookspec_exclude_each_other(ways):
    """A hook has one rule for its answers."""
    with pytest.raises(ValueError, match="exclude each other"):
        hookspec(**ways)


def test_hooks_of_a_hosts_own_follow_the_rules():
    """A host can add hooks; a name that is known, or nothing to add, is refused."""

    @hookspec(lastresult=True)
    def shop_closes(task_executor: Any, e: Any) -> None: ...

    manager = PluginManager()
    manager.add_hookspecs(SimpleNamespace(shop_closes=shop_closes))
    manager.register(plugin("a", shop_closes=lambda: 1))
    manager.register(plugin("b", shop_closes=lambda: 2))

    assert 2 == manager.hook.shop_closes(task_executor=None, e=ValueError())
    with pytest.raises(ValueError, match="known already"):
        manager.add_hookspecs(SimpleNamespace(shop_closes=shop_closes))
    with pytest.raises(ValueError, match="did not find"):
        manager.add_hookspecs(SimpleNamespace())


def test_a_pipeline_of_a_hosts_own_is_of_any_parameter():
    """Each answer replaces the parameter that the pipeline names, whatever it is called."""

    @hookspec(pipeline="total")
    def shop_adds_up(total: int, customer: str) -> Any: ...

    manager = PluginManager()
    manager.add_hookspecs(SimpleNamespace(shop_adds_up=shop_adds_up))
    manager.register(plugin("taxes", shop_adds_up=lambda total: total * 2))
    manager.register(plugin("ships", shop_adds_up=lambda total: total + 5))

    assert 25 == manager.hook.shop_adds_up(total=10, customer="c")
    assert 25 == asyncio.run(manager.hook.shop_adds_up.call_async(total=10, customer="c"))


@pytest.mark.parametrize("pipeline", ["sum", "", "total, tax", "args, kwargs"])
def test_a_pipeline_of_no_parameter_is_refused(pipeline):
    """A pipeline that names what its hook does not have is an error where it is added."""

    @hookspec(pipeline=pipeline)
    def shop_adds_up(total: int, tax: int) -> Any: ...

    with pytest.raises(ValueError, match="is not one of its parameters; name one of total, tax"):
        PluginManager().add_hookspecs(SimpleNamespace(shop_adds_up=shop_adds_up))


@pytest.mark.parametrize("option", ["firstresult", "historic"])
def test_pluggys_own_conventions_are_refused(option):
    """A specification that asks for what is not done here is no hook that quietly ignores it."""
    mark = pluggy.HookspecMarker("qtasks_pluggy")

    @mark(**{option: True})
    def shop_opens(door: Any) -> None: ...

    with pytest.raises(ValueError, match=f"hook 'shop_opens': {option}=True is pluggy's own"):
        PluginManager().add_hookspecs(SimpleNamespace(shop_opens=shop_opens))


@pytest.mark.parametrize("lastresult", [True, False])
def test_a_hook_of_a_hosts_own_needs_no_run(lastresult, caplog):
    """A hook of a host's own isolates its hookimpls, and its ``e`` means nothing to us (R1)."""

    @hookspec(lastresult=lastresult)
    def shop_burns(e: Any) -> Any: ...

    def broken() -> None:
        raise OSError("plugin")

    manager = PluginManager(settings={"log_values": True})
    manager.add_hookspecs(SimpleNamespace(shop_burns=shop_burns))
    manager.register(plugin("calls", shop_burns=lambda: "fire brigade"))
    manager.register(plugin("panics", shop_burns=broken))
    error = ValueError("smoke")

    with caplog.at_level("DEBUG", "qtasks_pluggy"):
        answer = manager.hook.shop_burns(e=error)

    assert ("fire brigade" if lastresult else None) == answer
    assert not hasattr(error, "__notes__")
    assert "plugin_failed plugin='panics'" in caplog.text
    assert "task_error_" not in caplog.text


def test_an_engine_that_is_none_is_refused():
    """What is no engine is refused when the app is made."""
    with pytest.raises(TypeError, match=r"expected a URL, an adapter, .* got builtins\.int"):
        QueueTasks("shop", engine=1)


def test_a_trail_shows_its_records():
    """``repr`` is for debugging."""
    executor = TaskExecutor(failing("function", TaskPluginTriggerError()), plugins=[answering(1)])
    executor.execute_sync()

    assert repr(executor.trail).startswith("Trail([TrailRecord(plugin='answering'")
    assert "Trail([])" == repr(Trail())


@both_ways
def test_an_error_that_refuses_notes_goes_on_all_the_same(run):
    """A class without room for notes costs the note, not the run."""

    class StiffError(TaskPluginTriggerError):
        def add_note(self, note: str) -> None:
            raise TypeError(note)

    own = StiffError("no")
    with pytest.raises(StiffError) as raised:
        run(TaskExecutor(failing("function", own), plugins=[answering(None)]))

    assert raised.value is own


@both_ways
def test_a_wrapper_is_closed_when_the_run_is_interrupted(run):
    """Ctrl-C inside of a wrapper runs the wrapper's own clean-up."""
    told: list[str] = []

    class Wrapper:
        name = "wrapper"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            try:
                yield
            finally:
                told.append("cleaned up")

    def interrupts() -> None:
        raise KeyboardInterrupt

    func = failing("function", TaskPluginTriggerError())
    with pytest.raises(KeyboardInterrupt):
        run(TaskExecutor(func, plugins=[Wrapper(), plugin("p", **{TRIGGER: interrupts})]))

    assert ["cleaned up"] == told


@both_ways
@pytest.mark.parametrize(
    ("answer", "result"), [(Retry(), 5), (Replace(6), 6), (None, None), (7, 7)]
)
def test_a_wrapper_of_a_pipeline(run, answer, result):
    """What a wrapper of run_task returns is the result; a decision is refused."""

    class Wrapper:
        name = "wrapper"

        @hookimpl(wrapper=True)
        def task_executor_run_task(self) -> Any:
            assert 5 == (yield)
            return answer

    assert result == run(TaskExecutor(lambda: 5, plugins=[Wrapper()]))


def test_filters_that_were_decided_are_remembered():
    """The same error of the same task is asked about in the same way again."""
    picky = answering("picky", "picky")
    picky.task_executor_run_task_trigger_error = when(task="t")(
        picky.task_executor_run_task_trigger_error
    )
    manager = PluginManager([picky])
    func = TaskFunc("t", failing("function", TaskPluginTriggerError()))

    assert ["picky"] * 3 == [TaskExecutor(func, plugins=manager).execute_sync() for _ in range(3)]


def test_a_hookimpl_whose_parameters_cannot_be_read_is_a_fault():
    """A function that says nothing of its parameters is refused, not guessed at."""

    def odd() -> None: ...

    odd.__signature__ = "nonsense"

    with pytest.raises(PluginRegistrationError, match="parameters cannot be read"):
        PluginManager([plugin("odd", **{TRIGGER: odd})])


def test_settings_that_cannot_be_used_leave_the_old_ones(monkeypatch):
    """A built-in whose name the app has taken is a fault, and the settings stay as they were."""
    app = QueueTasks("shop", plugins=[answering(1, "fallback")], discover=False)
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "fallback")
    monkeypatch.setenv("QTASKS_PLUGGY_TIMEOUT", "7")

    with pytest.raises(PluginRegistrationError, match="taken"), app:
        pass

    assert 5.0 == app.plugins.settings.timeout


def test_plain_code_never_suspends():
    """A wait that would suspend in plain code is our own mistake, and says so."""
    with pytest.raises(RuntimeError, match="suspended"):
        run_to_completion(asyncio.sleep(0))


class Iterates:
    """An awaitable of the old kind, whose iterator takes no values."""

    def __await__(self) -> Any:
        return iter(())


@both_ways
def test_any_awaitable_answer_is_waited_for(run):
    """An awaitable that is no coroutine counts as one."""
    func = failing("function", TaskPluginTriggerError())

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(func, plugins=[answering(Iterates())]))
