"""Celery's own worker command over real servers: our apps, and apps that are there already."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import WorkerLostError
from celery.platforms import EX_FAILURE
from celery.result import AsyncResult
from redis import Redis

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import EngineError, TaskCancelError
from tests.engines.celery_apps import forget_connections
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

LONG = 60
WORKER = (sys.executable, "-m", "celery", "-A", "shop:celery", "worker", "--loglevel", "INFO")
READY = "ready."
PLUGIN = """
    from qtasks_hookspecs import Retry, hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error(task_broker, e):
        if task_broker.kwargs.get("again") and task_broker.attempt < 3:
            return Retry(delay=0.1)
        return f"recovered from {e.cause or e} at {task_broker.attempt}"
"""
LIFE = """
    import os
    from pathlib import Path

    def tell(what):
        with Path(__file__).with_name(what).open("a") as file:
            file.write(f"{os.getpid()}\\n")

    class Life:
        name = "life"

        @hookimpl
        def qtasks_start(self):
            tell("start")

        @hookimpl
        def qtasks_stop(self):
            tell("stop")
"""
OURS = """
    import os, time
    from pathlib import Path
    from celery import Celery
    import fallback
    from qtasks_pluggy import QueueTasks
    from qtasks_pluggy.engines.celery import at_least_once, losses

    losses.LOSSES = 1
    HERE = Path(__file__).parent
    celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
    celery.conf.task_default_queue = celery.conf.control_exchange = os.environ["QUEUE"]
    # Seconds until the loss of a process is noticed, by itself ten.
    celery.conf.worker_lost_wait = 0.5
    celery.conf.worker_pool_start_method = os.environ.get("START", "fork")
    at_least_once(celery)
    app = QueueTasks("shop", engine=celery, plugins=[fallback], discover=False)

    def tell(what, uuid):
        with (HERE / what).open("a") as file:
            file.write(f"{uuid} {os.getpid()}\\n")

    @app.task
    def double(number):
        return 2 * number

    @app.task
    async def double_async(number):
        return 2 * number

    @app.task(intercept=OSError)
    def fail(text, *, again=False):
        raise OSError(text)

    @app.task
    def lock():
        import threading
        return threading.Lock()

    @app.task(echo=True)
    def wait(self):
        tell("began", self.ctx.uuid)
        while not (HERE / "go").exists():
            time.sleep(0.01)
        return "waited"

    @app.task(echo=True, max_retries=0)
    def die(self):
        tell("began", self.ctx.uuid)
        os.kill(os.getpid(), 9)

    if os.environ.get("ROLE") != "worker":
        app.task(name="unknown")(lambda: 1)
"""
THEIRS = """
    import os
    import fallback
    from celery import Celery
    from qtasks_pluggy.engines.celery import install

    celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
    celery.conf.task_default_queue = celery.conf.control_exchange = os.environ["QUEUE"]
    celery.conf.imports = ["more"]

    @celery.task(name="fail")
    def fail(text, *, again=False):
        raise OSError(text)

    install(celery, [fallback, fallback.Life()], discover=False)
"""
MORE = """
    from celery import shared_task

    @shared_task(name="late")
    def late():
        raise LookupError("late")
"""


@pytest.fixture(params=["redis", "rabbitmq"])
def place(request, project, worker, monkeypatch):
    """Servers, a project on them, and a way to start its workers."""
    results = request.getfixturevalue("redis_url")
    broker = request.getfixturevalue(f"{request.param}_url")
    where = {"BROKER": broker, "RESULTS": results, "QUEUE": f"celery-{uuid4().hex[:8]}"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    return _Place(project, worker, where)


class _Place:
    def __init__(self, project, worker, where):
        self._project, self.worker, self.where = project, worker, where

    def ours(self, monkeypatch):
        """Write an app of ours, and import it."""
        self.folder = self._project({"shop.py": OURS, "fallback.py": PLUGIN})
        monkeypatch.syspath_prepend(self.folder)
        spec = importlib.util.spec_from_file_location("shop", self.folder / "shop.py")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.modules.pop("fallback", None)
        return module

    def start(self, *options, **env):
        """Start a worker, and wait until it takes runs."""
        environment = {**self.where, "ROLE": "worker", **env}
        # Of the same name there can be one, also for a while after it was killed.
        name = ("-n", f"{uuid4().hex}@%h")
        return self.worker(*WORKER, *name, *options, cwd=self.folder, env=environment, ready=READY)

    def told(self, what):
        """Read what runs took down."""
        path = self.folder / what
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines]


@pytest.fixture
def ours(place, monkeypatch):
    """An app of ours on Celery, and its place."""
    module = place.ours(monkeypatch)
    yield SimpleNamespace(app=module.app, place=place, **module.app.tasks)
    # Or else its sockets are closed when nobody looks.
    del module
    forget_connections()


@pytest.mark.parametrize(
    ("pool", "start"),
    [("prefork", "fork"), ("prefork", "spawn"), ("threads", "fork"), ("solo", "fork")],
)
def test_the_worker_command_does_our_runs(ours, pool, start):
    """Results, answers, retries, bad results and unknown tasks, in each of Celery's pools."""
    ours.place.start("-P", pool, "-c", "2", START=start)
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


def test_a_waiting_run_is_cancelled_over_a_server(ours):
    """A run that waits behind another is dropped by the worker, with the reason."""
    ours.place.start("-c", "1")
    with ours.app:
        first = ours.wait.submit()
        assert wait_until(lambda: ours.place.told("began"), LONG)
        second = ours.double.submit(1)
        assert wait_until(lambda: second.cancel("sold out"), LONG)
        (ours.place.folder / "go").touch()
        with pytest.raises(TaskCancelError, match="sold out"):
            second.result(timeout=LONG)
        assert "waited" == first.result(timeout=LONG)


def test_a_run_waits_where_monitors_look(redis_url):
    """Without a priority that somebody asked for, none is sent, so the queue's length is true."""
    queue = f"celery-{uuid4().hex[:8]}"
    native = Celery("shop", broker=redis_url, backend=redis_url, set_as_current=False)
    native.conf.task_default_queue = queue
    app = QueueTasks("shop", engine=native, discover=False)
    task = app.task(name="double")(lambda number: 2 * number)
    with app, Redis.from_url(redis_url) as redis:
        task.submit(1)
        assert 1 == redis.llen(queue)
        redis.delete(queue)
    forget_connections()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_app_that_is_there_gets_plugins_by_one_line(place, project, method):
    """After one line and a restart a failing task returns what the plugin says; spawned, too."""
    place.folder = project({"shop.py": THEIRS, "fallback.py": PLUGIN + LIFE, "more.py": MORE})
    native = Celery("shop", broker=place.where["BROKER"], backend=place.where["RESULTS"])
    native.conf.task_default_queue = place.where["QUEUE"]
    settings = place.folder / "shop.py"
    settings.write_text(
        settings.read_text().replace(
            'celery.conf.imports = ["more"]',
            f'celery.conf.update(imports=["more"], worker_pool_start_method={method!r})',
        )
    )
    worker = place.start("-c", "2")
    for name, args, kwargs, answer in [
        ("fail", ["no"], {}, "recovered from no at 1"),
        ("fail", ["no"], {"again": True}, "recovered from no at 3"),
        ("late", [], {}, "recovered from late at 1"),
    ]:
        result = native.send_task(name, args, kwargs)
        assert isinstance(result, AsyncResult)
        assert answer == result.get(timeout=LONG, disable_sync_subtasks=False)
    forget_connections()
    assert 0 == worker.terminate()
    # Once in each process that does runs, though spawned ones have two objects of the app.
    started, stopped = (sorted(pid for (pid,) in place.told(what)) for what in ("start", "stop"))
    assert started == stopped
    assert 2 == len(started) == len(set(started))


@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_a_worker_whose_plugin_does_not_start_in_its_children_exits_with_an_error(place, project):
    """A supervisor sees that it failed, as after a fault that the main process finds."""
    starts = '            raise LookupError("no licence")'
    life = LIFE.replace('            tell("start")', starts)
    place.folder = project({"shop.py": THEIRS, "fallback.py": PLUGIN + life, "more.py": MORE})
    command = (*WORKER, "-n", f"{uuid4().hex}@%h", "-c", "2")
    worker = place.worker(*command, cwd=place.folder, env=place.where)
    assert EX_FAILURE == worker.wait(LONG)
    assert "worker_cannot_start" in worker.log()


def test_a_run_that_kills_its_process_has_an_end(ours):
    """It is done again as often as losses are allowed; then it fails with Celery's own error."""
    ours.place.start("-c", "1")
    with ours.app:
        run, other = ours.die.submit(), ours.double.submit(4)
        with pytest.raises(WorkerLostError):
            run.result(timeout=LONG)
        assert 8 == other.result(timeout=LONG)
    assert 2 == len(ours.place.told("began"))


def test_a_worker_that_is_told_to_stop_finishes_its_run(ours):
    """SIGTERM lets what runs finish, and leaves what waits to the next worker."""
    first = ours.place.start("-c", "1")
    with ours.app:
        runs = ours.wait.submit()
        assert wait_until(lambda: ours.place.told("began"), LONG)
        waits = ours.double.submit(4)
        os.kill(first.pid, signal.SIGTERM)
        (ours.place.folder / "go").touch()
        assert "waited" == runs.result(timeout=LONG)
        first.wait(LONG)
        ours.place.start("-c", "1")
        assert 8 == waits.result(timeout=LONG)
    assert 1 == len(ours.place.told("began"))
