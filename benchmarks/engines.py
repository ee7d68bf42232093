"""What engines cost with our plugins, as ratios within one run.

    python benchmarks/engines.py [--engines celery dramatiq taskiq] [--rounds 5] [--runs 500] \
        [--broker amqp://localhost --results redis://localhost] [--json]
    python benchmarks/engines.py --cpu [--engines celery huey ...] [--rounds 3] [--runs 10000]

Without ``--broker`` servers are booted, as for the tests, and all is done on each.

Three sides with the same native settings, each with one worker process of the engine's own: the
engine bare, its own task with ``install``, and the task of an app behind which the engine is. In a
round all do the same runs, one after the other and in random order; the throughput of ours as a
part of the bare one's is the median over the rounds. Times are from the first submission to the
last result.

With ``--cpu`` the CPU seconds of a worker are measured, those of all its processes, for so many
good runs: of each engine bare, and with ``install`` and one plugin. Both sides are measured in
every round, and the least of each side counts, because whatever else the machine does only adds.

As a module this is what those workers work for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from inspect import isawaitable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks

GOAL = 0.95
CPU_GOAL = 1.1
SIDES = ("bare", "install", "app")
# Each engine's own command, and where it is.
WORKERS = {
    "celery": (
        "celery -A engines:native worker -c 1 --loglevel ERROR -n {name}@%h",
        "celery.__main__:main",
    ),
    "dramatiq": (
        "dramatiq engines:native --processes 1 --threads 1 --queues {name}",
        "dramatiq.cli:main",
    ),
    "taskiq": (
        "taskiq worker engines:native --workers 1 --log-level ERROR",
        "taskiq.__main__:main",
    ),
    "huey": (
        "huey_consumer engines.native -w 1 -d 0.001 -m 0.01 -q",
        "huey.bin.huey_consumer:consumer_main",
    ),
    "rq": ("rq worker {name} -u {broker} -j engines.native -q", "rq.cli:main"),
    "procrastinate": (
        "procrastinate --app engines.native worker -q {name} -c 1",
        "procrastinate.cli:main",
    ),
    "qtasks": ("qtasks -A engines:native run", "qtasks.__main__:main"),
    "django": (
        "manage.py db_worker --no-startup-delay --no-reload --interval 0.01 -v 0",
        "django.core.management:execute_from_command_line",
    ),
}
MAIN = "import sys, engines; sys.argv[0] = {0!r}; from {1} import {2}; sys.exit({2}())"
SEND = "import sys, engines; engines.send(int(sys.argv[1]))"
# With a process for each run, or a transaction of a file, ten times fewer runs say as much.
SLOW = {"django", "rq"}


def done(number: int) -> int:
    """Do nothing; a negative number leaves a mark, and waits until somebody has seen it."""
    if number < 0:
        mark = Path(os.environ["BENCH_MARK"])
        mark.touch()
        while mark.exists():
            time.sleep(0.005)
    return number


async def done_async(number: int) -> int:
    """Do the same in async code."""
    return done(number)


class Fallback:
    """A plugin that has nothing to do in a good run."""

    name = "fallback"

    @hookimpl
    def task_executor_run_task_trigger_error(self) -> int:
        """Answer for a failing run."""
        return 0


PLUGGED: Any = {"plugins": [Fallback()], "discover": False}


def celery(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:
    """Make a Celery app, and the task of one side."""
    from celery import Celery  # noqa: PLC0415  # one engine is enough

    from qtasks_pluggy.engines.celery import at_least_once, install  # noqa: PLC0415  # likewise

    native = Celery(name, broker=broker, backend=results)
    native.conf.task_default_queue = native.conf.control_exchange = name
    at_least_once(native)
    if side == "app":
        return native, QueueTasks("bench", engine=native, discover=False).task(done)
    task = native.task(name="done", shared=False)(done)
    if side == "install":
        install(native, **PLUGGED)
    return native, task


def dramatiq(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:
    """Make a Dramatiq broker, and the task of one side."""
    from dramatiq import actor  # noqa: PLC0415  # one engine is enough
    from dramatiq.brokers.rabbitmq import RabbitmqBroker  # noqa: PLC0415  # likewise
    from dramatiq.brokers.redis import RedisBroker  # noqa: PLC0415  # likewise
    from dramatiq.results import Results  # noqa: PLC0415  # likewise
    from dramatiq.results.backends import RedisBackend  # noqa: PLC0415  # likewise

    from qtasks_pluggy.engines.dramatiq import at_least_once, install  # noqa: PLC0415  # likewise

    is_redis = broker.startswith("redis")
    native = (
        RedisBroker(url=broker, namespace=name)
        if is_redis
        else RabbitmqBroker(url=broker.rstrip("/"))
    )
    native.add_middleware(Results(backend=RedisBackend(url=results, namespace=name)))
    at_least_once(native)
    if side == "app":
        app = QueueTasks("bench", engine=native, discover=False)
        return native, app.task(extra={"queue_name": name})(done)
    options: Any = {"queue_name": name, "store_results": True, "max_retries": 0}
    task = actor(broker=native, **options)(done)
    if side == "install":
        install(native, **PLUGGED)
    return native, task


def taskiq(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:
    """Make a Taskiq broker, and the task of one side."""
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue  # noqa: PLC0415  # one is enough
    from taskiq_redis import (  # noqa: PLC0415  # likewise
        RedisAsyncResultBackend,
        RedisStreamBroker,
    )

    from qtasks_pluggy.engines.taskiq import at_least_once, install  # noqa: PLC0415  # likewise

    native: Any
    if broker.startswith("redis"):
        native = RedisStreamBroker(broker, name)
    else:
        native = AioPikaBroker(broker, exchange=Exchange(name=name), task_queues=[Queue(name=name)])
    native = native.with_result_backend(RedisAsyncResultBackend(results, prefix_str=name))
    if side == "app":
        return native, QueueTasks("bench", engine=native, discover=False).task(name="done")(
            done_async
        )
    at_least_once(native)
    task = native.register_task(done_async, task_name="done")
    if side == "install":
        install(native, **PLUGGED)
    return native, task


def huey(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:  # noqa: ARG001  # a file
    """Make a Huey, and its task."""
    from huey import SqliteHuey  # noqa: PLC0415  # one engine is enough

    from qtasks_pluggy.engines.huey import install  # noqa: PLC0415  # likewise

    native = SqliteHuey(name, filename=f"{broker}/{name}.db", timeout=60)
    task = native.task(name="done")(done)
    if side == "install":
        install(native, **PLUGGED)
    return native, task


def rq(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:  # noqa: ARG001  # in Redis
    """Make a class of RQ's jobs, and what enqueues one."""
    from redis import Redis  # noqa: PLC0415  # one engine is enough
    from rq import Queue  # noqa: PLC0415  # likewise
    from rq.job import Job  # noqa: PLC0415  # likewise

    from qtasks_pluggy.engines.rq import install  # noqa: PLC0415  # likewise

    queue = Queue(name, connection=Redis.from_url(broker))
    native = install(**PLUGGED) if side == "install" else Job
    return native, partial(queue.enqueue, "engines.done")


def procrastinate(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:  # noqa: ARG001  # none
    """Make an app of Procrastinate, and its task."""
    from procrastinate import App, PsycopgConnector  # noqa: PLC0415  # one engine is enough

    from qtasks_pluggy.engines.procrastinate import install  # noqa: PLC0415  # likewise

    native = App(connector=PsycopgConnector(conninfo=broker))
    task = native.task(name="done", queue=name)(done)
    if side == "install":
        install(native, **PLUGGED)
    return native, task


def qtasks(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:  # noqa: ARG001  # in Redis
    """Make an app of QTasks, and what adds a task."""
    from qtasks.asyncio import QueueTasks as Native  # noqa: PLC0415  # one engine is enough

    from qtasks_pluggy.engines.qtasks import install  # noqa: PLC0415  # likewise

    native = Native(name=name, broker_url=broker)
    native.task(name="done")(done_async)
    if side == "install":
        install(native, **PLUGGED)
    return native, partial(native.add_task, "done")


def django(side: str, broker: str, results: str, name: str) -> tuple[Any, Any]:  # noqa: ARG001  # a file
    """Make a task backend on SQLite, and a task of Django's."""
    import django as package  # noqa: PLC0415  # one engine is enough
    from django.conf import settings  # noqa: PLC0415  # likewise
    from django.core.management import call_command  # noqa: PLC0415  # likewise

    backend, file = "django_tasks_db.DatabaseBackend", Path(broker, f"{name}.db")
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"
    options = {"timeout": 30, "transaction_mode": "IMMEDIATE", "init_command": pragmas}
    of_file = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": options}
    settings.configure(
        DATABASES={"default": of_file},
        INSTALLED_APPS=["django_tasks", "django_tasks_db"],
        TASKS={"default": {"BACKEND": "engines.native" if side == "install" else backend}},
        USE_TZ=True,
    )
    package.setup()
    from django_tasks import task  # noqa: PLC0415  # likewise

    from qtasks_pluggy.engines.django import install  # noqa: PLC0415  # likewise

    # Django finds a backend by the setting's name, and a task by its function's.
    globals()["native"] = native = install(backend, **PLUGGED)
    globals()["done"] = declared = task(done)
    if not file.exists():
        call_command("migrate", verbosity=0)
    return native, declared


MAKERS = {
    "celery": celery,
    "dramatiq": dramatiq,
    "taskiq": taskiq,
    "huey": huey,
    "rq": rq,
    "procrastinate": procrastinate,
    "qtasks": qtasks,
    "django": django,
}
if "BENCH_ENGINE" in os.environ:
    native, task = MAKERS[os.environ["BENCH_ENGINE"]](*json.loads(os.environ["BENCH_SIDE"]))


def plain_runs(engine: str, side: str, native: Any, task: Any) -> Callable[[int], float]:
    """Give what times so many runs, from plain code."""

    def bare(number: int) -> Callable[[], Any]:
        if engine == "celery":
            return partial(task.delay(number).get, timeout=60)
        # As often as our own handles look: by itself Dramatiq waits longer and longer.
        return partial(_poll, native.get_results_backend(), task.send(number))

    def ours(number: int) -> Callable[[], Any]:
        handle = task.submit(number)
        return lambda: handle.result(timeout=60)

    submit = ours if side == "app" else bare

    def timed(runs: int) -> float:
        begin = time.perf_counter()
        for wait in [submit(number) for number in range(runs)]:
            wait()
        return time.perf_counter() - begin

    return timed


def _poll(results: Any, sent: Any) -> Any:
    from dramatiq.results import ResultMissing  # noqa: PLC0415  # one engine is enough

    while True:
        try:
            return results.get_result(sent)
        except ResultMissing:
            time.sleep(0.005)


async def async_runs(side: str, task: Any, runs: int) -> float:
    """Time so many runs, from async code."""
    begin = time.perf_counter()
    waits: list[Awaitable[Any]]
    if side == "app":
        waits = [await task.submit(number) for number in range(runs)]
    else:
        sent = [await task.kiq(number) for number in range(runs)]
        waits = [one.wait_result(check_interval=0.005, timeout=60) for one in sent]
    for one in waits:
        await one
    return time.perf_counter() - begin


def start(
    code: str, *args: str, engine: str, side: tuple[str, ...], stack: ExitStack, mark: str = ""
) -> Any:
    """Start a process for which this module has one side's task; it is killed with the stack."""
    from tests.engines.processes import Guard, Process  # noqa: PLC0415  # workers do without

    told = {"BENCH_ENGINE": engine, "BENCH_MARK": mark, "BENCH_SIDE": json.dumps(side)}
    folder = Path(__file__).parent
    one = Process(
        *(sys.executable, "-c", code, *args),
        cwd=folder,
        # Where Python does not look in the working folder by itself.
        env=os.environ | told | {"PYTHONPATH": str(folder)},
        log=Path(stack.enter_context(TemporaryDirectory()), "log.txt"),
        watched_by=stack.enter_context(closing(Guard())),
    )
    stack.callback(one.kill)
    return one


def start_worker(engine: str, side: tuple[str, ...], stack: ExitStack, mark: str = "") -> Any:
    """Start the engine's own worker for one side."""
    command, place = WORKERS[engine]
    words = command.format(name=side[-1], broker=side[1]).split()
    code = MAIN.format(words[0], *place.split(":"))
    return start(code, *words[1:], engine=engine, side=side, stack=stack, mark=mark)


def send(runs: int) -> None:
    """Send a few runs, a mark, so many runs and another mark; in a process of its own."""
    engine = os.environ["BENCH_ENGINE"]
    names = {"celery": "delay", "dramatiq": "send", "taskiq": "kiq", "procrastinate": "defer"}
    names["django"] = "enqueue"
    call = getattr(task, names[engine]) if engine in names else task
    with asyncio.Runner() as runner, ExitStack() as stack:
        if engine == "taskiq":
            runner.run(native.startup())
        elif engine == "procrastinate":
            stack.enter_context(native.open())
        for number in (*range(100), -1, *range(runs), -1):
            sent = call(number=number) if engine == "procrastinate" else call(number)
            if engine in {"taskiq", "qtasks"} and isawaitable(sent):
                runner.run(sent)
        if engine == "taskiq":
            runner.run(native.shutdown())


def cpu_seconds(session: int) -> float:
    """Add up what the processes of a session have used, and those that they have waited for."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it can end while it is looked at
            # The second field is a name in brackets, which may have brackets and spaces itself.
            fields = file.read_text("utf-8", "replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_cpu(engine: str, broker: str, results: str, rounds: int, runs: int) -> dict[str, float]:
    """Return the least CPU seconds of a worker, bare and with ``install``, and their ratio."""
    runs = runs // 10 if engine in SLOW else runs
    used: dict[str, list[float]] = {side: [] for side in SIDES[:2]}
    for number in range(rounds):
        for side in (SIDES[:2], SIDES[1::-1])[number % 2]:
            with ExitStack() as stack:
                mark = Path(stack.enter_context(TemporaryDirectory()), "mark")
                where: Any = {"engine": engine, "stack": stack}
                where["side"] = side, broker, results, f"bench-{uuid4().hex[:8]}"
                # All are sent before the worker starts, so that it never waits for one.
                sender = start(SEND, str(runs), **where)
                if sender.wait(1_000):
                    sys.exit(f"{engine}: {sender.log()}")
                worker = start_worker(**where, mark=str(mark))
                read = []
                for _ in range(2):  # at the first mark the worker is there, and warm
                    worker.wait_ready(mark.exists, 1_000)
                    read.append(cpu_seconds(worker.pid))
                    mark.unlink()
                used[side].append(read[1] - read[0])
    bare, ours = (min(seconds) for seconds in used.values())
    return {"runs": runs, "bare": bare, "install": ours, "ratio": ours / bare}


def measure(engine: str, broker: str, results: str, rounds: int, runs: int) -> dict[str, float]:
    """Time all sides in every round; return the throughput of ours as a part of the bare one's."""
    timed: dict[str, Callable[[int], float]] = {}
    with asyncio.Runner() as runner, ExitStack() as stack:
        for side in SIDES:
            where = (side, broker, results, f"bench-{uuid4().hex[:8]}")
            native, task = MAKERS[engine](*where)
            start_worker(engine, where, stack)
            if engine == "taskiq":
                owner = task.app if side == "app" else native
                runner.run(owner.__aenter__() if side == "app" else owner.startup())
                end = owner.__aexit__ if side == "app" else lambda *_, n=native: n.shutdown()
                stack.callback(lambda end=end: runner.run(end(None, None, None)))
                timed[side] = lambda runs, s=side, t=task: runner.run(async_runs(s, t, runs))
            else:
                if side == "app":
                    stack.enter_context(task.app)
                timed[side] = plain_runs(engine, side, native, task)
            timed[side](20)  # until the worker is there, and warm
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side in random.sample(SIDES, len(SIDES)):
                seconds[side].append(timed[side](runs))
    found = {
        side: statistics.median(
            bare / ours for bare, ours in zip(seconds["bare"], seconds[side], strict=True)
        )
        for side in SIDES[1:]
    }
    return found | {"bare runs a second": runs / statistics.median(seconds["bare"])}


def servers(stack: ExitStack) -> dict[str, str]:
    """Boot the servers of the tests; give the URL of each, and a folder for files."""
    from procrastinate import App, PsycopgConnector  # noqa: PLC0415  # needless elsewhere

    from tests.engines.processes import Guard  # noqa: PLC0415  # likewise
    from tests.engines.servers import RabbitMQ, Redis  # noqa: PLC0415  # likewise
    from tests.failures.servers import running  # noqa: PLC0415  # likewise

    folder = Path(stack.enter_context(TemporaryDirectory()))
    guard = stack.enter_context(closing(Guard()))
    urls = {"sqlite": str(folder)}
    for kind in (Redis, RabbitMQ):
        server = stack.enter_context(closing(kind(folder / kind.__name__, guard)))
        server.start()
        urls[kind.__name__.lower()] = server.url
    urls["postgresql"] = stack.enter_context(running()).replace("+psycopg", "")
    with App(connector=PsycopgConnector(conninfo=urls["postgresql"])).open() as app:
        app.schema_manager.apply_schema()
    return urls


BROKERS = {
    **dict.fromkeys(("celery", "dramatiq", "taskiq"), ("redis", "rabbitmq")),
    **dict.fromkeys(("huey", "django"), ("sqlite",)),
    **dict.fromkeys(("rq", "qtasks"), ("redis",)),
    "procrastinate": ("postgresql",),
}


def main() -> None:
    """Measure every engine, and print it beside the goal."""
    parser = argparse.ArgumentParser(description="What engines cost with plugins.")
    parser.add_argument("--broker", help="a URL of RabbitMQ or Redis [servers are booted]")
    parser.add_argument("--results", help="a URL of Redis; goes with --broker")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of a worker, not wall time")
    parser.add_argument("--engines", nargs="+", choices=list(MAKERS))
    parser.add_argument("--rounds", type=int, help="rounds for each engine [5; with --cpu 3]")
    parser.add_argument("--runs", type=int, help="runs in a round [500; with --cpu 10000]")
    parser.add_argument("--json", action="store_true", help="write JSON")
    given = parser.parse_args()
    if (given.broker is None) is not (given.results is None):
        parser.error("--broker and --results go together")
    engines = given.engines or (list(MAKERS) if given.cpu else list(MAKERS)[:3])
    measured, goal = (measure_cpu, CPU_GOAL) if given.cpu else (measure, GOAL)
    rounds, runs = given.rounds or (3 if given.cpu else 5), given.runs
    runs = runs or (10_000 if given.cpu else 500)
    logging.disable(logging.WARNING)  # Procrastinate's, about an app in a script
    rows = []
    with ExitStack() as stack:
        urls = {} if given.broker else servers(stack)
        for engine in engines:
            for kind in [given.broker.partition(":")[0]] if given.broker else BROKERS[engine]:
                broker, results = urls.get(kind, given.broker), urls.get("redis", given.results)
                found = measured(engine, broker, results, rounds, runs)
                rows.append({"engine": engine, "broker": kind, **found, "goal": goal})
                if not given.json:
                    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
                    print(f"{engine:<13} {kind:<10} {told}; goal {goal}", flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
