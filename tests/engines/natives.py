"""Runs of a native task on each engine that has ``install``, with no server: one function each.

Runs of one call are made by one thread, one after another, where the engine has it so.
"""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import dramatiq
import huey
from taskiq import TaskiqMiddleware

from qtasks_hookspecs import hookimpl
from qtasks_pluggy.engines import celery as celery_engine
from qtasks_pluggy.engines import dramatiq as dramatiq_engine
from qtasks_pluggy.engines import huey as huey_engine
from qtasks_pluggy.engines import taskiq as taskiq_engine
from tests.engines import celery_apps, dramatiq_apps, taskiq_apps
from tests.engines.huey_apps import LONG, consuming


class Hears:
    """Takes down the final failures and the ends that it is told of."""

    name = "hears"

    def __init__(self) -> None:
        self.failed: list[BaseException] = []
        self.closed = 0

    @hookimpl
    def task_executor_task_failed(self, e):
        self.failed.append(e)

    @hookimpl
    def task_executor_task_close(self):
        self.closed += 1


@attrs.define
class End:
    """How a native run ended.

    Attributes:
        value: The native result; the text of a failure.
        is_failed: Whether its caller hears of a failure.
        error: What the engine was handed, if that was an error.
    """

    value: Any = None
    is_failed: bool = False
    error: BaseException | None = None


def on_celery(function: Any, *plugins: Any, installed: bool = True, runs: int = 1) -> End:
    """Make runs on Celery."""
    native, end = celery_apps.celery_app(), End()
    task = native.task(name="fail", shared=False)(function)
    if installed:
        celery_engine.install(native, plugins, discover=False)

    def on_failure(error, *_):
        end.error = error

    task.on_failure = on_failure
    with celery_apps.working(native, concurrency=1):
        for _ in range(runs):
            result = task.delay()
            end.value = result.get(timeout=LONG, interval=0.01, propagate=False)
            end.is_failed = result.failed()
    celery_apps.forget_connections()
    return end


def on_dramatiq(function: Any, *plugins: Any, installed: bool = True, runs: int = 1) -> End:
    """Make runs on Dramatiq."""
    native, end = dramatiq_apps.stub_broker(), End()
    options = {"max_retries": 0, "store_results": True}
    task = dramatiq.actor(actor_name="fail", broker=native, **options)(function)
    if installed:
        dramatiq_engine.install(native, plugins, discover=False)

    class Looks(dramatiq.Middleware):
        def after_process_message(self, broker, message, *, result=None, exception=None):
            end.error = exception

    native.add_middleware(Looks())
    with dramatiq_apps.working(native, threads=1):
        for _ in range(runs):
            message = task.send()
            try:
                end.value = native.get_results_backend().get_result(
                    message, block=True, timeout=LONG * 1000
                )
            except dramatiq.results.ResultFailure as error:
                end.value, end.is_failed = str(error), True
    return end


def on_huey(function: Any, *plugins: Any, installed: bool = True, runs: int = 1) -> End:
    """Make runs on Huey."""
    native, end = huey.MemoryHuey("shop"), End()
    task = native.task(name="fail")(function)
    if installed:
        huey_engine.install(native, plugins, discover=False)

    @native.signal("error")
    def look(signal, task, error):
        end.error = error

    with consuming(native):
        for _ in range(runs):
            try:
                end.value = task().get(blocking=True, timeout=LONG)
            except huey.exceptions.TaskException as error:
                end.value, end.is_failed = error.metadata["error"], True
    return end


def on_taskiq(function: Any, *plugins: Any, installed: bool = True, runs: int = 1) -> End:
    """Make runs on Taskiq."""
    native, end = taskiq_apps.broker_of(), End()
    task = native.register_task(function, task_name="fail")
    if installed:
        taskiq_engine.install(native, plugins, discover=False)

    class Looks(TaskiqMiddleware):
        def on_error(self, message, result, exception):
            end.error = exception

    native.add_middlewares(Looks())

    async def run() -> None:
        async with taskiq_apps.working(native):
            for _ in range(runs):
                result = await taskiq_apps.ended(await task.kiq())
                end.value, end.is_failed = result.return_value, result.is_err
                if result.is_err:
                    end.value = repr(result.error)

    asyncio.run(run())
    return end


NATIVES = {"celery": on_celery, "dramatiq": on_dramatiq, "huey": on_huey, "taskiq": on_taskiq}
