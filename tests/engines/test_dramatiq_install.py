"""Plugins for a Dramatiq app's own actors, by one line."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import dramatiq
import pytest
import structlog
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import RateLimitExceeded
from dramatiq.middleware import AsyncIO, Retries, SkipMessage, TimeLimit
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy.engines.dramatiq import at_least_once, install
from qtasks_pluggy.exc import CapabilityError
from tests.engines.dramatiq_apps import stub_broker, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


@pytest.fixture
def native():
    """A broker of somebody's own."""
    return stub_broker()


def failing(native, **options):
    """An actor that fails with what it is given, and takes its attempts down."""
    seen = []

    def fail(text):
        seen.append(text)
        raise OSError(text)

    given = {"max_retries": 0, "store_results": True, **options}
    return dramatiq.actor(actor_name="fail", broker=native, **given)(fail), seen


def get(message, native):
    """Wait for a native result."""
    backend = native.get_results_backend()
    return backend.get_result(message, block=True, timeout=LONG * 1000)


def test_plugins_answer_for_native_actors(native):
    """An answer is the native result; actors declared before and after are covered, and counted."""
    native.add_middleware(AsyncIO())
    before, _ = failing(native)
    plugin = Keeps("taken", 0)

    assert 1 == install(native, [plugin], discover=False)

    @dramatiq.actor(broker=native, actor_name="after", store_results=True)
    async def after():
        return {}["key"]

    assert 2 == install(native, [plugin], discover=False)
    with working(native):
        first = before.send("broken")
        assert "taken" == get(first, native)
        assert 0 == get(after.send(), native)
    (one, two) = plugin.messages
    assert [("fail", ("broken",), 1), ("after", (), 1)] == [
        (message.name, message.args, message.attempt) for message in (one, two)
    ]
    assert ["start", "close", "close", "stop"] == plugin.heard
    assert first.message_id == str(one.uuid)
    assert ("dramatiq", "default") == (one.engine, one.queue)
    assert [OSError, KeyError] == [type(error) for error in plugin.causes]


@pytest.mark.parametrize(
    ("decision", "kind", "text"),
    [
        (None, "OSError", "broken"),
        (Raise(LookupError("clearer")), "LookupError", "clearer"),
        (Cancel("why"), "TaskCancelError", "why"),
        (DeadLetter("why"), "TaskDeadLetteredError", "why"),
    ],
    ids=["none", "raise", "cancel", "dead_letter"],
)
def test_ends_are_dramatiq_s_own(native, decision, kind, text):
    """What plugins decide ends as Dramatiq's own errors do, and dead letters in its own place."""
    task, seen = failing(native)
    install(native, [Keeps(decision)], discover=False)
    with structlog.testing.capture_logs() as logs, working(native):
        message = task.send("broken")
        with pytest.raises(ResultFailure) as caught:
            get(message, native)
        native.join("default", timeout=LONG * 1000)
    assert (kind, text) == (caught.value.orig_exc_type, caught.value.orig_exc_msg)
    assert ["broken"] == seen
    assert "CapabilityError" not in str(logs)
    dead = [one.message_id for one in native.dead_letters]
    assert ([] if isinstance(decision, Cancel) else [message.message_id]) == dead


def test_a_direct_call_stays_native(native):
    """Calling an actor as a function asks no plugin, in a worker's task neither."""
    task, _ = failing(native)
    plugin = Keeps(0)
    install(native, [plugin], discover=False)
    with pytest.raises(OSError, match="broken"):
        task("broken")
    assert [] == plugin.messages


def test_plugins_retry_native_actors(native):
    """A retry is another attempt of the same message, counted on, whatever Dramatiq's limit is."""
    task, seen = failing(native)
    plugin = Keeps(Retry(), Retry(delay=0.01), "third")
    install(native, [plugin], discover=False)
    with working(native):
        assert "third" == get(task.send("broken"), native)
    assert ["broken"] * 3 == seen
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert ["start", "close", "stop"] == plugin.heard


def test_retries_end_in_the_actor_s_own_error(native):
    """Past the plugin's limit the stored error is the original one, not Dramatiq's."""
    task, seen = failing(native)
    install(native, [Keeps(*[Retry(limit=2)] * 9)], discover=False)
    with working(native), pytest.raises(ResultFailure, match="OSError: broken"):
        get(task.send("broken"), native)
    assert ["broken"] * 3 == seen


def test_native_retries_come_on_top(native):
    """Plugins are asked at every attempt; only after the last of Dramatiq's has a run failed."""
    task, seen = failing(native, max_retries=2, min_backoff=1, max_backoff=2)
    plugin = Keeps(None, Retry())
    install(native, [plugin], discover=False)
    with working(native), pytest.raises(ResultFailure, match="broken"):
        get(task.send("broken"), native)
    assert ["broken"] * 4 == seen
    assert [1, 2, 3, 4] == [message.attempt for message in plugin.messages]
    assert ["start", "failed", "close", "stop"] == plugin.heard


@pytest.mark.parametrize("decision", [Cancel("why"), DeadLetter("why")], ids=["cancel", "letter"])
def test_a_decided_run_is_over_though_dramatiq_has_retries_left(native, decision):
    """``Cancel`` and ``DeadLetter`` end a run with native retries left."""
    task, seen = failing(native, max_retries=5, min_backoff=1, max_backoff=2)
    plugin = Keeps(decision)
    install(native, [plugin], discover=False)
    with working(native):
        with pytest.raises(ResultFailure, match="why"):
            get(task.send("broken"), native)
        native.join("default", timeout=LONG * 1000)
    assert ["broken"] == seen


@pytest.mark.parametrize("control", [dramatiq.Retry, RateLimitExceeded, SkipMessage])
def test_dramatiq_s_control_exceptions_pass(native, control):
    """By its own exceptions an actor talks to Dramatiq, and no plugin is asked."""
    raised = []

    @dramatiq.actor(broker=native, store_results=True, min_backoff=1, max_backoff=2)
    def talk():
        if not raised:
            raised.append(1)
            raise control("why")
        return "again"

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    with working(native):
        expected = None if control is SkipMessage else "again"
        assert expected == get(talk.send(), native)
    assert [] == plugin.messages


def test_what_is_intercepted_can_be_narrowed(native):
    """``intercept`` names the errors that plugins are asked about; the rest stay Dramatiq's."""
    task, _ = failing(native)
    plugin = Keeps("never")
    install(native, [plugin], discover=False, intercept=LookupError)
    with working(native), pytest.raises(ResultFailure, match="broken"):
        get(task.send("broken"), native)
    assert [] == plugin.messages


def test_an_answer_that_cannot_be_stored_is_void_for_that_run_alone(native):
    """An answer that is no JSON leaves the actor's own error, instead of a caller who waits."""
    task, _ = failing(native)
    install(native, [Keeps(Replace(threading.Lock()), "fine")], discover=False)
    with working(native):
        with pytest.raises(ResultFailure, match="broken"):
            get(task.send("broken"), native)
        assert "fine" == get(task.send("broken"), native)


def test_a_worker_without_actors_is_refused(native):
    """A worker in which ``install`` covers nothing takes no message, and says why."""
    install(native, discover=False)
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(SystemExit, match="covers no task"),
        working(native),
    ):
        pass
    assert "worker_cannot_start" in {one["event"] for one in logs}


def test_a_plugin_that_does_not_start_refuses_the_worker(native):
    """Faults of plugins are told before a message is taken."""
    failing(native)

    class Failing(Keeps):
        @hookimpl
        def qtasks_start(self):
            raise LookupError("no configuration")

    install(native, [Failing()], discover=False)
    with pytest.raises(SystemExit, match="no configuration"), working(native):
        pass


def test_presets_for_a_native_broker():
    """``at_least_once`` sets what keeps messages, and refuses a broker that loses them."""
    with pytest.raises(CapabilityError, match="StubBroker"):
        at_least_once(StubBroker())
    broker = RedisBroker(url="redis://127.0.0.1:1")
    at_least_once(broker)
    assert (100_000, 30_000) == (broker.maintenance_chance, broker.heartbeat_timeout)
    broker = RedisBroker(url="redis://127.0.0.1:1", heartbeat_timeout=5_000)
    at_least_once(broker)
    assert 5_000 == broker.heartbeat_timeout


def test_a_run_without_results_is_nobody_s_business(native):
    """An actor that stores no results is decided about as well."""
    task, seen = failing(native, store_results=False)
    plugin = Keeps(Retry(), Cancel("why"))
    install(native, [plugin], discover=False)
    with working(native):
        task.send("broken")
        assert wait_until(lambda: plugin.heard.count("close") == 1, LONG)
    assert ["broken"] * 2 == seen


def test_on_failure_hears_of_what_is_not_retried(native):
    """The actor that ``on_failure`` names is sent the message of a run that plugins have ended."""
    heard = []

    @dramatiq.actor(broker=native, actor_name="report")
    def report(message, error):
        heard.append((message["args"], error["type"]))

    actor, seen = failing(native, max_retries=3, min_backoff=1, on_failure="report")
    install(native, [Keeps(DeadLetter("why"))], discover=False)
    with working(native):
        message = actor.send("broken")
        assert wait_until(lambda: heard, LONG)
        with pytest.raises(ResultFailure):
            get(message, native)
    assert [(["broken"], "TaskDeadLetteredError")] == heard
    assert ["broken"] == seen


@pytest.mark.parametrize(("answer", "told"), [("taken", "taken"), (None, None)])
def test_on_success_hears_of_a_recovered_run(native, answer, told):
    """The actor that ``on_success`` names is sent the answer, and nothing of a failed run."""
    heard = []

    @dramatiq.actor(broker=native, actor_name="report")
    def report(message, result):
        heard.append(result)

    actor, _ = failing(native, on_success="report")
    install(native, [Keeps(answer)], discover=False)
    with working(native):
        message = actor.send("broken")
        with pytest.raises(ResultFailure) if answer is None else contextlib.nullcontext():
            assert answer == get(message, native)
        native.join("default", timeout=LONG * 1000)
    assert [told] * (told is not None) == heard


def test_dramatiq_s_time_limit_is_dramatiq_s_own():
    """``TimeLimit`` interrupts an actor; no plugin is asked, and Dramatiq retries it as before."""
    native = StubBroker(middleware=[TimeLimit(time_limit=100, interval=50), Retries(min_backoff=1)])
    native.fail_fast_default = False
    native.add_middleware(Results(backend=StubBackend()))
    seen = []

    @dramatiq.actor(broker=native, max_retries=1, store_results=True)
    def hang():
        seen.append(1)
        end = time.monotonic() + (LONG if len(seen) == 1 else 0)
        while time.monotonic() < end:
            time.sleep(0.01)
        return "in time"

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    native.emit_after("process_boot")
    with working(native):
        assert "in time" == get(hang.send(), native)
    assert [] == plugin.messages
    assert [1, 1] == seen


def test_a_middleware_of_one_s_own_sees_what_is_decided(native):
    """``after_process_message`` gets an answer as the result, and no error."""
    seen = []

    class Looks(dramatiq.Middleware):
        def after_process_message(self, broker, message, *, result=None, exception=None):
            seen.append((result, exception))

        def after_skip_message(self, broker, message):
            seen.append("skipped")

    native.add_middleware(Looks())
    actor, _ = failing(native)
    install(native, [Keeps(Retry(), "taken")], discover=False)
    with working(native, threads=1):
        assert "taken" == get(actor.send("broken"), native)
    assert ["skipped", ("taken", None)] == seen


def test_the_plugins_live_as_long_as_the_last_worker_of_a_process(native):
    """Of several workers in one process, the first that ends takes no plugin from the others."""
    actor, _ = failing(native)
    plugin = Keeps("taken")
    install(native, [plugin], discover=False)
    with working(native):
        with working(native):
            pass
        assert "taken" == get(actor.send("broken"), native)
    assert ["start", "close", "stop"] == plugin.heard


def test_plugins_that_come_later_are_started(native):
    """Another ``install``, while a worker runs, stops the plugins that were and starts its own."""
    actor, _ = failing(native)
    first, second = Keeps("first"), Keeps("second")
    install(native, [first], discover=False)
    with working(native):
        assert "first" == get(actor.send("broken"), native)
        assert wait_until(lambda: "close" in first.heard, LONG)
        install(native, [second], discover=False)
        assert "second" == get(actor.send("broken"), native)
    assert ["start", "close", "stop"] == first.heard
    assert ["start", "close", "stop"] == second.heard


def test_a_cancelled_async_actor_is_no_failure(native):
    """R2, R15: no plugin is asked about a cancellation, nor told that the run has failed."""
    native.add_middleware(AsyncIO())

    @dramatiq.actor(broker=native, store_results=True, max_retries=0)
    async def cancelled():
        raise asyncio.CancelledError

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    with working(native), pytest.raises(ResultFailure, match="CancelledError"):
        get(cancelled.send(), native)
    assert [] == plugin.messages
    assert ["start", "close", "stop"] == plugin.heard
