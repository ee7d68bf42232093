"""R1: the trigger is a pluggy hook, called plainly or awaited."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from qtasks_hookspecs import Raise, Replace, TaskFunc, TaskMessage, _hooks, hookimpl, hookspec
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"
ERROR = TaskPluginTriggerError("asked")
VALUES: dict[str, Any] = {
    "task_executor": None,
    "task_func": TaskFunc("asked", len),
    "task_broker": TaskMessage("asked"),
    "e": ERROR,
}


def hook(*plugins: Any) -> Any:
    """Return the trigger of a manager with these plugins."""
    return PluginManager(plugins).hook.task_executor_run_task_trigger_error


def ways(caller: Any) -> list[Any]:
    """Call a hook plainly and awaited."""
    return [caller(**VALUES), asyncio.run(caller.call_async(**VALUES))]


def test_r1_the_trigger_is_marked_lastresult():
    """The specification says ``lastresult``, which pluggy's own marker does not know."""
    options = _hooks.task_executor_run_task_trigger_error.qtasks_pluggy_spec

    assert options["lastresult"] is True
    assert options["firstresult"] is False


def test_r1_plain_and_awaited_calls_return_the_winning_answer():
    """Called plainly or awaited, the hook returns the winning answer, or None."""
    replace = Replace(None)

    assert [7, 7] == ways(hook(answering(7)))
    assert [None, None] == ways(hook(answering(None)))
    assert [replace, replace] == ways(hook(answering(replace)))
    assert [None, None] == ways(hook())


def test_r1_a_hookimpl_names_only_what_it_wants():
    """Parameters are given by name, in any order and number, by keyword, or all of them."""

    def none() -> tuple[Any, ...]:
        return ()

    def some(e: Any, task_func: Any) -> tuple[Any, ...]:
        return (e, task_func)

    def by_keyword(*, task_broker: Any) -> tuple[Any, ...]:
        return (task_broker,)

    def every(e: Any, **rest: Any) -> tuple[Any, ...]:
        return (e, rest)

    def one(function: Any) -> Any:
        return hook(plugin("p", task_executor_run_task_trigger_error=function))(**VALUES)

    assert () == one(none)
    assert (ERROR, VALUES["task_func"]) == one(some)
    assert (VALUES["task_broker"],) == one(by_keyword)
    assert (ERROR, {k: v for k, v in VALUES.items() if k != "e"}) == one(every)


def test_r1_pluggys_own_marker_serves():
    """A plugin that uses nothing but pluggy works too."""
    mark = pluggy.HookimplMarker("qtasks_pluggy")
    pure = SimpleNamespace(name="pure", task_executor_run_task_trigger_error=mark(lambda: 5))

    assert [5, 5] == ways(hook(pure))


@both_ways
def test_r1_the_executor_calls_the_hook_of_its_manager(run, monkeypatch):
    """A run asks through ``pm.hook``, so that what stands there is what is asked."""
    manager = PluginManager([answering(1)])
    monkeypatch.setattr(
        manager.hook,
        "task_executor_run_task_trigger_error",
        PluginManager([answering(2)]).hook.task_executor_run_task_trigger_error,
    )

    assert 2 == run(TaskExecutor(failing("function", ERROR), plugins=manager))


def test_r1_a_hosts_own_hook_may_name_its_parameters_as_ours():
    """No parameter of a host's hook is taken for a run, a task or an error of ours."""

    class Door:
        engine = "steam"

        def __bool__(self) -> bool:
            raise ValueError

    @hookspec(lastresult=True)
    def shop_opens(task_executor: Any, task_func: Any, e: Any) -> Any: ...

    manager = PluginManager()
    manager.add_hookspecs(SimpleNamespace(shop_opens=shop_opens))
    manager.register(plugin("in", shop_opens=lambda task_func: type(task_func).__name__))
    manager.register(plugin("out", shop_opens=lambda e: {}[e]))
    manager.register(plugin("ours", shop_opens=lambda: Raise(ValueError())))

    values = dict.fromkeys(("task_executor", "task_func", "e"), Door())
    assert ["Door", "Door"] == [
        manager.hook.shop_opens(**values),
        asyncio.run(manager.hook.shop_opens.call_async(**values)),
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda manager: manager.subset_hook_caller(TRIGGER, [manager.get_plugin("answering")]),
            "another PluginManager",
        ),
        (
            lambda manager: getattr(manager.hook, TRIGGER).call_extra([lambda: 2], VALUES),
            "register a plugin",
        ),
    ],
    ids=["subset_hook_caller", "call_extra"],
)
def test_r1_calls_that_pass_the_chain_by_are_refused(call, says):
    """Pluggy's two ways to ask others than those who are registered say what to do instead."""
    with pytest.raises(TypeError, match=says):
        call(PluginManager([answering(1)]))


def test_r1_monitoring_that_would_miss_the_rules_is_refused():
    """Pluggy's monitors, which expect its own way of calling, are refused with a reason."""
    with pytest.raises(TypeError, match="own convention"):
        PluginManager().enable_tracing()


@pytest.mark.parametrize("wrong", [{"e": ERROR}, VALUES | {"more": 1}, {**VALUES, "d": 1}])
def test_r1_a_call_with_wrong_parameters_blames_the_caller(wrong):
    """A call that lacks a parameter or has one too many is a TypeError, no plugin's failure."""
    with pytest.raises(TypeError, match="takes"):
        hook(answering(1))(**wrong)


def test_r1_a_misspelt_parameter_blames_the_caller():
    """As many parameters as there should be, but one misspelt: no plugin is blamed."""
    wrong = {("error" if name == "e" else name): value for name, value in VALUES.items()}

    with pytest.raises(TypeError, match="takes"):
        hook(plugin("p", task_executor_run_task_trigger_error=lambda e: e))(**wrong)


def test_r1_hookimpls_can_be_methods_of_every_kind():
    """Methods, class methods and static methods of an object serve."""

    class Kinds:
        name = "kinds"

        @hookimpl
        def task_executor_run_task_trigger_error(self, e: Any) -> Any:
            return [e]

        @hookimpl
        @classmethod
        def task_executor_task_failed(cls, e: Any) -> None: ...

        @staticmethod
        @hookimpl
        def task_executor_task_close(task_broker: Any) -> None: ...

    manager = PluginManager([Kinds()])
    (info,) = manager.list_plugin_info()

    assert [[ERROR], [ERROR]] == ways(manager.hook.task_executor_run_task_trigger_error)
    assert 3 == len(info.hooks)
