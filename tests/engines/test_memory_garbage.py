"""``memory://``: what is left of a run whose handle was dropped, and who hears of its error."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from qtasks_hookspecs import Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskHandle
from qtasks_pluggy.exc import EngineError, TaskCancelError, TaskNameError
from tests.engines.processes import wait_until
from tests.engines.shops import LONG, Gate, app_of


class Thing:
    """Something that a run holds; whether anything still holds it can be seen from outside."""


class ShopError(Exception):
    """An error of the task's own."""


class OwnError(BaseException):
    """An error that is no ``Exception``."""


class Retrying:
    """Retries once, and takes down the errors that runs failed with."""

    name = "retrying"

    def __init__(self, answer: Retry | None = None) -> None:
        self.answer = answer
        self.failed: list[str] = []

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        return self.answer

    @hookimpl
    def task_executor_task_failed(self, e):
        self.failed.append(type(e).__name__)


@contextmanager
def without_gc() -> Iterator[None]:
    """Have only reference counts free memory, as in a quiet service."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def doubled(app: QueueTasks, work: Callable[..., Any]) -> list[Any]:
    """Make a plain task and an async one of the same work."""

    async def on_loop(*args):
        return work(*args)

    return [
        app.task(name="plain", intercept=ShopError)(work),
        app.task(name="async", intercept=ShopError)(on_loop),
    ]


def run_on(app: QueueTasks, style: str, use: Callable[[], None]) -> None:
    """Use an app that plain code started, or async code; the use waits in a thread."""

    async def main() -> None:
        async with app:
            await asyncio.to_thread(use)

    if style == "async with":
        asyncio.run(main())
    else:
        with app:
            use()


STYLES = pytest.mark.parametrize("style", ["with", "async with"])
KINDS = pytest.mark.parametrize("kind", ["plain", "async"])


@STYLES
@KINDS
@pytest.mark.parametrize("end", ["result", "error", "exit", "retries", "delayed retries"])
def test_nothing_of_a_run_is_kept_once_its_handle_is_dropped(style, kind, end):
    """Arguments, result, error and frames are garbage, also those of a thread's first run."""
    delay = 0.01 if end == "delayed retries" else None
    answer = Retry(delay=delay, limit=1) if "retries" in end else None
    app = app_of("?workers=2", plugins=[Retrying(answer)])
    made: list[weakref.ref[Any]] = []

    def work(argument):
        local = Thing()
        made.append(weakref.ref(local))
        if end == "exit":
            raise SystemExit(3)
        if end != "result":
            error = ShopError(argument, local)
            made.append(weakref.ref(error))
            raise error
        return local

    tasks = {task.name: task for task in doubled(app, work)}

    def run_once() -> None:
        argument = Thing()
        made.append(weakref.ref(argument))
        handle = tasks[kind].submit_sync(argument)
        if end == "result":
            assert type(handle.result(timeout=LONG)) is Thing
        else:
            with pytest.raises((ShopError, EngineError)):
                handle.result(timeout=LONG)

    def is_all_garbage() -> bool:
        gc.collect()
        return all(one() is None for one in made)

    def use() -> None:
        for _ in range(4):
            run_once()
        # The threads and the loop are still there, and a thread may be about to let go.
        assert wait_until(is_all_garbage, LONG), [one() for one in made if one() is not None]

    run_on(app, style, use)
    assert len(made) >= 8


@STYLES
@KINDS
@pytest.mark.parametrize(
    "answer", [None, Retry(limit=1), Retry(delay=0.01, limit=1)], ids=["none", "retry", "delayed"]
)
@pytest.mark.parametrize("error", [ShopError, SystemExit, OwnError])
def test_an_error_that_nobody_asks_for_is_logged_when_the_run_has_failed(
    style, kind, answer, error
):
    """With the handle dropped, nobody waits for a garbage collection or the process's end."""
    plugin = Retrying(answer)
    app = app_of("?workers=2", plugins=[plugin])

    def fail():
        raise error

    tasks = {task.name: task for task in doubled(app, fail)}

    def said(entries: Any) -> list[str]:
        return [one["task"] for one in entries if one["event"] == "task_error_never_seen"]

    with capture_logs() as entries, without_gc():

        def use() -> None:
            tasks[kind].submit_sync()
            assert wait_until(lambda: said(entries), LONG)

        run_on(app, style, use)
    assert [kind] == said(entries)
    assert ["ShopError" if error is ShopError else "EngineError"] == plugin.failed


def test_a_handle_that_is_dropped_after_the_end_has_its_error_logged():
    """The error is logged when the handle goes, and not if somebody asked for the end."""
    app = app_of()

    @app.task
    def fail():
        raise ShopError

    def ended() -> TaskHandle[Any]:
        handle: TaskHandle[Any] = fail.submit()
        assert wait_until(lambda: handle.status == "failed", LONG)
        return handle

    with app, capture_logs() as entries, without_gc():
        seen, unseen = ended(), ended()
        with pytest.raises(ShopError):
            seen.result(timeout=LONG)
        assert "task_error_never_seen" not in [one["event"] for one in entries]
        uuid = str(unseen.uuid)
        del seen, unseen
        assert wait_until(
            lambda: (
                [uuid]
                == [one["uuid"] for one in entries if one["event"] == "task_error_never_seen"]
            ),
            LONG,
        )


@pytest.mark.parametrize("error", [SystemExit(3), OwnError(), KeyboardInterrupt()], ids=repr)
def test_r15_an_error_that_is_no_exception_fails_its_run_alone(error):
    """R15: it is told once, the caller gets an ``EngineError``, and the thread goes on."""
    plugin = Retrying()
    app = app_of("?workers=1", plugins=[plugin])
    threads = []

    @app.task
    def leave():
        threads.append(threading.get_ident())
        raise error

    @app.task
    def stay():
        threads.append(threading.get_ident())
        return "still here"

    with app:
        with pytest.raises(EngineError, match=type(error).__name__) as caught:
            leave.submit().result(timeout=LONG)
        assert error is caught.value.__cause__
        assert "still here" == stay.submit().result(timeout=LONG)
    assert ["EngineError"] == plugin.failed
    assert 1 == len(set(threads))


def test_a_run_s_retry_does_not_keep_the_context_of_its_attempt():
    """The timer of a delayed retry holds no context, so it holds no run."""
    app = app_of(plugins=[Retrying(Retry(delay=3600, limit=1))])
    bound: list[weakref.ref[Thing]] = []
    variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")

    @app.task(echo=True)
    async def fail(self):
        thing = Thing()
        bound.append(weakref.ref(thing))
        variable.set(thing)
        del thing
        self.ctx.plugin_error()

    def is_garbage() -> bool:
        gc.collect()
        return bool(bound) and bound[0]() is None

    with app:
        handle = fail.submit_sync()
        assert wait_until(is_garbage, LONG)
        assert handle.cancel()
    with pytest.raises(TaskCancelError):
        handle.result(timeout=LONG)


@KINDS
def test_an_error_outside_of_the_attempt_is_logged_when_the_run_has_failed(kind):
    """A run that cannot begin fails too, and its error does not keep it alive."""
    app = app_of("?workers=1")
    gate = Gate(app)

    def work():
        raise AssertionError

    tasks = {task.name: task for task in doubled(app, work)}
    with app, capture_logs() as entries, without_gc():
        gate.occupy()
        tasks[kind].submit_sync()
        app._tasks.pop(kind)
        gate.open.set()
        assert wait_until(
            lambda: [
                type(one["exc_info"]) for one in entries if one["event"] == "task_error_never_seen"
            ],
            LONG,
        )
    (told,) = [one for one in entries if one["event"] == "task_error_never_seen"]
    assert (kind, TaskNameError) == (told["task"], type(told["exc_info"]))
