"""R10: the limits hold for every hook, at the start and the stop of an app too."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import DeadLetter, TaskFunc, blocking, hookimpl, hookspec
from qtasks_pluggy import BasePlugin, PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import PluginError, TaskDeadLetteredError, TaskPluginTriggerError
from tests.runs import answering, both_ways, failing, function_of, plugin

LIMIT = 0.05  # seconds, for what never ends
AT_ONCE = 1e-9  # seconds, which every plain call outlasts

ARGUMENTS = "task_executor_args_replace"
RESULT = "task_executor_run_task"
TRIGGER = "task_executor_run_task_trigger_error"
LETTER = "task_executor_dead_letter"
ENDED = "task_executor_attempt_ended"
FAILED = "task_executor_task_failed"
CLOSED = "task_executor_task_close"
HOOKS = (ARGUMENTS, RESULT, TRIGGER, LETTER, ENDED, FAILED, CLOSED)


async def never() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


@contextlib.contextmanager
def blocked() -> Iterator[Callable[[], None]]:
    """Make a ``@blocking`` hookimpl that waits until the end of the ``with``."""
    release = threading.Event()

    @blocking
    def blocks() -> None:
        release.wait(60)

    try:
        yield blocks
    finally:
        release.set()


def run_with(hook: str, late: Any, run: Any, *, timeout: float = LIMIT) -> tuple[Any, Any]:
    """Make a run that comes by a hook, with a late plugin between two good ones.

    Returns:
        What the run came to, and the executor.
    """
    good = {
        ARGUMENTS: lambda args, kwargs: ((*args, "good"), kwargs),
        RESULT: lambda result: [*result, "good"],
    }.get(hook, lambda: None)
    plugins = [
        plugin("before", **{hook: good}),
        plugin("late", **{hook: late}),
        plugin("after", **{hook: good}),
    ]
    succeeds = hook in {ARGUMENTS, RESULT}
    if hook == LETTER:
        plugins.append(answering(DeadLetter("set aside"), "decides"))
    body = function_of("function", lambda *args: list(args))
    func = TaskFunc("task", body if succeeds else failing("function", TaskPluginTriggerError("no")))
    taken = TaskExecutor(func, plugins=PluginManager(plugins, settings={"timeout": timeout}))
    try:
        return run(taken), taken
    except (TaskPluginTriggerError, TaskDeadLetteredError) as error:
        return error, taken


def statuses(taken: TaskExecutor, hook: str) -> dict[str, str]:
    """Return what became of each plugin that was asked by a hook."""
    return {one.plugin: one.status for one in taken.trail if one.hook == hook}


def check_end(hook: str, came_to: Any) -> None:
    """Check that a run ended as if the late plugin were not there."""
    if hook in {ARGUMENTS, RESULT}:
        assert ["good", "good"] == came_to
    else:
        assert (TaskDeadLetteredError if hook == LETTER else TaskPluginTriggerError) is type(
            came_to
        )


@both_ways
@pytest.mark.parametrize("hook", HOOKS)
def test_r10_an_async_hookimpl_of_any_hook_is_cut(hook, run):
    """R10: it is named, the others are asked, a pipeline keeps what came before, the run ends."""
    with structlog.testing.capture_logs() as events:
        came_to, taken = run_with(hook, never, run)

    check_end(hook, came_to)
    good = "answered" if hook in {ARGUMENTS, RESULT} else "no_opinion"
    assert {"before": good, "late": "timed_out", "after": good} == statuses(taken, hook)
    (told,) = [event for event in events if event["event"] == "plugin_timed_out"]
    assert ("late", hook, "task", LIMIT) == tuple(
        told[name] for name in ("plugin", "hook", "task", "timeout")
    )


@both_ways
@pytest.mark.parametrize("hook", HOOKS)
def test_r10_a_blocking_hookimpl_of_any_hook_is_left_behind(hook, run):
    """R10: in its thread, and the run goes on as if it were not there."""
    with blocked() as blocks:
        came_to, taken = run_with(hook, blocks, run)

        check_end(hook, came_to)
        assert "timed_out" == statuses(taken, hook)["late"]


@both_ways
@pytest.mark.parametrize("hook", HOOKS)
def test_r10_a_plain_hookimpl_of_any_hook_overruns(hook, run):
    """R10: it cannot be cut, so it is logged, and its answer counts."""
    late = {
        ARGUMENTS: lambda args, kwargs: ((*args, "late"), kwargs),
        RESULT: lambda result: [*result, "late"],
    }.get(hook, lambda: None)
    with structlog.testing.capture_logs() as events:
        came_to, taken = run_with(hook, late, run, timeout=AT_ONCE)

    if hook in {ARGUMENTS, RESULT}:
        assert ["good", "late", "good"] == came_to
    else:
        check_end(hook, came_to)
    assert "timed_out" not in statuses(taken, hook).values()
    overran = [one["plugin"] for one in events if one["event"] == "plugin_overran"]
    assert ["before", "late", "after"] == [one for one in overran if one != "decides"]


@both_ways
def test_r10_a_keeper_that_is_cut_has_not_kept_the_run(run, caplog):
    """R10: what it may have kept after all nobody knows, so the run is set aside elsewhere."""
    _, taken = run_with(LETTER, never, run)

    assert "task_dead_lettered" in caplog.text
    assert not any(record.won for record in taken.trail if record.hook == LETTER)


@both_ways
def test_r10_timeouts_by_plugin_hold_for_every_hook(run):
    """R10: a plugin's own limit comes before the general one, whatever the hook."""
    slow = plugin("slow", **{RESULT: lambda result: asyncio.sleep(2 * LIMIT, result + 1)})
    manager = PluginManager([slow], settings={"timeout": LIMIT, "timeouts": {"slow": 60}})

    assert 3 == run(TaskExecutor(lambda: 2, plugins=manager))


@both_ways
def test_r11_being_late_in_any_hook_leads_to_quarantine(run):
    """R11: by hookimpl, so that the plugin's other hookimpls are still asked."""
    late = plugin("late", **{CLOSED: never, RESULT: lambda result: result + 1})
    settings = {"timeout": LIMIT, "quarantine_after": 1}
    manager = PluginManager([late], settings=settings)
    runs = [TaskExecutor(lambda: 2, plugins=manager) for _ in range(2)]

    assert [3, 3] == [run(taken) for taken in runs]
    assert ["timed_out", "quarantined"] == [statuses(taken, CLOSED)["late"] for taken in runs]


class Life:
    """A plugin that keeps what it hears of an app's life, and may be late in it."""

    def __init__(self, name: str, heard: list[str], **late: Any) -> None:
        self.name = name
        self.heard = heard
        for hook, function in late.items():
            setattr(self, hook, hookimpl(function))

    @hookimpl
    def qtasks_start(self) -> None:
        self.heard.append(f"{self.name} starts")

    @hookimpl
    def qtasks_stop(self) -> None:
        self.heard.append(f"{self.name} stops")


def life_of(app: QueueTasks, *, is_async: bool) -> None:
    """Start and stop an app."""

    async def main() -> None:
        async with app:
            pass

    if is_async:
        asyncio.run(main())
    else:
        with app:
            pass


in_both = pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])


def an_app(heard: list[str], seconds: float = LIMIT, **late: Any) -> QueueTasks:
    """Make an app of three plugins, of which the second is late."""
    plugins = [Life("first", heard), Life("second", heard), Life("late", heard, **late)]
    plugins.append(Life("last", heard))
    settings = {"start_timeout": seconds, "timeouts": {"late": 60}}
    return QueueTasks("shop", plugins=plugins, discover=False, settings=settings)


class Slow(BasePlugin):
    """A plugin of QTasks' own shape that never comes to the end of its start."""

    def __init__(self) -> None:
        super().__init__("late")

    async def start(self, *args: Any, **kwargs: Any) -> Any:
        await never()

    async def stop(self, *args: Any, **kwargs: Any) -> Any: ...

    async def trigger(self, name: str, **kwargs: Any) -> Any: ...


@in_both
@pytest.mark.parametrize("kind", ["async", "blocking", "BasePlugin"])
def test_r10_a_start_that_takes_too_long_is_stopped(kind, is_async):
    """R10: the app does not start; those that had started are stopped again, in reverse."""
    heard: list[str] = []
    with blocked() as blocks:
        if kind == "BasePlugin":
            plugins = [Life("first", heard), Life("second", heard), Slow(), Life("last", heard)]
            settings = {"start_timeout": LIMIT}
            app = QueueTasks("shop", plugins=plugins, discover=False, settings=settings)
        else:
            app = an_app(heard, qtasks_start=never if kind == "async" else blocks)
        with pytest.raises(PluginError, match=r"'late'.*no answer within its 0\.05 seconds"):
            life_of(app, is_async=is_async)

    assert ["first starts", "second starts", "second stops", "first stops"] == heard
    assert "not started" in repr(app)


@in_both
@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_r10_a_stop_that_takes_too_long_holds_up_nobody(kind, is_async):
    """R10: it is logged, the others are stopped all the same, and the app is stopped."""
    heard: list[str] = []
    with blocked() as blocks, structlog.testing.capture_logs() as events:
        app = an_app(heard, qtasks_stop=never if kind == "async" else blocks)
        life_of(app, is_async=is_async)

    assert ["last stops", "second stops", "first stops"] == heard[4:]
    (told,) = [event for event in events if event["event"] == "plugin_timed_out"]
    assert ("late", "qtasks_stop", LIMIT) == (told["plugin"], told["hook"], told["timeout"])
    assert "stopped" in repr(app)


@in_both
def test_r10_a_plain_start_and_stop_overrun(is_async):
    """R10: they cannot be cut: the app starts, stops, and says who was late."""
    heard: list[str] = []
    with structlog.testing.capture_logs() as events:
        life_of(an_app(heard, AT_ONCE), is_async=is_async)

    overran = [(one["plugin"], one["hook"]) for one in events if one["event"] == "plugin_overran"]
    names = ["first", "second", "late", "last"]
    assert overran == [
        *((name, "qtasks_start") for name in names),
        *((name, "qtasks_stop") for name in reversed(names)),
    ]
    assert 8 == len(heard)


def test_r10_a_hook_of_the_hosts_own_has_no_limit():
    """R10: what a host asks by it, and how long it waits, is its own business."""

    @hookspec
    def shop_closes() -> None: ...

    manager = PluginManager(settings={"timeout": AT_ONCE, "start_timeout": AT_ONCE})
    manager.add_hookspecs(SimpleNamespace(shop_closes=shop_closes))
    manager.register(plugin("host", shop_closes=lambda: asyncio.sleep(LIMIT)))
    with structlog.testing.capture_logs() as events:
        manager.hook.shop_closes()
        asyncio.run(manager.hook.shop_closes.call_async())

    assert not events
