"""Read by mypy, never run: what it has to find wrong; it says when it does not any more."""

# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportUnusedCoroutine=false, reportUnusedExpression=false

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
    price(1)  # type: ignore[arg-type]  # a number is no string
    price()  # type: ignore[call-arg]  # sku is missing
    price("a", "EUR")  # type: ignore[call-arg]  # currency is keyword-only
    price("a", curency="EUR")  # type: ignore[call-arg]  # misspelt
    text: str = price("a")  # type: ignore[assignment]  # it is a float
    one: int = rows("t")[0:1]  # type: ignore[assignment]  # it is a list
    rows(1)  # type: ignore[arg-type]  # a number is no string
    echo("three")  # type: ignore[arg-type]  # text is no number
    echo(3, 4)  # type: ignore[call-arg]  # the view is not an argument
    echo()  # type: ignore[call-arg]  # count is missing
    fetch("u").decode()  # type: ignore[attr-defined]  # not awaited
    print(text, one)


async def awaits() -> None:
    (await fetch("u")).encode()  # type: ignore[attr-defined]  # it is bytes
    await fetch(b"u")  # type: ignore[arg-type]  # bytes are no string
    await price("a")  # type: ignore[misc]  # a plain task
    await echo_async("three")  # type: ignore[arg-type]  # text is no number


def options() -> None:
    app.task(priority="high")(len)  # type: ignore[call-overload]  # a number is wanted
    app.task(intercept="ValueError")(len)  # type: ignore[arg-type]  # a class is wanted
    QueueTasks("x", intercept=int)  # type: ignore[arg-type]  # no exception
    QueueTasks("x", True)  # type: ignore[call-arg]  # options are keywords
    QueueTasks("x", retries=3)  # type: ignore[call-arg]  # no such option


def decisions() -> None:
    Retry("soon")  # type: ignore[arg-type]  # seconds are a number
    Retry(limit=1.5)  # type: ignore[arg-type]  # a whole number is wanted
    Raise(KeyboardInterrupt())  # type: ignore[arg-type]  # no Exception
    Raise(ValueError)  # type: ignore[arg-type]  # a class is no instance
    DeadLetter(3)  # type: ignore[arg-type]  # a reason is text
    Replace()  # type: ignore[call-arg]  # None has to be said
    Replace(1).value = 2  # type: ignore[misc]  # frozen
    when(error=3)  # type: ignore[arg-type]  # a class or a name
    when("ValueError")  # type: ignore[call-arg]  # conditions are keywords


def writes(run: RunningTask, message: TaskMessage, executor: TaskExecutor) -> None:
    run.args = ()  # type: ignore[misc]  # for reading
    run.kwargs["a"] = 1  # type: ignore[index]  # for reading
    run.result = 1  # type: ignore[misc]  # for reading
    run.yielded.append(1)  # type: ignore[attr-defined]  # for reading
    run.ctx.attempt = 2  # type: ignore[misc]  # for reading
    executor.attempt = 2  # type: ignore[misc]  # for reading
    message.name = "other"  # type: ignore[misc]  # frozen
    message.uuid = "other"  # type: ignore[misc]  # frozen
