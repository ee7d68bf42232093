"""Read by the type checkers, never run: what a plugin is written with."""

import uuid
from collections.abc import Generator, Mapping, Sequence
from typing import Any, assert_type

from qtasks_hookspecs import (
    Cancel,
    DeadLetter,
    Raise,
    Replace,
    Retry,
    RunningApp,
    RunningTask,
    TaskFunc,
    TaskMessage,
    blocking,
    exc,
    hookimpl,
    hookspec,
    when,
)
from qtasks_pluggy import BasePlugin, PluginManager, QueueTasks, TaskExecutor
from qtasks_pluggy.testing import (
    FakeClock,
    PluginContract,
    Run,
    assert_outcome,
    assert_trail,
    isolated_app,
    no_delays,
    run_with,
)


@hookimpl
def task_executor_run_task_trigger_error(
    task_executor: RunningTask, task_func: TaskFunc, task_broker: TaskMessage, e: Exception
) -> Replace | Retry | Raise | Cancel | DeadLetter | None:
    if task_executor.attempt < 3:
        return Retry(delay=1.5, limit=2)
    if isinstance(e, exc.TaskPluginTriggerError):
        assert_type(e.kwargs, dict[str, Any])
        assert_type(e.cause, BaseException | None)
        return Replace(e.kwargs.get("fallback"))
    if task_func.max_time is None:
        return Raise(RuntimeError("clearer"))
    return DeadLetter("look at it") if task_broker.queue else Cancel()


@hookimpl(trylast=True)
async def task_executor_task_failed(e: Exception) -> None:
    assert_type(str(e), str)


@when(error=(ValueError, "requests.HTTPError"), task="shop.*")
@when(tag="slow")
@hookimpl
@blocking
def task_executor_task_close(task_broker: TaskMessage) -> None:
    assert_type(task_broker.uuid, uuid.UUID | str)
    assert_type(task_broker.created_at, float)
    assert_type(task_broker.attempt, int | None)


@hookimpl(wrapper=True)
def task_executor_run_task(result: Any) -> Generator[None, Any, Any]:
    answer = yield
    return answer


@hookimpl
def task_executor_args_replace(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "currency": "EUR"}


class Shelf:
    """A plugin that is an object."""

    @hookimpl
    def qtasks_start(self, app: RunningApp, settings: Mapping[str, Any]) -> None:
        assert_type(app.name, str)
        assert_type(app.tasks, Mapping[str, Any])

    @hookimpl(tryfirst=True)
    async def qtasks_stop(self) -> None:
        """Do nothing."""


class Old(BasePlugin):
    """A plugin of the old shape, in async code."""

    def __init__(self) -> None:
        super().__init__("old")
        self.handlers = {"task_executor_task_close": self.close}

    async def start(self, *args: Any, **kwargs: Any) -> Any:
        return super().start(*args, **kwargs)

    async def trigger(self, name: str, **kwargs: Any) -> Any:
        return None

    def close(self, **kwargs: Any) -> None:
        """Do nothing."""


def reads(run: RunningTask) -> None:
    assert_type(run.args, tuple[Any, ...])
    assert_type(run.kwargs, Mapping[str, Any])
    assert_type(run.yielded, Sequence[Any])
    assert_type(run.attempt, int)
    assert_type(run.max_attempts, int | None)
    assert_type(run.task_func, TaskFunc)
    assert_type(run.task_broker, TaskMessage)
    assert_type(run.ctx.task_name, str)
    assert_type(run.trail[0].plugin, str)
    assert_type(run.trail[0].handler, str | None)
    run.log.warning("low", shelf=3)


def is_one(executor: TaskExecutor, app: QueueTasks) -> None:
    reads(executor)
    Shelf().qtasks_start(app, {})


def registers(app: QueueTasks) -> None:
    assert_type(app.add_plugin(Shelf(), name="shelf"), str)
    app.add_plugin(Old, trigger_names=["task_executor_task_close"])
    app.remove_plugin("shelf")
    assert_type(app.plugins, PluginManager)
    PluginManager([Shelf()], discover=True, settings={"disable": ["old"]}, clock=lambda: 1.0)


@hookspec(lastresult=True)
def shop_price(sku: str) -> float | None:
    """Ask for a price."""


@hookspec
def shop_open() -> None:
    """Hear of the opening."""


assert_type(shop_price("a"), float | None)
assert_type(hookimpl(shop_open)(), None)
assert_type(Replace(3), Replace)


class TestShelf(PluginContract):
    plugin = Shelf
    args = ("a",)


def runs_alone() -> None:
    run = run_with(Shelf, len, args=("a",), settings={"height": 1}, style="async def", tags=["x"])
    assert_type(run, Run)
    assert_type(run.outcome.decided_by, str | None)
    assert_outcome(run, "succeeded", result=1, decided_by=None, attempts=1)
    assert_trail(run, "shelf no opinion")
    with no_delays(attempts=2), isolated_app(Shelf(), clock=FakeClock()) as app:
        assert_type(app, QueueTasks)
