"""Read by the type checkers, never run: a task has its function's parameters and result."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from datetime import timedelta
from typing import Any, assert_type

from qtasks_hookspecs import TaskFunc, TaskMessage
from qtasks_pluggy import (
    AsyncTask,
    QueueTasks,
    SyncTask,
    TaskExecutor,
    TaskHandle,
    Trail,
    TrailRecord,
)

app = QueueTasks("shop", intercept=(ValueError, OSError), max_retries=None)


# --- the four kinds of function, with the bare decorator ---------------------------------------


@app.task
def price(sku: str, *, currency: str = "EUR") -> float:
    return 1.0


@app.task
async def fetch(url: str, retries: int = 3) -> bytes:
    return b""


@app.task
def rows(table: str) -> Generator[int, None, str]:
    yield 1
    return "ignored"


@app.task
async def pages(url: str) -> AsyncGenerator[bytes, None]:
    yield b""


@app.task
def lines(path: str) -> Iterator[str]:
    yield path


@app.task
async def events(url: str) -> AsyncIterator[int]:
    yield 1


def bare() -> None:
    assert_type(lines("p"), list[str])
    assert_type(price("a", currency="USD"), float)
    assert_type(price(sku="a"), float)
    assert_type(rows("t"), list[int])


async def bare_async() -> None:
    assert_type(await events("u"), list[int])
    assert_type(await fetch("u", retries=1), bytes)
    assert_type(await pages("u"), list[bytes])


# --- with options ------------------------------------------------------------------------------


@app.task(name="options", priority=1, tags=("slow",), max_time=1.5, extra={"color": "red"})
def options(count: int) -> list[int]:
    return [count]


@app.task(intercept=ValueError, max_retries=2, description="fetches")
async def options_async(count: int) -> str:
    return str(count)


@app.task(name="rows called", echo=False)
def rows_called(table: str) -> Generator[int, None, None]:
    yield 1


@app.task(max_time=timedelta(seconds=3))
async def pages_called(url: str) -> AsyncGenerator[bytes, None]:
    yield b""


def called() -> None:
    assert_type(options(3), list[int])
    assert_type(rows_called("t"), list[int])


async def called_async() -> None:
    assert_type(await options_async(3), str)
    assert_type(await pages_called("u"), list[bytes])


# --- with a view of the run, whose annotation is whole as it stands ----------------------------


@app.task(echo=True)
def echo(self: SyncTask, count: int) -> int:
    self.ctx.sleep(1)
    return count + self.ctx.attempt


@app.task(echo=True)
async def echo_async(self: AsyncTask, count: int, *, flag: bool = False) -> int:
    await self.ctx.sleep(1)
    if count > 3:
        await self(count - 1)
    return count


@app.task(echo=True, name="echo rows")
def echo_rows(self: SyncTask, table: str) -> Generator[str, None, None]:
    yield self.ctx.task_name


@app.task(echo=True, name="echo pages", max_time=3)
async def echo_pages(self: AsyncTask, url: str) -> AsyncGenerator[bytes, None]:
    yield b""


@app.task(echo=True)
def echo_object(self: object, count: int) -> int:
    return count


def echoing() -> None:
    assert_type(echo(3), int)
    assert_type(echo_rows("t"), list[str])
    assert_type(echo_object(3), int)


async def echoing_async() -> None:
    assert_type(await echo_async(3, flag=True), int)
    assert_type(await echo_pages("u"), list[bytes])


@app.task(echo=True)
async def never(self: AsyncTask) -> int:
    self.ctx.plugin_error("low", shelf=3)


@app.task(echo=True)
def cancels(self: SyncTask) -> int:
    self.ctx.cancel("enough")


# --- what goes by the name of a task elsewhere -------------------------------------------------


def takes_a_task(task: SyncTask[[int], int], any_task: AsyncTask) -> None:
    assert_type(task(3), int)
    assert_type(task.task_func, TaskFunc)
    assert_type(task.name, str)
    takes_a_task(echo, echo_async)


def takes_a_function(function: Callable[[int], int]) -> None:
    takes_a_function(echo)


def executors(task_func: TaskFunc, message: TaskMessage) -> None:
    assert_type(TaskExecutor(price, args=("a",), kwargs={"currency": "EUR"}).execute_sync(), float)
    assert_type(TaskExecutor(task_func).execute_sync(), Any)
    assert_type(TaskExecutor(len).execute_sync(), int)
    TaskExecutor(task_func, message, plugins=[object()])
    TaskExecutor(len, plugins=app.plugins)
    executor = TaskExecutor(fetch, args=["u"])
    assert_type(executor.trail, Trail)
    assert_type(executor.trail[0], TrailRecord)
    assert_type(executor.attempt, int)
    assert_type(executor.max_attempts, int | None)
    assert_type(executor.args, tuple[Any, ...])


def starting() -> None:
    with app as it:
        assert_type(it, QueueTasks)


async def starting_async() -> None:
    async with QueueTasks("other", plugins=[object()], settings={"strict": True}) as it:
        assert_type(it, QueueTasks)
        assert_type(await TaskExecutor(fetch, args=("u",)).execute(), bytes)


def submitting() -> None:
    for handle in app.submit_many(price, ["a"]):
        print(assert_type(handle, TaskHandle[float]))
    later = price.with_options(delay=timedelta(minutes=1), priority=1, metadata={"request": 7})
    print(assert_type(later.submit("a"), TaskHandle[float]))
    assert_type(lines.submit("p").result(), list[str])
    assert_type(app.handle("id").result(timeout=timedelta(seconds=1)), Any)
    assert_type(app.tasks["price"], AsyncTask[..., Any] | SyncTask[..., Any])
    print(app.engine.native)


QueueTasks("fourth", intercept=Exception)
