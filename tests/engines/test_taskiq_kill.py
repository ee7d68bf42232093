"""Taskiq on RabbitMQ and on Redis streams loses no run, whatever happens to its workers."""

from __future__ import annotations

import collections
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


def kill_again_and_again(shop, runs, every, whom):
    """Submit so many runs, kill whenever so many have begun; count the kills and the repeats."""
    kills, worker = 0, None
    with shop.app:
        assert shop.app.engine.capabilities.at_least_once
        handles = list(shop.app.submit_many(shop.app.tasks["work"], range(runs)))

        def is_done():
            return len({uuid for uuid, _ in shop.told("done")}) == runs

        def begun():
            return len(shop.told("began"))

        while not is_done():
            goal = begun() + every
            worker = shop.worker() if worker is None else worker
            assert wait_until(lambda goal=goal: begun() >= goal or is_done(), LONG)
            if is_done():
                break
            kills += 1
            if whom == "worker":
                worker.kill()
                worker = None
            else:
                # The command puts another process in its place.
                os.kill(int(shop.told("began")[-1][1]), signal.SIGKILL)
        assert [2 * n for n in range(runs)] == [one.result(timeout=LONG) for one in handles]
        if worker is not None:
            worker.terminate()
    times = collections.Counter(uuid for uuid, _ in shop.told("done"))

    assert {str(handle.uuid) for handle in handles} == set(times)
    return kills, sum(times.values()) - runs


def test_runs_outlive_their_killed_workers(shop):
    """All of 16 runs finish though the worker is killed in their midst; a few run twice."""
    kills, twice = kill_again_and_again(shop, 16, 7, "worker")

    assert kills >= 2
    # Those at work, and those whose end was not acknowledged yet.
    assert twice <= 8 * kills


@pytest.mark.full
@pytest.mark.parametrize("whom", ["worker", "child"])
def test_two_hundred_runs_outlive_many_kills(shop, whom, request, record_testsuite_property):
    """All of 200 runs finish though the worker, or a child of it, is killed again and again."""
    kills, twice = kill_again_and_again(shop, 200, 20, whom)
    record_testsuite_property(
        f"taskiq {request.node.callspec.id}: kills, done twice", f"{kills}, {twice}"
    )

    assert kills >= 8
    assert twice <= 8 * kills


def test_a_killed_child_is_replaced_and_its_run_with_it(shop):
    """When the process that does runs is killed, the one in its place does them again."""
    with shop.app:
        handle = shop.app.tasks["wait"].submit_sync()
        shop.worker()
        assert wait_until(lambda: shop.told("began"), LONG)
        os.kill(int(shop.told("began")[0][1]), signal.SIGKILL)
        assert wait_until(lambda: len(shop.told("began")) == 2, LONG)
        (shop.folder / "go").touch()

        assert "waited" == handle.result(timeout=LONG)


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


OWN = """
    import os, sys, time
    from pathlib import Path
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
    from qtasks_hookspecs import Retry, hookimpl
    from qtasks_pluggy.engines.taskiq import at_least_once, install

    broker = AioPikaBroker(
        {url!r}, exchange=Exchange(name={queue!r}), task_queues=[Queue(name={queue!r})],
        dead_letter_queue=Queue(name={queue!r} + ".dead"),
    )

    def tell(what, number):
        with Path(__file__).with_name(what).open("a") as file:
            file.write(f"{{number}} {{os.getpid()}}\\n")

    @broker.task(task_name="work")
    def work(number, first=True):
        tell("began", number)
        time.sleep(0.05)
        raise OSError(number)

    @hookimpl
    def task_executor_run_task_trigger_error(task_executor, task_broker):
        if task_broker.attempt == 1:
            return Retry()
        tell("done", task_broker.args[0])
        return 0

    at_least_once(broker)
    install(broker, [sys.modules[__name__]], discover=False)
"""
SEND = """
import asyncio, own
async def main():
    await own.broker.startup()
    for number in range(24):
        await own.work.kiq(number)
    await own.broker.shutdown()
asyncio.run(main())
"""


@pytest.mark.skipif(is_older("taskiq-aio-pika", "0.6"), reason="it makes its queues itself")
def test_native_runs_and_their_retries_outlive_killed_workers(project, worker, rabbitmq_url):
    """Under install() all of 24 plain runs, each retried once, finish though workers are killed."""
    text = OWN.format(url=rabbitmq_url, queue=f"kill-{uuid.uuid4().hex}")
    folder = project({"own.py": text, "send.py": SEND})
    worker(sys.executable, "send.py", cwd=folder).wait(LONG)

    def told(what):
        path = folder / what
        return path.read_text().splitlines() if path.exists() else []

    command = (*WORKER, "--max-threadpool-threads", "4", "own:broker")
    kills = 0
    for begun in (8, 24):
        one = worker(*command, cwd=folder, ready="Listening started")
        assert wait_until(lambda begun=begun: len(told("began")) >= begun, LONG)
        one.kill()
        kills += 1
    worker(*command, cwd=folder, ready="Listening started")
    assert wait_until(lambda: len({line.split()[0] for line in told("done")}) == 24, LONG)
    # Four at work when a worker dies, and as many whose end it had not yet acknowledged.
    assert len(told("began")) <= 2 * 24 + 2 * 8 * kills
