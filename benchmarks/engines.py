"""What engines over a broker cost with our plugins, as ratios within one run.

    python benchmarks/engines.py [--engines celery dramatiq taskiq] [--rounds 5] [--runs 500] \
        [--broker amqp://localhost --results redis://localhost] [--json]

Without ``--broker`` a RabbitMQ and a Redis are booted, as for the tests, and all is done on each.

Three sides with the same native settings, each with one worker process of the engine's own: the
engine bare, its own task with ``install``, and the task of an app behind which the engine is. In a
round all do the same runs, one after the other and in random order; the throughput of ours as a
part of the bare one's is the median over the rounds. Times are from the first submission to the
last result. As a module this is what those workers work for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from qtasks_pluggy import QueueTasks

GOAL = 0.95
SIDES = ("bare", "install", "app")
WORKERS = {
    "celery": "celery -A engines:native worker -c 1 --loglevel ERROR -n {name}@%h",
    "dramatiq": "dramatiq engines:native --processes 1 --threads 1 --queues {name}",
    "taskiq": "taskiq worker engines:native --workers 1 --log-level ERROR",
}
MAINS = {"celery": "celery.__main__", "dramatiq": "dramatiq.cli", "taskiq": "taskiq.__main__"}
MAIN = "import sys; sys.argv[0] = {0!r}; from {1} import main; sys.exit(main())"


def done(number: int) -> int:
    """Do nothing."""
    return number


async def done_async(number: int) -> int:
    """Do nothing."""
    return number


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
        install(native, discover=False)
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
        install(native, discover=False)
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
        install(native, discover=False)
    return native, task


MAKERS = {"celery": celery, "dramatiq": dramatiq, "taskiq": taskiq}
if "BENCH_ENGINE" in os.environ:
    native = MAKERS[os.environ["BENCH_ENGINE"]](*json.loads(os.environ["BENCH_SIDE"]))[0]


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


def start_worker(engine: str, side: tuple[str, ...], stack: ExitStack) -> None:
    """Start the engine's own worker for one side; it ends with the stack."""
    command = WORKERS[engine].format(name=side[-1]).split()
    worker = subprocess.Popen(  # noqa: S603  # the engine's own command
        [sys.executable, "-c", MAIN.format(command[0], MAINS[engine]), *command[1:]],
        cwd=Path(__file__).parent,
        env=os.environ | {"BENCH_ENGINE": engine, "BENCH_SIDE": json.dumps(side)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(worker.wait)
    stack.callback(worker.terminate)


def measure(engine: str, broker: str, results: str, rounds: int, runs: int) -> dict[str, float]:
    """Time all sides in every round; return the throughput of ours as a part of the bare one's."""
    timed: dict[str, Callable[[int], float]] = {}
    with asyncio.Runner() as runner, ExitStack() as stack:
        for side in SIDES:
            where = (side, broker, results, f"bench-{uuid4().hex[:8]}")
            native, task = MAKERS[engine](*where)
            start_worker(engine, where, stack)
            if engine == "taskiq":
                owner = task.host if side == "app" else native
                runner.run(owner.__aenter__() if side == "app" else owner.startup())
                end = owner.__aexit__ if side == "app" else lambda *_, n=native: n.shutdown()
                stack.callback(lambda end=end: runner.run(end(None, None, None)))
                timed[side] = lambda runs, s=side, t=task: runner.run(async_runs(s, t, runs))
            else:
                if side == "app":
                    stack.enter_context(task.host)
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


def servers(stack: ExitStack) -> list[tuple[str, str]]:
    """Boot the message servers of the tests; give each broker, and where the results go."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.engines.processes import Guard  # noqa: PLC0415  # needless with servers that run
    from tests.engines.servers import RabbitMQ, Redis  # noqa: PLC0415  # likewise

    folder = Path(stack.enter_context(TemporaryDirectory()))
    guard = stack.enter_context(closing(Guard()))
    urls = []
    for kind in (Redis, RabbitMQ):
        server = stack.enter_context(closing(kind(folder / kind.__name__, guard)))
        server.start()
        urls.append(server.url)
    return [(url, urls[0]) for url in urls]


def main() -> None:
    """Measure every engine, and print it beside the goal."""
    parser = argparse.ArgumentParser(description="What engines over a broker cost with plugins.")
    parser.add_argument("--broker", help="a URL of RabbitMQ or Redis [both are booted]")
    parser.add_argument("--results", help="a URL of Redis; goes with --broker")
    parser.add_argument("--engines", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each engine [5]")
    parser.add_argument("--runs", type=int, default=500, help="runs in a round [500]")
    parser.add_argument("--json", action="store_true", help="write JSON")
    given = parser.parse_args()
    if (given.broker is None) is not (given.results is None):
        parser.error("--broker and --results go together")
    rows = []
    with ExitStack() as stack:
        for broker, results in [(given.broker, given.results)] if given.broker else servers(stack):
            for engine in given.engines:
                found = measure(engine, broker, results, given.rounds, given.runs)
                kind = broker.partition(":")[0]
                rows.append({"engine": engine, "broker": kind, **found, "at_least": GOAL})
                if not given.json:
                    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
                    print(f"{engine:<10} {kind:<6} {told}; at least {GOAL}", flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
