"""R19: each attempt runs in one context, and what the task has bound there plugins see."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from qtasks_hookspecs import TaskFunc
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import TaskTimeoutError
from tests.runs import both_ways, every_kind, function_of, plugin

ORDER = contextvars.ContextVar("order", default="none")


def in_own_context(run, executor):
    """Run, and forget afterwards what was bound."""
    return contextvars.copy_context().run(run, executor)


def listener(seen, answer=0):
    """Answer, and note what is bound."""
    return plugin(
        "l", task_executor_run_task_trigger_error=lambda: seen.append(ORDER.get()) or answer
    )


@both_ways
@every_kind
@pytest.mark.parametrize("max_time", [None, 60])
def test_r19_plain_hooks_see_what_the_task_has_bound(max_time, kind, run):
    """R19: in every style of run, with a time limit or without one."""
    seen = []

    def body():
        ORDER.set("order 7")
        raise LookupError

    func = TaskFunc("t", function_of(kind, body), max_time=max_time, intercept=LookupError)

    assert in_own_context(run, TaskExecutor(func, plugins=[listener(seen)])) == 0
    assert seen == ["order 7"]


@both_ways
def test_r19_a_task_that_is_abandoned_shows_what_it_had_bound(run):
    """R19: the error report of a time limit has the request's id."""
    seen, release = [], threading.Event()

    def body():
        ORDER.set("order 7")
        release.wait(60)

    func = TaskFunc("t", body, max_time=0.05, intercept=TaskTimeoutError)
    try:
        assert in_own_context(run, TaskExecutor(func, plugins=[listener(seen)])) == 0
    finally:
        release.set()
    assert seen == ["order 7"]


@both_ways
def test_r19_a_blocking_hookimpl_may_run_tasks_of_its_own(run):
    """R19: what a thread is in the middle of stays in that thread: the plugin is asked again."""
    asked = []
    inner = TaskFunc("inner", lambda: 1 / 0, intercept=ZeroDivisionError)

    def body():
        TaskExecutor(inner, plugins=[answers]).execute_sync()
        raise LookupError

    answers = plugin(
        "a", task_executor_run_task_trigger_error=lambda e: asked.append(type(e.cause)) or 1
    )
    func = TaskFunc("t", body, max_time=60, intercept=LookupError)

    assert run(TaskExecutor(func, plugins=[answers])) == 1
    assert asked == [ZeroDivisionError, LookupError]


def test_r19_an_awaited_task_uses_its_callers_context():
    """R19: as an awaited function does; so does a ``def`` that is called in place."""

    async def binds():
        ORDER.set("mine")

    async def main():
        await TaskExecutor(binds).execute()
        return ORDER.get()

    assert asyncio.run(main()) == "mine"
    assert (
        contextvars.copy_context().run(
            lambda: (TaskExecutor(lambda: ORDER.set("called")).execute_sync(), ORDER.get())[1]
        )
        == "called"
    )
