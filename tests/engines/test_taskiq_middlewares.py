"""A Taskiq project's own middlewares and classes work as before, with plugins in its runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time

import pydantic
import pytest
from taskiq import (
    AsyncBroker,
    InMemoryBroker,
    NoResultError,
    TaskiqEvents,
    TaskiqMiddleware,
    async_shared_broker,
)
from taskiq.decor import AsyncTaskiqDecoratedTask

from qtasks_hookspecs import Cancel, Raise, Replace, Retry
from qtasks_pluggy import QueueTasks, TaskMessage, TaskStatus
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines.taskiq import install
from qtasks_pluggy.exc import EngineError, TaskCancelError, TaskPluginTriggerError
from tests.engines.huey_apps import Keeps
from tests.engines.processes import told_by_a_fork
from tests.engines.taskiq_apps import LONG, app_on, broker_of, ended, working
from tests.engines.versions import since

pytestmark = pytest.mark.engines


@pytest.fixture(params=[False, True], ids=["in tasks", "in place"])
def native(request):
    """A broker of somebody's own."""
    return broker_of(await_inplace=request.param)


class Unpacks(TaskiqMiddleware):
    """Gives every run another message, with other arguments, as one that decrypts them does."""

    def pre_execute(self, message):
        args = [arg.removeprefix("packed ") for arg in message.args]
        return message.model_copy(update={"args": args})


async def test_a_middleware_added_later_may_replace_the_message(native):
    """A native run has the arguments of the message that the last middleware gave."""
    plugin = Keeps(Replace("answer"))

    @native.task(task_name="echo")
    async def echo(text, kind="good"):
        if kind == "bad":
            raise OSError(text)
        return text

    install(native, [plugin], discover=False)
    native.add_middlewares(Unpacks())
    async with working(native):
        good = await ended(await echo.kiq("packed one"))
        await ended(await echo.kiq("packed two", kind="bad"))
    assert "one" == good.return_value
    assert [("two",)] == [message.args for message in plugin.messages]
    assert ["two"] == [str(cause) for cause in plugin.causes]


class Breaks(TaskiqMiddleware):
    """Fails whenever a run of one task begins."""

    def pre_execute(self, message):
        if message.task_name == "broken":
            raise OSError(message.task_id)
        return message


class Packs(Unpacks):
    """Packs what is sent, in place, and unpacks what is received."""

    def __init__(self):
        super().__init__()
        self.sent = []

    async def pre_send(self, message):
        message.args[:] = [f"packed {arg}" for arg in message.args]
        return message

    def pre_execute(self, message):
        assert all(arg.startswith("packed ") for arg in message.args)
        return super().pre_execute(message)

    def post_send(self, message):
        self.sent.append(message.args)


async def test_plugins_retries_are_sent_through_the_middlewares(native):
    """What middlewares do to a message that is sent they do to a plugin's retry as well."""
    packs, plugin, seen = Packs(), Keeps(Retry(), "answer"), []
    native.add_middlewares(packs)

    @native.task(task_name="fail")
    async def fail(text):
        seen.append(text)
        raise OSError(text)

    install(native, [plugin], discover=False)
    async with working(native):
        result = await ended(await fail.kiq("one"))
    assert (False, "answer") == (result.is_err, result.return_value)
    assert ["one", "one"] == seen
    assert [["packed one"]] * 2 == packs.sent


async def test_a_project_s_own_class_of_tasks_is_kept(native):
    """Tasks declared later are of the class that the project gave its broker, generic or not."""

    class Own(AsyncTaskiqDecoratedTask):
        queue = "own"

    native.decorator_class = Own
    install(native, [Keeps("answer")], discover=False)

    @native.task(task_name="fail")
    async def fail():
        raise OSError

    assert "own" == fail.queue
    async with working(native):
        assert "answer" == (await ended(await fail.kiq())).return_value


def test_the_shared_broker_is_refused():
    """``install`` on a broker that runs nothing would ask nobody, and says where to call it."""
    before = async_shared_broker.decorator_class
    with pytest.raises(EngineError, match="AsyncSharedBroker, which runs no tasks; call it with"):
        install(async_shared_broker, [Keeps()], discover=False)
    assert async_shared_broker.decorator_class is before


async def test_apps_on_one_broker_start_and_stop_by_themselves(native):
    """Of two apps on one broker each is started once, and one's stop leaves the other's runs."""
    native.events = []
    native.on_event(*TaskiqEvents)(lambda _: native.events.append("event"))
    plugins = [Keeps("answer"), Keeps("another")]
    apps = [
        QueueTasks(name, engine=native, plugins=[plugin], discover=False, intercept=OSError)
        for name, plugin in zip(("one", "two"), plugins, strict=True)
    ]

    @apps[0].task
    async def one():
        raise OSError

    @apps[1].task
    async def two():
        raise OSError

    async with apps[0]:
        async with apps[1]:
            assert "another" == await (await two.submit())
        assert "answer" == await (await one.submit())
        assert ["start", "close", "stop"] == plugins[1].heard
    assert ["start", "close", "stop"] == plugins[0].heard
    # Begun for the client and for the worker, and ended for the client.
    assert 3 == len(native.events)


async def test_the_last_app_on_a_broker_closes_it(native):
    """The app that opened the broker may stop first."""
    closed = []
    native.on_event(TaskiqEvents.CLIENT_SHUTDOWN)(closed.append)
    first, second = (app_on(native) for _ in range(2))
    work = second.task(name="work")(lambda: 1)
    for _ in range(2):
        closed.clear()
        await first.__aenter__()
        async with second:
            await first.__aexit__(None, None, None)
            assert 1 == await (await work.submit_async())
            assert [] == closed
        assert 1 == len(closed)


async def test_a_middleware_that_fails_does_not_keep_an_app_from_stopping():
    """The error that Taskiq passes on is not the app's: other runs end, then the broker closes."""
    closed, ended, go = [], [], asyncio.Event()
    native = broker_of()
    native.on_event(TaskiqEvents.CLIENT_SHUTDOWN)(lambda _: closed.append(list(ended)))
    native.add_middlewares(Breaks())
    app = app_on(native)
    broken = app.task(name="broken")(lambda: 1)

    @app.task
    async def work():
        await go.wait()
        ended.append("ended")

    async with app:
        await work.submit_async()
        for _ in range(12):
            await broken.submit_async()
        asyncio.get_running_loop().call_later(0.05, go.set)
    assert [["ended"]] == closed


@since("taskiq", "0.12", "a broker in memory does not start middlewares")
async def test_an_app_leaves_a_broker_as_it_found_it(native):
    """A broker that the program has opened is neither opened nor closed by its app."""
    events, plugin = [], Keeps("answer")
    native.on_event(*TaskiqEvents)(lambda _: events.append("event"))
    app = QueueTasks("shop", engine=native, plugins=[plugin], discover=False, intercept=OSError)

    @app.task
    async def fail():
        raise OSError

    await native.startup()
    begun = len(events)
    async with app:
        assert "answer" == await (await fail.submit())
    assert begun == len(events)
    assert ["start", "close", "stop"] == plugin.heard
    await native.shutdown()


@since("taskiq", "0.12", "a broker in memory does not start middlewares")
def test_a_broker_on_an_event_loop_that_is_not_running_is_told_of(monkeypatch):
    """Plain code that would wait forever for that loop gets an ``EngineError`` instead."""
    monkeypatch.setattr("qtasks_pluggy._submit.calls._REST_SECONDS", 0.0)
    app = app_on(native := broker_of())
    work = app.task(name="work")(lambda: 1)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(native.startup())
        with pytest.raises(EngineError, match="an event loop that is not running.*its start"), app:
            pass
        loop.run_until_complete(app.__aenter__())
        handle = loop.run_until_complete(work.submit_async())
        for wait in (work.submit_sync, handle.result):
            with pytest.raises(EngineError, match="an event loop that is not running"):
                wait()
        assert handle.status is None
        assert 1 == loop.run_until_complete(asyncio.wait_for(handle, LONG))
        loop.run_until_complete(app.__aexit__(None, None, None))
        loop.run_until_complete(native.shutdown())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("call", ["submit", "result", "status", "start", "stop"])
def test_a_fork_does_not_wait_for_a_broker_of_its_parent(call):
    """The event loop that has the broker's connections is not there, and they are the parent's."""
    app = app_on(broker_of())
    gate = threading.Event()
    task = app.task(name="work")(lambda: gate.wait(LONG))
    with app:
        handle = task.submit()
        calls = {
            "submit": task.submit,
            "result": handle.result,
            "status": lambda: handle.status,
            "start": app.__enter__,
            "stop": lambda: app.__exit__(None, None, None),
        }
        text = told_by_a_fork(calls[call])
        told = "no error" if call in {"status", "stop"} else "the process that this one was forked"
        assert told in text
        gate.set()
        assert handle.result(LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
async def test_a_replay_in_a_fork_does_not_wait_for_a_broker_of_its_parent(native):
    """So too for plugins in a broker's own tasks."""
    task = native.register_task(lambda: 1, task_name="one")
    install(native, discover=False)
    async with working(native):
        await ended(await task.kiq())
        app = installed_in(native)
        text = told_by_a_fork(lambda: app.replay(TaskMessage("one")))
        assert "EngineError: engine 'taskiq' is open in the process" in text


class Halfway(AsyncBroker):
    """Connects, and then does something else that never succeeds."""

    connected = False

    def __init__(self, then):
        super().__init__()
        self.then = then

    async def startup(self):
        await super().startup()
        self.connected = True
        await self.then()

    async def shutdown(self):
        await super().shutdown()
        self.connected = False

    async def kick(self, message):
        raise NotImplementedError

    def listen(self):
        raise NotImplementedError


async def test_a_start_that_is_cancelled_leaves_nothing_open():
    """The broker that an app was about to open is closed again."""
    app = app_on(native := Halfway(asyncio.Event().wait))
    starting = asyncio.create_task(app.__aenter__())
    while not native.connected:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not native.connected


def test_a_replay_that_cannot_open_the_broker_leaves_nothing_open():
    """A client whose broker opens only in part closes that part again."""

    async def fail():
        raise ConnectionError

    native = Halfway(fail)
    native.register_task(lambda: 1, task_name="work")
    install(native, discover=False)
    with pytest.raises(EngineError, match="ConnectionError"):
        installed_in(native).replay(TaskMessage("work"))
    assert not native.connected


class Order(pydantic.BaseModel):
    """What travels under other names than those that a dump of it has."""

    number: int = pydantic.Field(alias="orderNumber")


async def test_a_retry_has_the_arguments_that_travelled(native):
    """A plugin's retry sends what came, not what Taskiq made of it for the function."""
    seen = []

    @native.task(task_name="ship")
    async def ship(order: Order, *, other: Order):
        seen.append((order.number, other.number))
        raise OSError

    install(native, [Keeps(Retry(), "answer")], discover=False)
    async with working(native):
        result = await ended(await ship.kiq({"orderNumber": 1}, other={"orderNumber": 2}))
    assert "answer" == result.return_value
    assert [(1, 2)] * 2 == seen


@pytest.mark.parametrize("is_app", [False, True], ids=["install", "app"])
async def test_plain_functions_share_taskiq_s_own_threads(is_app):
    """Of 30 plain runs at once no more than the pool's two run, and no other thread is made."""
    native = InMemoryBroker(sync_tasks_pool_size=2, max_stored_results=-1)
    before, most = threading.active_count(), []

    def work():
        most.append(threading.active_count())
        time.sleep(0.01)

    if is_app:
        app = QueueTasks("shop", engine=native, plugins=[Keeps()], discover=False)
        task = app.task(work)
        async with app:
            for handle in [await task.submit_async() for _ in range(30)]:
                await handle
    else:
        task = native.register_task(work, task_name="work")
        install(native, [Keeps()], discover=False)
        async with working(native):
            for sent in [await task.kiq() for _ in range(30)]:
                (await ended(sent)).raise_for_error()
    assert 30 == len(most)
    # An app's own start asks the server from a thread, which may not be gone yet.
    assert max(most) - before <= 2 + is_app


@pytest.mark.parametrize("answers", [(), (Raise(NoResultError()),)], ids=["task", "plugin"])
async def test_an_app_s_task_that_wants_no_result_fails(answers):
    """``NoResultError`` would leave whoever waits without an end, so it is an ``EngineError``."""
    app = app_on(broker_of(), Keeps(*answers), intercept=Exception)

    @app.task
    async def quiet():
        raise NoResultError

    async with app:
        with pytest.raises(EngineError, match="'taskiq': the task raised NoResultError: User does"):
            await asyncio.wait_for(await quiet.submit(), 9)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_an_app_s_cancelled_run_is_no_error_in_taskiq_s_log(caplog, is_async):
    """The caller gets the ``TaskCancelError``; Taskiq logs no traceback."""
    app = QueueTasks("shop", engine=broker_of(), discover=False, plugins=[Keeps(Cancel("why"))])

    async def fail_async():
        raise TaskPluginTriggerError

    def fail():
        raise TaskPluginTriggerError

    task = app.task(fail_async if is_async else fail)
    async with app:
        handle = await task.submit_async()
        with pytest.raises(TaskCancelError, match="why"):
            await handle
        assert TaskStatus.cancelled is handle.status
    logged = [(one.levelname, one.exc_info) for one in caplog.records if "taskiq" in one.name]
    assert [] == [one for one in logged if one[0] == "ERROR" or one[1]]
