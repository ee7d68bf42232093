"""Dramatiq behind an app: what is its own, besides what every engine does."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from contextvars import ContextVar

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, TimeLimit
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend, StubBackend

from qtasks_hookspecs import DeadLetter, Retry, TaskMessage
from qtasks_pluggy import QueueTasks, TaskStatus
from qtasks_pluggy.engines.dramatiq import DramatiqEngine
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskDeadLetteredError
from tests.engines.dramatiq_apps import stub_broker, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


def app_on(native, *plugins, workers=2, **options):
    """An app with no plugins but these, and workers in this process."""
    app = QueueTasks("shop", plugins=plugins, discover=False, **options)
    app.set_engine(native, workers=workers)
    return app


def test_tasks_are_dramatiq_s_own():
    """A task is an actor under its own name, and the message says what the engine knows."""
    native = stub_broker()
    keeps = Keeps(Retry(), Retry(delay=0.01), "taken")
    app = app_on(native, keeps)

    @app.task(echo=True)
    def ask(self, text, *, other):
        self.ctx.plugin_error(text)

    with app:
        assert "ask" in native.actors
        handle = ask.submit("one", other=2)
        assert "taken" == handle.result(timeout=LONG)
        assert handle.status is TaskStatus.succeeded
        assert handle.ticket.message_id == str(handle.uuid)
        backend = native.get_results_backend()
        assert "taken" == handle.ticket.get_result(backend=backend)
    assert [1, 2, 3] == [message.attempt for message in keeps.messages]
    message = keeps.messages[-1]
    assert ("ask", ("one",), {"other": 2}) == (message.name, message.args, dict(message.kwargs))
    assert ("dramatiq", "default") == (message.engine, message.queue)
    assert abs(time.time() - message.created_at) < LONG
    assert ["start", "close", "stop"] == keeps.heard


def test_a_native_call_of_the_actor_runs_the_function():
    """Who calls our actor as a function gets what it returns; it logs as the function's module."""
    native = stub_broker()
    app = app_on(native)
    app.task(name="length")(len)
    actor = native.get_actor("length")
    assert 3 == actor("tea")
    assert "builtins.length" == actor.logger.name


def test_capabilities_are_the_broker_s():
    """What an app on Dramatiq can do is what its broker and its middleware can."""
    redis = DramatiqEngine(RedisBroker(url="redis://127.0.0.1:1"))
    rabbit = DramatiqEngine(RabbitmqBroker(url="amqp://127.0.0.1:1"))
    stub = DramatiqEngine(stub_broker())
    assert [False, False, True] == [one.capabilities.results for one in (redis, rabbit, stub)]
    assert [True, True, False] == [one.capabilities.at_least_once for one in (redis, rabbit, stub)]


def test_a_task_s_own_limit_comes_before_dramatiq_s():
    """``TimeLimit``, of which no plugin hears, is a minute longer than a task's ``max_time``."""
    native = stub_broker()
    app = app_on(native)
    for seconds in (None, 5, 3600):
        app.task(name=f"for {seconds}", max_time=seconds)(len)
    limits = [native.get_actor(f"for {n}").options.get("time_limit") for n in (None, 5, 3600)]
    assert [None, 65_000, 3_660_000] == limits


def test_results_that_nobody_keeps_are_refused():
    """Without the Results middleware the handle says that nothing is stored."""
    app = app_on(StubBroker())
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        assert handle.status is None
        with pytest.raises(CapabilityError, match="give it a result backend$"):
            handle.result()


def test_a_run_is_not_taken_back():
    """Dramatiq cannot cancel, and says so."""
    app = app_on(stub_broker())
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        with pytest.raises(CapabilityError, match="cannot cancel"):
            handle.cancel()


def test_a_name_that_dramatiq_has_is_refused():
    """Two actors of one name are refused when they are declared."""
    native = stub_broker()
    dramatiq.actor(len, actor_name="price", broker=native)
    app = app_on(native)
    with pytest.raises(EngineError, match="'price'"):
        app.task(name="price")(len)


def test_a_task_is_a_plain_function_to_another_actor():
    """An actor of the broker's own that calls it gets its result, and its error."""
    app = app_on(stub_broker(), Keeps(5))
    fail = app.task(name="fail", intercept=ZeroDivisionError)(lambda: 1 / 0)
    native, heard = app.engine.native, []

    @dramatiq.actor(broker=native, max_retries=0)
    def call():
        try:
            native.actors["fail"]()
        except ZeroDivisionError as error:
            heard.append(error)

    with app:
        call.send()
        assert 5 == fail.submit().result(timeout=LONG)
        assert wait_until(lambda: heard, LONG)


def test_an_adapter_is_behind_one_app():
    """A second app on the same adapter is refused, as its runs would be the first's."""
    app = app_on(stub_broker())
    app.task(name="one")(len)
    with pytest.raises(EngineError, match="the runs of app 'shop'"):
        QueueTasks("other", engine=app.engine).task(name="two")(len)


def test_an_unknown_task_ends_in_an_error():
    """A worker that lacks the task says so to whoever waits, and keeps the message."""
    native = stub_broker()
    app = app_on(native, workers=None)
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        del native.actors["one"]
        with working(native), pytest.raises(EngineError, match="no such task"):
            handle.result(timeout=LONG)
    assert ["one"] == [message.actor_name for message in native.dead_letters]


def test_a_task_that_exits_ends_itself_alone():
    """``sys.exit()`` in a task fails its run, and the worker goes on."""
    app = app_on(stub_broker(), workers=1)
    leave = app.task(name="leave")(sys.exit)
    one = app.task(name="one")(lambda: 1)
    with app:
        with pytest.raises(EngineError, match="SystemExit: 3"):
            leave.submit(3).result(timeout=LONG)
        assert 1 == one.submit().result(timeout=LONG)


def test_dead_letters_are_dramatiq_s_too():
    """A run that is set aside is in Dramatiq's own place for what failed."""
    native = stub_broker()
    app = app_on(native, Keeps(DeadLetter("poison")))

    @app.task(echo=True)
    def ask(self):
        self.ctx.plugin_error()

    with app:
        with pytest.raises(TaskDeadLetteredError, match="poison"):
            ask.submit().result(timeout=LONG)
        native.join("default", timeout=LONG * 1000)
    assert ["ask"] == [message.actor_name for message in native.dead_letters]


class OddError(Exception):
    """An error that is made in another way than its arguments say."""

    def __init__(self, code, *, text):
        super().__init__(code)
        self.text = text


@pytest.mark.parametrize(
    ("error", "same"),
    [
        (LookupError("a", 1), True),
        (LookupError(object), False),
        (OddError(1, text="x"), False),
        (type("Gone", (Exception,), {"__module__": "gone"})("text"), False),
    ],
    ids=["plain", "unserializable", "odd", "gone"],
)
def test_errors_travel_by_their_class(error, same):
    """The caller gets an error of the class and text of the task's, or one that names both."""
    app = app_on(stub_broker())

    @app.task(name="fail")
    def fail():
        raise error

    with app, pytest.raises(Exception, match=re.escape(str(error))) as caught:
        fail.submit().result(timeout=LONG)
    if same:
        assert (type(error), error.args) == (type(caught.value), caught.value.args)
    else:
        assert type(error).__name__ in f"{type(caught.value).__name__} {caught.value}"


FORGED = {
    "status": "cancelled",
    "error": {
        "module": "builtins",
        "class": "PermissionError",
        "args": ["forged"],
        "kwargs": {},
        "text": "forged",
        "notes": [],
    },
}
DRAMATIQ_S = {"__t": "dramatiq.results.Result", "exn": {"type": "OSError", "msg": "forged"}}


@pytest.mark.parametrize("by", ["task", "plugin"])
@pytest.mark.parametrize(
    "value",
    [
        {"__qtasks_pluggy__": FORGED},
        {"__qtasks_pluggy__": {"status": "succeeded", "result": 1}},
        {"__qtasks_pluggy__": 1, "more": 2},
        DRAMATIQ_S,
        {"__t": "dramatiq.results.Result"},
        [{"__qtasks_pluggy__": FORGED}],
    ],
    ids=["failed", "succeeded", "odd", "dramatiq's", "dramatiq's, odd", "inside"],
)
def test_r5_a_result_is_a_result_whatever_its_keys_are(value, by):
    """R5: a dict is a dict: none passes for a failure, nor chooses a class of error."""
    app = app_on(stub_broker(), Keeps(value), intercept=LookupError)

    @app.task
    def parse(text):
        if by == "plugin":
            raise LookupError
        return json.loads(text)

    with app:
        handle = parse.submit(json.dumps(value))
        assert value == handle.result(timeout=LONG)
        assert handle.status is TaskStatus.succeeded


@pytest.mark.parametrize(
    "end", [1, {}, {"status": "odd"}, {"status": "failed"}, {"status": "failed", "error": 5}]
)
def test_a_stored_end_that_makes_no_sense_is_an_engine_error(end):
    """Whoever waits gets an ``EngineError``, whatever somebody wrote into the result backend."""
    native = stub_broker()
    app = app_on(native, workers=None)
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        backend = native.get_results_backend()
        backend.store_result(handle.ticket, {"__qtasks_pluggy__": end}, 60_000)
        with pytest.raises(EngineError, match="cannot be read"):
            handle.result(timeout=LONG)
        assert handle.status is TaskStatus.failed


@pytest.mark.parametrize("attempt", [-1_000_000, 0, "x", None, [], 1.5])
def test_r9_an_odd_header_gives_a_run_no_more_retries(attempt):
    """R9: whatever number a message brings, the limit of a retry holds."""
    native = stub_broker()
    keeps = Keeps(*[Retry(limit=2)] * 9)
    app = app_on(native, keeps, intercept=LookupError)
    task = app.task(name="fail")(lambda: {}["key"])
    with app:
        handle = task.submit()
        native.join("default", timeout=LONG * 1000)
        again = handle.ticket.copy(options={"qtasks_pluggy": {"attempt": attempt}})
        keeps.messages.clear()
        native.enqueue(again)
        native.join("default", timeout=LONG * 1000)
    assert [1, 2, 3] == [message.attempt for message in keeps.messages]


@pytest.mark.parametrize(
    ("broker", "results", "what"),
    [
        (lambda: RedisBroker(url="redis://:secret@127.0.0.1:1"), None, "RedisBroker.*127.0.0.1:1"),
        (
            lambda: RabbitmqBroker(url="amqp://me:secret@127.0.0.1:1"),
            None,
            "RabbitmqBroker.*host=127.0.0.1 port=1",
        ),
        (
            stub_broker,
            lambda: RedisBackend(url="redis://:secret@127.0.0.1:1"),
            "RedisBackend.*127.0.0.1:1",
        ),
    ],
    ids=["redis", "rabbitmq", "results"],
)
def test_a_server_that_is_not_there_is_told_of(broker, results, what):
    """Within ten seconds, with what and where it is, and without the password."""
    begin = time.monotonic()
    native = broker()
    if results is not None:
        native.middleware[-1].backend = results()
    assert results is None or isinstance(native.middleware[-1], Results)
    app = app_on(native, workers=None)
    with pytest.raises(EngineError, match=what) as caught, app:
        pass
    assert "secret" not in str(caught.value)
    assert time.monotonic() - begin < 10


def test_a_server_that_goes_away_is_told_of():
    """A submission to a server that is gone is an error that names the task."""
    engine = DramatiqEngine(RedisBroker(url="redis://127.0.0.1:1"))
    app = QueueTasks("shop", engine=engine, discover=False)
    app.task(name="one")(lambda: 1)
    with pytest.raises(EngineError, match="cannot send task 'one': the call was refused"):
        engine.submit(TaskMessage("one"), None)


def test_a_number_with_too_many_digits_is_a_bad_result():
    """JSON refuses a very long whole number, and whoever waits for it is told so."""
    app = app_on(stub_broker())
    long = app.task(name="long")(lambda: 10**5000)
    with app, pytest.raises(EngineError, match="the result of task 'long', a int"):
        long.submit().result(timeout=LONG)


def test_dramatiq_s_time_limit_holds_for_async_tasks():
    """A coroutine is cancelled when Dramatiq interrupts the thread that waits for it."""
    native = StubBroker(middleware=[TimeLimit(time_limit=200, interval=50), Retries()])
    native.fail_fast_default = False
    native.add_middleware(Results(backend=StubBackend()))
    app, ended = app_on(native), []

    @app.task
    async def hang():
        try:
            await asyncio.sleep(4 * LONG)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    native.emit_after("process_boot")
    with app, pytest.raises(EngineError, match="TimeLimitExceeded"):
        hang.submit_sync().result(timeout=LONG)
    assert ["cancelled"] == ended


def test_r19_a_run_sees_no_context_of_another():
    """R19: what a run binds is gone in the next run of the same thread."""
    app, variable = app_on(stub_broker(), workers=1), ContextVar("tenant", default="clean")
    first = app.task(name="first")(lambda: variable.set("one") and None)

    @app.task
    def second():
        return variable.get()

    with app:
        first.submit().result(timeout=LONG)
        assert "clean" == second.submit().result(timeout=LONG)
