"""R12: what asks for some ends of an attempt only, costs the others nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qtasks_hookspecs import (
    Cancel,
    DeadLetter,
    Outcome,
    OutcomeStatus,
    Raise,
    Replace,
    Retry,
    TaskFunc,
    hookimpl,
    when,
)
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor, TaskMessage
from qtasks_pluggy._run import executor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, both_ways, every_kind, failing, function_of, registration_error

ENDED = "task_executor_attempt_ended"
CLOSED = "task_executor_task_close"
ANSWERS = {
    "recovered": Replace(1),
    "retried": Retry(limit=1),
    "failed": Raise(LookupError("other")),
    "cancelled": Cancel(),
    "dead_lettered": DeadLetter(),
}
FAILURES = tuple(sorted({*OutcomeStatus} - {"succeeded"}))


def hears(heard: list[Any], hook: str, *conditions: Any, name: str = "hears") -> Any:
    """Make a plugin that keeps the ends that it hears of by one hook."""

    def listen(outcome: Any) -> None:
        heard.append(str(outcome.status))

    for condition in conditions:
        listen = condition(listen)
    return SimpleNamespace(name=name, **{hook: hookimpl(listen)})


@pytest.fixture
def made(monkeypatch):
    """Count the outcomes that runs build."""
    made: list[Any] = []

    def make(**fields: Any) -> Outcome:
        made.append(fields)
        return Outcome(**fields)

    monkeypatch.setattr(executor, "Outcome", make)
    return made


@both_ways
@every_kind
@pytest.mark.parametrize("hook", [ENDED, CLOSED])
@pytest.mark.parametrize(
    "condition",
    [when(outcome=FAILURES), when(error=Exception), when(outcome="failed", task="*")],
    ids=["outcomes", "error", "task"],
)
def test_r12_a_good_run_asks_no_observer_of_failures(condition, hook, kind, run, made):
    """R12: it is not called, nothing is recorded of it, and no outcome is built for it."""
    heard: list[Any] = []
    manager = PluginManager([hears(heard, hook, condition)])

    good = TaskExecutor(function_of(kind, lambda: None), plugins=manager)
    run(good)
    assert ([], [], 0) == (made, heard, len(good.trail))

    bad = TaskExecutor(TaskFunc("t", failing(kind, KeyError())), plugins=manager)
    with pytest.raises(KeyError):
        run(bad)
    assert ["failed"] == heard
    assert made


def test_r12_nor_does_a_good_run_of_an_app_with_an_engine(made):
    """R12: in a worker as in place."""
    heard: list[Any] = []
    plugins = [hears(heard, hook, when(outcome="failed"), name=hook) for hook in (ENDED, CLOSED)]
    app = QueueTasks("shop", engine="memory://", plugins=plugins, discover=False)
    good = app.task(name="good")(lambda: 3)
    bad = app.task(name="bad")(failing("function", KeyError()))

    with app:
        handle = good.submit()
        assert 3 == handle.result(timeout=30)
        assert ([], [], 0) == (made, heard, len(handle.trail))
        with pytest.raises(KeyError):
            bad.submit().result(timeout=30)
    assert ["failed", "failed"] == heard


@both_ways
@pytest.mark.parametrize("status", FAILURES)
def test_r12_each_observer_hears_of_the_ends_that_it_names(status, run):
    """R12: and of no other, whoever else is there."""
    heard: dict[str, list[Any]] = {one: [] for one in (*OutcomeStatus, "all")}
    plugins = [hears(heard[one], ENDED, when(outcome=one), name=str(one)) for one in OutcomeStatus]
    plugins += [hears(heard["all"], ENDED, name="all"), answering(ANSWERS[status])]
    taken = TaskExecutor(failing("function", TaskPluginTriggerError()), plugins=plugins)
    try:
        run(taken)
    except Exception:
        assert status != "recovered"

    ends = ["retried", "failed"] if status == "retried" else [status]
    assert {one: [one] if one in ends else ends if one == "all" else [] for one in heard} == heard


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("qtasks_start", "not called for a task"),
        ("qtasks_stop", "not called for a task"),
        ("task_executor_args_replace", "on a hook without an outcome"),
        ("task_executor_run_task", "on a hook without an outcome"),
        ("task_executor_run_task_trigger_error", "on a hook without an outcome"),
        ("task_executor_dead_letter", "on a hook without an outcome"),
        ("task_executor_task_failed", "on a hook without an outcome"),
    ],
)
def test_r18_a_hook_without_an_outcome_has_no_such_filter(hook, says):
    """R18: the fault names plugin and hook, and the setting that switches the plugin off."""
    wrong = SimpleNamespace(name="hears", **{hook: when(outcome="failed")(hookimpl(lambda: None))})

    (problem,) = registration_error(PluginManager, [wrong]).problems

    for part in ("plugin 'hears'", repr(hook), says, "QTASKS_PLUGGY_DISABLE=hears"):
        assert part in problem


def test_r18_a_run_that_is_over_is_not_retried():
    """R18: ``retried`` alone on close can never be; the fault says where it can."""
    wrong = hears([], CLOSED, when(outcome="retried"))

    (problem,) = registration_error(PluginManager, [wrong]).problems

    assert "put it on task_executor_attempt_ended" in problem


REPLAY = {"replay_of": "the-first"}


@both_ways
@pytest.mark.parametrize("hook", [ENDED, CLOSED])
@pytest.mark.parametrize(
    ("condition", "of_first", "of_replay"),
    [
        (when(outcome="succeeded", replay=True), [], ["succeeded"]),
        (when(outcome="succeeded", replay=False), ["succeeded"], []),
        (when(replay=True), [], ["succeeded"]),
        (when(replay=False), ["succeeded"], []),
        (when(outcome="failed", replay=True), [], []),
    ],
    ids=["good-replays", "good-firsts", "replays", "firsts", "bad-replays"],
)
def test_r12_replays_are_told_apart(condition, of_first, of_replay, hook, run, made):
    """R12: a run repeats another one, or not; who hears of replays alone costs others nothing."""
    for metadata, expected in (({}, of_first), (REPLAY, of_replay)):
        made.clear()
        heard: list[Any] = []
        manager = PluginManager([hears(heard, hook, condition)])
        message = TaskMessage("t", metadata=metadata)
        taken = TaskExecutor(TaskFunc("t", lambda: None), message, plugins=manager)
        run(taken)

        assert expected == heard
        # Good runs are many, and replays are few.
        assert metadata or bool(made) == bool(expected)


def test_r12_several_conditions_hear_of_failures_and_of_good_replays():
    """R12: of several conditions one is enough, and an observer of everything hears of all."""
    heard: list[Any] = []
    one = hears(heard, ENDED, when(outcome="failed"), when(outcome="succeeded", replay=True))
    everything: list[Any] = []
    manager = PluginManager([one])
    for metadata in ({}, REPLAY):
        TaskExecutor(
            TaskFunc("t", lambda: None), TaskMessage("t", metadata=metadata), plugins=manager
        ).execute_sync()
    with pytest.raises(KeyError):
        TaskExecutor(failing("function", KeyError()), plugins=manager).execute_sync()
    assert ["succeeded", "failed"] == heard

    manager.register(hears(everything, CLOSED, name="all"))
    TaskExecutor(lambda: None, plugins=manager).execute_sync()
    assert (["succeeded", "failed"], ["succeeded"]) == (heard, everything)


@both_ways
@pytest.mark.parametrize("hook", [ENDED, CLOSED])
@pytest.mark.parametrize(
    ("condition", "of_first", "of_second"),
    [
        (when(outcome="succeeded", retry=True), [], ["succeeded"]),
        (when(outcome="succeeded", retry=False), ["succeeded"], []),
        (when(retry=True), [], ["succeeded"]),
        (when(outcome="failed", retry=True), [], []),
    ],
    ids=["good-retries", "good-firsts", "retries", "bad-retries"],
)
def test_r12_retries_are_told_apart(condition, of_first, of_second, hook, run, made):
    """R12: an attempt is a run's first, or not; who hears of retries alone costs others nothing."""
    for attempt, expected in ((1, of_first), (2, of_second)):
        made.clear()
        heard: list[Any] = []
        manager = PluginManager([hears(heard, hook, condition)])
        message = TaskMessage("t", attempt=attempt)
        run(TaskExecutor(TaskFunc("t", lambda: None), message, plugins=manager))

        assert expected == heard
        assert attempt == 2 or bool(made) == bool(expected)


@pytest.mark.parametrize("name", ["replay", "retry"])
def test_r12_replay_and_retry_are_true_or_false(name):
    """R12: another value is refused at once."""
    with pytest.raises(TypeError, match=f"{name}=.*expected True or False, got 'yes'"):
        when(**{name: "yes"})
