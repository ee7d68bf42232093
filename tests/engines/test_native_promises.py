"""What plugins are promised about an engine's own tasks, and their users about the plugins."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import traceback
import weakref

import huey
import pytest
import structlog
from celery import Celery
from taskiq import InMemoryBroker

from qtasks_hookspecs import Raise, Replace, Retry, hookimpl
from qtasks_pluggy.engines import celery as celery_engine
from qtasks_pluggy.engines import dramatiq as dramatiq_engine
from qtasks_pluggy.engines import huey as huey_engine
from qtasks_pluggy.engines import taskiq as taskiq_engine
from qtasks_pluggy.engines.celery import install
from qtasks_pluggy.engines.taskiq.brokers import abilities_of, is_safe
from tests.engines import celery_apps, dramatiq_apps, taskiq_apps
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.natives import NATIVES, Hears

pytestmark = pytest.mark.engines


@pytest.fixture(params=list(NATIVES))
def run(request):
    """Make one run of a native task on an engine."""
    return NATIVES[request.param]


class FalseError(Exception):
    """An error that is false."""

    def __len__(self):
        return 0


def fail():
    """Fail."""
    raise OSError("the task's own error")


class Answers:
    """Answers with what it was given."""

    def __init__(self, name, answer):
        self.name, self.answer = name, answer

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        return self.answer


@pytest.mark.parametrize("answer", [threading.Lock(), Replace([threading.Lock()])])
def test_r7_an_answer_that_cannot_be_stored_leaves_the_task_s_own_error(run, answer):
    """R7: such an answer is void, its plugin is named, and the task's own error goes on."""
    hears = Hears()
    with structlog.testing.capture_logs() as logs:
        end = run(fail, Answers("unfit", answer), hears)
    assert end.is_failed
    assert "the task's own error" in str(end.value)
    assert [OSError] == [type(error) for error in hears.failed]
    assert "plugin 'unfit' raised EngineError" in "".join(hears.failed[0].__notes__)
    told = [one["plugin"] for one in logs if one["event"] == "plugin_failed"]
    assert ["unfit"] == told


def test_r7_the_last_answer_that_can_be_stored_wins(run):
    """R7: where another plugin answered, its answer is the result."""
    hears = Hears()
    end = run(fail, Answers("fit", "instead"), Answers("unfit", {1: threading.Lock()}), hears)
    assert ("instead", False) == (end.value, end.is_failed)
    assert [] == hears.failed


def test_r7_a_result_that_a_plugin_makes_unfit_stays_as_it_was(run):
    """R7: in the pipeline of results, too, an answer that cannot be stored is void."""

    class Spoils:
        name = "spoils"

        @hookimpl
        def task_executor_run_task(self):
            return threading.Lock()

    def function():
        return "right"

    end = run(function, Spoils())
    assert ("right", False) == (end.value, end.is_failed)


@pytest.mark.parametrize("raised", [True, False])
def test_an_error_that_is_false_fails_its_run(run, raised):
    """No error's truth is asked: a run that ends in a false one has failed."""

    def function():
        raise FalseError("false") if raised else OSError

    hears = Hears()
    end = run(function, Answers("raises", None if raised else Raise(FalseError("false"))), hears)
    assert end.is_failed
    assert [FalseError] == [type(error) for error in hears.failed]
    assert 1 == hears.closed


@pytest.mark.parametrize("engine", ["dramatiq", "taskiq"])
@pytest.mark.parametrize("kind", [SystemExit, type("OwnError", (BaseException,), {})])
def test_r15_an_error_that_is_no_exception_is_told_once(engine, kind):
    """R15: where the engine makes a failed run of it, plugins hear of that failure, once."""

    def function():
        raise kind("over")

    hears = Hears()
    end = NATIVES[engine](function, hears)
    assert end.is_failed
    assert [kind] == [type(error) for error in hears.failed]
    assert 1 == hears.closed


def frames(error):
    """Name the files of a traceback, from the outermost on, without those of the engine."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return ["ours" if "/qtasks_pluggy/" in file else "theirs" for file in files if keeps(file)]


def keeps(file):
    """Say whether a frame is ours or the test's."""
    return "/qtasks_pluggy/" in file or file == __file__


@pytest.mark.parametrize(
    ("engine", "is_async"), [*((one, False) for one in NATIVES), ("celery", True), ("taskiq", True)]
)
def test_r6_an_error_reaches_its_engine_without_our_frames(engine, is_async):
    """R6: at most two of our frames lead to the task's own, and nothing is noted on the error."""

    async def fail_async():
        fail()

    end = NATIVES[engine](fail_async if is_async else fail, Answers("silent", None))
    assert frames(end.error).count("ours") <= 2
    assert "theirs" == frames(end.error)[-1]
    assert "fail" == traceback.extract_tb(end.error.__traceback__)[-1].name
    assert [] == getattr(end.error, "__notes__", [])


def test_r6_sentry_sees_the_error_as_without_plugins():
    """R6: what Sentry is sent of a failing Celery task is the same, but for two of our frames."""
    sentry = pytest.importorskip("sentry_sdk")
    sent = []

    def keep(event, hint):
        sent.append(event["exception"]["values"][-1])

    with sentry.new_scope() as scope:
        client = sentry.Client(dsn="http://localhost@127.0.0.1/1", before_send=keep)
        scope.set_client(client)
        for installed in (False, True):
            error = NATIVES["celery"](fail, Answers("silent", None), installed=installed).error
            sentry.capture_exception(error)
        client.close()
    without, with_plugins = sent
    assert without["value"] == with_plugins["value"] == "the task's own error"
    seen = [
        [frame["function"] for frame in one["stacktrace"]["frames"]]
        for one in (without, with_plugins)
    ]
    assert seen[0] == [name for name in seen[1] if name != "__call__"]
    assert len(seen[1]) <= len(seen[0]) + 2


def eager():
    """A Celery app that does its runs where they are called for."""
    native = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    native.conf.update(task_always_eager=True, task_store_eager_result=True)
    return native


def test_r7_an_eager_celery_task_is_not_retried_at_once_instead_of_later():
    """R7: nobody delays an eager run, so ``Retry(delay=5)`` is refused; ``Retry()`` is done."""
    native, seen = eager(), []

    @native.task(name="fail", shared=False)
    def fail_eagerly():
        seen.append(1)
        raise OSError("broken")

    plugin = Keeps(Retry(delay=5), Retry(delay=0), 7)
    install(native, [plugin], discover=False)
    late = fail_eagerly.delay()
    assert isinstance(late.result, OSError)
    assert "raised CapabilityError" in "".join(late.result.__notes__)
    assert 1 == len(seen)
    assert 7 == fail_eagerly.delay().get()
    assert 3 == len(seen)


@pytest.mark.parametrize("answer", [Retry(), Retry(delay=0), "instead"])
async def test_r16_no_plugin_decides_about_a_cancelled_run(answer):
    """R16: where a run's cancellation was asked for, it ends in the error of its clean-up."""
    native, entered, seen = taskiq_apps.broker_of(), asyncio.Event(), []

    @native.task(task_name="wait")
    async def wait():
        seen.append(asyncio.current_task())
        entered.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            raise ConnectionError from None

    hears = Hears()
    taskiq_engine.install(native, [Answers("answers", answer), hears], discover=False)
    async with taskiq_apps.working(native):
        sent = asyncio.create_task(wait.kiq())
        await entered.wait()
        seen[0].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            result = await taskiq_apps.ended(await sent)
            assert isinstance(result.error, ConnectionError)
    assert 1 == len(seen)
    assert [ConnectionError] == [type(error) for error in hears.failed]


@pytest.mark.parametrize("attempt", [-1_000_000, 0, None, "2", 1.5, True])
def test_r9_no_message_gives_its_run_more_retries(attempt):
    """R9: an attempt that is no whole number from 1 is the first."""
    from qtasks_pluggy.engines.native import attempt_of

    assert 1 == attempt_of({"attempt": attempt})
    assert 3 == attempt_of({"attempt": 3})


@pytest.mark.parametrize(
    ("engine", "make"),
    [
        (celery_engine, celery_apps.celery_app),
        (dramatiq_engine, dramatiq_apps.stub_broker),
        (huey_engine, lambda: huey.MemoryHuey("shop")),
        (taskiq_engine, taskiq_apps.broker_of),
    ],
    ids=["celery", "dramatiq", "huey", "taskiq"],
)
def test_install_keeps_no_app_alive(engine, make):
    """What nobody has any more goes, plugins and all."""

    def dropped():
        native = make()
        engine.install(native, [Hears()], discover=False)
        return weakref.ref(native)

    gone = [dropped() for _ in range(5)]
    gc.collect()
    assert [None] * 5 == [one() for one in gone]


class AioPikaBroker(InMemoryBroker):
    """A broker of a taskiq-aio-pika that has other private attributes than later ones."""


def test_a_broker_of_another_version_does_what_it_can():
    """What an older broker package has not is asked for in vain, and no plugin fails of it."""
    broker = AioPikaBroker()
    assert not abilities_of(broker).delay
    vars(broker)["_delay_queue_name"] = "delays"
    assert abilities_of(broker).delay
    assert is_safe(broker)
    vars(broker)["_declare_queues_kwargs"] = {}
    assert not is_safe(broker)
