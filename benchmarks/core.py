"""What the core costs, as ratios within one run.

    python benchmarks/core.py [--rounds 25] [--json]

Each ratio is the median of the ratios of single rounds. In a round both sides are timed close
together and in random order, so that a noisy machine slows both. That interleaving is why this is
a page of its own code: the benchmark libraries measure one side after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pluggy
import structlog

from qtasks_hookspecs import TaskFunc, TaskMessage, hookimpl, when
from qtasks_hookspecs.exc import TaskPluginTriggerError
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor

Side = Callable[[], Awaitable[Any]]


async def good() -> int:
    """Succeed at once."""
    return 1


async def bad() -> int:
    """Fail at once."""
    message = "on purpose"
    raise TaskPluginTriggerError(message)


class Answers:
    """Answers every error."""

    @hookimpl
    def task_executor_run_task_trigger_error(self, e: Any) -> int:  # noqa: ARG002  # a name to ask for
        """Answer."""
        return 1


class Declines:
    """Has no opinion."""

    @hookimpl
    def task_executor_run_task_trigger_error(self, e: Any) -> None:  # a name to ask for
        """Decline."""


class Filtered:
    """Is never asked here."""

    @hookimpl
    @when(error="LookupError")
    def task_executor_run_task_trigger_error(self, e: Any) -> int:  # noqa: ARG002  # a name to ask for
        """Answer, were it asked."""
        return 2


class Observes:
    """Hears of failures alone."""

    @hookimpl
    @when(outcome="failed")
    def task_executor_attempt_ended(self, outcome: Any) -> None:
        """Hear of it."""

    @hookimpl
    @when(outcome="failed")
    def task_executor_task_close(self, outcome: Any) -> None:
        """Hear of it."""


GOOD, BAD = TaskFunc("good", good), TaskFunc("bad", bad)
MESSAGE = TaskMessage("task")


def manager(declining: int = 0, answering: int = 0, filtered: int = 0) -> PluginManager:
    """Make a manager with so many plugins of each kind."""
    plugins = PluginManager()
    for kind, count in ((Filtered, filtered), (Declines, declining), (Answers, answering)):
        for number in range(count):
            plugins.register(kind(), f"{kind.__name__}-{number}")
    return plugins


def run(func: TaskFunc, plugins: PluginManager) -> Side:
    """One run, its executor made for it and its message given."""
    return lambda: TaskExecutor(func, MESSAGE, plugins=plugins).execute()


async def bare_error() -> None:
    """Raise and catch."""
    try:  # noqa: SIM105  # contextlib.suppress would cost more
        await bad()
    except TaskPluginTriggerError:
        pass


async def seconds(side: Side, times: int) -> float:
    """Time one side."""
    begin = time.perf_counter()
    for _ in range(times):
        await side()
    return (time.perf_counter() - begin) / times


async def ratio(ours: Side, theirs: Side, rounds: int, times: int = 3000) -> float:
    """Return the median over the rounds of our time by theirs."""
    found = []
    for _ in range(rounds):
        sides = [("ours", ours), ("theirs", theirs)]
        random.shuffle(sides)
        took = {name: await seconds(side, times) for name, side in sides}
        found.append(took["ours"] / took["theirs"])
    return statistics.median(found)


async def with_structlog(level: int, side: Side, rounds: int) -> float:
    """Return the ratio of a recovered run in an app that has configured structlog, to nowhere."""
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    try:
        return await ratio(side, bare_error, rounds)
    finally:
        structlog.reset_defaults()


def pluggy_manager(count: int) -> Any:
    """Make pluggy's own manager with so many plugins on a hook like ours."""
    spec, impl = pluggy.HookspecMarker("bare"), pluggy.HookimplMarker("bare")

    class Spec:
        @spec
        def hook(self, task_executor: Any, task_func: Any, task_broker: Any, e: Any) -> None: ...

    class Plugin:
        @impl
        def hook(self, e: Any) -> None: ...

    plugins = pluggy.PluginManager("bare")
    plugins.add_hookspecs(Spec)
    for number in range(count):
        plugins.register(Plugin(), str(number))
    return plugins


async def further_hookimpl(rounds: int) -> float:
    """Return what one more of our hookimpls costs, by what one more of pluggy's costs."""
    one, eleven = manager(declining=1), manager(declining=11)
    bare_one, bare_eleven = pluggy_manager(1), pluggy_manager(11)
    error = TaskPluginTriggerError()
    names = {"task_executor": None, "task_func": BAD, "task_broker": MESSAGE, "e": error}

    def ours(plugins: PluginManager) -> Side:
        return lambda: plugins.hook.task_executor_run_task_trigger_error.call_async(**names)

    def theirs(plugins: Any) -> Side:
        async def call() -> None:
            plugins.hook.hook(**names)

        return call

    found = []
    for _ in range(rounds):
        first, second = await seconds(ours(one), 3000), await seconds(ours(eleven), 3000)
        third, fourth = (
            await seconds(theirs(bare_one), 3000),
            await seconds(theirs(bare_eleven), 3000),
        )
        found.append((second - first) / (fourth - third))
    return statistics.median(found)


def imports(package: str, dependencies: str, rounds: int) -> float:
    """Return the time to import a package by the time to import what it depends on."""

    def took(code: str) -> float:
        timed = f"import time; b = time.perf_counter(); {code}; print(time.perf_counter() - b)"
        done = subprocess.run(  # noqa: S603  # our own command
            [sys.executable, "-c", timed], capture_output=True, check=True, env=environment
        )
        return float(done.stdout)

    # Compiled once, as installed packages are.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    took(f"import {package}")
    pairs = [(took(f"import {package}"), took(f"import {dependencies}")) for _ in range(rounds)]
    return statistics.median(ours / theirs for ours, theirs in pairs)


def memory() -> float:
    """Return the memory held after 1,000,000 finished runs by that after 10,000."""
    code = """
import asyncio, gc, resource, sys
sys.path.insert(0, {here!r})
from core import BAD, GOOD, manager, run
def held():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
async def main():
    good, bad = run(GOOD, manager(answering=1)), run(BAD, manager(answering=1))
    for number in range(10_000):
        await (bad if number % 10 == 0 else good)()
    first = held()
    for number in range(990_000):
        await (bad if number % 10 == 0 else good)()
    print(held() / first)
asyncio.run(main())
"""
    here = __file__.rpartition("/")[0]
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-c", code.format(here=here)], capture_output=True, check=True
    )
    return float(done.stdout)


async def measure(rounds: int) -> list[tuple[str, float, float | None]]:
    """Return each row: what, the ratio, and what it should be at most, if there is a bound."""
    app = QueueTasks("bench", discover=False)
    task = app.task(good)
    none, one, ten = manager(), manager(answering=1), manager(declining=9, answering=1)
    thousand = manager(declining=1000)
    nine_filtered = manager(filtered=9, answering=1)
    return [
        ("good run / bare await", await ratio(run(GOOD, none), good, rounds), 14.0),
        ("good run of an app's task / bare await", await ratio(task, good, rounds), 20.0),
        (
            "good run, 10 error plugins / none",
            await ratio(run(GOOD, ten), run(GOOD, none), rounds),
            1.05,
        ),
        (
            "good run, 1,000 error plugins / none",
            await ratio(run(GOOD, thousand), run(GOOD, none), rounds),
            1.05,
        ),
        (
            "good run, an observer of failures / none",
            await ratio(run(GOOD, PluginManager([Observes()])), run(GOOD, none), rounds),
            1.05,
        ),
        (
            "recovered run, 1 plugin / bare raise and except",
            await ratio(run(BAD, one), bare_error, rounds),
            5.0,
        ),
        (
            "recovered run, 1 plugin, structlog configured to show warnings and up",
            await with_structlog(logging.WARNING, run(BAD, one), rounds),
            5.0,
        ),
        (
            "recovered run, 1 plugin, structlog configured to show info (reported)",
            await with_structlog(logging.INFO, run(BAD, one), rounds),
            None,
        ),
        (
            "recovered run, 10 plugins / bare raise and except",
            await ratio(run(BAD, ten), bare_error, rounds),
            12.0,
        ),
        (
            "recovered run, 9 of 10 plugins filtered out / 1 plugin",
            await ratio(run(BAD, nine_filtered), run(BAD, one), rounds),
            1.3,
        ),
        ("each further hookimpl / pluggy's own", await further_hookimpl(rounds), 2.5),
        (
            "import qtasks_hookspecs / its dependencies",
            imports("qtasks_hookspecs", "pluggy, attrs", rounds),
            1.3,
        ),
        (
            "import qtasks_pluggy / its dependencies",
            imports("qtasks_pluggy", "pluggy, attrs, structlog", rounds),
            1.6,
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--memory", action="store_true", help="the memory row too; a minute or two")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(measure(options.rounds))
    if options.memory:
        rows.append(("memory after 1,000,000 runs / after 10,000", memory(), 1.05))
    if options.json:
        print(json.dumps([{"what": w, "ratio": r, "at_most": m} for w, r, m in rows], indent=2))
        return
    for what, found, most in rows:
        bound = "reported"
        if most is not None:
            bound = f"at most {most:5.2f}  {'met' if found <= most else 'NOT MET'}"
        print(f"{what:70} {found:7.2f}  {bound}")


if __name__ == "__main__":
    main()
