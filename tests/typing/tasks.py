"""Read by the type checkers, never run: a task has its function's parameters and result.

A line that is wrong on purpose says so to both checkers, and both say when it is not.
"""

# pyright: enableTypeIgnoreComments=false, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, assert_type

from qtasks_hookspecs import TaskFunc, TaskMessage
from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor

app = QueueTasks("shop", intercept=(ValueError, OSError), max_retries=None)


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


@app.task(name="with options", priority=1, tags=("slow",), max_time=1.5, color="red")
def options(count: int) -> list[int]:
    return [count]


@app.task(intercept=ValueError, max_retries=2, description="fetches")
async def options_async(count: int) -> str:
    return str(count)


@app.task()
def rows_called(table: str) -> Generator[int, None, None]:
    yield 1


@app.task()
async def pages_called(url: str) -> AsyncGenerator[bytes, None]:
    yield b""


@app.task(echo=True)
def echo(self: SyncTask, count: int) -> int:
    return count + self.ctx.attempt


@app.task(echo=True)
async def echo_async(self: AsyncTask, count: int, *, flag: bool = False) -> int:
    await self.ctx.sleep(1)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]  # may be None in a def task
    return count


@app.task(echo=True, name="rows")
def echo_rows(self: SyncTask, table: str) -> Generator[str, None, None]:
    yield table


@app.task(echo=True, name="pages")
async def echo_pages(self: AsyncTask, url: str) -> AsyncGenerator[bytes, None]:
    yield b""


def kinds_and_results() -> None:
    assert_type(price("a", currency="USD"), float)
    assert_type(rows("t"), list[int])
    assert_type(options(3), list[int])
    assert_type(rows_called("t"), list[int])
    assert_type(echo(3), int)
    assert_type(echo_rows("t"), list[str])


async def kinds_and_results_async() -> None:
    assert_type(await fetch("u", retries=1), bytes)
    assert_type(await pages("u"), list[bytes])
    assert_type(await options_async(3), str)
    assert_type(await pages_called("u"), list[bytes])
    assert_type(await echo_async(3, flag=True), int)
    assert_type(await echo_pages("u"), list[bytes])
