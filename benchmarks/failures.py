"""What recording failures costs, and how fast they are found again.

    python benchmarks/failures.py [--records 20000] [--runs 1000000] [--url URL] [--json]

``--url`` names a store on PostgreSQL, in a database of its own, whose rate is reported too.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from qtasks_hookspecs.exc import TaskPluginTriggerError
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.failures import store as store_module
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.errors import tell
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters, Record
from qtasks_pluggy.failures.store import Batch, Keep, Store
from qtasks_pluggy.failures.values import Encoder

GROUPS = 300
BATCH = 500
Row = tuple[str, float, float | None]


def fail(number: int) -> None:
    """Fail."""
    raise KeyError(number)


def told() -> Any:
    """Take down an error of a real run."""
    try:
        fail(1)
    except KeyError as error:
        return tell(error, 65_536)


def records(number: int) -> Iterator[Record]:
    """Make records of failed runs in 300 groups."""
    error, encoder = told(), Encoder(["password", "*token*"], 65_536)
    for one in range(number):
        yield Record(
            uuid=str(uuid4()),
            app="bench",
            engine="",
            attempt=1,
            task=f"task-{one % GROUPS}",
            queue=None,
            status="failed",
            group=f"{one % GROUPS:016x}",
            told=error,
            at=time.time(),
            seconds=0.01,
            decided_by=None,
            decision=None,
            reason="",
            trail=(),
            arguments=encoder.encode((one,), {"to": "EUR"}),
            replay_of=None,
            log=None,
        )


def fill(url: str, number: int) -> float:
    """Write so many records; return the seconds that the store took."""
    # As long as the recorder tries again.
    vars(store_module)["LOCK_SECONDS"] = 60.0
    store = Store(read_url(url), Keep())
    took, waiting = 0.0, records(number)
    while batch := [one for _, one in zip(range(BATCH), waiting, strict=False)]:
        begin = time.perf_counter()
        store.write(Batch(batch))
        took += time.perf_counter() - begin
    store.close()
    return took


def rate(url: str, number: int, processes: int) -> float:
    """Return how many records a second so many processes write into one store."""
    fill(url, 1)
    if processes == 1:
        return number / fill(url, number)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.starmap(fill, [(url, 1)] * processes)
        begin = time.perf_counter()
        pool.starmap(fill, [(url, number // processes)] * processes, chunksize=1)
        return number / (time.perf_counter() - begin)


def app_with(url: str | None) -> QueueTasks:
    """Make an app, which records if there is a URL."""
    section: dict[str, Any] = {"plugin": {"failures": {"url": url}}, "enable": ["failures"]}
    app = QueueTasks("bench", discover=False, settings=section if url else {})

    @app.task
    def good(number: int) -> int:
        return number

    @app.task
    def bad(number: int) -> int:
        raise TaskPluginTriggerError(number)

    return app


def seconds(task: Any, times: int) -> float:
    """Time one run of a task."""
    begin = time.perf_counter()
    for number in range(times):
        try:  # noqa: SIM105  # contextlib.suppress would cost more
            task(number)
        except TaskPluginTriggerError:
            pass
    return (time.perf_counter() - begin) / times


def compared(url: str, name: str, rounds: int, times: int) -> tuple[float, float]:
    """Return the medians of a task's seconds with recording and without, in random order."""
    found: dict[bool, list[float]] = {True: [], False: []}
    with app_with(url) as recording, app_with(None) as plain:
        for _ in range(rounds):
            sides = [(True, recording), (False, plain)]
            random.shuffle(sides)
            for records_it, app in sides:
                found[records_it].append(seconds(app.tasks[name], times))
                # What the writer is behind with is its own cost, and no run's of the next side.
                time.sleep(0.5)
    return statistics.median(found[True]), statistics.median(found[False])


def asked(url: str, rounds: int) -> dict[str, float]:
    """Return the seconds of the questions that the command asks most."""
    reader = Reader(read_url(url))
    group = reader.groups(Filters(limit=1))[0].id
    questions: dict[str, Callable[[], object]] = {
        "groups": lambda: reader.groups(Filters()),
        "list": lambda: reader.runs(Filters()),
        # As many as a group of the small store has: the same work on both sides.
        "list of a group": lambda: reader.runs(Filters(group=group, limit=3)),
        "list --status failed": lambda: reader.runs(Filters(status="failed")),
    }
    found = {}
    for name, question in questions.items():
        took = []
        for _ in range(rounds):
            begin = time.perf_counter()
            question()
            took.append(time.perf_counter() - begin)
        found[name] = statistics.median(took)
    return found


def memory(url: str) -> float:
    """Return the memory held after 100,000 failing runs by that after 20,000."""
    code = """
import gc, logging, sys
sys.path.insert(0, {here!r})
logging.disable(logging.CRITICAL)
from failures import app_with, seconds
def held():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
app = app_with({url!r})
with app:  # its end writes what waits, which is no leak
    seconds(app.tasks["bad"], 20_000)
first = held()
with app:
    seconds(app.tasks["bad"], 80_000)
print(held() / first)
"""
    here = str(Path(__file__).parent)
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-c", code.format(here=here, url=url)], capture_output=True, check=True
    )
    return float(done.stdout)


def measure(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield each row: what, the figure, and its bound if it has one."""

    def url(name: str) -> str:
        return f"sqlite:///{folder / name}.db"

    with_it, without = compared(url("runs"), "bad", options.rounds, 400)
    yield "a failing run, milliseconds more with recording", 1000 * (with_it - without), 0.1
    yield "a failing run with recording / without", with_it / without, None
    with_it, without = compared(url("runs"), "good", options.rounds, 4_000)
    yield "a good run with recording / without", with_it / without, 1.05
    yield "microseconds a record on SQLite", 1e6 / rate(url("one"), options.records, 1), 100
    yield "the same, 8 processes", 1e6 / rate(url("eight"), options.records, 8), None
    if options.url:
        yield "the same on PostgreSQL", 1e6 / rate(options.url, options.records, 1), None
        yield "the same, 8 processes", 1e6 / rate(options.url, options.records, 8), None
    yield "memory after 100,000 failures / after 20,000", memory(url("memory")), 1.1
    fill(url("small"), 1_000)
    fill(url("large"), options.runs)
    small, large = asked(url("small"), options.rounds), asked(url("large"), options.rounds)
    for name in small:
        many = f"{name}: {options.runs:,} runs"
        yield f"{many} / 1,000 runs", large[name] / small[name], 2.0
        yield f"{many}, milliseconds", 1000 * large[name], 200


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Measure what recording failures costs.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--url", default="")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for what, figure, bound in measure(Path(folder), options):
            found.append({"what": what, "figure": figure, "at_most": bound})
            if not options.json:
                told_bound = "reported" if bound is None else f"at most {bound:g}"
                met = "" if bound is None or figure <= bound else "  NOT MET"
                print(f"{what:60}{figure:10.3f}  {told_bound}{met}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
