"""R9, R15, R16: how attempts end and what plugins hear of it, against a plain list."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy._run import executor
from qtasks_pluggy.engines import Capabilities
from qtasks_pluggy.exc import (
    PluginError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
)
from tests.runs import (
    KINDS,
    both_ways,
    every_kind,
    failing,
    function_of,
    run_async,
    run_sync,
)


class Hears:
    """Writes down what it hears of a run, and answers errors by a list, attempt by attempt."""

    name = "hears"

    def __init__(self, *answers: Any, keeps: Any = None) -> None:
        self.answers = list(answers)
        self.keeps = keeps
        self.heard: list[Any] = []
        self.outcomes: list[Outcome] = []

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        return self.answers.pop(0) if self.answers else None

    @hookimpl
    def task_executor_dead_letter(self, e, reason):
        self.heard.append(("dead letter", type(e).__name__, reason))
        return self.keeps

    @hookimpl
    def task_executor_attempt_ended(self, outcome):
        self.heard.append(("ended", outcome.status, outcome.attempt))
        self.outcomes.append(outcome)

    @hookimpl
    def task_executor_task_failed(self, e):
        self.heard.append(("failed", type(e).__name__))

    @hookimpl
    def task_executor_task_close(self, outcome):
        self.heard.append(("closed", outcome.status, outcome.attempt))
        self.outcomes.append(outcome)


def toy_engine(*, dead_letter: bool = True, repeats: int = 0) -> Any:
    """Make as much of an engine as an executor looks at; it repeats a failed attempt by itself."""
    left = [repeats]

    def will_retry(_: BaseException) -> bool:
        left[0] -= 1
        return left[0] >= 0

    return SimpleNamespace(
        name="toy",
        capabilities=Capabilities(delay=True, dead_letter=dead_letter),
        control=(),
        will_retry=will_retry,
        failure=lambda error: error,
        check_result=lambda _: None,
        check_answer=lambda _: None,
    )


def on_engine(taken: TaskExecutor, engine: Any) -> Any:
    """Carry out a run's attempts as an engine does."""
    while (attempt := taken.execute_attempt_sync(engine)).will_retry:
        pass
    if attempt.error is not None:
        raise attempt.error
    return attempt.result


class ShopError(TaskPluginTriggerError):
    """What the tasks here raise."""


ENDS = {
    "replace": (lambda: Replace(1), "recovered", None),
    "value": (lambda: 0, "recovered", None),
    "raise": (lambda: Raise(KeyError("other")), "failed", KeyError),
    "cancel": (lambda: Cancel("why"), "cancelled", TaskCancelError),
    "letter": (lambda: DeadLetter("why"), "dead_lettered", TaskDeadLetteredError),
    "none": (lambda: None, "failed", ShopError),
}


def model(retries: int, end: str) -> list[Any]:
    """Tell what plugins hear of a run that is retried some times and then ends."""
    _, status, error = ENDS[end]
    last = retries + 1
    heard: list[Any] = [("ended", "retried", attempt) for attempt in range(1, last)]
    if status == "dead_lettered":
        heard.append(("dead letter", "ShopError", "why"))
    heard.append(("ended", status, last))
    if status in {"failed", "dead_lettered"}:
        heard.append(("failed", error.__name__))
    return [*heard, ("closed", status, last)]


@given(
    retries=st.integers(0, 3),
    end=st.sampled_from(sorted(ENDS)),
    kind=st.sampled_from(KINDS),
    how=st.sampled_from(["plain", "async", "engine"]),
)
def test_r16_attempts_end_as_a_plain_list_says(retries, end, kind, how):
    """R9, R15, R16: every attempt ends once, then the run; the order and the words are the same."""
    answer, status, error = ENDS[end]
    hears = Hears(*[Retry(limit=9)] * retries, answer())
    taken = TaskExecutor(failing(kind, ShopError("no")), plugins=[hears])
    run = {"plain": run_sync, "async": run_async, "engine": None}[how]

    def go() -> Any:
        return on_engine(taken, toy_engine()) if run is None else run(taken)

    if error is None:
        go()
    else:
        with pytest.raises(error):
            go()

    assert model(retries, end) == hears.heard
    decided = [one.decided_by for one in hears.outcomes]
    assert ["hears"] * retries + [None if end == "none" else "hears"] * 2 == decided
    wanted = KeyError if end == "raise" else ShopError
    assert wanted is type(hears.outcomes[-1].error)
    assert hears.outcomes[-1] is hears.outcomes[-2]
    assert status == hears.outcomes[-1].status


@both_ways
@every_kind
def test_r16_a_good_run_succeeded(kind, run):
    """R16: nobody decided, there is no error, and no fingerprint; the time is told."""
    hears = Hears()

    run(TaskExecutor(function_of(kind, lambda: 3), plugins=[hears]))

    assert [("ended", "succeeded", 1), ("closed", "succeeded", 1)] == hears.heard
    (outcome, _) = hears.outcomes
    assert (None, None, "", None) == (
        outcome.error,
        outcome.decided_by,
        outcome.reason,
        outcome.fingerprint,
    )
    assert outcome.seconds > 0


def test_r9_an_outcome_says_reason_and_delay():
    """R9: what was decided is in the outcome, in the plugin's own words."""
    hears = Hears(Retry(delay=0.001), Cancel("too late"))

    with pytest.raises(TaskCancelError):
        run_sync(TaskExecutor(failing("function", ShopError()), plugins=[hears]))

    retried, cancelled, _ = hears.outcomes
    assert (0.001, "") == (retried.delay, retried.reason)
    assert (None, "too late") == (cancelled.delay, cancelled.reason)


def test_r16_an_attempt_that_the_engine_repeats_is_retried_by_nobody():
    """R16: an engine's own retry is ``retried`` without a decision, and no end of the run."""
    hears = Hears()

    taken = TaskExecutor(failing("function", ShopError()), plugins=[hears])

    with pytest.raises(ShopError):
        on_engine(taken, toy_engine(repeats=1))

    assert [
        ("ended", "retried", 1),
        ("ended", "failed", 2),
        ("failed", "ShopError"),
        ("closed", "failed", 2),
    ] == hears.heard
    assert [None, None, None] == [one.decided_by for one in hears.outcomes]


@pytest.mark.parametrize("place", [True, False])
def test_r9_a_kept_dead_letter_is_allowed_on_every_engine(place):
    """R9: one True, and the run is kept; the engine's own place is not used."""
    hears = Hears(DeadLetter("odd"), keeps=True)
    taken = TaskExecutor(failing("function", ShopError()), plugins=[hears])

    attempt = taken.execute_attempt_sync(toy_engine(dead_letter=place))

    assert ("dead_letter", True) == (attempt.action, attempt.kept)
    assert isinstance(attempt.error, TaskDeadLetteredError)
    assert attempt.error.__cause__ is hears.outcomes[-1].error


@pytest.mark.parametrize("answer", [1, "kept", None, False])
def test_r9_only_true_keeps_a_dead_letter(answer):
    """R9: what is not exactly True has not kept the run; without a place it fails as itself."""
    hears = Hears(DeadLetter("odd"), keeps=answer)
    taken = TaskExecutor(failing("function", ShopError()), plugins=[hears])

    attempt = taken.execute_attempt_sync(toy_engine(dead_letter=False))

    assert ("fail", ShopError) == (attempt.action, type(attempt.error))
    assert ("closed", "failed", 1) == hears.heard[-1]
    assert hears.outcomes[-1].decided_by is None


@both_ways
def test_r9_an_observed_keeper_keeps_nothing(run, caplog):
    """R9, R13: a keeper on observe is called, and the run is logged as if there were none."""
    hears = Hears(keeps=True)
    answers = SimpleNamespace(
        name="answers",
        task_executor_run_task_trigger_error=hookimpl(lambda: DeadLetter("odd")),
    )
    manager = PluginManager([hears, answers], settings={"observe": ["hears"]})

    with pytest.raises(TaskDeadLetteredError, match="odd"):
        run(TaskExecutor(failing("function", ShopError()), plugins=manager))

    assert ("dead letter", "ShopError", "odd") == hears.heard[0]
    assert "task_dead_lettered" in caplog.text


@both_ways
@pytest.mark.parametrize(
    "strict_in", ["attempt_ended", "task_failed", "task_close", "args_replace"]
)
def test_r7_under_strict_an_attempt_has_failed_with_the_tasks_own_error(strict_in, run):
    """R7: the caller gets the plugin's failure; the outcome is failed, of the task's own error."""

    def broken():
        raise OSError("plugin")

    broken_one = SimpleNamespace(name="broken", **{f"task_executor_{strict_in}": hookimpl(broken)})
    hears = Hears()
    manager = PluginManager([hears, broken_one], settings={"strict": True})
    own = ShopError()

    with pytest.raises(PluginError):
        run(TaskExecutor(failing("function", own), plugins=manager))

    closed = hears.outcomes[-1]
    assert ("closed", "failed", 1) == hears.heard[-1]
    if strict_in == "args_replace":
        assert type(closed.error) is PluginError
    else:
        assert closed.error is own


@pytest.mark.parametrize("kind", ["function", "coroutine"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_r15_what_is_no_exception_is_failed(kind, error):
    """R15: in place it passes and the outcome is failed; on an engine the run has failed."""
    hears = Hears()
    with pytest.raises(type(error)):
        TaskExecutor(failing(kind, error), plugins=[hears]).execute_sync()
    assert [("ended", "failed", 1), ("closed", "failed", 1)] == hears.heard

    hears = Hears()
    attempt = TaskExecutor(failing(kind, error), plugins=[hears]).execute_attempt_sync(toy_engine())
    assert ("fail", error) == (attempt.action, attempt.error)
    assert [
        ("ended", "failed", 1),
        ("failed", type(error).__name__),
        ("closed", "failed", 1),
    ] == hears.heard
    assert hears.outcomes[-1].error is error


def test_r16_a_cancelled_run_is_cancelled():
    """R16: whether the task was at work or waited for its next attempt, it ends once, cancelled."""

    async def cancelled(executor: TaskExecutor) -> None:
        task = asyncio.ensure_future(executor.execute())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    at_work, waits = Hears(), Hears(Retry(delay=60))
    asyncio.run(cancelled(TaskExecutor(asyncio.Event().wait, plugins=[at_work])))
    asyncio.run(cancelled(TaskExecutor(failing("coroutine", ShopError()), plugins=[waits])))

    assert [("ended", "cancelled", 1), ("closed", "cancelled", 1)] == at_work.heard
    assert [("ended", "retried", 1), ("closed", "cancelled", 1)] == waits.heard
    assert isinstance(waits.outcomes[-1].error, asyncio.CancelledError)


@pytest.mark.parametrize("answer", [Retry(delay=0), Retry(delay=60), Replace("saved"), Cancel()])
@pytest.mark.parametrize("max_time", [None, 60])
@pytest.mark.parametrize("ask", ["cancel", "timeout", "group"])
def test_r16_nothing_is_decided_once_cancellation_was_asked_for(ask, max_time, answer):
    """R16: no new attempt and no delay; the run ends in the clean-up's own error."""
    attempts: list[int] = []
    hears = Hears(answer, answer)

    async def fetch() -> None:
        attempts.append(1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError from None

    func = TaskFunc("fetch", fetch, intercept=Exception, max_time=max_time)

    async def main() -> None:
        run = TaskExecutor(func, plugins=[hears]).execute()
        if ask == "timeout":
            async with asyncio.timeout(0.05):
                await run
        elif ask == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(run)
                await asyncio.sleep(0.05)
                raise ZeroDivisionError
        else:
            task = asyncio.ensure_future(run)
            await asyncio.sleep(0.05)
            task.cancel()
            await task

    with pytest.raises((ConnectionError, ExceptionGroup)):
        asyncio.run(asyncio.wait_for(main(), 20))

    assert [1] == attempts
    assert [("ended", "failed", 1), ("failed", "ConnectionError"), ("closed", "failed", 1)] == (
        hears.heard
    )


def test_r16_nothing_is_decided_where_the_function_swallowed_its_cancellation():
    """R16: also where the error that comes later says nothing of the cancellation."""
    attempts: list[int] = []

    async def fetch() -> None:
        attempts.append(1)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        raise ConnectionError

    async def main() -> Any:
        func = TaskFunc("fetch", fetch, intercept=Exception)
        task = asyncio.ensure_future(TaskExecutor(func, plugins=[Hears(Retry(), 5)]).execute())
        await asyncio.sleep(0.05)
        task.cancel()
        return await task

    with pytest.raises(ConnectionError):
        asyncio.run(main())
    assert [1] == attempts


def test_r16_a_run_in_a_cancelled_callers_clean_up_is_decided_as_ever():
    """R16: a cancellation that was asked for before the run began is none of its own."""
    hears = Hears(Retry(), Replace("cleaned"))

    async def main() -> Any:
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await TaskExecutor(failing("coroutine", ShopError()), plugins=[hears]).execute()

    assert "cleaned" == asyncio.run(main())


@both_ways
@pytest.mark.parametrize("observes", ["task_executor_attempt_ended", "task_executor_task_close"])
def test_r12_a_good_run_builds_no_outcome_for_those_that_hear_of_failures(
    observes, run, monkeypatch
):
    """R12: what nobody wants to hear is not made."""
    made = []
    monkeypatch.setattr(
        executor, "Outcome", lambda **fields: made.append(fields) or Outcome(**fields)
    )
    heard: list[Any] = []
    hook = when(outcome=OutcomeStatus.failed)(hookimpl(lambda outcome: heard.append(outcome)))
    failures = SimpleNamespace(name="failures", **{observes: hook})

    run(TaskExecutor(function_of("function", lambda: 3), plugins=[failures]))
    assert not made

    with pytest.raises(ShopError):
        run(TaskExecutor(failing("function", ShopError()), plugins=[failures]))
    assert [OutcomeStatus.failed] == [one.status for one in heard]


def test_r16_a_retry_that_cannot_be_arranged_is_a_failure_of_the_attempt_that_was_last():
    """R16: the attempt has ended as retried; the run ends as failed, by what the engine says."""
    hears = Hears(Retry())
    taken = TaskExecutor(failing("function", ShopError()), plugins=[hears])
    assert taken.execute_attempt_sync(toy_engine(repeats=9)).will_retry

    error = OSError("broker")
    assert taken.give_up_sync(error).error is error

    assert [("ended", "retried", 1), ("failed", "OSError"), ("closed", "failed", 1)] == hears.heard


class Keeps:
    """Keeps dead letters, in its own way."""

    name = "keeps"

    def __init__(self, keep: Any) -> None:
        self.task_executor_dead_letter = hookimpl(keep)


@both_ways
@every_kind
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("cls", [ShopError, ValueError])
def test_r9_a_keeper_gets_message_error_and_reason(cls, is_async, kind, run, caplog):
    """R9: the run is handed over once, with the task's own error, unwrapped; nothing is logged."""
    letters: list[Any] = []

    def keep(task_broker: Any, e: Any, reason: Any) -> bool:
        letters.append((task_broker, e, reason))
        return True

    async def keep_async(task_broker: Any, e: Any, reason: Any) -> bool:
        await asyncio.sleep(0)
        return keep(task_broker, e, reason)

    own = cls("no")
    func = TaskFunc("price", failing(kind, own), intercept=ValueError)
    plugins = [Keeps(keep_async if is_async else keep), Hears(DeadLetter("look at it"))]
    taken = TaskExecutor(func, args=(1,), kwargs={"a": 2}, plugins=plugins)

    with pytest.raises(TaskDeadLetteredError, match="look at it") as caught:
        run(taken)

    ((message, error, reason),) = letters
    assert ("price", (1,), {"a": 2}) == (message.name, message.args, message.kwargs)
    assert message == taken.task_broker
    assert error is caught.value.__cause__ is own
    assert "look at it" == reason
    assert "task_dead_lettered" not in caplog.text


@both_ways
@pytest.mark.parametrize("failure", [OSError("full"), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [True, False])
def test_r7_a_keeper_that_fails_has_not_kept_the_run(is_async, failure, run, caplog):
    """R7: that is logged with its name, and the run ends as if it were not there."""

    def keep() -> None:
        raise failure

    async def keep_async() -> None:
        raise failure

    hears = Hears(DeadLetter("x"))
    with pytest.raises(TaskDeadLetteredError):
        run(
            TaskExecutor(
                failing("coroutine", ShopError()),
                plugins=[hears, Keeps(keep_async if is_async else keep)],
            )
        )

    assert "plugin_failed" in caplog.text
    assert "task_dead_lettered" in caplog.text
    assert ("closed", "dead_lettered", 1) == hears.heard[-1]


def test_r16_a_run_that_is_cancelled_while_it_is_set_aside_is_cancelled():
    """R16: cancelling a run while a keeper takes it is a cancellation."""
    hears = Hears(DeadLetter("x"))

    async def main() -> None:
        begun = asyncio.Event()

        async def keep() -> None:
            begun.set()
            await asyncio.Event().wait()

        plugins = [hears, Keeps(keep)]
        run = TaskExecutor(failing("coroutine", ShopError()), plugins=plugins).execute()
        task = asyncio.ensure_future(run)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert [("ended", "cancelled", 1), ("closed", "cancelled", 1)] == hears.heard[1:]


@both_ways
def test_r6_nothing_is_noted_where_nobody_decided(run):
    """R6: an error about which no plugin had an opinion, and none failed, goes on as it is."""
    own = ShopError("no")
    context = own.__context__
    with pytest.raises(ShopError) as caught:
        run(TaskExecutor(failing("function", own), plugins=[Hears()]))
    assert caught.value is own
    assert not hasattr(own, "__notes__")
    assert own.__context__ is context
