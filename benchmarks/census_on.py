"""The census on an engine and servers of your own, with the same plugins and the same totals.

Where it runs is said by the environment: ``CENSUS_ENGINE`` is ``celery``, ``dramatiq`` or
``taskiq``, ``CENSUS_BROKER`` a URL of RabbitMQ or Redis, ``CENSUS_RESULTS`` one of Redis. As a
module this is what the engine's own worker command works for; as a script it submits the runs,
starts such workers, and counts:

    CENSUS_ENGINE=celery CENSUS_BROKER=amqp://localhost CENSUS_RESULTS=redis://localhost \
        python benchmarks/census_on.py --runs 10000 --workers 2

One file in twenty is broken, and the plugin of the census answers for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from subprocess import Popen
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from census import BROKEN, app, census, sources  # beside this file

ENGINE = os.environ["CENSUS_ENGINE"]
BROKER = os.environ["CENSUS_BROKER"]
RESULTS = os.environ["CENSUS_RESULTS"]
# Of its own, so that on servers that have other work nobody takes what is ours.
NAME = os.environ.get("CENSUS_NAME", "census")

WORKERS = {
    "celery": "celery -A census_on:native worker --concurrency 1 --loglevel WARNING -n {name}@%h",
    "dramatiq": "dramatiq census_on:native --processes 1 --threads 2 --queues {queue}",
    "taskiq": "taskiq worker census_on:native --workers 1",
}
RUN = "import sys; sys.argv[0] = {0!r}; from {1} import main; sys.exit(main())"
MAINS = {"celery": "celery.__main__", "dramatiq": "dramatiq.cli", "taskiq": "taskiq.__main__"}


def celery_app() -> Any:
    """Make a Celery app."""
    from celery import Celery  # noqa: PLC0415  # one engine is enough

    native = Celery(NAME, broker=BROKER, backend=RESULTS)
    native.conf.task_default_queue = native.conf.control_exchange = NAME
    return native


def dramatiq_broker() -> Any:
    """Make a Dramatiq broker; its queue is ``default``."""
    from dramatiq.brokers.rabbitmq import RabbitmqBroker  # noqa: PLC0415  # one engine is enough
    from dramatiq.brokers.redis import RedisBroker  # noqa: PLC0415  # likewise
    from dramatiq.results import Results  # noqa: PLC0415  # likewise
    from dramatiq.results.backends import RedisBackend  # noqa: PLC0415  # likewise

    is_redis = BROKER.startswith("redis")
    # Its URLs have the virtual host behind one slash, and none means "/".
    url = BROKER.removesuffix("//")
    native = RedisBroker(url=url, namespace=NAME) if is_redis else RabbitmqBroker(url=url)
    native.add_middleware(Results(backend=RedisBackend(url=RESULTS, namespace=NAME)))
    return native


def taskiq_broker() -> Any:
    """Make a Taskiq broker."""
    from taskiq_redis import (  # noqa: PLC0415  # one engine is enough
        RedisAsyncResultBackend,
        RedisStreamBroker,
    )

    results: Any = RedisAsyncResultBackend(RESULTS, prefix_str=NAME)
    if BROKER.startswith("redis"):
        return RedisStreamBroker(BROKER, queue_name=NAME).with_result_backend(results)
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue  # noqa: PLC0415  # likewise

    native = AioPikaBroker(BROKER, exchange=Exchange(name=NAME), task_queues=[Queue(name=NAME)])
    return native.with_result_backend(results)


native = {"celery": celery_app, "dramatiq": dramatiq_broker, "taskiq": taskiq_broker}[ENGINE]()
app.set_engine(native)


def start_worker(number: int) -> Popen[bytes]:
    """Start one of the engine's own workers."""
    command = WORKERS[ENGINE].format(name=f"{NAME}-{number}", queue="default").split()
    code = RUN.format(command[0], MAINS[ENGINE])
    return Popen([sys.executable, "-c", code, *command[1:]], cwd=Path(__file__).parent)  # noqa: S603  # our own


def paths() -> Iterator[str]:
    """Name files for ever, every twentieth of them broken."""
    good = cycle(path for path in sources() if BROKEN not in path.parents)
    for broken in cycle(sorted(BROKEN.glob("*.py"))):
        yield from map(str, islice(good, 19))
        yield str(broken)


def main(runs: int, workers: int, out: str | None) -> int:
    """Submit, work, count by uuid; return how many runs are missing."""
    begun = time.monotonic()
    ends: dict[str, str] = {}
    lines = []
    with ExitStack() as stack:
        for number in range(workers):
            worker = start_worker(number)
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
        with app:
            handles = list(app.submit_many(census, ((path,) for path in islice(paths(), runs))))
            print(
                f"submitted {len(handles):,} runs to {ENGINE} in {time.monotonic() - begun:.0f} s"
            )
            for handle in handles:
                try:
                    result: Any = handle.result(timeout=300)
                except Exception as error:  # noqa: BLE001  # whatever the task's own end is
                    result, end = {"error": str(error)}, type(error).__name__
                else:
                    end = "recovered" if "approximate" in result else "good"
                ends[str(handle.uuid)] = end
                lines.append(json.dumps(result, sort_keys=True))
    print(f"{len(ends):,} runs by uuid in {time.monotonic() - begun:.0f} s")
    for end, times in Counter(ends.values()).most_common():
        print(f"  {times:>6,}  {end}")
    if out:
        Path(out).write_text("\n".join(lines), "utf-8")
    return runs - len(ends)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The census on an engine of your own.")
    parser.add_argument("--runs", type=int, default=1000, help="how many [1000]")
    parser.add_argument("--workers", type=int, default=0, help="worker commands to start [0]")
    parser.add_argument("--out", help="a file for the results, a line each")
    given = parser.parse_args()
    sys.exit(main(given.runs, given.workers, given.out))
