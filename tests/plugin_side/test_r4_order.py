"""R4: who is called when; called last has the last word."""

from __future__ import annotations

from typing import Any

from qtasks_hookspecs import TaskFunc, TaskMessage, hookimpl
from qtasks_pluggy import PluginManager
from qtasks_pluggy.exc import TaskPluginTriggerError

VALUES: dict[str, Any] = {
    "task_executor": None,
    "task_func": TaskFunc("asked", len),
    "task_broker": TaskMessage("asked"),
    "e": TaskPluginTriggerError("asked"),
}


class Speaks:
    """A plugin that takes down its name and answers with it."""

    def __init__(self, name: str, calls: list[str], **marks: bool) -> None:
        self.name = name

        def plain() -> str:
            calls.append(name)
            return name

        def around() -> Any:
            calls.append(f"{name} begins")
            answer = yield
            calls.append(f"{name} ends")
            return answer

        function = around if marks.get("wrapper") else plain
        self.task_executor_run_task_trigger_error = hookimpl(**marks)(function)


def asked(*plugins: tuple[str, dict[str, bool]], **settings: Any) -> tuple[list[str], Any]:
    """Ask plugins with these marks; return the calls and the answer."""
    calls: list[str] = []
    made = [Speaks(name, calls, **marks) for name, marks in plugins]
    manager = PluginManager(made, settings=settings)
    return calls, manager.hook.task_executor_run_task_trigger_error(**VALUES)


def test_r4_hookimpls_are_called_in_order_of_registration():
    """First registered, first called; the last one has the last word."""
    assert (["a", "b", "c"], "c") == asked(("a", {}), ("b", {}), ("c", {}))


def test_r4_tryfirst_yields_and_trylast_wins():
    """``tryfirst`` moves to the front and ``trylast`` to the back; groups keep their order."""
    calls, answer = asked(
        ("l1", {"trylast": True}),
        ("n1", {}),
        ("f1", {"tryfirst": True}),
        ("l2", {"trylast": True}),
        ("f2", {"tryfirst": True}),
        ("n2", {}),
    )

    assert ["f1", "f2", "n1", "n2", "l1", "l2"] == calls
    assert "l2" == answer


def test_r4_wrappers_surround_the_chain_the_last_one_outermost():
    """Wrappers begin from the last registered one, and end in reverse."""
    wrapper = {"wrapper": True}
    calls, answer = asked(("w1", wrapper), ("a", {}), ("w2", wrapper))

    assert ["w2 begins", "w1 begins", "a", "w1 ends", "w2 ends"] == calls
    assert "a" == answer


def test_r4_the_operators_order_puts_the_named_last_as_given():
    """Named plugins come last, in that order, their marks ignored; the others keep theirs."""
    plugins = [
        ("a", {"tryfirst": True}),
        ("b", {"trylast": True}),
        ("c", {}),
        ("d", {"trylast": True}),
    ]

    assert (["c", "d", "b", "a"], "a") == asked(*plugins, order=["b", "a"])
    assert (["a", "c", "b", "d"], "d") == asked(*plugins)


def test_r4_a_plugin_registered_again_comes_last():
    """Unregistering and registering again is a new registration."""
    calls: list[str] = []
    first, second = Speaks("first", calls), Speaks("second", calls)
    manager = PluginManager([first, second])
    manager.unregister(first)
    manager.register(first)

    assert "first" == manager.hook.task_executor_run_task_trigger_error(**VALUES)
    assert ["second", "first"] == calls


def test_r4_a_dispatch_ends_with_the_chain_it_began_with():
    """Plugins that are registered or removed during a dispatch count from the next one."""
    calls: list[str] = []
    manager = PluginManager()

    class Changes:
        name = "changes"

        @hookimpl
        def task_executor_run_task_trigger_error(self) -> None:
            manager.register(Speaks("late", calls))
            manager.unregister(name="gone")

    manager.register(Changes())
    manager.register(Speaks("gone", calls))

    assert "gone" == manager.hook.task_executor_run_task_trigger_error(**VALUES)
    manager.unregister(name="changes")
    assert "late" == manager.hook.task_executor_run_task_trigger_error(**VALUES)
    assert ["gone", "late"] == calls
