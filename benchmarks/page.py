"""How long each page of failures takes, with few runs and with many.

    python benchmarks/page.py [--runs 1000000] [--rounds 15] [--json]

Pages are asked for as a client does, rendered and all. The runs are in 300 groups, half of them in
one, and spread over thirty days.
"""

from __future__ import annotations

import argparse
import json
import logging
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
from failures import BATCH, GROUPS, Row, records
from starlette.testclient import TestClient

from qtasks_pluggy import TrailRecord
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters, Record
from qtasks_pluggy.failures.store import Batch, Keep, Store
from qtasks_pluggy.failures.web import failures_page

DAYS = 30
HOOK = "task_executor_run_task_trigger_error"


def spread(number: int) -> Iterator[Record]:
    """Make records that end in different ways, at times of thirty days, with a trail."""
    begin = time.time() - DAYS * 86_400 + 60
    asked = TrailRecord("last-rate", "qtasks-last-rate", "1.0", HOOK, 1, "no_opinion")
    won = attrs.evolve(asked, status="answered", kind="Replace", won=True)
    for place, record in enumerate(records(number)):
        at = begin + place * DAYS * 86_400 / number
        if place % 2:
            record = attrs.evolve(record, group=f"{0:016x}", task="task-0")  # noqa: PLW2901  # a storm
        if place // GROUPS % 5:
            yield attrs.evolve(record, at=at, trail=(asked,))
        else:
            saved = {"status": "dead_lettered", "decided_by": "last-rate", "trail": (won,)}
            yield attrs.evolve(record, at=at, **saved)


def fill(path: Path, number: int) -> None:
    """Write 3,000 records, as the recorder does, and copies of them up to so many."""
    store, waiting = Store(read_url(f"sqlite:///{path}"), Keep()), spread(min(number, WRITTEN))
    while batch := [one for _, one in zip(range(BATCH), waiting, strict=False)]:
        store.write(Batch(batch))
    store.close()
    copies = number // WRITTEN
    if copies > 1:
        with closing(sqlite3.connect(path)) as link, link:
            for table in ("failures_runs", "failures_attempts"):
                names = [row[1] for row in link.execute(f"PRAGMA table_info({table})")]
                asked = [CHANGED.get(name, name) for name in names]
                link.execute(COPY.format(table, ", ".join(names), ", ".join(asked)), [copies - 1])
            link.execute("DELETE FROM failures_counts")
            for hour in ("CAST(at / 3600 AS INTEGER)", "0"):
                link.execute(COUNT.format(hour))


WRITTEN = 3_000
# A copy is a few seconds older than what it is of.
CHANGED = {"uuid": "uuid || '-' || i", "at": "at - i * 2.5"}
COPY = """
WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < ?)
INSERT INTO {0} ({1}) SELECT {2} FROM {0}, numbers
"""
COUNT = """
INSERT INTO failures_counts (group_id, hour, status, plugin, runs)
SELECT group_id, {0}, status, coalesce(decided_by, ''), count(*) FROM failures_runs
GROUP BY 1, 2, 3, 4
"""


def asked(url: str, rounds: int) -> dict[str, float]:
    """Return the seconds of each page: the fewest of some rounds."""
    reader = Reader(read_url(url))
    group = f"{0:016x}"
    uuid = reader.runs(Filters(limit=1))[0].uuid
    pages = {
        "groups": "/",
        "groups by runs": "/?sort=runs",
        "groups, searched": "/?q=task-1&status=failed",
        "a group": f"/groups/{group}",
        "a group's failed runs": f"/groups/{group}?status=failed",
        "runs": "/runs",
        "runs, searched": "/runs?q=no-such-text",
        "a run": f"/runs/{uuid}?arguments=shown",
        "plugins": "/plugins",
        "acts": "/acts",
    }
    found = {}
    with TestClient(failures_page(url), base_url="http://localhost") as client:
        for name, path in pages.items():
            took = []
            for _ in range(rounds):
                begin = time.perf_counter()
                answer = client.get(path)
                took.append(time.perf_counter() - begin)
                answer.raise_for_status()
            # What others do on the machine at the same time is not the page's.
            found[name] = min(took)
    return found


def measure(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield each row: what, the figure, and its bound if it has one."""
    small, large = folder / "small.db", folder / "large.db"
    fill(small, 1_000)
    fill(large, options.runs)
    few, many = (asked(f"sqlite:///{path}", options.rounds) for path in (small, large))
    for name in few:
        # A search looks at up to 2,000 runs, of which the small store has half.
        bound = None if name == "runs, searched" else 2.0
        yield f"{name}: {options.runs:,} runs / 1,000 runs", many[name] / few[name], bound
        yield f"{name}: {options.runs:,} runs, milliseconds", 1000 * many[name], 200


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Measure how long each page takes.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for what, figure, bound in measure(Path(folder), options):
            found.append({"what": what, "figure": figure, "at_most": bound})
            if not options.json:
                met = "" if bound is None or figure <= bound else "  NOT MET"
                told = "reported" if bound is None else f"at most {bound:g}"
                print(f"{what:60}{figure:10.3f}  {told}{met}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
