"""What once went wrong under attack: hangs, lost runs, wrong results."""

from __future__ import annotations

import asyncio
import contextlib
import io
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Retry, TaskFunc, blocking, hookimpl
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.exc import (
    PluginError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
)
from tests.runs import answering, both_ways, failing, plugin

TRIGGER = "task_executor_run_task_trigger_error"


def failing_run(*plugins: Any, error: BaseException | None = None, **settings: Any) -> TaskExecutor:
    """Make a run that fails, with these plugins."""
    func = failing("function", error or TaskPluginTriggerError("no"))
    manager = PluginManager(plugins, settings=settings)
    return TaskExecutor(TaskFunc("fails", func, intercept=Exception), plugins=manager)


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()"])
def test_the_background_loop_outlives_what_ends_a_program(error):
    """SystemExit in async code of a plain run leaves the run, and later runs go on."""
    code = f"""
        import asyncio
        from types import SimpleNamespace
        from qtasks_hookspecs import hookimpl
        from qtasks_pluggy import TaskExecutor, TaskFunc

        @hookimpl
        async def task_executor_run_task_trigger_error():
            raise {error}

        async def part():
            raise {error}

        async def whole():
            await asyncio.gather(part())

        async def fine():
            return "fine"

        leaves = SimpleNamespace(
            name="leaves", task_executor_run_task_trigger_error=task_executor_run_task_trigger_error
        )
        failing = TaskFunc("t", lambda: 1 / 0, intercept=Exception)
        for run in (TaskExecutor(failing, plugins=[leaves]), TaskExecutor(whole)):
            try:
                run.execute_sync()
            except BaseException as error:
                print(type(error).__name__)
        print(TaskExecutor(fine).execute_sync())
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    name = error.partition("(")[0]
    assert [name, name, "fine"] == done.stdout.split()


@both_ways
@pytest.mark.parametrize("decision", [Raise(ValueError("x")), Cancel(), DeadLetter()], ids=repr)
def test_an_error_that_is_its_own_cause(run, decision):
    """A loop of causes ends no decision in a loop."""
    own = ValueError("own")
    own.__cause__ = own

    with pytest.raises((ValueError, TaskCancelError, TaskDeadLetteredError)):
        run(failing_run(answering(decision), error=own))


def test_a_blocking_hookimpl_of_the_background_loop_cannot_wait_for_it():
    """Plain code on the loop waits for a thread that needs the loop: refused, not waited for."""

    async def inner() -> int:
        return 7

    @blocking
    def nested(result: Any) -> Any:
        return TaskExecutor(inner).execute_sync() if result == "outer" else None

    app = QueueTasks(
        "shop",
        plugins=[plugin("nested", task_executor_run_task=nested)],
        settings={"strict": True},
        discover=False,
    )
    plain = app.task(name="plain")(lambda: "outer")

    async def on_the_loop() -> Any:
        return plain()

    with pytest.raises(PluginError, match="background event loop"):
        TaskExecutor(on_the_loop).execute_sync()


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that refuses to have its attributes set."""

    code: int


@both_ways
def test_an_error_of_a_frozen_class(run):
    """It goes on as itself, and can be raised instead of another."""
    own = FrozenError(4)
    with pytest.raises(FrozenError) as raised:
        run(TaskExecutor(failing("function", own)))
    assert raised.value is own

    other = FrozenError(5)
    with pytest.raises(FrozenError) as raised:
        run(failing_run(answering(Raise(other)), error=own))
    assert (raised.value, raised.value.__cause__) == (other, own)


@both_ways
def test_a_log_that_fails_costs_no_run(run, monkeypatch):
    """With a closed or missing stderr, or a processor that raises, a run has its result."""
    closed = io.StringIO()
    closed.close()

    def breaks() -> None:
        raise ValueError

    def result() -> Any:
        return run(failing_run(answering(5), plugin("breaks", **{TRIGGER: breaks})))

    for stderr in (closed, None):
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(
            "qtasks_pluggy._log._stdlib", SimpleNamespace(hasHandlers=lambda: False)
        )
        monkeypatch.setattr("qtasks_pluggy._log.debug_enabled", lambda: False)
        monkeypatch.setattr("qtasks_pluggy._log.info_enabled", lambda: False)
        assert 5 == result()
    monkeypatch.undo()

    def raises(*_: Any) -> Any:
        raise RuntimeError

    structlog.configure(processors=[raises])
    assert 5 == result()


@both_ways
def test_strict_tells_of_an_error_without_a_text(run):
    """A plugin's error whose text cannot be had is a PluginError all the same."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def breaks() -> None:
        raise MuteError

    with pytest.raises(PluginError, match="its __str__ raised RuntimeError"):
        run(failing_run(plugin("mute", **{TRIGGER: breaks}), strict=True))


class Wrapper:
    """A wrapper that can be told what to do at its end."""

    name = "wrapper"
    closing: BaseException | None = None
    bad = False
    hook = TRIGGER

    @hookimpl(wrapper=True)
    def task_executor_run_task_trigger_error(self) -> Any:
        if self.bad:
            raise ValueError
        try:
            answer = yield
        except GeneratorExit:
            if self.closing is not None:
                raise self.closing from None
            raise
        return answer


def cancelled_while_asked(manager: PluginManager) -> None:
    """Cancel a run while an async hookimpl waits; it must end as cancelled."""
    begun = asyncio.Event()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    manager.register(plugin("waits", **{TRIGGER: waits}))
    func = TaskFunc("fails", failing("function", TaskPluginTriggerError("no")))

    async def main() -> None:
        running = asyncio.ensure_future(TaskExecutor(func, plugins=manager).execute())
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    manager.unregister(name="waits")


def test_a_wrapper_that_fails_when_closed_replaces_no_cancellation():
    """A cancelled run is cancelled, whatever a wrapper does about it; the wrapper is named."""
    wrapper = Wrapper()
    wrapper.closing = KeyError("mine")

    with structlog.testing.capture_logs() as events:
        cancelled_while_asked(PluginManager([wrapper]))

    assert ["wrapper"] == [one["plugin"] for one in events if one["event"] == "plugin_failed"]


def test_a_wrapper_on_trial_whose_run_is_cancelled_is_tried_again():
    """A cancellation is no verdict on a wrapper in quarantine, and its next trial comes."""
    now = [0.0]
    wrapper = Wrapper()
    manager = PluginManager([wrapper], settings={"quarantine_after": 1}, clock=lambda: now[0])
    func = TaskFunc("fails", failing("function", TaskPluginTriggerError("no")))

    def status() -> str:
        executor = TaskExecutor(func, plugins=manager)
        with contextlib.suppress(TaskPluginTriggerError):
            executor.execute_sync()
        return executor.trail[0].status

    wrapper.bad = True
    assert ["raised", "quarantined"] == [status(), status()]
    now[0] = 1000.0
    wrapper.bad = False
    cancelled_while_asked(manager)
    now[0] = 2000.0

    assert "no_opinion" == status()


@both_ways
@pytest.mark.parametrize("interrupted", ["begin", "end"])
def test_a_wrapper_that_is_interrupted(run, interrupted):
    """KeyboardInterrupt in a wrapper's own code leaves the run."""

    class Interrupted:
        name = "interrupted"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            if interrupted == "begin":
                raise KeyboardInterrupt
            yield
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(failing_run(Interrupted()))


@both_ways
def test_a_wrapper_whose_answers_are_nonsense_is_quarantined(run):
    """An answer that is refused counts as a failure of the wrapper."""

    class Nonsense:
        name = "nonsense"

        @hookimpl(wrapper=True)
        def task_executor_run_task(self) -> Any:
            yield
            return Cancel()

    manager = PluginManager([Nonsense()], settings={"quarantine_after": 2})
    statuses = []
    for _ in range(3):
        executor = TaskExecutor(lambda: 5, plugins=manager)
        assert 5 == run(executor)
        statuses += [record.status for record in executor.trail]

    assert ["raised", "raised", "quarantined"] == statuses


@both_ways
def test_a_wrapper_that_returns_a_coroutine_is_waited_for(run):
    """What a wrapper returns is awaited like any answer."""

    class Awaits:
        name = "awaits"

        @hookimpl(wrapper=True)
        def task_executor_run_task_trigger_error(self) -> Any:
            yield

            async def answer() -> int:
                await asyncio.sleep(0)
                return 7

            return answer()

    assert 7 == run(failing_run(Awaits()))


def test_a_wrapper_whose_coroutine_is_cancelled_with_the_run():
    """Cancelling a run while a wrapper's answer is awaited is a cancellation."""

    async def main() -> None:
        begun = asyncio.Event()

        class Awaits:
            name = "awaits"

            @hookimpl(wrapper=True)
            def task_executor_run_task_trigger_error(self) -> Any:
                yield

                async def answer() -> None:
                    begun.set()
                    await asyncio.Event().wait()

                return answer()

        running = asyncio.ensure_future(failing_run(Awaits()).execute())
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())


@both_ways
@pytest.mark.parametrize("observed", [False, True])
def test_arguments_that_a_plugin_changes_in_place(run, observed):
    """Each attempt begins with what the run was given, and the caller's own dict stays."""
    seen: list[int] = []

    def fails(n: int) -> None:
        seen.append(n)
        raise TaskPluginTriggerError("no")

    def doubles(args: Any, kwargs: Any) -> Any:
        kwargs["n"] *= 2
        return args, kwargs

    again = plugin("again", **{TRIGGER: lambda: Retry(limit=2)})
    settings = {"observe": ["doubles"] if observed else []}
    manager = PluginManager(
        [plugin("doubles", task_executor_args_replace=doubles), again], settings=settings
    )
    mine = {"n": 1}

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(fails, kwargs=mine, plugins=manager))

    assert [1 if observed else 2] * 3 == seen
    assert {"n": 1} == mine
