"""Taskiq on RabbitMQ and on Redis streams loses no run, whatever happens to its workers."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import uuid
from types import SimpleNamespace

import pytest

from tests.engines.processes import wait_until
from tests.engines.versions import is_older

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("forget")]

LONG = 60
WORKER = (sys.executable, "-m", "taskiq", "worker", "--workers", "1", "--max-async-tasks", "4")
APP = """
    import asyncio, os, time
    from pathlib import Path
    from taskiq import TaskiqEvents
    from taskiq_aio_pika import *
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
    from qtasks_pluggy import QueueTasks
    from qtasks_pluggy.engines.taskiq import at_least_once

    HERE = Path(__file__).parent
    broker = {broker}
    broker.with_result_backend(RedisAsyncResultBackend({redis!r}, result_ex_time=600))
    app = QueueTasks("shop", engine=broker, discover=False)

    def tell(what, uuid):
        with (HERE / what).open("a") as file:
            file.write(f"{{uuid}} {{os.getpid()}}\\n")

    @app.task(echo=True)
    def work(self, number, seconds=0.05):
        tell("began", self.ctx.uuid)
        time.sleep(seconds)
        tell("done", self.ctx.uuid)
        return number * 2

    @broker.task(task_name="tick", ack_type="when_received")
    async def tick():
        pass

    @broker.on_event(TaskiqEvents.WORKER_STARTUP)
    async def look_for_lost_runs(state):
        async def look():
            while True:
                await asyncio.sleep(1)
                await tick.kiq()
        state.looking = asyncio.create_task(look())

    @broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
    async def look_no_more(state):
        state.looking.cancel()

    @app.task(echo=True)
    async def wait(self):
        tell("began", self.ctx.uuid)
        while not (HERE / "go").exists():
            await asyncio.sleep(0.01)
        return "waited"
"""
BROKERS = {
    "stream": "RedisStreamBroker({redis!r}, {queue!r}, idle_timeout=1500, xread_block=200,"
    " xread_count=10, unacknowledged_lock_timeout=5)",
    "rabbitmq": """AioPikaBroker(
        {rabbitmq!r}, exchange=Exchange(name={queue!r}), task_queues=[Queue(name={queue!r})],
        dead_letter_queue=Queue(name={queue!r} + ".dead"),
    )""",
}


@pytest.fixture(params=BROKERS)
def shop(request, project, worker, redis_url):
    """An app in a file, imported here, and a way to start workers of it."""
    if request.param == "stream" and is_older("taskiq-redis", "1.2.2"):
        pytest.skip("the lock of a killed worker stays for ever before taskiq-redis 1.2.2")
    names = {"redis": redis_url, "queue": f"kill-{uuid.uuid4().hex}"}
    if request.param == "rabbitmq":
        if is_older("taskiq-aio-pika", "0.6"):
            pytest.skip("taskiq-aio-pika makes its queues itself before 0.6")
        names["rabbitmq"] = request.getfixturevalue("rabbitmq_url")
    broker = BROKERS[request.param].format(**names)
    name = f"app_{uuid.uuid4().hex}"
    folder = project({f"{name}.py": APP.format(broker=broker, **names)})
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    def told(what):
        path = folder / what
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines]

    def workers(ready="Listening started"):
        return worker(*WORKER, f"{name}:broker", cwd=folder, ready=ready)

    yield SimpleNamespace(app=module.app, told=told, worker=workers, folder=folder)
    sys.modules.pop(name)


def test_a_worker_that_is_stopped_leaves_no_run_behind(shop):
    """SIGTERM lets the runs at work finish, and the next worker does those that wait."""
    with shop.app:
        first = [shop.app.tasks["wait"].submit_sync() for _ in range(4)]
        worker = shop.worker()
        assert wait_until(lambda: len(shop.told("began")) == 4, LONG)
        later = [shop.app.tasks["work"].submit(n) for n in range(6)]
        os.kill(worker.pid, signal.SIGTERM)
        worker.wait_ready("Workers are scheduled for shutdown", LONG)
        (shop.folder / "go").touch()
        worker.wait(LONG)
        assert ["waited"] * 4 == [one.result(timeout=LONG) for one in first]
        shop.worker()
        assert [2 * n for n in range(6)] == [one.result(timeout=LONG) for one in later]
    assert 4 + 6 <= len(shop.told("began"))
