"""What recording failures costs, and how fast they are found again.

    python benchmarks/failures.py [--records 20000] [--runs 1000000] [--url URL] [--json]

``--url`` names a store on PostgreSQL, in a database of its own, whose rate is reported too.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
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
            error_arguments=encoder.encode((one,), {}).text,
            replay_of=None,
        )


def fill(url: str, number: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Write so many records; return the seconds that the store took."""
    # As long as the recorder tries again.
    vars(store_module)["LOCK_SECONDS"] = 60.0
    store = Store(read_url(url), Keep())
    took, waiting = 0.0, records(number)
    while batch := [one for _, one in zip(range(BATCH), waiting, strict=False)]:
        begin = clock()
        store.write(Batch(batch))
        took += clock() - begin
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


def seconds(task: Any, times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time one run of a task."""
    begin = clock()
    for number in range(times):
        try:  # noqa: SIM105  # contextlib.suppress would cost more
            task(number)
        except TaskPluginTriggerError:
            pass
    return (clock() - begin) / times


def compared(url: str, name: str, rounds: int, times: int) -> dict[str, tuple[float, float]]:
    """Return a task's seconds with recording and without, by the clock and by the processor.

    The least of many short rounds, in random order: the others had other programs in them.
    """
    clocks = {"clock": time.perf_counter, "processor": time.thread_time}
    found: dict[tuple[str, bool], list[float]] = {}
    with app_with(url) as recording, app_with(None) as plain:
        for _ in range(rounds):
            sides = [(clock, app) for clock in clocks for app in (recording, plain)]
            random.shuffle(sides)
            for clock, app in sides:
                took = seconds(app.tasks[name], times, clocks[clock])
                found.setdefault((clock, app is recording), []).append(took)
                if app is recording:
                    # What the writer is behind with is its own cost, and no run's of the next side.
                    time.sleep(0.4)
    return {clock: (min(found[clock, True]), min(found[clock, False])) for clock in clocks}


WORKER = """
import sys, time
from pathlib import Path
from celery import Celery, signals
from qtasks_pluggy.engines.celery import install

folder = Path(__file__).parent
native = Celery("bench", broker="filesystem://")
queue = str(folder / "queue")
native.conf.broker_transport_options = {"data_folder_in": queue, "data_folder_out": queue}
begun = []

@signals.task_prerun.connect
def begin(**_):
    begun.append(time.perf_counter())

@signals.task_postrun.connect
def end(**_):
    took = time.perf_counter() - begun.pop()
    with (folder / "took").open("a") as file:
        file.write(f"{took}\\n")

@native.task(name="bad", ignore_result=True)
def bad(number):
    raise KeyError(number)

install(native, discover=False)
"""


def in_celery(folder: Path, url: str | None, runs: int) -> list[float]:
    """Return the seconds of failing runs in a worker of Celery's, the least first."""
    (folder / "queue").mkdir(parents=True)
    (folder / "shop.py").write_text(WORKER)
    env = {key: value for key, value in os.environ.items() if not key.startswith("QTASKS_PLUGGY_")}
    if url is not None:
        env["QTASKS_PLUGGY_ENABLE"] = "failures"
        env["QTASKS_PLUGGY_PLUGIN_FAILURES_URL"] = url
    send = f"import shop\nfor one in range({runs}): shop.bad.delay(one)"
    subprocess.run([sys.executable, "-c", send], cwd=folder, check=True)  # noqa: S603  # our own
    words = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "shop:native",
        "worker",
        "-c",
        "1",
        "-l",
        "FATAL",
    ]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(words, cwd=folder, env=env, **nowhere)  # noqa: S603  # likewise
    took = folder / "took"
    try:
        while not took.exists() or len(took.read_text().splitlines()) < runs:
            time.sleep(0.1)
    finally:
        worker.terminate()
        worker.wait()
    # The first ones open the store.
    return sorted(map(float, took.read_text().splitlines()[10:]))


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
    """Return the memory held after 100,000 failing runs by that after 50,000."""
    code = """
import ctypes, gc, logging, sys
sys.path.insert(0, {here!r})
logging.disable(logging.CRITICAL)
from failures import app_with, seconds
def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
app = app_with({url!r})
with app:  # its end writes what waits, which is no leak
    seconds(app.tasks["bad"], 50_000)
first = held()
with app:
    seconds(app.tasks["bad"], 50_000)
print(held() / first)
"""
    here = str(Path(__file__).parent)
    # What is held, without the holes that the longest queue has left between it: those depend on
    # how far the writer was behind.
    env = os.environ | {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-c", code.format(here=here, url=url)],
        capture_output=True,
        check=True,
        env=env,
    )
    return float(done.stdout)


def measure(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield each row: what, the figure, and its bound if it has one."""

    def url(name: str) -> str:
        return f"sqlite:///{folder / name}.db"

    bad = compared(url("runs"), "bad", 3 * options.rounds, 40)
    for clock, (with_it, without) in bad.items():
        bound = 0.1 if clock == "clock" else None
        yield f"a failing run, ms more with recording ({clock})", 1000 * (with_it - without), bound
    with_it, without = bad["clock"]
    yield "a failing run with recording / without", with_it / without, None
    with_it, without = compared(url("runs"), "good", 3 * options.rounds, 400)["clock"]
    yield "a good run with recording / without", with_it / without, 1.05
    with_all = in_celery(folder / "with", url("celery"), 400)
    without_all = in_celery(folder / "without", None, 400)
    for name, place in (("least", 0), ("median", len(with_all) // 2)):
        more = 1000 * (with_all[place] - without_all[place])
        yield f"the same in a worker of Celery's, ms more ({name})", more, None
    yield "microseconds a record on SQLite", 1e6 / rate(url("one"), options.records, 1), 100
    used = 1e6 * fill(url("used"), options.records, time.thread_time) / options.records
    yield "the same, of the processor's time", used, None
    yield "the same, 8 processes", 1e6 / rate(url("eight"), options.records, 8), None
    if options.url:
        yield "the same on PostgreSQL", 1e6 / rate(options.url, options.records, 1), None
        yield "the same, 8 processes", 1e6 / rate(options.url, options.records, 8), None
    yield "memory after 100,000 failures / after 50,000", memory(url("memory")), 1.1
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
