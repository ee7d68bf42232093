"""Runs outlive killed workers: each engine that has at-least-once, on each of its brokers."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from uuid import uuid4

import attrs
import pytest

from tests.engines.processes import ProcessError, wait_until
from tests.engines.versions import is_older

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("patient")]

LONG = 60
# What all of them do: odd numbers fail, and plugins save them, every third of those after a retry.
HEAD = """
    import contextlib, os, time
    from pathlib import Path
    from qtasks_hookspecs import Retry, hookimpl
    from qtasks_pluggy import QueueTasks

    HERE, WAIT = Path(__file__).parent, float(os.environ["WAIT"])
    HOW, QUEUE, BROKER, RESULTS = (os.environ[k] for k in ("HOW", "QUEUE", "BROKER", "RESULTS"))

    def tell(what, number):
        with (HERE / what).open("a") as file:
            file.write(f"{number} {os.getpid()}\\n")

    def body(number):
        tell("began", number)
        time.sleep(0.05)
        while (HERE / "hold").exists():
            time.sleep(0.005)
        tell("done", number)
        if number % 2:
            raise OSError(number)
        return number

    class Policy:
        name = "policy"

        @hookimpl
        def task_executor_run_task_trigger_error(self, task_broker, e):
            number = e.cause.args[0]
            return Retry() if number % 3 == 0 and task_broker.attempt == 1 else -number

    given = {"plugins": [Policy()], "discover": False}
    client, extra = contextlib.nullcontext, {}
"""
# How an app of ours is used, whatever the engine is.
FORWARD = """
    if HOW == "forward":
        app = QueueTasks("shop", engine=native, intercept=OSError, **given)
        work = app.task(name="work", extra=extra)(body)
        client, send = (lambda: app), work.submit

        def fetch(handle):
            return handle.result(timeout=WAIT)
"""
CLIENT = """
    import json, sys
    import shop

    with shop.client():
        sent = [shop.send(number) for number in range(int(sys.argv[1]))]
        print("sent", flush=True)
        results = [shop.fetch(one) for one in sent]
    (shop.HERE / "results.json").write_text(json.dumps(results))
"""
CELERY = """
    from celery import Celery
    from qtasks_pluggy.engines.celery import at_least_once, install

    native = Celery("shop", broker=BROKER, backend=RESULTS)
    native.conf.task_default_queue = native.conf.control_exchange = QUEUE
    # Seconds until the loss of a process is noticed, and until Redis gives a run to another worker.
    native.conf.worker_lost_wait = 0.5
    if BROKER.startswith("redis"):
        native.conf.broker_transport_options = {"visibility_timeout": 3}
    at_least_once(native)
    if HOW == "install":
        work = native.task(name="work")(body)
        install(native, **given)
        send = work.delay

        def fetch(result):
            return result.get(timeout=WAIT)
"""
DRAMATIQ = """
    import dramatiq
    from dramatiq.brokers.rabbitmq import RabbitmqBroker
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results, ResultTimeout
    from dramatiq.results.backends import RedisBackend
    from qtasks_pluggy.engines.dramatiq import at_least_once, install

    if BROKER.startswith("redis"):
        quick = {"heartbeat_timeout": 2_000, "maintenance_chance": 1_000_000}
        native = RedisBroker(url=BROKER, namespace=QUEUE, **quick)
    else:
        native = RabbitmqBroker(url=BROKER.removesuffix("//"))
    native.add_middleware(Results(backend=RedisBackend(url=RESULTS, namespace=QUEUE)))
    dramatiq.set_broker(native)
    at_least_once(native)
    extra = {"queue_name": QUEUE}
    if HOW == "install":
        install(native, **given)
        work = dramatiq.actor(actor_name="work", store_results=True, **extra)(body)
        send, results = work.send, native.get_results_backend()

        def fetch(message):
            end = time.monotonic() + WAIT
            while True:
                try:
                    # At most so long: redis-py gives a connection up after five seconds.
                    return results.get_result(message, block=True, timeout=1_000)
                except ResultTimeout:
                    if time.monotonic() > end:
                        raise
"""
TASKIQ = """
    import asyncio
    from taskiq import TaskiqEvents
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
    from qtasks_pluggy.engines.taskiq import at_least_once, install

    if BROKER.startswith("redis"):
        quick = {"idle_timeout": 1_500, "unacknowledged_lock_timeout": 5}
        native = RedisStreamBroker(BROKER, QUEUE, xread_block=200, xread_count=10, **quick)

        # Only after a further message does Taskiq look for those of a killed worker.
        @native.task(task_name="tick", ack_type="when_received")
        async def tick():
            pass

        @native.on_event(TaskiqEvents.WORKER_STARTUP)
        async def tick_every_second(state):
            async def forever():
                while True:
                    await asyncio.sleep(1)
                    await tick.kiq()
            state.ticking = asyncio.create_task(forever())

        @native.on_event(TaskiqEvents.WORKER_SHUTDOWN)
        async def tick_no_more(state):
            state.ticking.cancel()
    else:
        from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
        queues = {"task_queues": [Queue(name=QUEUE)], "dead_letter_queue": Queue(name=f"{QUEUE}.x")}
        native = AioPikaBroker(BROKER, exchange=Exchange(name=QUEUE), **queues)
    native.with_result_backend(RedisAsyncResultBackend(RESULTS, prefix_str=QUEUE))
    if HOW == "install":
        at_least_once(native)
        work = native.register_task(body, task_name="work")
        install(native, **given)

        @contextlib.contextmanager
        def client():
            global run
            with asyncio.Runner() as runner:
                run = runner.run
                run(native.startup())
                yield
                run(native.shutdown())

        def send(number):
            return run(work.kiq(number))

        def fetch(sent):
            return run(sent.wait_result(timeout=WAIT)).return_value
"""
HUEY = """
    from huey import SqliteHuey
    from qtasks_pluggy.engines.huey import at_least_once, install

    native = SqliteHuey("shop", filename=str(HERE / "runs.db"))
    if HOW == "install":
        at_least_once(native)
        work = native.task(name="work")(body)
        install(native, **given)
        send = work

        def fetch(result):
            return result.get(blocking=True, timeout=WAIT)
"""
RQ = """
    from redis import Redis
    from rq import Queue
    from rq import Retry as NativeRetry
    from qtasks_pluggy.engines.rq import install

    ShopJob = install(**given)
    queue = Queue(QUEUE, connection=Redis.from_url(BROKER))

    def send(number):
        return queue.enqueue("shop.body", number, retry=NativeRetry(max=10))

    def fetch(job):
        end = time.monotonic() + WAIT
        while job.get_status() != "finished" and time.monotonic() < end:
            time.sleep(0.05)
        return job.latest_result().return_value
"""
PROCRASTINATE = """
    from procrastinate import App, PsycopgConnector
    from qtasks_pluggy.engines.procrastinate import install

    quick = {"update_heartbeat_interval": 0.5, "stalled_worker_timeout": 2}
    native = App(
        connector=PsycopgConnector(conninfo=BROKER),
        worker_defaults=quick if STALLED == "seconds_since_heartbeat" else {},
    )
    work = native.task(name="work", queue=QUEUE)(body)
    send = lambda number: work.defer(number=number)
    client = native.open

    @native.periodic(cron="* * * * * */1")
    @native.task(name="retry_stalled", queue=QUEUE, queueing_lock=QUEUE)
    async def retry_stalled(timestamp):
        for job in await native.job_manager.get_stalled_jobs(queue=QUEUE, **{STALLED: 3}):
            await native.job_manager.retry_job(job)

    install(native, **given)

    def fetch(number):
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            (job,) = native.job_manager.list_jobs(id=number)
            if job.status not in ("todo", "doing"):
                break
            time.sleep(0.05)
        return job.status
"""
STALLED = "nb_seconds" if is_older("procrastinate", "3.1") else "seconds_since_heartbeat"


def abandon(broker: str, queue: str) -> None:
    """Give the jobs of a killed worker to others, as RQ's own maintenance does minutes later."""
    from redis import Redis
    from rq import Queue

    with Redis.from_url(broker) as connection:
        registry = Queue(queue, connection=connection).started_job_registry
        registry.cleanup(timestamp=time.time() + 1_000)


@attrs.frozen
class Engine:
    """How an engine is used, and how its own worker command is started.

    Attributes:
        source: Makes ``native``, and for ``install`` also ``send`` and ``fetch``.
        command: Its worker command; ``{queue}`` and ``{name}`` are replaced.
        ready: What the log says when the worker takes runs.
        at_a_time: How many runs the command does at a time.
        keeps_results: Whether ``fetch`` gives a run's result; else its status.
        abandon: Has the engine notice at once that a worker is gone.
    """

    source: str
    command: str
    ready: str
    at_a_time: int = 2
    keeps_results: bool = True
    abandon: Callable[[str, str], None] | None = None


CONSUMER = "huey.bin.huey_consumer shop.native -w 2 -d 0.01 -m 0.05 -c 1"
ENGINES = {
    "celery": Engine(CELERY, "celery -A shop:native worker -c 2 -l INFO -n {name}@%h", "ready."),
    "dramatiq": Engine(DRAMATIQ, "dramatiq shop --path . -p 1 -t 2", "is ready for action"),
    "taskiq": Engine(
        TASKIQ,
        "taskiq worker shop:native --workers 1 --max-async-tasks 2 --max-threadpool-threads 2",
        "Listening started",
    ),
    "huey processes": Engine(HUEY, f"{CONSUMER} -k process", "Huey consumer started"),
    "huey threads": Engine(HUEY, f"{CONSUMER} -k thread", "Huey consumer started"),
    "rq": Engine(
        RQ,
        "rq.cli worker {queue} -u {broker} -j shop.ShopJob"
        " --maintenance-interval 30 --worker-ttl 60",
        "Listening on",
        at_a_time=1,
        abandon=abandon,
    ),
    "procrastinate": Engine(
        PROCRASTINATE,
        "procrastinate -v --app shop.native worker -q {queue} -c 2",
        "Starting worker",
        keeps_results=False,
    ),
}
BROKERS = {
    "celery": ("rabbitmq", "redis"),
    "dramatiq": ("rabbitmq", "redis"),
    "taskiq": ("rabbitmq", "redis"),
    "huey processes": ("sqlite",),
    "huey threads": ("sqlite",),
    "rq": ("redis",),
    "procrastinate": ("postgresql",),
}
CASES = [
    (engine, broker, how)
    for engine, brokers in BROKERS.items()
    for broker in brokers
    for how in ("install", "forward")
    if how == "install" or engine not in {"rq", "procrastinate"}
]
# What stands on ``install`` is killed each time: forward has the same workers.
EACH_TIME = [
    case if case[2] == "install" else pytest.param(case, marks=pytest.mark.full) for case in CASES
]
# Celery on Redis loses a message that its worker is just taking, as our page says.
AT_ANY_MOMENT = [case for case in CASES if case[:2] != ("celery", "redis")]


@pytest.fixture(scope="module")
def jobs_url():
    """One PostgreSQL for this file, with Procrastinate's tables."""
    from tests.failures.servers import running_for_jobs

    with running_for_jobs() as url:
        yield url


class Shop:
    """An app in a folder, its client and its workers, and what was running when one was killed."""

    def __init__(self, project, worker, engine, env):
        self.engine, self._worker, self.env = engine, worker, env
        source = HEAD + engine.source + (FORWARD if env["HOW"] == "forward" else "")
        source = source.replace("STALLED", repr(STALLED))
        self.folder = project({"shop.py": source, "client.py": CLIENT})
        self._dead, self.at_risk, self.running, self.kills = set(), set(), 0, 0

    def submit(self, runs):
        """Start a client, which submits so many runs and waits for their results."""
        command = (sys.executable, "client.py", str(runs))
        return self._worker(*command, cwd=self.folder, env=self.env, ready="sent")

    def start(self):
        """Start a worker, and wait until it takes runs."""
        # Of the same name there can be one, also for a while after it was killed.
        names = {"queue": self.env["QUEUE"], "broker": self.env["BROKER"], "name": uuid4().hex}
        command = (sys.executable, "-m", *self.engine.command.format(**names).split())
        return self._worker(*command, cwd=self.folder, env=self.env, ready=self.engine.ready)

    def told(self, what):
        """Read which runs began, or were done, and where."""
        path = self.folder / what
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def at_work(self, pids=None):
        """Find the runs that are at work: in these processes, else in all that live."""
        began, done = map(collections.Counter, (self.told("began"), self.told("done")))
        return [
            number
            for number, pid in (began - done).elements()
            if pid not in self._dead and (pids is None or pid in pids)
        ]

    def kill(self, worker, whom):
        """Kill the worker with all that it started, or the process that began the last run.

        Returns:
            Whether anything was killed: a process that does one run alone can be over.
        """
        pids = {pid for _, pid in self.told("began")} - self._dead
        if whom == "child":
            pids = {self.told("began")[-1][1]}
            try:
                os.kill(*pids, signal.SIGKILL)
            except ProcessLookupError:
                return False
            wait_until(lambda: not pids & set(worker.members()), LONG)
        else:
            worker.kill()
        lost = self.at_work(pids)
        done = [number for number, pid in self.told("done") if pid in pids]
        # What was running, for the engine also what had just ended and was not acknowledged yet.
        self.at_risk |= {*lost, *done[-2 * self.engine.at_a_time :]}
        self.running += len(lost)
        self._dead |= pids
        self.kills += 1
        return True


@pytest.fixture
def shop(request, project, worker):
    """Make the shop of a case."""
    engine, broker, how = request.param
    if find_spec(engine.partition(" ")[0]) is None:
        pytest.skip(f"{engine} is not installed")
    if engine == "taskiq" and broker == "rabbitmq" and is_older("taskiq-aio-pika", "0.6"):
        pytest.skip("taskiq-aio-pika makes its queues itself before 0.6")
    if engine == "taskiq" and broker == "redis" and is_older("taskiq-redis", "1.2.2"):
        pytest.skip("the lock of a killed worker stays for ever before taskiq-redis 1.2.2")
    fixture = {"sqlite": None, "postgresql": "jobs_url"}.get(broker, f"{broker}_url")
    env = {
        "BROKER": request.getfixturevalue(fixture) if fixture else "",
        "HOW": how,
        "QUEUE": f"kill-{uuid4().hex[:8]}",
        "RESULTS": request.getfixturevalue("redis_url") if broker in {"rabbitmq", "redis"} else "",
        "WAIT": str(LONG),
    }
    return Shop(project, worker, ENGINES[engine], env)


def kill_in_the_midst(shop, runs, kills, *, hold):
    """Submit so many runs, and kill the worker and one of its processes in turn, so often.

    Args:
        shop: The shop.
        runs: How many runs.
        kills: How many kills.
        hold: Whether each kill waits until the worker has all the runs that it can do at a time;
            else it comes at any moment.

    Returns:
        How many runs were begun again, beside those that a plugin retried.
    """
    client, one, held = shop.submit(runs), None, shop.folder / "hold"
    at_a_time, moments, missed = shop.engine.at_a_time, random.SystemRandom(), False

    def begun():
        return len(shop.told("began"))

    def left():
        return runs - len({number for number, _ in shop.told("done")})

    def told_or_gone(goal):
        return begun() >= goal or not left() or one.exit_code is not None

    while shop.kills < kills:
        if one is None or one.exit_code is not None:
            one = shop.start()
        goal = begun() + (1 if missed else runs // (kills + 1))
        assert wait_until(lambda goal=goal: told_or_gone(goal), LONG), one.log()
        assert left(), f"all runs are done after {shop.kills} kills"
        if one.exit_code is not None:
            one.kill()
            continue
        if hold:
            held.touch()
            busy = wait_until(lambda: len(shop.at_work()) >= min(at_a_time, left()), LONG)
            assert busy, one.log()
        else:
            time.sleep(moments.random() / 10)
        whom = "child" if shop.kills % 2 else "worker"
        missed = not shop.kill(one, whom)
        if whom == "worker":
            one = None
            if hold and shop.engine.abandon is not None:
                shop.engine.abandon(shop.env["BROKER"], shop.env["QUEUE"])
        held.unlink(missing_ok=True)
    while client.exit_code is None:
        if one is None or one.exit_code is not None:
            one = shop.start()
        with contextlib.suppress(ProcessError):
            client.wait(1)
    assert 0 == client.exit_code, client.log()
    one.kill()

    results = json.loads((shop.folder / "results.json").read_text())
    ends = [-number if number % 2 else number for number in range(runs)]
    assert (ends if shop.engine.keeps_results else ["succeeded"] * runs) == results
    times = collections.Counter(number for number, _ in shop.told("began"))
    again = {n: times[n] - 1 - (n % 6 == 3) for n in range(runs)}
    again = {number: more for number, more in again.items() if more > 0}
    assert set(again) <= shop.at_risk
    return sum(again.values())


@pytest.mark.parametrize("shop", EACH_TIME, indirect=True, ids="-".join)
def test_runs_outlive_what_is_killed(shop):
    """All of 16 runs end as they should though the worker, then a process of it, is killed."""
    again = kill_in_the_midst(shop, 16, 2, hold=True)
    assert shop.running >= 2
    assert again >= 1


@pytest.mark.full
@pytest.mark.parametrize("shop", AT_ANY_MOMENT, indirect=True, ids="-".join)
def test_two_hundred_runs_outlive_five_kills(shop, request, record_testsuite_property):
    """All of 200 runs end as they should, whenever five kills come; few are begun twice."""
    # RQ's maintenance takes minutes to notice that a worker is gone.
    shop.env["WAIT"], began = str(10 * LONG), time.monotonic()
    again = kill_in_the_midst(shop, 200, 5, hold=False)
    done = len(shop.told("done")) - 200 - 33  # 33 of them are retried
    told = {
        "kills": shop.kills,
        "running at them": shop.running,
        "begun again": again,
        "done again": done,
        "seconds": round(time.monotonic() - began),
    }
    record_testsuite_property(request.node.callspec.id, json.dumps(told))
