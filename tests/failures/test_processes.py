"""Processes: forked and spawned ones, those that end by ``os._exit``, and many at once."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from qtasks_pluggy.failures import recorder as recorder_module
from qtasks_pluggy.failures.recorder import Recorder
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch
from tests.failures.places import Place

# Whole processes, whose Python hardly matters: on one CPython.
pytestmark = pytest.mark.engines

EACH = 200


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Give a machine that is busy with other things the time that it takes."""
    monkeypatch.setattr("qtasks_pluggy.failures.buffer.WAIT_SECONDS", 60.0)
    monkeypatch.setattr("qtasks_pluggy.failures.recorder.DRAIN_SECONDS", 60.0)
    # Longer than the writer may hold its lock: a child of a fork in between could hang.
    monkeypatch.setattr("qtasks_pluggy.failures.recorder.FORK_SECONDS", 90.0)
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 30.0)


def _record_some(place, name, number):
    """Record in a process of its own, which stops as an app does."""
    recorder_module.DRAIN_SECONDS = 60.0
    recorder = Recorder(place.store, "the store")
    for one in range(number):
        recorder.add(place.record(uuid=f"{name}-{one}"))
    recorder.close()


def _in_children(method, number, place):
    context = multiprocessing.get_context(method)
    children = [
        context.Process(target=_record_some, args=(place, str(name), EACH))
        for name in range(number)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


@pytest.mark.parametrize(("method", "number"), [("fork", 8), ("spawn", 3)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_many_processes_write_one_store(tmp_path, method, number):
    """Workers that begin at the same moment make one store, and lose nothing in it."""
    place = Place(tmp_path)

    codes = _in_children(method, number, place)

    assert [0] * number == codes
    assert {"failed": number * EACH} == place.counts()
    assert number * EACH == len(place.reader().runs(Filters(limit=10_000)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_that_ends_by_os_exit_has_written_its_records(place):
    """A fork of a recording process writes each record before the run goes on."""
    recorder = Recorder(place.store, "the store")
    recorder.add(place.record(uuid="parent"))

    for number in range(3):
        child = os.fork()
        if child == 0:
            recorder.add(place.record(uuid=f"child-{number}"))
            os._exit(0)
        assert (child, 0) == os.waitpid(child, 0)
        recorder.add(place.record(uuid=f"parent-{number}"))
    recorder.close()

    runs = {run.uuid for run in place.reader().runs(Filters())}
    assert {"parent", *(f"{who}-{n}" for who in ("parent", "child") for n in range(3))} == runs


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_takes_no_record_of_its_parent_along(place):
    """What waits in the parent at a fork is written once, by the parent."""
    recorder = Recorder(place.store, "the store")
    for number in range(20):
        recorder.add(place.record(uuid=str(number)))
        child = os.fork()
        if child == 0:
            recorder.close()
            os._exit(0)
        os.waitpid(child, 0)
    recorder.close()

    assert {"failed": 20} == place.counts()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forks_while_the_store_is_at_work_end(place):
    """Children forked at any moment of the writer's find locks that nobody holds."""
    recorder = Recorder(place.store, "the store")
    children = []
    for number in range(20):
        for one in range(100):
            recorder.add(place.record(uuid=f"{number}-{one}"))
        child = os.fork()
        if child == 0:
            recorder.add(place.record(uuid=f"child-{number}"))
            os._exit(0)
        children.append(child)
    recorder.close()

    assert [0] * 20 == [os.waitpid(child, 0)[1] for child in children]
    assert {"failed": 2020} == place.counts()


SCRIPT = """
import sys
from pathlib import Path
from tests.failures.places import Place
from qtasks_pluggy.failures.recorder import Recorder

if __name__ == "__main__":
    place = Place(Path(sys.argv[1]))
    recorder = Recorder(place.store, "the store")
    for number in range(700):
        recorder.add(place.record())
"""


def test_a_program_that_just_ends_has_written_its_records(place, tmp_path):
    """Without a stop the end of the process waits for what is still to be written."""
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True)

    assert {"failed": 700} == place.counts()


HANGING = """
import sys, time
from pathlib import Path
from structlog.testing import capture_logs
from tests.failures.places import Place
from qtasks_pluggy.failures.recorder import Recorder

class Store:
    def write(self, batch):
        time.sleep(600)

if __name__ == "__main__":
    place = Place(Path(sys.argv[1]))
    recorder = Recorder(Store, "the store")
    recorder.add(place.record())
    begun = time.monotonic()
    with capture_logs() as told:
        recorder.close()
    print(told[-1]["lost"], time.monotonic() - begun < 30)
"""


def test_a_store_that_hangs_holds_up_no_end_for_long(tmp_path):
    """A stop gives up after its bound, says how many records are lost, and the program ends."""
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "1 True\n" == done.stdout


def test_a_worker_that_is_killed_leaves_a_store_that_goes_on(place):
    """After kill -9 in the middle of batches the store is whole, and is written and read."""
    store = place.store()
    store.write(Batch([place.record(uuid="first")]))
    script = SCRIPT.replace("range(700)", "range(10**9)")
    child = subprocess.Popen([sys.executable, "-c", script, str(place.path.parents[1])])
    deadline = time.monotonic() + 60
    while place.counts()["failed"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()

    store.write(Batch([place.record(uuid="last")]))

    reader = place.reader()
    kept = reader.runs(Filters(limit=1_000_000))
    assert "last" in {run.uuid for run in kept}
    assert {"failed": 2 + len({run.uuid for run in kept} - {"first", "last"})} == place.counts()
