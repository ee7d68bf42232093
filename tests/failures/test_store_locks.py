"""What SQLite's own locks are for: no other process throws away what one is still writing."""

from __future__ import annotations

import subprocess
import sys

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
