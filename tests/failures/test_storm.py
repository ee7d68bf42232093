"""Storms of failures: all of them are kept or counted, and memory is bounded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qtasks_pluggy.failures.queries import Filters

# Whole processes, whose Python hardly matters: on one CPython.
pytestmark = pytest.mark.engines

STORM = """
import json, logging, sys, time
from qtasks_pluggy import QueueTasks

url, storm, text = sys.argv[1], int(sys.argv[2]), ""
logging.disable(logging.CRITICAL)
settings = {"enable": ["failures"], "plugin": {"failures": {"url": url}}}
app = QueueTasks("shop", discover=False, settings=settings)

@app.task
def price(number):
    raise KeyError(number, text)

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def fail(times):
    most = 0
    for number in range(times):
        try:
            price(number)
        except KeyError:
            pass
        if number % 100 == 0:
            most = max(most, held())
    return most

with app:
    fail(1_000)
text = "x" * int(sys.argv[3])
first, begun = held(), time.monotonic()
with app:
    most = fail(storm)
    took = time.monotonic() - begun
print(json.dumps({"megabytes": (most - first) / 2**20, "seconds": took}))
"""


def _storm(url, storm, text):
    done = subprocess.run(
        [sys.executable, "-c", STORM, url, str(storm), str(text)],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("storm", [12_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_every_failure_of_a_storm_is_kept_or_counted(place, storm, record_testsuite_property):
    """As fast as one process can: rows and dropped ones are all of them, in bounded memory."""
    told = _storm(str(place.url), storm, 0)
    record_testsuite_property(f"a storm of {storm}", str(told))

    reader = place.reader()
    (group,) = reader.groups(Filters())
    assert {"failed": 1_000 + storm} == group.counts
    kept = len(reader.runs(Filters(limit=200_000)))
    assert 1_000 + storm == kept + reader.dropped()
    # 10,000 records wait at most, of some 3 KB each.
    assert told["megabytes"] < 100


def test_a_storm_of_long_texts_is_bounded_by_their_bytes(tmp_path):
    """4,000 errors of 60 KB that no store takes would be 240 MB; 64 are what may wait."""
    told = _storm(f"sqlite:///{tmp_path}", 4_000, 60_000)

    assert 30 < told["megabytes"] < 200
