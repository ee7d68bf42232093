"""R7: a hookimpl that fails is named, and hurts nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, TaskFunc, hookimpl
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"


def breaks(
    error: BaseException | None = None, hook: str = TRIGGER, *, is_async: bool = False
) -> Any:
    """Make a plugin that fails in one hook."""

    def plainly() -> None:
        raise error or ValueError("a bug")

    async def awaited() -> None:
        await asyncio.sleep(0)
        plainly()

    return plugin("breaks", **{hook: awaited if is_async else plainly})


def failing_run(*plugins: Any, error: BaseException | None = None, **settings: Any) -> TaskExecutor:
    """Make a run that fails, with these plugins."""
    func = TaskFunc("sells", failing("function", error or TaskPluginTriggerError("no")))
    return TaskExecutor(func, plugins=PluginManager(plugins, settings=settings))


@both_ways
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("a bug"), asyncio.CancelledError(), StopIteration(), RecursionError()]
)
def test_r7_the_others_are_asked_and_the_error_stays(run, error, is_async):
    """A failing hookimpl neither stops the others nor replaces the task's own error."""
    own = TaskPluginTriggerError("own")

    run_with_answers = failing_run(answering(1, "a"), breaks(error, is_async=is_async))
    assert 1 == run(run_with_answers)
    assert ["answered", "raised"] == [record.status for record in run_with_answers.trail]
    with pytest.raises(TaskPluginTriggerError) as raised:
        run(failing_run(breaks(error, is_async=is_async), answering(None, "b"), error=own))
    assert raised.value is own


@both_ways
def test_r7_the_failure_is_logged_with_who_and_where(run):
    """One event at error level names plugin, distribution, version, hook and task."""
    with structlog.testing.capture_logs() as events, pytest.raises(TaskPluginTriggerError):
        run(failing_run(breaks()))

    (event,) = [one for one in events if one["event"] == "plugin_failed"]
    assert "error" == event["log_level"]
    assert ("breaks", None, None, TRIGGER, "sells") == tuple(
        event[key] for key in ("plugin", "distribution", "version", "hook", "task")
    )
    assert isinstance(event["exc_info"], ValueError)


@both_ways
def test_r7_the_failure_is_noted_once_on_the_tasks_error(run):
    """The error has one note that names the plugin, however often the same error comes by."""
    own = TaskPluginTriggerError("own")

    for _ in range(3):
        with pytest.raises(TaskPluginTriggerError):
            run(failing_run(breaks(), answering(Retry(limit=2), "again"), error=own))

    notes = [note for note in own.__notes__ if "'breaks' raised ValueError" in note]
    assert len({*notes}) == len(notes)
    assert len(notes) <= 2  # once for the attempts that are retried, once for the last


@both_ways
@pytest.mark.parametrize("strict", [False, True])
def test_r7_an_intercepted_error_is_the_tasks_own(run, strict):
    """The note, and the ``task_error`` of ``strict``, are those of the very error of the task."""
    own = KeyError("own")
    func = TaskFunc("sells", failing("function", own), intercept=KeyError)
    manager = PluginManager([breaks()], settings={"strict": strict})

    with pytest.raises(PluginError if strict else KeyError) as raised:
        run(TaskExecutor(func, plugins=manager))

    if strict:
        assert raised.value.task_error is own
    else:
        (note,) = own.__notes__
        assert "'breaks' raised ValueError" in note


@both_ways
@pytest.mark.parametrize("decision", [None, Cancel("later"), DeadLetter("later")])
@pytest.mark.parametrize("hook", ["task_executor_attempt_ended", "task_executor_task_close"])
def test_r7_strict_has_the_tasks_own_error_whatever_was_decided(run, hook, decision):
    """``task_error`` is what the task raised, not the error that a decision made of it."""
    own = TaskPluginTriggerError("own")

    with pytest.raises(PluginError) as raised:
        run(failing_run(breaks(hook=hook), answering(decision), error=own, strict=True))

    assert raised.value.task_error is own


@both_ways
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_r7_what_is_no_exception_is_never_swallowed(run, error):
    """KeyboardInterrupt and SystemExit of a hookimpl leave the run."""
    with pytest.raises(type(error)):
        run(failing_run(breaks(error), answering(1)))


@both_ways
@pytest.mark.parametrize("hook", ["task_executor_args_replace", "task_executor_run_task"])
@pytest.mark.parametrize("answer", [Retry(), Raise(ValueError()), Cancel()])
def test_r7_a_decision_outside_of_the_trigger_is_a_failure(run, hook, answer):
    """A decision other than Replace, where there is nothing to decide, is refused and named."""
    run_of = TaskExecutor(lambda: 5, plugins=[plugin("odd", **{hook: lambda: answer})])

    assert 5 == run(run_of)
    assert ["raised"] == [record.status for record in run_of.trail]


@both_ways
@pytest.mark.parametrize("answer", [5, (1, 2, 3), ((), ()), ({}, ()), "ab", Replace(5)])
def test_r7_arguments_that_are_no_pair_are_a_failure(run, answer):
    """An answer to args_replace that is no pair of a tuple and a dict leaves them as they were."""
    run_of = TaskExecutor(
        lambda *args: args,
        args=(1,),
        plugins=[plugin("p", task_executor_args_replace=lambda: answer)],
    )

    assert (1,) == run(run_of)
    assert ["raised"] == [record.status for record in run_of.trail]


@both_ways
def test_r7_a_decision_class_is_not_an_instance(run):
    """Answering ``Retry`` instead of ``Retry()`` is a failure with the remedy in its text."""
    with pytest.raises(PluginError, match=r"Retry\(\.\.\.\)"):
        run(failing_run(answering(Retry), strict=True))


@both_ways
@pytest.mark.parametrize("ends", ["begin", "end", "never", "twice"])
def test_r7_a_wrapper_that_fails_leaves_the_inner_answer(run, ends):
    """Whatever a wrapper does wrong, the answer inside of it stands, and it is named."""

    class Wrapper:
        name = "wrapper"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            if ends == "begin":
                raise ValueError
            if ends == "never":
                return None
            yield
            if ends == "end":
                raise ValueError
            yield
            return "outer"

    run_of = failing_run(answering("inner"), Wrapper())

    assert "inner" == run(run_of)
    assert {"answering": "answered", "wrapper": "raised"} == {
        record.plugin: record.status for record in run_of.trail
    }


@both_ways
def test_r7_a_forgotten_return_of_a_wrapper_is_none(run):
    """A wrapper that returns nothing takes the answer back, and the trail says who."""

    class Forgets:
        name = "forgets"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            yield

    run_of = failing_run(answering("inner"), Forgets())

    with pytest.raises(TaskPluginTriggerError):
        run(run_of)
    assert ["forgets"] == [record.plugin for record in run_of.trail if record.won]


@both_ways
@pytest.mark.parametrize("hook", [TRIGGER, "task_executor_task_failed"])
def test_r7_strict_raises_at_once(run, hook):
    """Under ``strict`` a failure is a PluginError from it, with the task's error beside it."""
    asked: list[str] = []
    later = plugin("later", **{hook: lambda: asked.append("later")})
    own = TaskPluginTriggerError("own")

    with pytest.raises(PluginError, match=f"'breaks'.*{hook}.*'sells'.*DISABLE=breaks") as raised:
        run(failing_run(breaks(hook=hook), later, error=own, strict=True))

    assert isinstance(raised.value.__cause__, ValueError)
    assert raised.value.task_error is own
    assert [] == asked


@both_ways
def test_r7_strict_counts_in_every_hook_of_a_run(run):
    """Under ``strict`` a failure in args_replace, run_task or task_close is a PluginError too."""
    for hook in (
        "task_executor_args_replace",
        "task_executor_run_task",
        "task_executor_task_close",
    ):
        manager = PluginManager([breaks(hook=hook)], settings={"strict": True})
        with pytest.raises(PluginError, match=hook):
            run(TaskExecutor(lambda: 5, plugins=manager))


def test_r7_a_failing_start_stops_what_was_started_in_reverse():
    """A plugin that cannot start stops those before it, the last one first."""
    told: list[str] = []

    def starts(name: str) -> Any:
        return plugin(
            name,
            qtasks_start=lambda: told.append(f"{name} starts"),
            qtasks_stop=lambda: told.append(f"{name} stops"),
        )

    plugins = [starts("a"), starts("b"), breaks(hook="qtasks_start"), starts("c")]
    app = QueueTasks("shop", discover=False, plugins=plugins)

    with pytest.raises(PluginError, match="'breaks'") as raised, app:
        pass

    assert ["a starts", "b starts", "b stops", "a stops"] == told
    assert isinstance(raised.value.__cause__, ValueError)
