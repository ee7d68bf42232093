"""Read by pyright, never run: what it has to find wrong; it says when it does not any more."""

# mypy: ignore-errors
# pyright: reportUnnecessaryTypeIgnoreComment=true, reportUnusedCoroutine=false

from collections.abc import Generator

from qtasks_hookspecs import DeadLetter, Raise, Replace, Retry, RunningTask, TaskMessage, when
from qtasks_pluggy import AsyncTask, QueueTasks, SyncTask, TaskExecutor

app = QueueTasks("shop")


@app.task
def price(sku: str, *, currency: str = "EUR") -> float:
    return 1.0


@app.task
async def fetch(url: str) -> bytes:
    return b""


@app.task
def rows(table: str) -> Generator[int, None, None]:
    yield 1


@app.task(echo=True)
def echo(self: SyncTask, count: int) -> int:
    return count


@app.task(echo=True)
async def echo_async(self: AsyncTask, count: int) -> int:
    return count


def calls() -> None:
    price(1)  # pyright: ignore[reportArgumentType]  # a number is no string
    price()  # pyright: ignore[reportCallIssue]  # sku is missing
    price("a", "EUR")  # pyright: ignore[reportCallIssue]  # currency is keyword-only
    price("a", curency="EUR")  # pyright: ignore[reportCallIssue]  # misspelt
    text: str = price("a")  # pyright: ignore[reportAssignmentType]  # it is a float
    one: int = rows("t")[0:1]  # pyright: ignore[reportAssignmentType]  # it is a list
    rows(1)  # pyright: ignore[reportArgumentType]  # a number is no string
    echo("three")  # pyright: ignore[reportArgumentType]  # text is no number
    echo(3, 4)  # pyright: ignore[reportCallIssue]  # the view is not an argument
    echo()  # pyright: ignore[reportCallIssue]  # count is missing
    fetch("u").decode()  # pyright: ignore[reportAttributeAccessIssue]  # not awaited
    print(text, one)


async def awaits() -> None:
    (await fetch("u")).encode()  # pyright: ignore[reportAttributeAccessIssue]  # it is bytes
    await fetch(b"u")  # pyright: ignore[reportArgumentType]  # bytes are no string
    await price("a")  # pyright: ignore[reportGeneralTypeIssues]  # a plain task
    await echo_async("three")  # pyright: ignore[reportArgumentType]  # text is no number


def options() -> None:
    app.task(priority="high")(len)  # pyright: ignore[reportArgumentType]  # a number is wanted
    app.task(intercept="ValueError")(len)  # pyright: ignore[reportArgumentType]  # a class is wanted
    QueueTasks("x", intercept=int)  # pyright: ignore[reportArgumentType]  # no exception
    QueueTasks("x", True)  # pyright: ignore[reportCallIssue]  # options are keywords
    QueueTasks("x", retries=3)  # pyright: ignore[reportCallIssue]  # no such option


def decisions() -> None:
    Retry("soon")  # pyright: ignore[reportArgumentType]  # seconds are a number
    Retry(limit=1.5)  # pyright: ignore[reportArgumentType]  # a whole number is wanted
    Raise(KeyboardInterrupt())  # pyright: ignore[reportArgumentType]  # no Exception
    Raise(ValueError)  # pyright: ignore[reportArgumentType]  # a class is no instance
    DeadLetter(3)  # pyright: ignore[reportArgumentType]  # a reason is text
    Replace()  # pyright: ignore[reportCallIssue]  # None has to be said
    Replace(1).value = 2  # pyright: ignore[reportAttributeAccessIssue]  # frozen
    when(error=3)  # pyright: ignore[reportArgumentType]  # a class or a name
    when("ValueError")  # pyright: ignore[reportCallIssue]  # conditions are keywords


def writes(run: RunningTask, message: TaskMessage, executor: TaskExecutor) -> None:
    run.args = ()  # pyright: ignore[reportAttributeAccessIssue]  # for reading
    run.kwargs["a"] = 1  # pyright: ignore[reportIndexIssue]  # for reading
    run.result = 1  # pyright: ignore[reportAttributeAccessIssue]  # for reading
    run.yielded.append(1)  # pyright: ignore[reportAttributeAccessIssue]  # for reading
    run.ctx.attempt = 2  # pyright: ignore[reportAttributeAccessIssue]  # for reading
    executor.attempt = 2  # pyright: ignore[reportAttributeAccessIssue]  # for reading
    message.name = "other"  # pyright: ignore[reportAttributeAccessIssue]  # frozen
    message.uuid = "other"  # pyright: ignore[reportAttributeAccessIssue]  # frozen
