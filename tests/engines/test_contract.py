"""What every engine does with a submitted run, whatever carries it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskHandle, TaskMessage, TaskStatus
from qtasks_pluggy.engines import FindsRuns
from qtasks_pluggy.exc import (
    CapabilityError,
    EngineError,
    NotRunningError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
)
from tests.engines.harness import HARNESSES, SERIALIZING, SERVED

LONG = 30.0
SERVED_PARAMS = [pytest.param(one, marks=pytest.mark.engines) for one in SERVED]


class ShopError(Exception):
    """An error of the task's own."""


class Telling:
    """Answers what it is given, one after another, and takes down what it hears."""

    name = "telling"

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.attempts: list[int | None] = []
        self.times: list[float] = []
        self.errors: list[BaseException] = []
        self.failed: list[BaseException] = []
        self.closed = threading.Semaphore(0)
        self.closes = 0

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_broker, e):
        self.attempts.append(task_broker.attempt)
        self.times.append(time.monotonic())
        self.errors.append(e.cause or e)
        return self.answers.pop(0) if self.answers else None

    @hookimpl
    def task_executor_task_failed(self, e):
        self.failed.append(e)

    @hookimpl
    def task_executor_task_close(self):
        self.closes += 1
        self.closed.release()


@pytest.fixture(params=[*HARNESSES, *SERVED_PARAMS])
def harness(request):
    """An engine, over a server or without one, and a way to run an app on it."""
    if not isinstance(request.param, str):
        return request.param()
    request.getfixturevalue("forget")
    kind, broker = SERVED[request.param]
    results = request.getfixturevalue("redis_url")
    return kind(request.getfixturevalue(f"{broker}_url"), results)


class OwnError(BaseException):
    """An error that is no ``Exception``."""


@pytest.fixture
def shop(harness):
    """A shop's app on an engine, its tasks, and the plugin that it asks."""
    plugin = Telling()
    app = QueueTasks(
        "shop",
        engine=harness.engine(),
        plugins=[plugin],
        discover=False,
    )
    shop = SimpleNamespace(app=app, plugin=plugin, harness=harness)
    shop.seen = []
    shop.gate = threading.Event()

    @app.task
    def price(amount, *, tax=0):
        return amount + tax

    @app.task
    async def price_async(amount, *, tax=0):
        await asyncio.sleep(0)
        return amount + tax

    @app.task(intercept=ShopError)
    def fail(text):
        shop.seen.append(text)
        raise ShopError(text)

    @app.task(intercept=ShopError)
    async def fail_async(text):
        await asyncio.sleep(0)
        shop.seen.append(text)
        raise ShopError(text)

    @app.task
    def leave(error):
        raise {"exit": SystemExit, "own": OwnError}[error](3)

    @app.task
    async def leave_async(error):
        leave.func(error)

    @app.task(echo=True)
    def ask(self, *args):
        shop.seen.append((str(self.ctx.uuid), self.ctx.attempt))
        self.ctx.plugin_error(*args)

    @app.task(echo=True)
    def ask_by_keyword(self, text):
        self.ctx.plugin_error(message=text)

    @app.task(echo=True)
    def give_up(self):
        self.ctx.cancel("out of stock")

    @app.task
    def read(what):
        return Path("/missing").read_text("utf-8") if what == "file" else json.loads("x")

    @app.task
    def first_of(items):
        return next(iter(items))

    @app.task
    def items():
        yield from (1, 2, 3)

    @app.task
    def wait():
        assert shop.gate.wait(LONG)
        return "waited"

    yield shop
    shop.gate.set()


def test_a_run_gives_the_result_of_its_function(shop):
    """A submitted run calls the function with the arguments, and the handle gives its result."""
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["price"].submit(40, tax=2)

        assert isinstance(handle, TaskHandle)
        assert 42 == handle.result(timeout=LONG)
        assert handle.status is TaskStatus.succeeded


def test_an_async_function_runs_too(shop):
    """An ``async def`` task is submitted from plain code by ``submit_sync``."""
    with shop.harness.running(shop.app):
        assert 42 == shop.app.tasks["price_async"].submit_sync(40, tax=2).result(timeout=LONG)


def test_async_code_submits_and_awaits(shop):
    """Async code submits either kind of task, and awaits the handle without blocking its loop."""

    async def main():
        first = await shop.app.tasks["price_async"].submit(1)
        second = await shop.app.tasks["price"].submit_async(2)
        return await asyncio.wait_for(asyncio.gather(first, second), LONG)

    with shop.harness.running(shop.app):
        assert [1, 2] == asyncio.run(main())


def test_a_generator_gives_its_items(shop):
    """R17: the result of a generator task is the list of its items."""
    with shop.harness.running(shop.app):
        assert [1, 2, 3] == list(shop.app.tasks["items"].submit().result(timeout=LONG))


def test_r16_an_answer_is_the_result(shop):
    """R16: the caller gets the plugin's answer as the result of a successful run."""
    with shop.harness.running(shop.app):
        for name in ("fail", "fail_async"):
            for answer in (0, "other", Replace(None), Replace([1])):
                shop.plugin.answers = [answer]
                handle = shop.app.tasks[name].submit_sync("broken")
                expected = answer.value if isinstance(answer, Replace) else answer

                assert (name, expected) == (name, handle.result(timeout=LONG))
                assert handle.status is TaskStatus.succeeded
    assert [] == shop.plugin.failed


def test_an_error_asked_about_carries_its_arguments(shop):
    """R3: the plugins see what ``ctx.plugin_error`` was given."""
    shop.plugin.answers = ["taken"]
    with shop.harness.running(shop.app):
        assert "taken" == shop.app.tasks["ask"].submit("a", 1).result(timeout=LONG)
    assert ("a", 1) == shop.plugin.errors[0].args


def test_r6_the_task_s_own_error_reaches_the_caller(shop):
    """R6: without an answer the handle raises an error of the task's own class and text."""
    with shop.harness.running(shop.app):
        for name in ("fail", "fail_async"):
            handle = shop.app.tasks[name].submit_sync(name)
            with pytest.raises(ShopError, match=f"{name}$"):
                handle.result(timeout=LONG)

            assert handle.status is TaskStatus.failed
    assert ["fail", "fail_async"] == shop.seen
    assert [ShopError] * 2 == [type(error) for error in shop.plugin.failed]


def test_r6_a_built_in_error_keeps_its_class(shop):
    """R6: not all that such an error is made with is in its ``args``."""
    read = shop.app.tasks["read"]
    with shop.harness.running(shop.app):
        with pytest.raises(FileNotFoundError, match="No such file or directory: '/missing'$"):
            read.submit("file").result(timeout=LONG)
        # Celery makes an error of its ``args`` again, and this one is not made with those.
        expected = EngineError if "Celery" in type(shop.harness).__name__ else json.JSONDecodeError
        with pytest.raises(expected, match="Expecting value: line 1"):
            read.submit("json").result(timeout=LONG)


def test_a_plain_task_that_lets_stopiteration_out_ends(shop):
    """R6: the caller gets the ``StopIteration``, and the worker goes on to the next run."""
    with shop.harness.running(shop.app):
        with pytest.raises(StopIteration):
            shop.app.tasks["first_of"].submit([]).result(timeout=LONG)
        assert 1 == shop.app.tasks["first_of"].submit([1]).result(timeout=LONG)


def test_a_trigger_error_reaches_the_caller_whole(shop):
    """R3: a trigger error that nobody answers keeps its arguments on the way to the caller."""
    with shop.harness.running(shop.app), pytest.raises(TaskPluginTriggerError) as caught:
        shop.app.tasks["ask"].submit("a", 1).result(timeout=LONG)
    assert ("a", 1) == caught.value.args


def test_a_trigger_error_s_message_reaches_the_caller(shop):
    """R3: what ``ctx.plugin_error(message=...)`` says is what the caller reads."""
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["ask_by_keyword"].submit("sold out")
        with pytest.raises(TaskPluginTriggerError, match="sold out") as caught:
            handle.result(timeout=LONG)
    assert "sold out" == caught.value.message


def test_r9_a_retry_runs_the_task_again(shop):
    """R9: retries are attempts of the same run, counted from 1, until there is an answer."""
    shop.plugin.answers = [Retry(), Retry(), "third"]
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["ask"].submit()

        assert "third" == handle.result(timeout=LONG)
    assert [1, 2, 3] == shop.plugin.attempts
    assert [(str(handle.uuid), n) for n in (1, 2, 3)] == shop.seen
    assert 1 == shop.plugin.closes


def test_a_handle_from_a_run_s_id(shop):
    """Engines that keep results find a run by its id alone; the others say that they cannot."""
    with shop.harness.running(shop.app):
        first = shop.app.tasks["price"].submit(2, tax=1)
        engine = shop.app.engine
        if not (isinstance(engine, FindsRuns) and engine.capabilities.results):
            with pytest.raises(CapabilityError, match="keep the handle that submit returned"):
                shop.app.handle(first.uuid)
            return
        second = shop.app.handle(str(first.uuid))
        assert 3 == second.result(timeout=LONG)
        assert TaskStatus.succeeded is second.status
        # Another process, or the same client again: what is found by its id stays.
        assert 3 == shop.app.handle(first.uuid).result(timeout=LONG)
        with pytest.raises(TimeoutError):
            shop.app.handle("00000000-0000-0000-0000-000000000000").result(timeout=0.2)


def test_r19_metadata_arrives_with_the_run(shop):
    """R19: what ``with_options(metadata=...)`` sends is the message's, at every attempt."""
    seen = []

    class Sees:
        @hookimpl
        def task_executor_run_task_trigger_error(self, task_broker):
            seen.append(task_broker.metadata)

    shop.app.add_plugin(Sees())
    shop.plugin.answers = [Retry(), "second"]
    with shop.harness.running(shop.app):
        task = shop.app.tasks["ask"].with_options(metadata={"request": "r-7"})
        if not shop.app.engine.capabilities.metadata:
            with pytest.raises(CapabilityError, match="carries no metadata"):
                task.submit()
            return
        assert "second" == task.submit().result(timeout=LONG)
    assert [{"request": "r-7"}] * 2 == seen


def test_a_run_is_sent_again(shop):
    """``app.replay`` sends a message again under a new id, and its lineage arrives with it."""
    seen = []

    class Sees:
        @hookimpl
        def task_executor_task_close(self, task_broker):
            seen.append((str(task_broker.uuid), task_broker.args, task_broker.metadata))
            shop.plugin.closed.release()

    shop.app.add_plugin(Sees())
    message = TaskMessage("price", (1,), uuid="the-first")
    with shop.harness.running(shop.app):
        ids = [shop.app.replay(message), shop.app.replay(message, args=[2], kwargs={"tax": 1})]
        for _ in range(4):
            assert shop.plugin.closed.acquire(timeout=LONG)
    lineage = {"replay_of": "the-first"}
    assert sorted(
        (str(one), args, lineage) for one, args in zip(ids, [(1,), (2,)], strict=True)
    ) == sorted(seen)


def test_r9_a_retry_waits_for_its_delay(shop):
    """R9: a retry with a delay is another attempt; R7: where the engine cannot, it is refused."""
    shop.plugin.answers = [Retry(delay=0.2), "second"]
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["ask"].submit()
        if shop.app.engine.capabilities.delay:
            assert "second" == handle.result(timeout=LONG)
            assert [1, 2] == shop.plugin.attempts
            first, second = shop.plugin.times
            # Some engines count in milliseconds, and begin to count when it is sent.
            assert second - first >= 0.19
        else:
            with pytest.raises(TaskPluginTriggerError) as caught:
                handle.result(timeout=LONG)
            assert [1] == shop.plugin.attempts
            assert "raised CapabilityError" in "".join(caught.value.__notes__)


def test_r9_retries_end_at_their_limit_with_the_task_s_own_error(shop):
    """R9: past the limit of the retries the caller gets the original error, not the engine's."""
    shop.plugin.answers = [Retry(limit=2)] * 9
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["fail"].submit("broken")
        with pytest.raises(ShopError, match="broken"):
            handle.result(timeout=LONG)
    assert [1, 2, 3] == shop.plugin.attempts
    assert 1 == len(shop.plugin.failed) == shop.plugin.closes


def test_r9_raise_gives_the_plugin_s_error(shop):
    """R9: ``Raise`` ends the run in the plugin's error."""
    shop.plugin.answers = [Raise(LookupError("clearer"))]
    with shop.harness.running(shop.app), pytest.raises(LookupError, match="clearer"):
        shop.app.tasks["fail"].submit("broken").result(timeout=LONG)


def test_r9_a_cancelled_run_leaves_nobody_waiting(shop):
    """R9: ``Cancel`` and ``ctx.cancel`` end the run in ``TaskCancelError``, with the reason."""
    shop.plugin.answers = [Cancel("out of stock")]
    with shop.harness.running(shop.app):
        for task, args in (("fail", ["broken"]), ("give_up", [])):
            handle = shop.app.tasks[task].submit(*args)
            with pytest.raises(TaskCancelError, match="out of stock"):
                handle.result(timeout=LONG)

            assert handle.status is TaskStatus.cancelled
            assert shop.plugin.closed.acquire(timeout=LONG)
    assert [] == shop.plugin.failed


def test_r9_a_dead_letter_is_set_aside(shop):
    """R9: ``DeadLetter`` ends the run in ``TaskDeadLetteredError``."""
    shop.plugin.answers = [DeadLetter("poison")]
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["fail"].submit("broken")
        with pytest.raises(TaskDeadLetteredError, match="poison"):
            handle.result(timeout=LONG)

        assert handle.status is TaskStatus.dead_lettered


def test_r7_a_failing_plugin_ends_no_run(shop):
    """R7: a plugin that fails in a worker leaves the run to the others."""

    class Failing:
        @hookimpl
        def task_executor_run_task_trigger_error(self):
            raise ZeroDivisionError

    shop.plugin.answers = ["anyway"]
    shop.app.add_plugin(Failing())
    with shop.harness.running(shop.app):
        assert "anyway" == shop.app.tasks["fail"].submit("broken").result(timeout=LONG)


def test_a_wait_that_expires_leaves_the_run_alone(shop):
    """``result(timeout=)`` raises ``TimeoutError``, and the run goes on to its end."""
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["wait"].submit()
        with pytest.raises(TimeoutError, match=str(handle.uuid)):
            handle.result(timeout=0.05)
        shop.gate.set()

        assert "waited" == handle.result(timeout=LONG)


def test_the_result_can_be_asked_for_again(shop):
    """A handle gives the same result to everybody, however often."""
    with shop.harness.running(shop.app):
        handle = shop.app.tasks["price"].submit(7)

        assert [7, 7] == [handle.result(timeout=LONG), handle.result(timeout=LONG)]


def test_submitting_needs_a_started_app(shop):
    """A run is submitted to a started app only; before and after, the text says what to do."""
    task = shop.app.tasks["price"]
    with pytest.raises(NotRunningError, match="with app:"):
        task.submit(1)
    with shop.harness.running(shop.app):
        task.submit(1).result(timeout=LONG)
    with pytest.raises(NotRunningError, match="with app:"):
        task.submit(1)


def test_many_are_submitted_one_by_one(shop):
    """``submit_many`` reads its calls as the handles are asked for, and takes three forms."""
    read = []

    def calls():
        for call in [(1,), {"amount": 2, "tax": 1}, 4]:
            read.append(call)
            yield call

    with shop.harness.running(shop.app):
        handles = iter(shop.app.submit_many(shop.app.tasks["price"], calls()))
        first = next(handles)

        assert [(1,)] == read
        assert [1, 3, 4] == [handle.result(timeout=LONG) for handle in (first, *handles)]


@pytest.mark.parametrize("harness", [*SERIALIZING, *SERVED_PARAMS], indirect=True)
def test_arguments_that_cannot_travel_are_refused(shop):
    """What the engine cannot serialize is refused when it is submitted, naming the task."""
    with shop.harness.running(shop.app):
        with pytest.raises(EngineError, match="price"):
            shop.app.tasks["price"].submit(threading.Lock())

        assert 1 == shop.app.tasks["price"].submit(1).result(timeout=LONG)


def test_r15_an_error_that_is_no_exception_is_told_as_the_caller_sees_it(shop):
    """R15: ``SystemExit`` and its like fail the run alone, and plugins hear of that, once."""
    with shop.harness.running(shop.app):
        for task in ("leave", "leave_async"):
            for error, name in (("exit", "SystemExit"), ("own", "OwnError")):
                shop.plugin.failed.clear()
                with pytest.raises(EngineError, match=name):
                    shop.app.tasks[task].submit_sync(error).result(timeout=LONG)
                assert [(task, EngineError)] == [(task, type(one)) for one in shop.plugin.failed]
                assert 1 == shop.app.tasks["price"].submit(1).result(timeout=LONG)


@pytest.mark.parametrize("harness", [*SERIALIZING, *SERVED_PARAMS], indirect=True)
def test_r7_an_answer_that_cannot_be_stored_leaves_the_task_s_own_error(shop):
    """R7: an answer that the engine cannot store is void: the task's own error goes on."""
    shop.plugin.answers = [Replace(threading.Lock())]
    with shop.harness.running(shop.app):
        with pytest.raises(ShopError, match="broken"):
            shop.app.tasks["fail"].submit("broken").result(timeout=LONG)
        assert [ShopError] == [type(error) for error in shop.plugin.failed]

        assert 1 == shop.app.tasks["price"].submit(1).result(timeout=LONG)


def test_an_app_has_a_life_more_than_once(shop):
    """A stopped app can be started again, engine and all."""
    for amount in (1, 2):
        with shop.harness.running(shop.app):
            assert amount == shop.app.tasks["price"].submit(amount).result(timeout=LONG)
