"""``Native``, the base of every ``install()``: what it does for any engine, plain and async."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import traceback
import weakref
from types import SimpleNamespace

import pytest
import structlog

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import TaskMessage
from qtasks_pluggy._submit import calls
from qtasks_pluggy.engines import Capabilities, Elsewhere, installed_in, leave_behind
from qtasks_pluggy.engines._errors import pack_error
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.exc import (
    CapabilityError,
    EngineError,
    PluginError,
    PluginRegistrationError,
    TaskCancelError,
    TaskDeadLetteredError,
)
from tests.engines.huey_apps import LONG, Keeps

pytestmark = pytest.mark.engines


class Shop:
    """An engine's own app: tasks by name, and what was sent."""

    def __init__(self, **tasks):
        self.functions, self.sent, self.covered = tasks, [], 0


class AgainError(Exception):
    """Tells the engine that a run was sent again."""


class OnShop(Native):
    """Plain, with all that an engine may say."""

    name, kind, control = "shop", Shop, (AgainError,)
    fails: Exception | None = None
    repeats = False

    def cover(self):
        self.native.covered += 1

    @property
    def tasks(self):
        return self.native.functions

    def message(self, run, args, kwargs):
        return TaskMessage(run, args, kwargs, uuid="first", attempt=self.attempts)

    attempts = 1

    def retry(self, run, attempt, number):
        if self.fails is not None:
            raise self.fails
        self.native.sent.append((run, attempt.delay, number))
        return AgainError(number)

    def will_retry(self, run, error):
        return self.repeats

    def encode(self, run, value):
        if isinstance(value, type(threading.Lock())):
            raise TypeError("cannot pickle a lock")

    def can(self, run):
        return Capabilities(delay=True, results=True, dead_letter=True)

    def send(self, message, delay):
        self.native.sent.append((message.name, message.args, dict(message.metadata), delay))

    def call(self, name, *args):
        """Do what the engine does for a message."""
        return self.work(name, self.native.functions[name], args, {})


class OnAsyncShop(OnShop):
    """The same, with an event loop on which it sends."""

    async def retry(self, run, attempt, number):
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        return super().retry(run, attempt, number)

    async def cancel(self, run, attempt):
        await asyncio.sleep(0)
        return attempt.error

    async def send(self, message, delay):
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0.01)
        if self.fails is not None:
            raise self.fails
        super().send(message, delay)

    def call(self, name, *args):
        async def main():
            self.loop = asyncio.get_running_loop()
            return await self.work_async(name, self.native.functions[name], args, {})

        return asyncio.run(main())


class OnThreads(OnAsyncShop):
    """Its plain functions run in threads beside the event loop on which it sends."""

    def call(self, name, *args):
        async def main():
            self.loop = asyncio.get_running_loop()
            work = self.work, name, self.native.functions[name], args, {}
            return await asyncio.to_thread(*work)

        return asyncio.run(main())


KINDS = [OnShop, OnAsyncShop, OnThreads]


def fail():
    """Fail."""
    raise OSError("broken")


async def fail_async():
    """Fail as an async function."""
    fail()


def installed(kind, *plugins, **tasks):
    """Install plugins in a shop; give what calls its tasks."""
    native = Shop(**tasks or {"fail": fail})
    kind.install(native, plugins, discover=False)
    return kind.found_in(native)


@pytest.fixture(params=KINDS)
def kind(request):
    """A kind of engine."""
    return request.param


@pytest.fixture(params=[fail, fail_async])
def function(request):
    """A failing function."""
    return request.param


def test_an_answer_is_the_result(kind, function):
    """Plain and async functions alike, whatever the engine is."""
    plugin = Keeps(Replace(None), 0)
    one = installed(kind, plugin, fail=function)
    assert one.call("fail") is None
    assert 0 == one.call("fail")
    assert ["close", "close"] == plugin.heard


def test_a_retry_is_sent_and_told(kind, function):
    """The engine gets its own exception, and no end is told."""
    plugin = Keeps(Retry(delay=2))
    one = installed(kind, plugin, fail=function)
    with pytest.raises(AgainError):
        one.call("fail")
    assert [("fail", 2, 2)] == one.native.sent
    assert [] == plugin.heard


@pytest.mark.parametrize("repeats", [True, False])
def test_a_retry_that_cannot_be_sent_is_an_end_unless_the_engine_repeats(kind, repeats):
    """The error says so, with the task's own as its cause; the end is told once, if it is one."""
    plugin = Keeps(Retry())
    one = installed(kind, plugin)
    one.fails, one.repeats = ConnectionError("no room"), repeats
    with pytest.raises(EngineError, match="'fail': a plugin decided to retry.*no room") as caught:
        one.call("fail")
    assert isinstance(caught.value.__cause__, OSError)
    assert ([] if repeats else ["failed", "close"]) == plugin.heard


@pytest.mark.parametrize(
    ("decision", "error"),
    [
        (Cancel("why"), TaskCancelError),
        (DeadLetter("why"), TaskDeadLetteredError),
        (Raise(LookupError("why")), LookupError),
    ],
)
def test_ends_are_raised(kind, decision, error):
    """Each ends in its own error."""
    plugin = Keeps(decision)
    one = installed(kind, plugin)
    with pytest.raises(error, match="why"):
        one.call("fail")
    assert "close" == plugin.heard[-1]


def test_a_plain_task_may_raise_what_no_coroutine_can():
    """StopIteration reaches a plain engine as itself."""
    one = installed(OnShop, Keeps(Raise(StopIteration("why"))))
    with pytest.raises(StopIteration, match="why"):
        one.call("fail")


def test_r6_the_error_is_handed_over_without_our_frames(kind, function):
    """R6: at most two of our frames lead to the task's own."""
    one = installed(kind, fail=function)
    with pytest.raises(OSError, match="broken") as caught:
        one.call("fail")
    names = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert sum("/qtasks_pluggy/" in name for name in names) <= 2
    assert [] == getattr(caught.value, "__notes__", [])


def test_r7_an_answer_that_cannot_be_stored_is_void(kind):
    """R7: its plugin is named, and the task's own error goes on."""
    one = installed(kind, Keeps(threading.Lock()))
    with structlog.testing.capture_logs() as logs, pytest.raises(OSError, match="broken"):
        one.call("fail")
    assert ["keeps"] == [entry["plugin"] for entry in logs if entry["event"] == "plugin_failed"]


def test_r19_a_run_sees_nothing_of_another(kind):
    """R19: what one run binds is gone in the next."""
    from contextvars import ContextVar

    bound = ContextVar("bound", default="nothing")
    seen = []

    def bind():
        seen.append(bound.get())
        bound.set("something")

    one = installed(kind, bind=bind)
    one.call("bind")
    one.call("bind")
    assert ["nothing", "nothing"] == seen


class Replays:
    """Sends its run again at its end."""

    name = "replays"

    def __init__(self):
        self.ids = []

    @hookimpl
    def task_executor_task_close(self, task_executor, task_broker):
        self.ids.append(task_executor.app.replay(task_broker, args=(1,), metadata={"by": "me"}))


def test_a_plugin_replays_a_run_before_that_ends(kind):
    """On the engine's own event loop, too, it is sent when the engine hears of the end."""
    plugin = Replays()
    one = installed(kind, plugin)
    with pytest.raises(OSError, match="broken"):
        one.call("fail")
    assert [("fail", (1,), {"replay_of": "first", "by": "me"}, None)] == one.native.sent
    assert 1 == len(plugin.ids)


def test_a_replay_that_fails_on_the_engine_s_loop_is_logged():
    """Nobody waits for it who could be told; the run's own error goes on."""
    one = installed(OnAsyncShop, Replays())
    one.fails = ConnectionError("no room")
    with structlog.testing.capture_logs() as logs, pytest.raises(OSError, match="broken"):
        one.call("fail")
    (failed,) = [entry for entry in logs if entry["event"] == "replay_not_sent"]
    assert ("fail", "error") == (failed["task"], failed["log_level"])
    assert "no room" in failed["error"]


def test_a_client_on_the_engine_s_loop_is_refused():
    """It cannot wait there; a thread can."""
    one = installed(OnAsyncShop)

    async def main():
        one.loop = asyncio.get_running_loop()
        with pytest.raises(CapabilityError, match="'fail'.*in a thread"):
            one.app.replay(TaskMessage("fail"))
        await asyncio.to_thread(one.app.replay, TaskMessage("fail"))

    asyncio.run(main())
    assert ["fail"] == [name for name, *_ in one.native.sent]


def test_an_argument_that_does_not_travel_is_named_by_its_place(monkeypatch):
    """A replay that is refused says which argument, and not its value."""
    one = installed(OnShop)

    def send(*_):
        raise TypeError("cannot pickle")

    monkeypatch.setattr(OnShop, "send", send)
    with pytest.raises(EngineError, match="'fail': argument 2, a lock, was refused") as caught:
        one.app.replay(TaskMessage("fail", ("secret", threading.Lock())))
    assert "secret" not in str(caught.value)


def test_plugins_start_with_the_first_worker_and_stop_after_the_last():
    """Counted, plain and async; a second life of the same process starts them again."""
    plugin = Keeps()
    one = installed(OnShop, plugin)
    one.begin()
    one.begin()
    one.end()
    assert ["start"] == plugin.heard
    one.end()
    one.end()
    assert ["start", "stop"] == plugin.heard

    async def main():
        await one.begin_async()
        await one.begin_async()
        await one.end_async()
        assert ["start", "stop", "start"] == plugin.heard
        await one.end_async()

    asyncio.run(main())
    assert ["start", "stop"] * 2 == plugin.heard


def test_an_app_that_is_started_already_is_its_starter_s_to_stop():
    """A worker in the process of a client leaves the plugins as they are."""
    plugin = Keeps()
    one = installed(OnShop, plugin)
    with installed_in(one.native):
        one.begin()
        one.end()
        assert ["start"] == plugin.heard
    assert ["start", "stop"] == plugin.heard


def test_a_run_without_a_worker_starts_the_plugins():
    """Where nobody says that a worker begins, the first run does; its end stops nothing."""
    plugin = Keeps()
    one = installed(OnShop, plugin)
    one.begin_for_run()
    one.begin_for_run()
    assert ["start"] == plugin.heard


def test_other_plugins_take_over_in_a_worker():
    """The old ones are stopped and the new ones started; faulty ones change nothing."""
    first, second = Keeps(1), Keeps(2)
    one = installed(OnShop, first)
    one.begin()
    with pytest.raises(PluginRegistrationError):
        OnShop.install(one.native, [object()], discover=False)
    assert ["start"] == first.heard
    OnShop.install(one.native, [second], discover=False)
    assert ["start", "stop"] == first.heard
    assert 2 == one.call("fail")
    one.end()
    assert ["start", "close", "stop"] == second.heard
    assert 1 == one.native.covered


def test_other_plugins_that_take_over_begin_no_second_life(monkeypatch):
    """What an adapter adds to the start before a first run is not done again."""
    plugin = Keeps()
    one = installed(OnShop, Keeps())
    one.begin()
    monkeypatch.setattr(one, "begin_for_run", plugin.heard.clear)
    OnShop.install(one.native, [plugin], discover=False)
    assert ["start"] == plugin.heard
    one.end()


def test_an_error_travels_without_a_whole_document_that_is_no_json():
    """Its text says where the fault is; the document can be large, and secret."""
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("x" * 10_000)
    assert 1_000 > len(json.dumps(pack_error(caught.value)))


async def test_a_call_that_its_loop_cancels_is_an_exception_to_plain_code_alone():
    """Plain code handles it as any other error of the engine; async code as a cancellation."""
    waits = Elsewhere(asyncio.sleep(LONG), asyncio.get_running_loop())
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wrap_future(waits)
    assert isinstance(waits.exception(), Exception)


def test_only_a_loop_that_ran_at_a_fork_is_left_behind(monkeypatch):
    """One that rested can run in the child too, as in a program that becomes a daemon."""
    monkeypatch.setattr(calls, "_left_behind", left := set())
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        assert not leave_behind(loop)
        loop.call_soon(lambda: leave_behind(loop) and loop.stop())
        loop.run_forever()
        assert {loop} == left


def test_a_forked_process_begins_anew():
    """It has an app of its own, and nothing that its parent has loaded, started or stopped."""
    plugin = Keeps()
    one = installed(OnShop, plugin)
    app = one.app
    one.forked()
    assert one.app is not app
    one.begin()
    one.forked()
    assert not one.is_begun
    one.begin()
    one.end()
    assert ["start", "start", "stop"] == plugin.heard


@pytest.mark.parametrize("tasks", [0, 1])
def test_a_worker_that_cannot_do_its_work_is_refused(tasks):
    """One without tasks, or with a plugin that does not start, is told why."""

    def start():
        raise LookupError("no configuration")

    plugin = SimpleNamespace(name="starts", qtasks_start=hookimpl(start))
    native = Shop(**({"fail": fail} if tasks else {}))
    assert tasks == OnShop.install(native, [plugin], discover=False)
    one = OnShop.found_in(native)
    kind, text = (PluginError, "no configuration") if tasks else (EngineError, "covers no task")
    for begin in (one.begin, lambda: asyncio.run(one.begin_async())):
        raising = pytest.raises(SystemExit, match=text)
        with structlog.testing.capture_logs() as logs, raising as caught:
            begin()
        assert isinstance(caught.value.__cause__, kind)
        assert 1 == [entry["event"] for entry in logs].count("worker_cannot_start")
        assert not one.is_begun


@pytest.mark.parametrize(
    ("tags", "seen", "extra"),
    [
        (["price"], ("price",), {"owner": "me"}),
        ("price", ("price",), {"owner": "me"}),
        (7, (), {"tags": 7, "owner": "me"}),
        ({"a": 1}, (), {"tags": {"a": 1}, "owner": "me"}),
    ],
)
def test_a_task_s_options_reach_plugins(monkeypatch, tags, seen, extra):
    """Tags are tags where they are words; the rest is extra, whatever it is."""
    given = {"tags": tags, "owner": "me"}
    monkeypatch.setattr(OnShop, "options", lambda self, run: given)
    found = []

    def ask(task_func):
        found.append((task_func.tags, dict(task_func.extra)))
        return 1

    plugin = SimpleNamespace(name="asks", task_executor_run_task_trigger_error=hookimpl(ask))
    assert 1 == installed(OnShop, plugin).call("fail")
    assert [(seen, extra)] == found


def test_a_function_of_one_run_is_not_kept():
    """An engine may make a new function for each run; only the last is remembered."""
    one = installed(OnShop)
    gone = []
    for _ in range(3):

        def function():
            return 1

        gone.append(weakref.ref(function))
        assert 1 == one.work("fail", function, (), {})
    del function
    gc.collect()
    assert [None, None] == [ref() for ref in gone[:2]]


def test_plugins_can_be_named():
    """A plugin may be a name, which is imported; one that cannot be is refused at once."""
    assert 1 == OnShop.install(Shop(fail=fail), [f"{__name__}:NAMED"], discover=False)
    with pytest.raises(PluginRegistrationError, match="no_such_module"):
        OnShop.install(Shop(fail=fail), ["no_such_module:plugin"], discover=False)


NAMED = Keeps()
