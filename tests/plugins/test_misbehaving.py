"""R7: a plugin may do what it likes, and runs end as they should."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from textwrap import dedent
from typing import Any

import attrs
import pytest
import structlog

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import PluginManager, TaskExecutor, TaskFunc
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.plugins.misbehaviour import TABLE
from tests.runs import answering, failing, function_of

HEAD = """
    import asyncio, functools, importlib, inspect, structlog, sys, threading, time
    from types import SimpleNamespace
    from qtasks_hookspecs import Cancel, Raise, Replace, Retry, blocking, hookimpl
    from qtasks_pluggy import TaskExecutor, exc

    name = "misbehaves"
    release = threading.Event()

    class Garbage:
        def fails(self, *_):
            raise RuntimeError("garbage")
        __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __getattr__ = fails
        __reduce__ = __call__ = __iter__ = __getitem__ = __format__ = __int__ = fails
    """
TAIL = """
    hookimpl(
        specname="task_executor_run_task_trigger_error",
        wrapper=inspect.isgeneratorfunction(answer),
    )(answer)
    """
# Seconds for those who are late; the others have as many as they like.
LIMIT = 0.02
CASES = {f"{name}, {how}": (row, how) for name, row in TABLE.items() for how in row.as_}


class Last:
    """The plugin after the one that misbehaves; it hears of every end."""

    name = "last"

    def __init__(self) -> None:
        self.answer: Any = None
        self.ended: list[TaskExecutor] = []

    @hookimpl
    def task_executor_run_task_trigger_error(self) -> Any:
        return self.answer

    @hookimpl
    def task_executor_task_close(self, task_executor: Any) -> None:
        self.ended.append(task_executor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make one folder for all modules: hundreds would take longer than the tests."""
    return tmp_path_factory.mktemp("misbehaving")


@pytest.fixture
def misbehaving(folder, monkeypatch):
    """Make a function that imports the module of a case; what it meddled with is mended."""
    for variable in [one for one in os.environ if one.startswith("QTASKS_PLUGGY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(folder)
    releases = []

    def module_of(source: str, how: str) -> Any:
        before = {"plain": "", "async": "async ", "blocking": "@blocking\n"}[how]
        source = dedent(source).replace("def answer(", f"{before}def answer(", 1)
        text = "\n".join((dedent(HEAD), source, dedent(TAIL)))
        (folder / "misbehaves.py").write_text(text, "utf-8")
        module = importlib.import_module("misbehaves")
        releases.append(module.release)
        return module

    yield module_of
    sys.modules.pop("misbehaves", None)
    for release in releases:
        release.set()


async def awaited(executor: TaskExecutor) -> tuple[Any, BaseException | None]:
    """Return the result of a run, or its error, which asyncio itself might trip over."""
    try:
        return await executor.execute(), None
    except BaseException as error:
        return None, error


def ending(executor: TaskExecutor) -> tuple[Any, BaseException | None]:
    """Run a task in the way of its kind; return its result, or what leaves the run."""
    try:
        if executor.task_func.is_async:
            return asyncio.run(awaited(executor))
        return executor.execute_sync(), None
    except BaseException as error:
        return None, error


def asked(executor: TaskExecutor) -> dict[str, str]:
    """Return the status of each plugin that was asked about the error."""
    return {one.plugin: one.status for one in executor.trail if one.hook.endswith("trigger_error")}


@pytest.mark.parametrize("kind", ["function", "coroutine"], ids=["def task", "async task"])
@pytest.mark.parametrize("case", CASES)
def test_r7_a_plugin_that_misbehaves_hurts_nobody_else(case, kind, misbehaving):
    """Runs end as if it were not there, the others are asked, and the trail tells of it."""
    row, how = CASES[case]
    if kind == "coroutine":
        row = attrs.evolve(row, **row.under_async)
    module = misbehaving(row.source, how)
    given = getattr(module, "given", None)
    limits = {"misbehaves": LIMIT} if row.late else {}
    last = Last()
    manager = module.manager = PluginManager(
        [answering(None, "first"), module, last],
        settings={"timeout": 30, "timeouts": limits, "log_values": True},
    )
    again = row.status if row.again == "the same" else row.again

    for answer, status, error in (
        ("saved", row.status, LookupError("own")),
        (None, again, LookupError("own")),
        (None, again, TaskPluginTriggerError("own")),
    ):
        last.answer = answer
        func = TaskFunc("fails", failing(kind, error), intercept=LookupError)
        executor = TaskExecutor(func, plugins=manager)
        # Once as a host sees events that captures them, then as logging formats them.
        structlog.reset_defaults()
        with structlog.testing.capture_logs() if answer else contextlib.nullcontext():
            result, ends_in = ending(executor)
        if row.ends is not None:
            assert row.ends is type(ends_in)
        elif answer is not None or status == "answered":
            assert ends_in is None
            assert result is (answer or given)
        else:
            assert ends_in is error
        assert 1 == last.ended.count(executor)
        if row.ends is not None and status is None:
            assert "misbehaves" not in asked(executor)
            continue
        told = {"first": "no_opinion", "misbehaves": status, "last": "no_opinion"}
        told |= {"last": "answered"} if answer else {}
        assert {name: one for name, one in told.items() if one} == asked(executor)

    assert (5, None) == ending(TaskExecutor(function_of(kind, lambda: 5), plugins=manager))
    manager.unregister(name="misbehaves")
    last.answer = "mended"
    executor = TaskExecutor(func, plugins=manager)
    assert ("mended", None) == ending(executor)
    assert {"first": "no_opinion", "last": "answered"} == asked(executor)
