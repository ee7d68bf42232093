"""R13: an observed plugin is called and recorded, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks_hookspecs import Cancel, Retry, TaskFunc, hookimpl
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"


def failing_run(*plugins: Any, **settings: Any) -> TaskExecutor:
    """Make a run that fails, with one plugin on observe."""
    manager = PluginManager(plugins, settings={"observe": ["new"], **settings})
    func = TaskFunc("fails", failing("function", TaskPluginTriggerError("no")))
    return TaskExecutor(func, plugins=manager)


@both_ways
@pytest.mark.parametrize("answer", [5, Retry(), Cancel()], ids=lambda one: type(one).__name__)
def test_r13_its_answer_is_not_used_but_recorded(run, answer):
    """Whatever it answers, the run goes as if it were not there; the trail shows its answer."""
    run_of = failing_run(answering("old", "old"), answering(answer, "new"))

    assert "old" == run(run_of)
    old, new = run_of.trail
    assert ("answered", True, False) == (old.status, old.won, old.observed)
    assert ("answered", False, True) == (new.status, new.won, new.observed)


@both_ways
def test_r13_alone_it_leaves_the_error(run):
    """With nobody else to answer, the error goes on."""
    with pytest.raises(TaskPluginTriggerError, match="no"):
        run(failing_run(answering(5, "new")))


@both_ways
def test_r13_its_failure_is_told_and_never_strict(run):
    """It may fail: that is logged and recorded, and not an error even under ``strict``."""

    def breaks() -> None:
        raise ValueError("not ready")

    run_of = failing_run(answering("old", "old"), plugin("new", **{TRIGGER: breaks}), strict=True)

    assert "old" == run(run_of)
    assert ["answered", "raised"] == [record.status for record in run_of.trail]


@both_ways
def test_r13_it_changes_no_arguments_and_no_result(run):
    """In a pipeline the plugins behind it see what was there before it."""
    new = plugin(
        "new",
        task_executor_args_replace=lambda args: ((*args, "observed"), {}),
        task_executor_run_task=lambda result: [*result, "observed"],
    )
    last = plugin("last", task_executor_run_task=lambda result: [*result, "last"])
    manager = PluginManager([new, last], settings={"observe": ["new"]})

    assert ["ab", "last"] == run(TaskExecutor(lambda *args: [*args], args=("ab",), plugins=manager))


@both_ways
def test_r13_a_wrapper_on_observe_changes_nothing(run):
    """A wrapper is called and recorded; the answer inside of it stands."""

    class Wrapper:
        name = "new"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            yield
            return "wrapped"

    run_of = failing_run(answering("old", "old"), Wrapper())

    assert "old" == run(run_of)
    assert [("old", True), ("new", False)] == [(one.plugin, one.won) for one in run_of.trail]
