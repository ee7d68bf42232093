"""Dramatiq's own worker command over real servers: our apps, and existing ones."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from types import SimpleNamespace
from uuid import uuid4

import pytest

from qtasks_pluggy.exc import EngineError
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

LONG = 60
WORKER = (sys.executable, "-m", "dramatiq", "shop", "--path", ".")
READY = "is ready for action"
PLUGIN = """
    from pathlib import Path
    from qtasks_hookspecs import Retry, hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error(task_broker, e):
        if task_broker.name == "divide":
            return None
        with Path(__file__).with_name("deliveries").open("a") as file:
            file.write(f"{task_broker.redelivered}\\n")
        if task_broker.kwargs.get("again") and task_broker.attempt < 3:
            return Retry(delay=0.1)
        return f"recovered from {e.cause or e} at {task_broker.attempt}"

    @hookimpl
    def task_executor_task_close(task_executor, task_broker, outcome):
        if task_broker.name == "divide":
            lineage, new = task_broker.metadata.get("replay_of", "-"), "-"
            if outcome.status == "failed":
                new = task_executor.app.replay(task_broker, args=[4])
            with Path(__file__).with_name("ends").open("a") as file:
                file.write(f"{task_broker.uuid} {lineage} {outcome.status} {new}\\n")
"""
BROKER = """
    import os
    import dramatiq
    from dramatiq.brokers.rabbitmq import RabbitmqBroker
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    url, name = os.environ["BROKER"], os.environ["QUEUE"]
    if url.startswith("redis"):
        broker = RedisBroker(url=url, namespace=name)
    else:
        broker = RabbitmqBroker(url=url.removesuffix("//"))
    broker.add_middleware(Results(backend=RedisBackend(url=os.environ["RESULTS"], namespace=name)))
    dramatiq.set_broker(broker)
"""
OURS = """
    import os, time
    from pathlib import Path
    from server import broker
    import fallback
    from qtasks_pluggy import QueueTasks

    HERE = Path(__file__).parent
    QUEUE = os.environ["QUEUE"]
    app = QueueTasks("shop", engine=broker, plugins=[fallback], discover=False)

    def tell(what, uuid):
        with (HERE / what).open("a") as file:
            file.write(f"{uuid} {os.getpid()}\\n")

    @app.task(extra={"queue_name": QUEUE})
    def double(number):
        return 2 * number

    @app.task(extra={"queue_name": QUEUE})
    async def double_async(number):
        return 2 * number

    @app.task(extra={"queue_name": QUEUE}, intercept=OSError)
    def fail(text, *, again=False):
        raise OSError(text)

    @app.task(extra={"queue_name": QUEUE})
    def lock():
        import threading
        return threading.Lock()

    @app.task(extra={"queue_name": QUEUE}, echo=True)
    def wait(self):
        tell("began", self.ctx.uuid)
        while not (HERE / "go").exists():
            time.sleep(0.01)
        return "waited"

    if os.environ.get("ROLE") != "worker":
        unknown = app.task(name="unknown", extra={"queue_name": QUEUE})(lambda: 1)
"""
THEIRS = """
    import os
    import dramatiq
    from server import broker
    from qtasks_pluggy.engines.dramatiq import install
    import fallback

    install(broker, [fallback], discover=False)

    QUEUE = os.environ["QUEUE"]

    @dramatiq.actor(store_results=True, max_retries=0, queue_name=QUEUE)
    def fail(text, again=False):
        raise OSError(text)

    @dramatiq.actor(max_retries=0, queue_name=QUEUE)
    def divide(x):
        return 1 / x
"""


@pytest.fixture(params=["redis", "rabbitmq"])
def place(request, project, worker, monkeypatch):
    """Servers, a project on them, and a way to start its workers."""
    results = request.getfixturevalue("redis_url")
    broker = request.getfixturevalue(f"{request.param}_url")
    name = f"dramatiq-{uuid4().hex[:8]}"
    where = {"BROKER": broker, "RESULTS": results, "QUEUE": name}
    for key, value in where.items():
        monkeypatch.setenv(key, value)
    one = _Place(project, worker, where, monkeypatch)
    yield one
    if one.module is not None:
        broker = one.module.broker
        broker.close()
        for kept in (broker, broker.get_results_backend()):
            # Dramatiq leaves the connections of these to the garbage collector.
            if (redis := getattr(kept, "client", None)) is not None:
                redis.connection_pool.disconnect()


class _Place:
    def __init__(self, project, worker, where, monkeypatch):
        self._project, self._worker, self.where = project, worker, where
        self._monkeypatch = monkeypatch
        self.module = None

    def write(self, source):
        """Write an app, and import it."""
        self.folder = self._project({"server.py": BROKER, "shop.py": source, "fallback.py": PLUGIN})
        self._monkeypatch.syspath_prepend(self.folder)
        spec = importlib.util.spec_from_file_location("shop", self.folder / "shop.py")
        self.module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(self.module)
        finally:
            for name in ("fallback", "server"):
                sys.modules.pop(name, None)
        return self.module

    def start(self, *options):
        """Start a worker, and wait until it takes runs."""
        environment = {**self.where, "ROLE": "worker"}
        return self._worker(*WORKER, *options, cwd=self.folder, env=environment, ready=READY)

    def told(self, what):
        """Read what runs took down."""
        path = self.folder / what
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines]


@pytest.fixture
def ours(place):
    """An app of ours on Dramatiq, and its place."""
    module = place.write(OURS)
    tasks = {name: vars(module)[name] for name in (*module.app.tasks,)}
    return SimpleNamespace(app=module.app, place=place, **tasks)


@pytest.mark.parametrize("spawn", [False, True])
def test_the_worker_command_does_our_runs(ours, spawn):
    """Results, answers, retries, bad results and unknown tasks, forked and spawned."""
    ours.place.start("-p", "2", "-t", "2", *(["--use-spawn"] if spawn else []))
    with ours.app:
        good = list(ours.app.submit_many(ours.double, range(10)))
        assert [2 * n for n in range(10)] == [one.result(timeout=LONG) for one in good]
        assert 42 == ours.double_async.submit_sync(21).result(timeout=LONG)
        assert "recovered from no at 1" == ours.fail.submit("no").result(timeout=LONG)
        again = ours.fail.submit("no", again=True)
        assert "recovered from no at 3" == again.result(timeout=LONG)
        with pytest.raises(EngineError, match="cannot be stored"):
            ours.lock.submit().result(timeout=LONG)
        with pytest.raises(EngineError, match="no such task"):
            ours.unknown.submit().result(timeout=LONG)
        assert 2 == ours.double.submit(1).result(timeout=LONG)


def test_an_existing_app_gets_plugins_by_one_line(place):
    """After one line and a restart plugins answer for an actor; the log says which ones."""
    module = place.write(THEIRS)
    worker = place.start("-p", "2", "-t", "1")
    backend = module.broker.get_results_backend()
    for again, answer in ((False, "recovered from no at 1"), (True, "recovered from no at 3")):
        message = module.fail.send("no", again=again)
        assert answer == backend.get_result(message, block=True, timeout=LONG * 1000)
    assert "worker_asks_plugins app='dramatiq' plugins=['fallback']" in worker.log()


def test_a_worker_sends_a_failed_run_again(place):
    """A plugin in a worker replays a run, under a new id that has its lineage."""
    module = place.write(THEIRS)
    place.start("-p", "1", "-t", "1")
    sent = module.divide.send(0)
    assert wait_until(lambda: len(place.told("ends")) == 2, LONG)
    (first, none, failed, new), (second, lineage, succeeded, _) = place.told("ends")
    assert (sent.message_id, "-", "failed", "succeeded") == (first, none, failed, succeeded)
    assert (second, lineage) == (new, first)


def test_a_worker_that_is_told_to_stop_finishes_its_run(ours):
    """SIGTERM lets what runs finish, and leaves what waits to the next worker."""
    first = ours.place.start("-p", "1", "-t", "1")
    with ours.app:
        runs = ours.wait.submit()
        assert wait_until(lambda: ours.place.told("began"), LONG)
        os.kill(first.pid, signal.SIGTERM)
        (ours.place.folder / "go").touch()
        assert "waited" == runs.result(timeout=LONG)
        first.wait(LONG)
        waits = ours.double.submit(4)
        ours.place.start("-p", "1", "-t", "1")
        assert 8 == waits.result(timeout=LONG)
    assert 1 == len(ours.place.told("began"))
