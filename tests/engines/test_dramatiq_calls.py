"""What an actor was declared and sent with reaches plugins; groups and pipelines work on."""

from __future__ import annotations

import threading
import warnings

import dramatiq
import pytest
from dramatiq import Middleware, group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks, Retries
from dramatiq.results import ResultFailure, ResultMissing

from qtasks_hookspecs import Cancel, DeadLetter, Replace, Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskMessage
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines.dramatiq import install
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters
from tests.engines.dramatiq_apps import stub_broker, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until
from tests.failures.places import Place

pytestmark = pytest.mark.engines
WAIT = LONG * 1000


@pytest.fixture
def native():
    """A broker of somebody's own."""
    return stub_broker()


def actor_of(native, function, **options):
    """Make an actor that Dramatiq does not retry, and whose result is stored."""
    given = {"max_retries": 0, "store_results": True, **options}
    return dramatiq.actor(broker=native, **given)(function)


def halve(number):
    """Give the half of an even number."""
    if number % 2:
        raise ValueError(number)
    return number // 2


class Names(Middleware):
    """Somebody's middleware, which has an option of its own."""

    actor_options = {"owner"}  # noqa: RUF012  # Dramatiq only reads it


def test_what_an_actor_was_declared_with_reaches_plugins(native):
    """Its tags are tags, and the options of somebody else's middleware are extra."""
    native.add_middleware(Names())
    told = []

    class Tells(Keeps):
        @hookimpl
        def task_executor_run_task_trigger_error(self, task_func):
            told.append((task_func.tags, dict(task_func.extra)))
            return 0

    install(native, [Tells()], discover=False)
    task = actor_of(native, halve, tags=["price"], owner="me", time_limit=60_000)
    with working(native):
        assert 0 == task.send(1).get_result(
            backend=native.get_results_backend(), block=True, timeout=WAIT
        )
    assert [(("price",), {"owner": "me"})] == told


def test_r19_options_of_a_message_are_its_metadata(native):
    """R19: what is sent with a message arrives at each attempt, whoever makes that, and no more."""
    task = actor_of(native, halve, max_retries=1, min_backoff=1, max_backoff=2)
    plugin = Keeps(Retry(), None, 0)
    install(native, [plugin], discover=False)
    with working(native):
        sent = task.send_with_options(args=(1,), request="r-7", max_age=60_000)
        backend = native.get_results_backend()
        assert 0 == sent.get_result(backend=backend, block=True, timeout=WAIT)
    assert [(n, {"request": "r-7"}) for n in (1, 2, 3)] == [
        (message.attempt, dict(message.metadata)) for message in plugin.messages
    ]


def test_a_replay_carries_what_dramatiq_would_take_for_its_own(native):
    """Metadata has any name; what is Dramatiq's own option says nothing to Dramatiq."""
    task = actor_of(native, halve)
    plugin = Keeps(0)
    install(native, [plugin], discover=False)
    metadata = {"max_retries": 9, "pipe_target": "x", "request": "r-7"}
    message = TaskMessage(task.actor_name, (1,), uuid="the-first", metadata=metadata)
    with working(native):
        installed_in(native).replay(message)
        assert wait_until(lambda: "close" in plugin.heard, LONG)
    assert [{**metadata, "replay_of": "the-first"}] == [dict(m.metadata) for m in plugin.messages]


class Tenants(dramatiq.Actor):
    """Somebody's actors, which add an option to each message."""

    def message_with_options(self, **options):
        return super().message_with_options(**options, tenant="acme")


def test_a_replay_has_what_a_class_of_actors_adds_to_messages(native):
    """A replay is made as the actor's own class makes a message, besides its own metadata."""
    task = actor_of(native, halve, actor_class=Tenants)
    plugin = Keeps(0)
    install(native, [plugin], discover=False)
    message = TaskMessage(task.actor_name, (1,), uuid="the-first", metadata={"request": "r-7"})
    with working(native):
        installed_in(native).replay(message)
        assert wait_until(lambda: "close" in plugin.heard, LONG)
    wanted = {"tenant": "acme", "request": "r-7", "replay_of": "the-first"}
    assert [wanted] == [dict(message.metadata) for message in plugin.messages]


@pytest.mark.parametrize(
    "header",
    [[], "x", 5, {"attempt": "x"}, {"attempt": -9}, {"metadata": 5}, {"attempt": {"a": 1}}],
    ids=repr,
)
def test_r9_an_odd_header_gives_a_run_no_more_retries(native, header):
    """R9: what anybody wrote into a message is no trouble for its run."""
    task = actor_of(native, halve)
    plugin = Keeps(*[Retry(limit=2)] * 9)
    install(native, [plugin], discover=False)
    with working(native), pytest.raises(ResultFailure, match="ValueError: 1"):
        sent = task.send_with_options(args=(1,), qtasks_pluggy=header)
        sent.get_result(backend=native.get_results_backend(), block=True, timeout=WAIT)
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]


def test_r9_a_forged_count_of_dramatiq_s_gives_no_more_retries(native):
    """R9: Dramatiq's own number of retries counts, but never for less than none."""
    task = actor_of(native, halve, throws=ValueError)
    plugin = Keeps(*[Retry(limit=2)] * 9)
    install(native, [plugin], discover=False)
    with working(native), pytest.raises(ResultFailure, match="ValueError: 1"):
        sent = task.send_with_options(args=(1,), retries=-1_000_000)
        sent.get_result(backend=native.get_results_backend(), block=True, timeout=WAIT)
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]


@pytest.mark.parametrize("whose", ["actor", "middleware"])
def test_a_dead_letter_is_over_whatever_retry_when_says(native, whose):
    """``DeadLetter`` ends a run that Dramatiq's own rules would make again."""
    options = {"max_retries": None, "min_backoff": 1, "max_backoff": 2}
    if whose == "actor":
        options["retry_when"] = lambda count, error: True
    else:
        rules = next(one for one in native.middleware if isinstance(one, Retries))
        rules.retry_when = lambda count, error: True
    seen = []

    def fail():
        seen.append(1)
        raise OSError

    task = actor_of(native, fail, throws=LookupError, **options)
    install(native, [Keeps(DeadLetter("why"))], discover=False)
    with working(native):
        sent = task.send()
        with pytest.raises(ResultFailure, match="TaskDeadLetteredError: why"):
            sent.get_result(backend=native.get_results_backend(), block=True, timeout=WAIT)
        native.join("default", timeout=WAIT)
    assert [1] == seen
    assert [sent.message_id] == [one.message_id for one in native.dead_letters]


def test_a_dead_letter_that_a_plugin_keeps_is_not_dramatiq_s(native):
    """R9: where a plugin has the only copy, Dramatiq stores the end, and keeps no letter."""
    kept = []

    class Keeper:
        name = "keeper"

        @hookimpl
        def task_executor_dead_letter(self, task_broker):
            kept.append(str(task_broker.uuid))
            return True

    task = actor_of(native, halve, max_retries=3, min_backoff=1)
    install(native, [Keeps(DeadLetter("why")), Keeper()], discover=False)
    with working(native):
        sent = task.send(1)
        with pytest.raises(ResultFailure, match="TaskDeadLetteredError: why"):
            sent.get_result(backend=native.get_results_backend(), block=True, timeout=WAIT)
        native.join("default", timeout=WAIT)
    assert [sent.message_id] == kept
    assert [] == list(native.dead_letters)


def test_a_pipeline_goes_on_with_what_plugins_answer(native):
    """A retried and recovered link hands its answer on; a cancelled one ends the pipeline."""
    task = actor_of(native, halve)
    install(native, [Keeps(Retry(), 8, Cancel("enough"))], discover=False)
    with working(native, threads=1):
        pipe = pipeline([task.message(6), task.message(), task.message()], broker=native).run()
        assert [3, 8, 4] == list(pipe.get_results(block=True, timeout=WAIT))
        backend = native.get_results_backend()
        pipe = pipeline([task.message(1), task.message()], broker=native).run()
        with pytest.raises(ResultFailure, match="enough"):
            pipe.messages[0].get_result(backend=backend, block=True, timeout=WAIT)
        native.join("default", timeout=WAIT)
        with pytest.raises(ResultMissing):
            pipe.messages[1].get_result(backend=backend)


def test_r7_an_answer_that_no_message_can_have_is_void_in_a_pipeline(native):
    """R7: where no result is stored, but handed on, an answer has to fit into a message."""
    task = actor_of(native, halve, store_results=False)
    last = actor_of(native, lambda number: number, actor_name="last")
    plugin = Keeps(Replace(threading.Lock()), 5)
    install(native, [plugin], discover=False)
    with working(native):
        pipeline([task.message(1), last.message()], broker=native).run()
        assert wait_until(lambda: "close" in plugin.heard, LONG)
        assert ["start", "failed", "close"] == plugin.heard
        pipe = pipeline([task.message(1), last.message()], broker=native).run()
        backend = native.get_results_backend()
        assert 5 == pipe.messages[-1].get_result(backend=backend, block=True, timeout=WAIT)


def test_a_group_is_complete_after_the_last_attempts(native):
    """Its callback is called once, when retried and recovered runs are over."""
    with warnings.catch_warnings():
        # The first of Dramatiq 1 that we take looks for memcached here, too.
        warnings.simplefilter("ignore", ImportWarning)
        from dramatiq.rate_limits.backends import StubBackend
    native.add_middleware(GroupCallbacks(StubBackend()))
    done = []
    task = actor_of(native, halve)
    tell = dramatiq.actor(lambda: done.append(len(ends)), actor_name="tell", broker=native)
    ends = []

    class Ends:
        name = "ends"

        @hookimpl
        def task_executor_task_close(self, task_func):
            if task_func.name == "halve":
                ends.append(1)

    install(native, [Keeps(Retry(delay=0.05), Retry(), 7, 9), Ends()], discover=False)
    with working(native):
        many = group([task.message(number) for number in (1, 2, 3, 4)], broker=native)
        many.add_completion_callback(tell.message())
        many.run()
        results = list(many.get_results(block=True, timeout=WAIT))
        assert wait_until(lambda: done, LONG)
        native.join("default", timeout=WAIT)
    assert [7, 9] == sorted(results[::2])
    assert [1, 2] == results[1::2]
    assert [4] == done


def test_failures_of_actors_are_recorded(native, tmp_path, monkeypatch):
    """With one setting the store has each end of an actor's runs, under its own id."""
    place = Place(tmp_path)
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "failures")
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_FAILURES_URL", place.text)
    task = actor_of(native, halve)

    class Saves:
        name = "saves"

        @hookimpl
        def task_executor_run_task_trigger_error(self, task_broker):
            if task_broker.args == (3,):
                return Retry() if task_broker.attempt == 1 else 7
            return None

    install(native, [Saves()], discover=False)
    with working(native):
        failed, recovered = task.send(1), task.send(3)
        backend = native.get_results_backend()
        assert 7 == recovered.get_result(backend=backend, block=True, timeout=WAIT)
        with pytest.raises(ResultFailure, match="ValueError: 1"):
            failed.get_result(backend=backend, block=True, timeout=WAIT)
    runs = Reader(place.url).runs(Filters())
    assert {failed.message_id: "failed", recovered.message_id: "recovered"} == {
        run.uuid: run.status for run in runs
    }
    assert {("halve", "dramatiq", "default")} == {(run.task, run.engine, run.queue) for run in runs}


def test_nothing_else_of_the_broker_changes():
    """An app behind a broker adds its own tasks, and sets nothing of the broker's."""
    broker = RedisBroker(url="redis://127.0.0.1:1")
    middleware = list(broker.middleware)
    app = QueueTasks("shop", engine=broker, discover=False)
    app.task(name="one")(len)
    assert (1_000, 60_000) == (broker.maintenance_chance, broker.heartbeat_timeout)
    assert middleware == broker.middleware[: len(middleware)]
    assert ["one"] == list(broker.actors)
