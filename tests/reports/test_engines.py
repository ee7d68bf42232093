"""Public bug reports turned into expectations: the same situations behind every engine, in one process.

Public names only. An engine whose package (or, for Celery behind an app, whose Redis) is missing is skipped.
"""

import asyncio
import contextlib
import contextvars
import datetime
import decimal
import importlib.util
import json
import logging
import socket
import sys
import threading
import time
import types
import uuid

import pytest

from qtasks_hookspecs import Replace, Retry, hookimpl
from qtasks_pluggy import QueueTasks

TRIGGER = "task_executor_run_task_trigger_error"
pytestmark = pytest.mark.engines

REDIS = "redis://127.0.0.1:6379/8"
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def has_redis():
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 6379), 1):
        return importlib.util.find_spec("redis") is not None
    return False


def need(package):
    pytest.importorskip(package)


def plugin(name="shop-plugin", **hooks):
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, TRIGGER if hook == "trigger" else hook, hookimpl(function))
    return module


class Listener:
    name = "listener"

    def __init__(self):
        self.heard = []

    @hookimpl
    def task_executor_task_failed(self, e):
        self.heard.append("failed")

    @hookimpl
    def task_executor_task_close(self):
        self.heard.append("over")


class RunResult(Exception):
    """How a run ended that did not give a result: `.error` is what its caller got, None where it heard nothing."""

    def __init__(self, error):
        super().__init__(type(error).__name__)
        self.error = error


# ------------------------------------------------- an app of this product, with the queue behind it


class Own:
    """One app with one engine; `call(task, ...)` submits a run and waits for its end."""

    def __init__(self, app, start):
        self.app, self.start = app, start

    def task(self, function, name=None):
        return self.app.task(name=name or "t" + uuid.uuid4().hex[:8])(function)

    def call(self, task, /, *args, wait=6, **kwargs):
        handle = task.submit_sync(*args, **kwargs)
        try:
            return handle.result(timeout=wait)
        except BaseException as e:
            if handle.status not in ("failed", "cancelled"):
                raise RunResult(None) from e
            raise RunResult(e) from e


@contextlib.contextmanager
def own_memory(plugins):
    own = Own(
        QueueTasks(
            "own",
            engine="memory://?workers=1",
            plugins=plugins,
            discover=False,
            intercept=Exception,
        ),
        None,
    )
    own.start = lambda: own.app
    yield own


@contextlib.contextmanager
def own_huey(plugins, tmp_path):
    need("huey")
    app = QueueTasks(
        "own",
        engine=f"huey+sqlite:///{tmp_path}/q.db",
        plugins=plugins,
        discover=False,
        intercept=Exception,
    )
    app.set_engine(app.engine, workers=1)
    yield Own(app, lambda: app)


@contextlib.contextmanager
def own_dramatiq(plugins):
    need("dramatiq")
    broker = stub_broker()
    app = QueueTasks("own", engine=broker, plugins=plugins, discover=False, intercept=Exception)

    @contextlib.contextmanager
    def start():
        import dramatiq

        with app:
            worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
            worker.start()
            try:
                yield
            finally:
                worker.stop()

    yield Own(app, start)


def stub_broker():
    import dramatiq
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.middleware import AsyncIO
    from dramatiq.results import Results
    from dramatiq.results.backends import StubBackend

    broker = StubBroker()
    if not any(isinstance(one, AsyncIO) for one in broker.middleware):
        broker.add_middleware(AsyncIO())
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    broker.add_middleware(Results(backend=StubBackend()))
    return broker


@contextlib.contextmanager
def own_celery(plugins):
    need("celery")
    if not has_redis():
        pytest.skip("no Redis")
    import celery
    from celery.contrib.testing.worker import start_worker

    queue = celery.Celery("own", broker=REDIS, backend=REDIS, set_as_current=False)
    queue.conf.task_default_queue = "rpt_" + uuid.uuid4().hex[:8]
    queue.conf.broker_transport_options = {"polling_interval": 0.02}
    queue.conf.result_expires = 120
    app = QueueTasks("own", engine=queue, plugins=plugins, discover=False, intercept=Exception)

    @contextlib.contextmanager
    def start():
        with app, start_worker(queue, perform_ping_check=False, pool="solo", loglevel="CRITICAL"):
            yield

    yield Own(app, start)
    import redis

    with contextlib.closing(redis.Redis.from_url(REDIS)) as server:
        mine = list(server.scan_iter(f"*{queue.conf.task_default_queue}*"))
        if mine:
            server.delete(*mine)


class OwnTaskiq(Own):
    """Taskiq's in-memory broker lives on one event loop, so here the whole test of a run does."""

    def call(self, task, /, *args, wait=6, **kwargs):
        async def main():
            async with self.app:
                handle = await task.submit_async(*args, **kwargs)
                try:
                    return await asyncio.wait_for(handle, wait), None
                except BaseException as e:
                    return handle.status, e

        result, error = asyncio.run(main())
        if error is not None:
            raise RunResult(error if result in ("failed", "cancelled") else None) from error
        return result


@contextlib.contextmanager
def own_taskiq(plugins):
    need("taskiq")
    import taskiq

    app = QueueTasks(
        "own", engine=taskiq.InMemoryBroker(), plugins=plugins, discover=False, intercept=Exception
    )
    yield OwnTaskiq(app, contextlib.nullcontext)


OWN = ["memory", "huey", "dramatiq", "taskiq", "celery"]


@pytest.fixture
def own(request, tmp_path):
    """`own(engine, plugins)` gives an app with that engine, started when its tasks are defined."""
    with contextlib.ExitStack() as stack:

        def make(engine, *plugins):
            maker = globals()["own_" + engine]
            return stack.enter_context(
                maker(list(plugins), tmp_path) if engine == "huey" else maker(list(plugins))
            )

        yield make


# ------------------------------------------------- plugins installed into a queue that is there already


def native_celery(function, plugins, wait):
    need("celery")
    import celery
    from celery.contrib.testing.worker import start_worker

    from qtasks_pluggy.engines.celery import install

    queue = celery.Celery(
        "native", broker="memory://", backend="cache+memory://", set_as_current=False
    )
    queue.conf.broker_transport_options = {"polling_interval": 0.01}
    task = queue.task(name="t" + uuid.uuid4().hex[:8], shared=False)(function)
    install(queue, plugins=plugins, discover=False)
    with start_worker(queue, perform_ping_check=False, pool="solo", loglevel="CRITICAL"):
        result = task.delay()
        try:
            return result.get(timeout=wait)
        except BaseException as e:
            raise RunResult(e if result.state == "FAILURE" else None) from e


def native_huey(function, plugins, wait):
    need("huey")
    import huey

    from qtasks_pluggy.engines.huey import install

    queue = huey.MemoryHuey("native", store_none=True)
    task = queue.task(name="t")(function)
    install(queue, plugins=plugins, discover=False)
    consumer = queue.create_consumer(workers=1, periodic=False, initial_delay=0.01)
    consumer._set_signal_handlers = lambda: None  # Huey's own; signals are the test runner's here
    consumer.start()
    try:
        return task().get(blocking=True, timeout=wait)
    except BaseException as e:
        raise RunResult(e if "TaskException" in type(e).__name__ else None) from e
    finally:
        consumer.stop(graceful=True)


def native_dramatiq(function, plugins, wait):
    need("dramatiq")
    import dramatiq

    from qtasks_pluggy.engines.dramatiq import install

    broker = stub_broker()
    actor = dramatiq.actor(actor_name="t", broker=broker, store_results=True, max_retries=0)(
        function
    )
    install(broker, plugins=plugins, discover=False)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        return actor.send().get_result(
            block=True, timeout=wait * 1000, backend=broker.get_results_backend()
        )
    except BaseException as e:
        raise RunResult(e if type(e).__name__ == "ResultFailure" else None) from e
    finally:
        worker.stop()


def native_taskiq(function, plugins, wait):
    need("taskiq")
    import taskiq

    from qtasks_pluggy.engines.taskiq import install

    broker = taskiq.InMemoryBroker()
    task = broker.task(task_name="t")(function)
    install(broker, plugins=plugins, discover=False)

    async def main():
        await broker.startup()
        try:
            return await (await task.kiq()).wait_result(timeout=wait), None
        except BaseException as e:
            return None, e
        finally:
            await broker.shutdown()

    result, error = asyncio.run(main())
    if error is not None:
        raise RunResult(None) from error
    if result.is_err:
        raise RunResult(result.error) from result.error
    return result.return_value


NATIVE = ["celery", "huey", "dramatiq", "taskiq"]


def native(engine, function, *plugins, wait=4):
    return globals()["native_" + engine](function, list(plugins), wait)


def text_of(error):
    """All that the caller can read of an error, its causes included."""
    words = []
    while error is not None and len(words) < 5:
        words.append(f"{type(error).__name__} {error} {error!r}")
        error = error.__cause__
    return " | ".join(words)


# ------------------------------------------------- falsy exceptions


class NoProblemsError(Exception):
    """Carries a list of problems and has its length; raised with an empty one it is falsy."""

    def __init__(self, *problems):
        super().__init__(*problems)
        self.problems = problems

    def __len__(self):
        return len(self.problems)


def raise_falsy():
    raise NoProblemsError


@pytest.mark.parametrize("engine", OWN)
def test_falsy_exception_fails_the_run(own, engine):
    """An exception class with __len__ or __bool__ is falsy: a run that raises it has failed, and its caller hears so.

    Sources: cpython #132063 (ProcessPoolExecutor swallows falsy exceptions), langchain #39780.
    """
    it = own(engine, plugin(trigger=lambda e: None))
    task = it.task(raise_falsy)
    with it.start(), pytest.raises(RunResult) as caught:
        result = it.call(task)
        pytest.fail(f"the run failed, yet its caller got {result!r}")
    assert caught.value.error is not None, "the caller never heard of the end"
    assert "NoProblemsError" in text_of(caught.value.error)


# ------------------------------------------------- exceptions that do not travel


class KeywordOnlyError(Exception):
    def __init__(self, *, status, body):
        super().__init__(f"{status}: {body}")
        self.status = status


class HoldsALockError(Exception):
    def __init__(self, what):
        super().__init__(what)
        self.lock = threading.Lock()


class NoTextError(Exception):
    def __str__(self):
        raise RuntimeError("cannot say")

    __repr__ = __str__


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("stay here")


def raise_keyword_only():
    raise KeywordOnlyError(status=502, body="bad gateway")


def raise_lock():
    raise HoldsALockError("connection 7")


def raise_no_text():
    raise NoTextError


def raise_unpicklable():
    raise UnpicklableError("connection 8")


def raise_local():
    class LocalError(Exception):
        pass

    raise LocalError("made in a function")


def raise_group():
    raise ExceptionGroup("two uploads", [OSError(5, "one"), KeyError("two")])


def raise_surrogate():
    raise ValueError("file \udce4.txt")


STUBBORN = [
    raise_keyword_only,
    raise_lock,
    raise_no_text,
    raise_unpicklable,
    raise_local,
    raise_group,
    raise_surrogate,
]


def validate_order():
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        amount: int

    Order(amount="a lot")


def decode_order():
    json.loads("{'no': json}")


def request_order():
    import urllib.error

    raise urllib.error.HTTPError("http://127.0.0.1/orders", 503, "busy with orders", {}, None)


MESSAGES = [
    (validate_order, "ValidationError", "amount"),
    (decode_order, "JSONDecodeError", "property name"),
    (request_order, "HTTPError", "busy with orders"),
]


# ------------------------------------------------- names, exits, context


NAMES = [
    "self",
    "task",
    "args",
    "kwargs",
    "name",
    "func",
    "e",
    "result",
    "timeout",
    "delay",
    "priority",
    "queue",
    "engine",
    "app",
    "message",
    "request",
    "retries",
    "eta",
    "countdown",
    "id",
    "uuid",
    "options",
    "labels",
    "broker",
    "headers",
    "link",
    "expires",
    "body",
    "_",
    "cls",
]


def leave():
    sys.exit(3)


TENANT = contextvars.ContextVar("tenant", default="nobody")


def bind_tenant():
    TENANT.set("tenant 1")
    return TENANT.get()


def read_tenant():
    return TENANT.get()


@pytest.mark.parametrize("engine", [engine for engine in OWN if engine != "taskiq"])
def test_next_run_does_not_inherit_context(own, engine):
    """What one run binds (tenant, request id, structlog) must not be there in the next run of the same worker thread.

    Sources: talisker #443, django-structlog #76, asgi-correlation-id #100 (the next task logs with the last one's id).
    """
    it = own(engine)
    first, second = it.task(bind_tenant), it.task(read_tenant)
    with it.start():
        assert it.call(first) == "tenant 1"
        assert [it.call(second) for _ in range(3)] == ["nobody"] * 3


# ------------------------------------------------- results


FRIENDLY = [True, 0, "", [], {}, {"result": 1}, "ä\U0001f375", 2**70, -0.0, [1, [2, {"x": None}]]]


@pytest.mark.parametrize("engine", OWN)
def test_falsy_and_plain_fallbacks_arrive_as_they_are(own, engine):
    """A fallback of 0, "", [] or False must not be taken for no result.

    Source: lithops #1396 (a result is tested for truth).
    """
    it = own(engine, plugin(trigger=lambda task_executor: Replace(FRIENDLY[task_executor.args[0]])))

    def fails(n):
        raise ValueError(n)

    task = it.task(fails)
    with it.start():
        got = [it.call(task, n) for n in range(len(FRIENDLY))]
    assert got == FRIENDLY and [type(one) for one in got] == [type(one) for one in FRIENDLY]


ODD_VALUES = {
    "Decimal": decimal.Decimal("1.10"),
    "aware datetime": datetime.datetime(2024, 3, 31, 1, 30, tzinfo=datetime.UTC),
    "UUID": uuid.UUID(int=7),
    "set": {1, 2},
    "bytes": b"\x00\xff",
    "10**5000": 10**5000,
    "surrogate": "\ud800",
    "lock": threading.Lock(),
}


# ------------------------------------------------- retries and callbacks


@pytest.mark.parametrize("engine", OWN)
def test_failed_is_told_once_after_all_retries(own, engine):
    """Three attempts fail: `failed` is told once, at the end, and the caller gets the last error.

    Sources: huey #490 and #718, airflow #30146 (failure callback on each attempt, or twice), celery #5061.
    """
    listener = Listener()
    attempts = []
    it = own(engine, listener, plugin(trigger=lambda e: Retry(delay=0, limit=2)))

    def fails():
        attempts.append(1)
        raise ConnectionError(f"attempt {len(attempts)}")

    task = it.task(fails)
    with it.start(), pytest.raises(RunResult) as caught:
        it.call(task, wait=10)
    assert caught.value.error is not None
    assert "attempt 3" in text_of(caught.value.error) and len(attempts) == 3
    until = time.monotonic() + 3
    while "over" not in listener.heard and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
    assert listener.heard == ["failed", "over"]


@pytest.mark.parametrize("engine", NATIVE)
def test_failing_plugin_changes_nothing_in_a_queue(engine):
    """Every hookimpl of an installed plugin raises: the task's own error is what the caller of the queue gets.

    Sources: celery #3488 and #2738 (an error in on_failure loses or repeats the task).
    """

    def bad(*_, **__):
        raise RuntimeError("plugin bug")

    runs = []

    def fails():
        runs.append(1)
        raise LookupError("own error")

    faulty = plugin(
        trigger=lambda e: bad(),
        task_executor_task_failed=lambda e: bad(),
        task_executor_task_close=lambda task_func: bad(),
    )
    with pytest.raises(RunResult) as caught:
        native(engine, fails, faulty)
    assert caught.value.error is not None
    assert (
        "own error" in text_of(caught.value.error)
        and "plugin bug" not in text_of(caught.value.error).split("|")[0]
    )
    assert len(runs) == 1


@pytest.mark.parametrize("engine", NATIVE)
def test_error_handled_inside_a_native_task_is_no_failure(engine):
    """A native task catches an error of its own: nobody is asked, nothing is told as failed, the result stands.

    Source: sentry-python #370 (errors that were handled are reported all the same).
    """
    listener = Listener()
    asked = []

    def handles():
        try:
            raise LookupError("expected")
        except LookupError:
            return "handled"

    assert native(engine, handles, listener, plugin(trigger=lambda e: asked.append(e))) == "handled"
    assert asked == [] and "failed" not in listener.heard


def test_celery_replace_is_not_hijacked():
    """`raise self.replace(...)` with autoretry_for=(Exception,): the replacement runs, and no plugin is asked about it.

    Source: celery #5934 (autoretry_for catches the exceptions that Celery itself raises).
    """
    need("celery")
    import celery
    from celery.contrib.testing.worker import start_worker

    from qtasks_pluggy.engines.celery import install

    asked = []
    queue = celery.Celery(
        "native", broker="memory://", backend="cache+memory://", set_as_current=False
    )
    queue.conf.broker_transport_options = {"polling_interval": 0.01}

    @queue.task(name="other", shared=False)
    def other():
        return "from other"

    @queue.task(
        name="first",
        bind=True,
        shared=False,
        autoretry_for=(Exception,),
        retry_kwargs={"countdown": 0},
    )
    def first(self):
        raise self.replace(other.s())

    install(
        queue, plugins=[plugin(trigger=lambda e: asked.append(e) or "hijacked")], discover=False
    )
    with start_worker(queue, perform_ping_check=False, pool="solo", loglevel="CRITICAL"):
        assert first.delay().get(timeout=6) == "from other"
    assert asked == []


def test_huey_result_while_a_retry_is_due_is_not_the_error():
    """While a plugin's Retry waits, the caller's result must not already be the first attempt's error.

    Sources: huey #557, taskiq-pipelines #26 (an intermediate error is stored as the result).
    """
    need("huey")
    attempts = []

    def flaky():
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError(len(attempts))
        return "third time"

    assert (
        native("huey", flaky, plugin(trigger=lambda e: Retry(delay=0, limit=5)), wait=10)
        == "third time"
    )
    assert len(attempts) == 3
