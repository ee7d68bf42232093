"""The year's runs through a queue in a SQLite file, while its worker is killed.

It needs no server. As a module this is what Huey's own command works for; as a script it submits
the runs, starts that command, kills it halfway with -9, starts it again, and counts how the runs
ended, by their uuid:

    python examples/rates/durable.py --runs 11680
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rates import app, calls, eur_100  # beside this file

DATABASE = Path(os.environ.get("RATES_DATABASE", "rates.db")).resolve()
app.set_engine(f"huey+sqlite:///{DATABASE}")
huey = app.engine.native

WORKER = [sys.executable, "-m", "huey.bin.huey_consumer", "durable.huey"]
OPTIONS = ["--workers", "2", "--worker-type", "process", "--delay", "0.05", "--quiet"]


def start_worker() -> subprocess.Popen[bytes]:
    """Start Huey's own command; in a shell: ``huey_consumer durable.huey``."""
    environment = os.environ | {"RATES_DATABASE": str(DATABASE)}
    return subprocess.Popen(  # noqa: S603  # Huey's own command
        [*WORKER, *OPTIONS], cwd=Path(__file__).parent, env=environment, start_new_session=True
    )


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and its children at once; nothing of them can finish, or say goodbye."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def main(runs: int) -> int:
    """Submit, kill, start again, count by uuid; return how many runs are missing."""
    begun = time.monotonic()
    with app:
        handles = list(app.submit_many(eur_100, islice(calls(), runs)))
        print(f"submitted {len(handles):,} runs to {DATABASE.name}")
        worker = start_worker()
        ends: dict[str, str] = {}
        for number, handle in enumerate(handles):
            if number == runs // 2:
                kill(worker)
                print(f"killed the worker with -9 after {number:,} results, and started another")
                worker = start_worker()
            try:
                handle.result(timeout=300)
            except Exception as error:  # noqa: BLE001  # whatever the task's own end is
                ends[str(handle.uuid)] = type(error).__name__
            else:
                won = [one.plugin for one in handle.trail or () if one.won]
                ends[str(handle.uuid)] = f"recovered by {won[-1]}" if won else "good"
        kill(worker)
    print(f"{len(ends):,} runs by uuid in {time.monotonic() - begun:.0f} s")
    for end, times in Counter(ends.values()).most_common():
        print(f"  {times:>6,}  {end}")
    return runs - len(ends)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Rates through SQLite, the worker killed.")
    arguments.add_argument("--runs", type=int, default=1000, help="how many [1000]")
    sys.exit(main(arguments.parse_args().runs))
