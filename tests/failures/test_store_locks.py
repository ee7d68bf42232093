"""What SQLite's own locks are for: no other process throws away what one is still writing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import select

from qtasks_pluggy.failures.records import WAITING
from qtasks_pluggy.failures.schema import COUNTS, GROUPS, META
from qtasks_pluggy.failures.store import Batch

LOOK = """
import sqlite3, sys
link = sqlite3.connect(sys.argv[1])
print(link.execute("select count(*) from failures_runs").fetchone()[0])
link.close()
"""


def _count_elsewhere(place):
    words = [sys.executable, "-c", LOOK, str(place.path)]
    return int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)


def test_a_second_store_of_a_process_leaves_the_locks_of_the_first(place):
    """Another process that comes and goes deletes no log that the first one writes to.

    A process loses all its locks on a file when it closes any descriptor of it. So the second
    store must not open the file by itself, past SQLite.
    """
    first, second = place.store(), place.store()
    first.write(Batch([place.record()]))
    second.write(Batch([place.record()]))
    second.close()

    assert 2 == _count_elsewhere(place)
    first.write(Batch([place.record()]))

    assert 3 == _count_elsewhere(place)


NOW = 1_700_000_000.0


def wait_until_blocked(place):
    """Wait until some connection of the server waits for a lock."""
    blocked = "SELECT 1 FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    with place.store()._engine.connect() as link:
        while link.exec_driver_sql(blocked).first() is None:
            link.rollback()  # a transaction sees the others as they were at its begin
            time.sleep(0.01)


@pytest.mark.engines
@pytest.mark.parametrize("any_place", ["postgresql"], indirect=True)
@pytest.mark.parametrize("does", ["ends a run", "deletes"])
def test_whoever_waits_for_a_group_holds_nothing_that_others_want(any_place, monkeypatch, does):
    """PostgreSQL locks rows: a writer takes its groups first, in one order, and then the counts."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 30.0)
    store = any_place.store(days=1)
    waits = {"uuid": "waits", "group": "a", "status": WAITING, "at": NOW}
    gone = any_place.record(uuid="gone", group="b", at=NOW)
    store.write(Batch([any_place.record(**waits), gone]))
    end = any_place.record(uuid="waits", group="", told=None, at=NOW + 1)
    act = {
        "ends a run": lambda: store.write(Batch([any_place.record(group="b"), end])),
        "deletes": lambda: store.retain(NOW + 200_000),
    }[does]
    with contextlib.closing(any_place.store()._engine.connect()) as link:
        link.execute(select(GROUPS.c.id).where(GROUPS.c.id == "a").with_for_update())
        other = threading.Thread(target=act)
        other.start()
        wait_until_blocked(any_place)
        # They raise at once if somebody has a lock.
        link.execute(select(COUNTS).with_for_update(nowait=True)).all()
        if does == "ends a run":
            link.execute(select(GROUPS).with_for_update(nowait=True)).all()
        link.rollback()
        other.join()


@pytest.mark.engines
@pytest.mark.parametrize("any_place", ["postgresql"], indirect=True)
def test_runs_that_two_processes_delete_at_once_are_subtracted_once(any_place, monkeypatch):
    """The number of runs stays right, which says whether there are too many."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 30.0)
    here, there = any_place.store(days=1), any_place.store(days=1)
    here.write(Batch([any_place.record(at=at) for at in (NOW, NOW + 1, NOW + 200_000)]))
    other = threading.Thread(target=there.retain, args=[NOW + 200_000])
    with here._transaction() as transaction:
        transaction.delete_runs(NOW + 100_000)
        other.start()
        wait_until_blocked(any_place)
    other.join()

    with here._engine.connect() as link:
        assert 1 == link.scalar(select(META.c.value).where(META.c.name == "runs"))
