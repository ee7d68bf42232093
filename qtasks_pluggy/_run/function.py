"""Calling a task's function: plain or async, returning or yielding, with a time limit or none."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from functools import partial
from types import CoroutineType
from typing import Any

from qtasks_hookspecs import TaskFunc
from qtasks_hookspecs.exc import TaskTimeoutError
from qtasks_pluggy import _log
from qtasks_pluggy._waiting import (
    CANCEL_GRACE,
    Backend,
    LimitExceededError,
    Raised,
    reraise,
    unwrap,
)


async def call_function(
    func: TaskFunc,
    call: Callable[[], Any],
    items: list[Any],
    backend: Backend,
    context: contextvars.Context | None,
) -> Any:
    """Call any function but a bare async one, which needs no help.

    Args:
        func: The task's definition.
        call: Its function, with the arguments.
        items: Where a generator's items go, each as soon as it is there.
        backend: How the caller waits.
        context: What it runs in; None for the caller's own.

    Returns:
        What the function returns; of a generator ``items``; ``Raised`` for a ``StopIteration``.

    Raises:
        TaskTimeoutError: The task's ``max_time`` is over.
    """
    limit = func.max_time
    if func.is_async:
        running = _items_of(call(), items) if func.is_generator else call()
        if limit is not None:
            running = _limited(running, limit, func.name)
        return await backend.awaitable(running, context=context)
    if func.is_generator:
        call = partial(_collect, call, items)
    if limit is None:
        carried = await backend.function(call, context)
    else:
        try:
            carried = await backend.thread(call, limit, context)
        except LimitExceededError:
            _log.event("warning", "task_abandoned", task=func.name, max_time=limit)
            raise _out_of_time(func.name, limit) from None
    if isinstance(carried[1], StopIteration):
        return Raised(carried[1])
    result = unwrap(carried)
    # A plain function around an async one, as decorators make them.
    if isinstance(result, CoroutineType):
        return await backend.awaitable(result, context=context)
    return result


def _out_of_time(name: str, limit: float) -> TaskTimeoutError:
    return TaskTimeoutError(f"task {name!r} took longer than its max_time of {limit} seconds")


async def _limited(running: Awaitable[Any], limit: float, name: str) -> Any:
    """Wait for a task's function, at most for its ``max_time``.

    It runs in an asyncio task of its own: what swallows its cancellation can be left behind there.
    """
    task = asyncio.ensure_future(running)
    # Looked at, whatever it comes to and whoever is still there, so that asyncio does not complain.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    error: BaseException | None = None
    try:
        cancelled = await _until_over(task, limit)
        in_time = task.done()
        if not in_time:
            await _cut(task, limit, name)
        if task.done() and not task.cancelled():
            error = task.exception()
        # Over is over, also for a function that caught its own cancellation and returned.
        if not in_time and (error is None or isinstance(error, Exception)):
            raise asyncio.CancelledError if cancelled else _out_of_time(name, limit) from error
        if error is not None:
            reraise(error)
        return task.result()
    finally:
        # A traceback holds this frame; this frame must not hold the error, nor the task that does.
        del task, error


async def _until_over(task: asyncio.Task[Any], limit: float) -> int:
    """Wait until a task or its time is over, and hand it every cancellation of the run.

    Returns:
        How many cancellations there were.
    """
    cancelled = 0
    clock = asyncio.get_running_loop().time
    end = clock() + limit
    while not task.done() and (left := end - clock()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:
            cancelled += 1
            # A loop that is shut down has cancelled both of them already: the function is told
            # once, as it would be if it were awaited right here, and can clean up.
            if task.cancelling() < cancelled:
                task.cancel()
    return cancelled


async def _cut(task: asyncio.Task[Any], limit: float, name: str) -> None:
    """Cancel a task whose time is over, and leave it behind if it does not end."""
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=CANCEL_GRACE)
    finally:
        if not task.done():
            _log.event("warning", "task_abandoned", task=name, max_time=limit)


def _collect(call: Callable[[], Iterable[Any]], items: list[Any]) -> list[Any]:
    for item in call():
        items.append(item)  # noqa: PERF402  # a failure must leave those before it
    return items


async def _items_of(generator: AsyncIterable[Any], items: list[Any]) -> list[Any]:
    async for item in generator:
        items.append(item)  # noqa: PERF401  # a failure must leave those before it
    return items
