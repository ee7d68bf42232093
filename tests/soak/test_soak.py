"""Soak: very many runs in threads and loops, while plugins come and go."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import PluginManager, TaskExecutor, TaskFunc
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, plugin

pytestmark = pytest.mark.full

RUNS = 100_000
ROOT = Path(__file__).parents[2]


def pages() -> int:
    """Return the resident memory of this process, in pages."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1])


def fails() -> None:
    """Ask the plugins."""
    raise TaskPluginTriggerError("again")


async def fails_async() -> None:
    """Ask the plugins, from a loop."""
    await asyncio.sleep(0)
    raise TaskPluginTriggerError("again")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_run_is_lost_and_no_memory_kept_while_plugins_come_and_go():
    """Threads and loops share a manager whose plugins change: each run ends, memory stays."""
    manager = PluginManager(
        [
            answering("saved", "always"),
            plugin("retries", task_executor_run_task_trigger_error=lambda: Retry(limit=1)),
        ]
    )
    over = threading.Event()
    ended: list[int] = []
    lost: list[Any] = []

    def plainly(runs: int) -> None:
        for _ in range(runs):
            result = TaskExecutor(TaskFunc("plain", fails), plugins=manager).execute_sync()
            if result not in {"saved", "late"}:
                lost.append(result)
        ended.append(runs)

    def on_a_loop(runs: int) -> None:
        async def run() -> None:
            func = TaskFunc("async", fails_async)
            for _ in range(runs // 10):
                executors = [TaskExecutor(func, plugins=manager).execute() for _ in range(10)]
                lost.extend({*await asyncio.gather(*executors)} - {"saved", "late"})

        asyncio.run(run())
        ended.append(runs)

    def change() -> None:
        while not over.is_set():
            manager.register(answering("late", "late"))
            manager.unregister(name="late")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        kept = []
        for _ in range(4):
            workers = [
                threading.Thread(target=target, args=(RUNS // 8,))
                for target in (plainly, on_a_loop)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            kept.append(pages())
    finally:
        over.set()
        changing.join()

    assert [] == lost
    assert RUNS == sum(ended)
    assert kept[-1] <= 1.05 * kept[0]


def test_a_million_runs_hold_no_memory():
    """After 1,000,000 finished runs hardly more memory is held than after 10,000."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/core.py"), "--rounds", "1", "--memory", "--json"],
        capture_output=True,
        check=True,
        text=True,
        timeout=900,
    )

    import json

    (row,) = [one for one in json.loads(done.stdout) if one["what"].startswith("memory")]
    assert row["ratio"] <= row["at_most"]
