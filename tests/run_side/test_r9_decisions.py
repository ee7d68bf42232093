"""R9: plugins decide, the host of the run carries it out, once."""

from __future__ import annotations

import time
from typing import Any

import attrs
import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, TaskFunc, hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import TaskCancelError, TaskDeadLetteredError, TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, plugin


def fails(error: BaseException | None = None, **options: Any) -> TaskFunc:
    """Make a task that fails."""
    error = error or TaskPluginTriggerError("no")
    return TaskFunc("fails", failing("function", error), intercept=ValueError, **options)


class Counts:
    """A plugin that asks for retries and counts the attempts."""

    name = "counts"

    def __init__(self, decision: Any) -> None:
        self.decision = decision
        self.attempts: list[int] = []

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_executor: Any) -> Any:
        self.attempts.append(task_executor.attempt)
        return self.decision


@pytest.mark.parametrize(
    "decision", [Replace(1), Retry(), Raise(ValueError()), Cancel("why"), DeadLetter("why")]
)
def test_r9_decisions_are_frozen(decision):
    """A decision cannot be changed after it was made."""
    for name in attrs.fields_dict(type(decision)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(decision, name, None)


def test_r9_decisions_have_their_defaults():
    """The parameters may be left out as documented."""
    assert (None, 3) == (Retry().delay, Retry().limit)
    assert ("", "") == (Cancel().reason, DeadLetter().reason)
    assert (1.5, 2) == (Retry(1.5, 2).delay, Retry(1.5, 2).limit)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Retry(-1), ValueError),
        (lambda: Retry(float("nan")), ValueError),
        (lambda: Retry(float("inf")), ValueError),
        (lambda: Retry(1e12), ValueError),
        (lambda: Retry(10**5000), ValueError),
        (lambda: Retry("1"), TypeError),
        (lambda: Retry(limit=-1), ValueError),
        (lambda: Retry(limit=1.5), TypeError),
        (lambda: Raise(ValueError), TypeError),
        (lambda: Raise(KeyboardInterrupt()), TypeError),
        (lambda: Cancel(1), TypeError),
        (lambda: DeadLetter(None), TypeError),
    ],
    ids=[
        "negative",
        "nan",
        "inf",
        "too long",
        "digits",
        "text",
        "few",
        "fraction",
        "class",
        "base",
        "number",
        "none",
    ],
)
def test_r9_a_wrong_decision_is_refused_where_it_is_made(make, error):
    """A decision that cannot be carried out is an error in the plugin's own line."""
    with pytest.raises(error):
        make()


@both_ways
def test_r9_retry_runs_the_task_again_up_to_its_limit_and_then_counts_as_no_opinion(run):
    """Retry is bounded by its limit; past it the last other answer wins."""
    counts = Counts(Retry(limit=2))

    assert "fallback" == run(TaskExecutor(fails(), plugins=[answering("fallback"), counts]))
    assert [1, 2, 3] == counts.attempts


@both_ways
@pytest.mark.parametrize(("task", "app", "attempts"), [(1, 10, 2), (5, 2, 3), (None, 3, 4)])
def test_r9_retries_are_bounded_by_the_task_and_by_the_app(run, task, app, attempts):
    """The smallest of the bounds counts; 0 is no retry."""
    counts = Counts(Retry(limit=100))
    queue = QueueTasks("shop", discover=False, plugins=[counts], max_retries=app)
    failing_task = queue.task(name="t", max_retries=task)(
        failing("function", TaskPluginTriggerError("no"))
    )

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(failing_task))

    assert list(range(1, attempts + 1)) == counts.attempts


@both_ways
def test_r9_nothing_retries_unless_a_plugin_says_so(run):
    """``max_retries`` is a bound, not a policy."""
    counts = Counts(None)

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(fails(max_retries=5), plugins=[counts]))

    assert [1] == counts.attempts


@both_ways
def test_r9_a_retry_that_succeeds_is_a_success(run):
    """The result of the attempt that succeeds is the run's."""
    attempts = []

    def task() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise TaskPluginTriggerError("not yet")
        return "at last"

    assert "at last" == run(TaskExecutor(task, plugins=[answering(Retry())]))


@both_ways
def test_r9_retry_waits_for_its_delay(run):
    """``delay`` is in seconds."""
    begin = time.monotonic()
    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(fails(), plugins=[answering(Retry(delay=0.05, limit=2))]))

    assert time.monotonic() - begin >= 0.1


@both_ways
def test_r9_raise_raises_that_very_error_with_the_tasks_own_as_cause(run):
    """The caller sees the plugin's error, and the task's own behind it."""
    own, other = ValueError("own"), RuntimeError("other")

    with pytest.raises(RuntimeError) as raised:
        run(TaskExecutor(fails(own), plugins=[answering(Raise(other))]))

    assert raised.value is other
    assert raised.value.__cause__ is own


@both_ways
def test_r9_an_error_to_raise_keeps_the_cause_it_has(run):
    """A cause that the plugin gave stays."""
    other, cause = RuntimeError("other"), KeyError("cause")
    other.__cause__ = cause

    with pytest.raises(RuntimeError):
        run(TaskExecutor(fails(), plugins=[answering(Raise(other))]))

    assert other.__cause__ is cause


@both_ways
def test_r9_an_error_whose_cause_was_changed_since_keeps_it(run):
    """A cause that a plugin gave it after an earlier run is the plugin's, and stays."""
    other, cause = RuntimeError("other"), KeyError("cause")

    for expected in (None, cause):
        other.__cause__ = expected
        own = ValueError("own")
        with pytest.raises(RuntimeError):
            run(TaskExecutor(fails(own), plugins=[answering(Raise(other))]))
        assert other.__cause__ is (expected or own)


@both_ways
def test_r9_raising_the_error_itself_is_no_answer(run):
    """``Raise(e)`` and ``Raise(e.cause)`` mean no answer: the error goes on."""
    own = ValueError("own")
    itself = plugin("itself", task_executor_run_task_trigger_error=lambda e: Raise(e))
    cause = plugin("cause", task_executor_run_task_trigger_error=lambda e: Raise(e.cause))

    with pytest.raises(ValueError, match="own") as raised:
        run(TaskExecutor(fails(own), plugins=[itself, cause]))
    assert raised.value is own
    assert own.__cause__ is None
    assert 1 == run(TaskExecutor(fails(own), plugins=[answering(1), itself, cause]))


@both_ways
@pytest.mark.parametrize(
    ("decision", "error"),
    [(Cancel("why"), TaskCancelError), (DeadLetter("why"), TaskDeadLetteredError)],
)
def test_r9_cancel_and_dead_letter_end_the_run_with_their_reason(run, decision, error):
    """The error has the reason, and the task's own error as its cause."""
    own = ValueError("own")

    with pytest.raises(error) as raised:
        run(TaskExecutor(fails(own), plugins=[answering(decision)]))

    assert ("why", "why", own) == (raised.value.reason, str(raised.value), raised.value.__cause__)


@both_ways
def test_r9_only_the_last_decision_is_carried_out(run):
    """Where plugins disagree, the last one's decision is carried out and no other."""
    counts = Counts(Retry())

    with pytest.raises(TaskCancelError):
        run(TaskExecutor(fails(), plugins=[counts, answering(Cancel())]))

    assert [1] == counts.attempts
