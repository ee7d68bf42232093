"""Plugins for a Taskiq broker's own tasks, by one line."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime as dt
import pickle
import sqlite3
import threading
from types import SimpleNamespace
from typing import Annotated

import pytest
import structlog
from taskiq import (
    Context,
    NoResultError,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    TaskiqMiddleware,
    async_shared_broker,
)
from taskiq.exceptions import SendTaskError, TaskRejectedError

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import QueueTasks, exc
from qtasks_pluggy.engines.taskiq import install
from qtasks_pluggy.exc import EngineError, PluginError, TaskCancelError, TaskTimeoutError
from tests.engines.huey_apps import Keeps
from tests.engines.taskiq_apps import LONG, broker_of, ended, working
from tests.engines.versions import since

pytestmark = pytest.mark.engines

NOWHERE = "amqp://user:secret@127.0.0.1:1 is not there"


@pytest.fixture(params=[False, True], ids=["in tasks", "in place"])
def native(request):
    """A broker of somebody's own."""
    return broker_of(await_inplace=request.param)


def failing(native, **options):
    """A native task that fails with what it is given, and takes its attempts down."""
    seen = []

    async def fail(text):
        seen.append(text)
        raise OSError(text)

    return native.register_task(fail, task_name="fail", **options), seen


async def test_plugins_answer_for_native_tasks(native):
    """An answer is the native result; tasks declared before and after are covered, and counted."""
    before, _ = failing(native)
    plugin = Keeps(Replace(None), 0)
    assert 1 == install(native, [plugin], discover=False)

    @native.task(task_name="after")
    def after():
        return {}["key"]

    assert 2 == install(native, [plugin], discover=False)
    async with working(native):
        first = await before.kiq("broken")
        result = await ended(first)
        assert (None, None, False) == (result.return_value, result.error, result.is_err)
        assert 0 == (await ended(await after.kiq())).return_value
    (one, two) = plugin.messages
    assert [("fail", ("broken",), 1), ("after", (), 1)] == [
        (message.name, message.args, message.attempt) for message in (one, two)
    ]
    assert ["start", "close", "close", "stop"] == plugin.heard
    assert (first.task_id, "taskiq", None) == (one.uuid, one.engine, one.redelivered)


@pytest.mark.parametrize(
    ("decision", "kind", "text"),
    [
        (None, OSError, "broken"),
        (Raise(LookupError("clearer")), LookupError, "clearer"),
        (Cancel("why"), TaskCancelError, "why"),
        (DeadLetter("why"), OSError, "broken"),
    ],
)
async def test_ends_are_taskiq_s_own(native, decision, kind, text):
    """What plugins decide is the stored error; a dead letter, without a place, is R7."""
    task, seen = failing(native)
    install(native, [Keeps(decision)], discover=False)
    async with working(native):
        with structlog.testing.capture_logs() as logs:
            result = await ended(await task.kiq("broken"))
    assert (kind, text) == (type(result.error), str(result.error))
    assert result.is_err
    assert ["broken"] == seen
    assert isinstance(decision, DeadLetter) is ("CapabilityError" in str(logs))


@pytest.mark.parametrize("decision", [None, Raise(StopIteration("other"))])
async def test_a_plain_task_that_lets_stopiteration_out_ends(native, decision):
    """What no future takes is stored as Python's error for an async task."""
    task = native.register_task(lambda: next(iter([])), task_name="first")
    install(native, [Keeps(decision)], discover=False)
    async with working(native), asyncio.timeout(LONG):
        result = await ended(await task.kiq())
    assert "RuntimeError('the task raised StopIteration')" == repr(result.error)


async def test_a_cancelled_run_is_no_error_in_taskiq_s_log(native, caplog):
    """``Cancel`` stores a ``TaskCancelError``, whatever middlewares hear, and logs no traceback."""
    heard = []

    class Hears(TaskiqMiddleware):
        def on_error(self, message, result, exception):
            heard.append(type(exception))

        def post_execute(self, message, result):
            heard.append((result.is_err, type(result.error)))

    native.add_middlewares(SimpleRetryMiddleware(default_retry_label=True), Hears())
    task, seen = failing(native)
    install(native, [Keeps(Cancel("why"), DeadLetter("lost")), Letters()], discover=False)
    async with working(native):
        cancelled = (await ended(await task.kiq("broken"))).error
        logged = [(one.levelname, one.exc_info) for one in caplog.records if "taskiq" in one.name]
        letter = (await ended(await task.kiq("broken"))).error
    assert isinstance(pickle.loads(pickle.dumps(cancelled)), exc.TaskCancelError)
    assert ("why", OSError) == (str(cancelled), type(cancelled.__cause__))
    assert [] == [one for one in logged if one[0] == "ERROR" or one[1]]
    assert issubclass(heard[0], NoResultError)
    assert (True, TaskCancelError) == heard[1]
    # What is set aside has failed, and is logged.
    assert isinstance(letter, exc.TaskDeadLetteredError)
    assert "ERROR" in {one.levelname for one in caplog.records if "taskiq" in one.name}
    assert ["broken"] * 2 == seen


class Letters:
    """Keeps dead letters."""

    @hookimpl
    def task_executor_dead_letter(self):
        return True


async def test_a_generator_s_items_are_the_result(native):
    """R17: a task may yield, of either kind; an answer replaces what it has yielded so far."""
    yielded = []

    class Looks:
        @hookimpl
        def task_executor_run_task_trigger_error(self, task_executor):
            yielded.append(list(task_executor.yielded))

    @native.task(task_name="plain")
    def plain(fails):
        yield 1
        if fails:
            raise OSError
        yield 2

    @native.task(task_name="other")
    async def other(fails):
        yield 1
        if fails:
            raise OSError
        yield 2

    install(native, [Looks(), Keeps("answer", "answer")], discover=False)
    async with working(native):
        for task in (plain, other):
            assert [1, 2] == (await ended(await task.kiq(fails=False))).return_value
            assert "answer" == (await ended(await task.kiq(fails=True))).return_value
    assert [[1], [1]] == yielded


async def test_a_direct_call_stays_native(native):
    """Calling a task asks no plugin, of either kind, also in the midst of a run."""
    task, _ = failing(native)
    plugin = Keeps("from the run")

    @native.task(task_name="plain")
    def plain(text):
        raise OSError(text)

    @native.task(task_name="outer")
    async def outer(depth):
        for call in (task, plain):
            with pytest.raises(OSError, match="direct"):
                result = call("direct")
                await result
        if depth:
            await outer(depth - 1)
        raise LookupError

    install(native, [plugin], discover=False)
    with pytest.raises(OSError, match="broken"):
        await task("broken")
    with pytest.raises(OSError, match="broken"):
        plain("broken")
    async with working(native):
        assert "from the run" == (await ended(await outer.kiq(0))).return_value
        assert isinstance((await ended(await outer.kiq(1))).error, LookupError)
    assert ["outer", "outer"] == [message.name for message in plugin.messages]


async def test_plugins_retry_native_tasks(native):
    """A retry is another attempt of the same run, with its own arguments, counted on."""
    task, seen = failing(native, tenant="blue", count=3, raw=b"\xff")
    plugin = Keeps(Retry(), Retry(), "third")
    labels = []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_executor):
            labels.append(task_executor.task_broker.attempt)

    install(native, [Looks(), plugin], discover=False)
    async with working(native):
        ticket = await task.kiq("broken")
        result = await ended(ticket)
    assert "third" == result.return_value
    assert ("blue", 3, b"\xff") == tuple(result.labels[key] for key in ("tenant", "count", "raw"))
    assert ["broken"] * 3 == seen
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert {ticket.task_id} == {message.uuid for message in plugin.messages}
    assert [3] == labels


async def test_retries_end_at_their_limit_with_the_task_s_own_error(native):
    """Past the limit of the plugins' retries the native error is stored, not the engine's."""
    task, seen = failing(native)
    install(native, [Keeps(*[Retry(limit=2)] * 9)], discover=False)
    async with working(native):
        result = await ended(await task.kiq("broken"))
    assert (OSError, "broken", 3) == (type(result.error), str(result.error), len(seen))


async def test_a_delay_that_the_broker_cannot_keep_is_refused(native):
    """R7: ``Retry(delay=5)`` is not done at once instead, where the broker has no delays."""
    task, seen = failing(native)
    install(native, [Keeps(Retry(delay=5))], discover=False)
    async with working(native):
        result = await ended(await task.kiq("broken"))
    assert ["broken"] == seen
    assert "raised CapabilityError" in "".join(result.error.__notes__)


@pytest.mark.parametrize("kind", [SimpleRetryMiddleware, SmartRetryMiddleware])
async def test_native_retries_come_on_top(kind):
    """Plugins are asked at every attempt; only after the last of Taskiq's own a run has failed."""
    native = broker_of()
    native.add_middlewares(kind())
    task, seen = failing(native, retry_on_error=True, max_retries=3)
    plugin = Keeps(None, Retry())
    install(native, [plugin], discover=False)
    async with working(native):
        result = await ended(await task.kiq("broken"))
    assert "broken" == str(result.error)
    assert ["broken"] * 4 == seen
    assert [1, 2, 3, 4] == [message.attempt for message in plugin.messages]
    assert ["start", "failed", "close", "stop"] == plugin.heard


@since("taskiq", "0.12.6", "a task says nothing about which errors are retried")
async def test_native_retries_are_told_from_final_failures():
    """A class that Taskiq does not retry is final at once, and the plugins hear of it."""
    native = broker_of()
    native.add_middlewares(SimpleRetryMiddleware(default_retry_label=True))
    narrow, _ = failing(native, types_of_exceptions=(LookupError,))
    plugin = Keeps()
    install(native, [plugin], discover=False)
    async with working(native):
        assert isinstance((await ended(await narrow.kiq("broken"))).error, OSError)
    assert ["start", "failed", "close", "stop"] == plugin.heard


async def test_a_cancelled_run_is_over_though_taskiq_has_retries_left():
    """``Cancel`` ends a run with native retries left, and the plugins hear of its end."""
    native = broker_of()
    native.add_middlewares(SimpleRetryMiddleware(default_retry_label=True))
    task, seen = failing(native, retry_on_error="true")
    plugin = Keeps(Cancel("why"))
    install(native, [plugin], discover=False)
    async with working(native):
        result = await ended(await task.kiq("broken"))
    assert isinstance(result.error, TaskCancelError)
    assert "why" == str(result.error)
    assert ["broken"] == seen
    assert ["start", "close", "stop"] == plugin.heard


async def test_taskiq_s_control_exceptions_pass(native):
    """By its own exceptions a task talks to Taskiq, and no plugin is asked."""

    @native.task(task_name="talk")
    async def talk(how, context: Annotated[Context, TaskiqDepends()]):
        if how == "reject":
            context.reject()
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()
        return "again"

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    async with working(native):
        assert "again" == (await ended(await talk.kiq("requeue"))).return_value
        assert isinstance((await ended(await talk.kiq("reject"))).error, TaskRejectedError)
    assert [] == plugin.messages
    assert ["start", "close", "close", "stop"] == plugin.heard


CLOSED = []
VARIABLE = contextvars.ContextVar("variable")


async def session_of_db():
    """Stand in for a session with a database."""
    try:
        yield "session"
    except BaseException:
        CLOSED.append("rolled back")
        raise
    CLOSED.append("committed")


def tenant():
    """Stand in for what finds out for whom a run is."""
    VARIABLE.set("blue")


async def test_dependencies_and_types_are_taskiq_s(native):
    """Parameters are found and converted as before; a recovered run closes its session well."""
    CLOSED.clear()

    @native.task(task_name="book")
    async def book(day: dt.date, session: Annotated[str, TaskiqDepends(session_of_db)]):
        raise OSError(session, day)

    @native.task(task_name="plain")
    def plain(day: dt.date, session: Annotated[str, TaskiqDepends(session_of_db)], other=0):
        assert threading.current_thread() is not threading.main_thread()
        return f"{day:%d}{session}{other}"

    plugin = Keeps("booked")
    install(native, [plugin], discover=False)
    day = dt.date(2026, 11, 24)
    async with working(native):
        assert "booked" == (await ended(await book.kiq(day=day))).return_value
        assert "24session1" == (await ended(await plain.kiq(day, other=1))).return_value
        failed = await ended(await book.kiq(day))
    assert ("session", day) == failed.error.args
    assert ["committed", "committed", "rolled back"] == CLOSED
    assert {"day": day} == plugin.messages[0].kwargs


async def test_a_function_sees_the_context_of_its_run(native):
    """Context variables that middlewares and dependencies set reach functions of either kind."""

    @native.task(task_name="plain")
    def plain(_: Annotated[None, TaskiqDepends(tenant)]):
        return VARIABLE.get()

    install(native, discover=False)
    async with working(native):
        assert "blue" == (await ended(await plain.kiq())).return_value


async def test_shared_tasks_are_covered_for_this_broker_alone(native):
    """A shared task has the plugins on the broker that has them, and stays itself on others."""
    other = broker_of()
    shared = async_shared_broker.register_task(lambda: 1 / 0, task_name="shared")
    try:
        assert 1 == install(native, [Keeps("ours")], discover=False)
        async with working(native), working(other):
            async_shared_broker.default_broker(native)
            assert "ours" == (await ended(await shared.kiq())).return_value
            async_shared_broker.default_broker(other)
            assert isinstance((await ended(await shared.kiq())).error, ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            shared()
    finally:
        async_shared_broker._default_broker = None
        del async_shared_broker.global_task_registry["shared"]


async def test_what_is_intercepted_can_be_narrowed(native):
    """``intercept`` names the errors that plugins are asked about; the rest stay Taskiq's."""
    task, _ = failing(native)
    plugin = Keeps("never")
    install(native, [plugin], discover=False, intercept=LookupError)
    async with working(native):
        assert isinstance((await ended(await task.kiq("broken"))).error, OSError)
    assert [] == plugin.messages


async def test_a_worker_without_tasks_is_refused(native):
    """A worker in which ``install`` covers nothing takes no run, and says why."""
    install(native, discover=False)
    with structlog.testing.capture_logs() as logs, pytest.raises(EngineError, match="no task"):
        await native.startup()
    assert ["worker_cannot_start"] == [one["event"] for one in logs]


async def test_a_plugin_that_does_not_start_fails_the_startup(native):
    """The caller gets the plugin's error as it is, because the worker is its own process."""

    def start():
        raise LookupError("no configuration")

    failing(native)
    plugin = SimpleNamespace(name="starts", qtasks_start=hookimpl(start))
    install(native, [plugin], discover=False)
    with pytest.raises(PluginError, match="no configuration") as caught:
        await native.startup()
    assert isinstance(caught.value.__cause__, LookupError)


async def test_an_answer_that_cannot_travel_leaves_nobody_waiting(native):
    """A plugin's answer that is no JSON leaves the task's own error, for that run alone."""
    task, _ = failing(native)
    install(native, [Keeps(Replace(threading.Lock()), "second")], discover=False)
    async with working(native):
        result = await ended(await task.kiq("broken"))
        assert isinstance(result.error, OSError)
        assert "second" == (await ended(await task.kiq("broken"))).return_value


@pytest.mark.parametrize("error", [ConnectionError(NOWHERE), SendTaskError()])
async def test_a_run_that_cannot_be_sent_says_why(error):
    """Whoever submits it learns why, and no password; a middleware may refuse it too."""
    native = broker_of()
    app = QueueTasks("shop", engine=native, discover=False)
    work = app.task(name="work")(lambda: 1)

    class Refuses(TaskiqMiddleware):
        def pre_send(self, _):
            raise error

    native.add_middlewares(Refuses())
    async with app:
        with pytest.raises(EngineError, match=type(error).__name__) as caught:
            await work.submit_async()
    assert "secret" not in str(caught.value)


async def test_a_retry_that_cannot_be_sent_is_the_end(native):
    """R15: when the broker fails in the midst of a run, the run ends in an error that says so."""
    task, plugin, kick = failing(native)[0], Keeps(Retry()), native.kick
    install(native, [plugin], discover=False)

    async def kick_once(message):
        native.kick = broken
        await kick(message)

    async def broken(_):
        raise ConnectionError(NOWHERE)

    native.kick = kick_once
    async with working(native):
        result = await ended(await task.kiq("broken"))
    assert "'fail': a plugin decided to retry, but the broker" in str(result.error)
    assert "ConnectionError" in str(result.error)
    assert "secret" not in str(result.error)
    assert ["start", "failed", "close", "stop"] == plugin.heard


async def test_taskiq_s_time_limit_is_no_task_error(native):
    """The label ``timeout`` cuts a run as before: no plugin hears of an error."""

    @native.task(task_name="slow", timeout=0.05)
    async def slow():
        await asyncio.Event().wait()

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    async with working(native):
        error = (await ended(await slow.kiq())).error
    assert isinstance(error, TimeoutError)
    assert not isinstance(error, TaskTimeoutError)
    assert [] == plugin.messages


async def test_an_app_and_an_installed_broker_are_one_broker(native):
    """``install`` leaves the tasks of an app on the same broker to that app's plugins."""
    task, _ = failing(native)
    ours, theirs = Keeps("ours"), Keeps("theirs")
    app = QueueTasks("shop", engine=native, plugins=[ours], discover=False, intercept=Exception)
    app.task(name="divide")(lambda: 1 / 0)
    assert 1 == install(native, [theirs], discover=False)
    app.task(name="later")(lambda: 1 / 0)
    async with app:
        handle = await app.tasks["divide"].submit_async()
        assert "ours" == await handle
        assert "theirs" == (await ended(await task.kiq("broken"))).return_value
    assert 1 == len(ours.messages) == len(theirs.messages)


async def test_no_result_stays_no_result(native):
    """A task that wants no result stored has none, and its plugins hear that it is over."""

    @native.task(task_name="quiet")
    async def quiet():
        raise NoResultError

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    async with working(native):
        ticket = await quiet.kiq()
        await native.wait_all()
        assert not await ticket.is_ready()
    assert ["start", "close", "stop"] == plugin.heard


async def test_what_fails_on_taskiq_is_recorded(native, monkeypatch, tmp_path):
    """With ``enable = ["failures"]`` a failed native run is in the store, whatever its kind."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "failures")
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_FAILURES_URL", f"sqlite:///{tmp_path}/failures.db")

    @native.task(task_name="plain")
    def plain(text):
        raise OSError(text)

    task, _ = failing(native)
    install(native, discover=False)
    async with working(native):
        sent = [await task.kiq("one"), await plain.kiq("two")]
        for one in sent:
            await ended(one)
    with contextlib.closing(sqlite3.connect(tmp_path / "failures.db")) as store:
        runs = store.execute(
            "SELECT uuid, task, status, engine FROM failures_runs ORDER BY task"
        ).fetchall()
    assert [
        (sent[0].task_id, "fail", "failed", "taskiq"),
        (sent[1].task_id, "plain", "failed", "taskiq"),
    ] == runs
