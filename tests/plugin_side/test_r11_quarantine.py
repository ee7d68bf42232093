"""R11: a hookimpl that keeps failing is skipped for a while, then tried once."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import blocking, hookimpl
from qtasks_pluggy import PluginManager, TaskExecutor, TaskFunc
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import both_ways, failing, run_sync

FUNC = TaskFunc("failing", failing("function", TaskPluginTriggerError("no")))
AFTER, SECONDS = 3, 60.0


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Moody:
    """A plugin that fails while it is in a bad mood, and counts how often it was called."""

    name = "moody"

    def __init__(self, *, bad: bool = True) -> None:
        self.bad = bad
        self.calls = 0

    @hookimpl
    def task_executor_run_task_trigger_error(self) -> str:
        self.calls += 1
        if self.bad:
            raise ValueError("in a bad mood")
        return "fine"


def make(plugin: Any, **settings: Any) -> tuple[PluginManager, Clock]:
    """Make a manager whose clock stands still."""
    clock = Clock()
    bounds = {"quarantine_after": AFTER, "quarantine_seconds": SECONDS, **settings}
    return PluginManager([plugin], settings=bounds, clock=clock), clock


def status(manager: PluginManager, run: Callable[[TaskExecutor], Any] = run_sync) -> str:
    """Run once; return the plugin's status."""
    executor = TaskExecutor(FUNC, plugins=manager)
    try:
        run(executor)
    except TaskPluginTriggerError:
        pass
    (record,) = executor.trail
    return record.status


@both_ways
def test_r11_so_many_failures_in_a_row_begin_a_quarantine(run):
    """After ``quarantine_after`` failures in a row a hookimpl is not called any more."""
    moody = Moody()
    manager, _ = make(moody)

    found = [status(manager, run) for _ in range(AFTER + 2)]

    assert ["raised"] * AFTER + ["quarantined"] * 2 == found
    assert AFTER == moody.calls


def test_r11_a_success_in_between_begins_the_count_anew():
    """Only failures in a row count."""
    moody = Moody()
    manager, _ = make(moody)

    for _ in range(3):
        for _ in range(AFTER - 1):
            assert "raised" == status(manager)
        moody.bad = False
        assert "answered" == status(manager)
        moody.bad = True


def test_r11_after_its_time_it_is_tried_once_and_a_failure_begins_it_anew():
    """After ``quarantine_seconds`` one call goes through; failing, it is skipped as long again."""
    moody = Moody()
    manager, clock = make(moody)
    for _ in range(AFTER):
        status(manager)

    clock.now += SECONDS - 0.001
    assert "quarantined" == status(manager)
    clock.now += 0.002
    assert ["raised", "quarantined"] == [status(manager), status(manager)]
    clock.now += SECONDS - 0.001
    assert "quarantined" == status(manager)
    clock.now += 0.002
    moody.bad = False
    assert ["answered", "answered"] == [status(manager), status(manager)]


def test_r11_overruns_count_like_failures():
    """A plain hookimpl that overruns its limit is quarantined, though its answers count."""

    class Slow:
        name = "slow"

        @hookimpl
        def task_executor_run_task_trigger_error(self) -> str:
            threading.Event().wait(0.02)
            return "slow"

    manager, _ = make(Slow(), timeout=0.001)

    assert ["answered"] * AFTER + ["quarantined"] == [status(manager) for _ in range(AFTER + 1)]


@both_ways
def test_r11_time_outs_count_like_failures(run):
    """An async hookimpl that times out is quarantined."""

    class Hanging:
        name = "hanging"

        @hookimpl
        async def task_executor_run_task_trigger_error(self) -> None:
            await asyncio.Event().wait()

    manager, _ = make(Hanging(), timeout=0.01, quarantine_after=2)

    assert ["timed_out"] * 2 + ["quarantined"] == [status(manager, run) for _ in range(3)]


def test_r11_wrappers_are_quarantined_too():
    """A wrapper that keeps failing is left out, and the chain inside is asked."""

    class Wrapper:
        name = "wrapper"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            answer = yield
            raise ValueError(answer)

    manager, _ = make(Wrapper())

    assert ["raised"] * AFTER + ["quarantined"] == [status(manager) for _ in range(AFTER + 1)]


def test_r11_each_hookimpl_of_a_plugin_is_on_its_own():
    """A plugin's failing hookimpl is skipped; its others are not."""

    class Half(Moody):
        def __init__(self) -> None:
            super().__init__()
            self.heard = 0

        @hookimpl
        def task_executor_task_failed(self) -> None:
            self.heard += 1

    half = Half()
    manager, _ = make(half)
    for _ in range(AFTER + 2):
        with pytest.raises(TaskPluginTriggerError):
            TaskExecutor(FUNC, plugins=manager).execute_sync()

    assert (AFTER, AFTER + 2) == (half.calls, half.heard)


def test_r11_two_managers_share_nothing():
    """A quarantine belongs to one manager."""
    moody = Moody()
    first, _ = make(moody)
    second, _ = make(moody)
    for _ in range(AFTER):
        status(first)

    assert ("quarantined", "raised") == (status(first), status(second))


def test_r11_entering_and_leaving_are_logged_and_listed():
    """Events tell when a quarantine begins and ends, and the list of plugins shows it."""
    moody = Moody()
    manager, clock = make(moody)

    with structlog.testing.capture_logs() as events:
        for _ in range(AFTER):
            status(manager)
        (info,) = manager.list_plugin_info()
        clock.now += SECONDS
        moody.bad = False
        status(manager)

    assert ("task_executor_run_task_trigger_error",) == info.quarantined
    assert () == manager.list_plugin_info()[0].quarantined
    told = [e for e in events if e["event"] in {"plugin_quarantined", "plugin_released"}]
    assert ["plugin_quarantined", "plugin_released"] == [event["event"] for event in told]
    assert all("moody" == event["plugin"] for event in told)
    assert (AFTER, SECONDS) == (told[0]["failures"], told[0]["seconds"])


def test_r11_among_threads_one_trial_goes_through_at_a_time():
    """When a quarantine's time is over, of many threads one tries, and the others skip."""
    begun, release = threading.Event(), threading.Event()

    class Trial:
        name = "trial"
        calls = 0
        bad = True

        @hookimpl
        @blocking
        def task_executor_run_task_trigger_error(self) -> str:
            if self.bad:
                raise ValueError
            self.calls += 1
            begun.set()
            release.wait(10)
            return "fine"

    trial = Trial()
    manager, clock = make(trial, timeout=30)
    for _ in range(AFTER):
        status(manager)
    trial.bad = False
    clock.now += SECONDS
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(status(manager)))
    first.start()
    assert begun.wait(10)
    others = [threading.Thread(target=lambda: found.append(status(manager))) for _ in range(5)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    release.set()
    first.join()

    assert ["quarantined"] * 5 + ["answered"] == found
    assert 1 == trial.calls


def test_r11_a_cancelled_trial_waits_one_more_period():
    """A cancelled trial neither ends the quarantine nor keeps the next trial away for ever."""
    begun = threading.Event()

    class Waiting:
        name = "waiting"
        bad = True

        @hookimpl
        async def task_executor_run_task_trigger_error(self) -> str:
            if self.bad:
                raise ValueError
            begun.set()
            await asyncio.Event().wait()
            return "never"

    waiting = Waiting()
    manager, clock = make(waiting, timeout=30)

    async def main() -> list[str]:
        for _ in range(AFTER):
            with pytest.raises(TaskPluginTriggerError):
                await TaskExecutor(FUNC, plugins=manager).execute()
        waiting.bad = False
        for _ in range(2):
            clock.now += SECONDS
            begun.clear()
            running = asyncio.ensure_future(TaskExecutor(FUNC, plugins=manager).execute())
            while not begun.is_set():
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        waiting.bad = True
        clock.now += SECONDS
        executor = TaskExecutor(FUNC, plugins=manager)
        with pytest.raises(TaskPluginTriggerError):
            await executor.execute()
        return [record.status for record in executor.trail]

    assert ["raised"] == asyncio.run(main())


@pytest.mark.parametrize("event", ["call", "return"])
def test_r11_an_interrupt_around_the_trial_keeps_no_plugin_out_for_ever(event):
    """A signal right before or right behind the breaker delays the trial by a period at most."""
    moody = Moody()
    manager, clock = make(moody)
    for _ in range(AFTER):
        status(manager)
    moody.bad = False
    clock.now += SECONDS

    def interrupt(frame: Any, kind: str, _: Any) -> None:
        if kind == event and frame.f_code.co_name == "allow":
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    with pytest.raises(KeyboardInterrupt):
        status(manager)
    clock.now += SECONDS

    assert ["answered", "answered"] == [status(manager), status(manager)]


def test_r11_a_trial_that_its_caller_spoils_is_no_trial():
    """A hook that is called without its parameters on trial is tried again, by the next call."""
    moody = Moody()
    manager, clock = make(moody)
    for _ in range(AFTER):
        status(manager)
    clock.now += SECONDS
    hook = manager.hook.task_executor_run_task_trigger_error

    with pytest.raises(TypeError, match="takes"):
        hook(task_executor=None, task_func=None, task_broker=None, error=None)
    moody.bad = False

    assert "answered" == status(manager)
