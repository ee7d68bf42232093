"""What engines with no server cost, as ratios within one run.

    python benchmarks/embedded.py [--rounds 5] [--runs 10000] [--json]

In a round both sides do the same runs, one right after the other and in random order; a ratio is
the median of the ratios of single rounds. Times are from the first submission to the last result.
Workers poll without a pause worth the name, so that the engine is measured and not its patience.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from huey import Huey, MemoryHuey, SqliteHuey
from taskiq import InMemoryBroker

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines.huey import install

Side = Callable[[int], float]

POLL = {"initial_delay": 0.0005, "max_delay": 0.001, "periodic": False}


def done(number: int) -> int:
    """Do nothing."""
    return number


async def done_async(number: int) -> int:
    """Do nothing."""
    return number


def memory_plain(runs: int) -> float:
    """``memory://`` with one worker thread."""
    app = QueueTasks("bench", engine=f"memory://?workers=1&size={runs}", discover=False)
    task = app.task(done)
    with app:
        begin = time.perf_counter()
        handles = [task.submit(number) for number in range(runs)]
        for handle in handles:
            handle.result()
        return time.perf_counter() - begin


def memory_async(runs: int) -> float:
    """``memory://`` on an event loop."""

    async def main() -> float:
        app = QueueTasks("bench", engine=f"memory://?workers=100&size={runs}", discover=False)
        task = app.task(done_async)
        async with app:
            begin = time.perf_counter()
            handles = [await task.submit(number) for number in range(runs)]
            for handle in handles:
                await handle
            return time.perf_counter() - begin

    return asyncio.run(main())


def taskiq_memory(runs: int) -> float:
    """Taskiq's InMemoryBroker, every result kept."""

    async def main() -> float:
        broker = InMemoryBroker(max_stored_results=-1)
        task = broker.task(task_name="done")(done_async)
        await broker.startup()
        begin = time.perf_counter()
        handles = [await task.kiq(number) for number in range(runs)]
        for handle in handles:
            await handle.wait_result(check_interval=0.0005)
        elapsed = time.perf_counter() - begin
        await broker.shutdown()
        return elapsed

    return asyncio.run(main())


def _consume(huey: Huey, submit: Callable[[int], Any], runs: int) -> float:
    consumer = huey.create_consumer(workers=1, **POLL)
    consumer._set_signal_handlers = lambda: None  # noqa: SLF001  # no public switch
    consumer.start()
    try:
        begin = time.perf_counter()
        results = [submit(number) for number in range(runs)]
        for result in results:
            result()
        return time.perf_counter() - begin
    finally:
        consumer.stop(graceful=True)


def _bare(huey: Huey, runs: int) -> float:
    task = huey.task(name="done")(done)

    def submit(number: int) -> Callable[[], Any]:
        result = task(number)
        return lambda: result.get(blocking=True, backoff=1.0, max_delay=0.001)

    return _consume(huey, submit, runs)


def huey_memory(runs: int) -> float:
    """Huey in memory, bare."""
    return _bare(MemoryHuey("bench", store_none=True), runs)


def huey_sqlite(runs: int) -> float:
    """Huey on SQLite, bare."""
    with tempfile.TemporaryDirectory() as folder:
        return _bare(SqliteHuey("bench", filename=f"{folder}/bench.db", store_none=True), runs)


def huey_sqlite_installed(runs: int) -> float:
    """Huey on SQLite, its own task with ``install``."""
    with tempfile.TemporaryDirectory() as folder:
        huey = SqliteHuey("bench", filename=f"{folder}/bench.db", store_none=True)
        install(huey, discover=False)
        return _bare(huey, runs)


def _ours(runs: int, options: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        app = QueueTasks("bench", engine=f"huey+sqlite:///{path}{options}", discover=False)
        task = app.task(done)
        with app:

            def submit(number: int) -> Callable[[], Any]:
                handle = task.submit(number)
                return lambda: handle.result(timeout=60)

            return _consume(app.engine.native, submit, runs)  # type: ignore[union-attr]  # it has one


def ours_sqlite(runs: int) -> float:
    """The same behind an app, without the ledger."""
    return _ours(runs, "?ledger=0")


def ours_ledger(runs: int) -> float:
    """The same behind an app, with the ledger."""
    return _ours(runs, "")


ROWS: list[tuple[str, Side, Side, float]] = [
    ("memory, async / Taskiq InMemoryBroker", memory_async, taskiq_memory, 0.4),
    ("memory, plain / Huey in memory", memory_plain, huey_memory, 0.8),
    ("Huey on SQLite with install() / bare", huey_sqlite_installed, huey_sqlite, 1.05),
    ("Huey on SQLite without the ledger / bare", ours_sqlite, huey_sqlite, 1.05),
    ("Huey on SQLite with the ledger / without", ours_ledger, ours_sqlite, 2.0),
]


def ratio(ours: Side, theirs: Side, rounds: int, runs: int) -> float:
    """Time both sides in every round; return the median of the ratios."""
    ratios = []
    for _ in range(rounds):
        sides = [ours, theirs]
        random.shuffle(sides)
        seconds = {side: side(runs) for side in sides}
        ratios.append(seconds[ours] / seconds[theirs])
    return statistics.median(ratios)


def main() -> None:
    """Measure every row, and print it beside its goal."""
    parser = argparse.ArgumentParser(description="What engines with no server cost.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each row [5]")
    parser.add_argument("--runs", type=int, default=10_000, help="runs in a round [10000]")
    parser.add_argument("--json", action="store_true", help="write JSON")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    rows = []
    for name, ours, theirs, goal in ROWS:
        found = ratio(ours, theirs, given.rounds, given.runs)
        rows.append({"row": name, "ratio": round(found, 3), "at_most": goal})
        if not given.json:
            print(f"{name:<45} {found:6.2f}   at most {goal}")
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
