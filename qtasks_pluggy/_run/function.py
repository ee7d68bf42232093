"""Calling a task's function: plain or async, returning or yielding, with a time limit or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from functools import partial
from types import CoroutineType
from typing import Any

from qtasks_hookspecs import TaskFunc
from qtasks_hookspecs.exc import TaskTimeoutError
from qtasks_pluggy import _log
from qtasks_pluggy._waiting import Backend, LimitExceededError, Raised, reraise, unwrap


async def call_function(
    func: TaskFunc, call: Callable[[], Any], items: list[Any], backend: Backend
) -> Any:
    """Call any function but a bare async one, which needs no help.

    Args:
        func: The task's definition.
        call: Its function, with the arguments.
        items: Where a generator's items go, each as soon as it is there.
        backend: How the caller waits.

    Returns:
        What the function returns; of a generator ``items``; ``Raised`` for a ``StopIteration``.

    Raises:
        TaskTimeoutError: The task's ``max_time`` is over.
    """
    limit = func.max_time
    if func.is_async:
        running = _items_of(call(), items) if func.is_generator else call()
        if limit is not None:
            running = _within(running, limit, func.name)
        return await backend.awaitable(running)
    if func.is_generator:
        call = partial(_collect, call, items)
    if limit is None:
        carried = await backend.function(call)
    else:
        try:
            carried = await backend.thread(call, limit)
        except LimitExceededError:
            _log.event("warning", "task_abandoned", task=func.name, max_time=limit)
            raise _out_of_time(func.name, limit) from None
    if isinstance(carried[1], StopIteration):
        return Raised(carried[1])
    result = unwrap(carried)
    # A plain function around an async one, as decorators make them.
    return await backend.awaitable(result) if isinstance(result, CoroutineType) else result


def _out_of_time(name: str, limit: float) -> TaskTimeoutError:
    return TaskTimeoutError(f"task {name!r} took longer than its max_time of {limit} seconds")


async def _within(running: Awaitable[Any], limit: float, name: str) -> Any:
    """Wait for a task's function, at most for its ``max_time``."""
    failure: Exception | None = None
    try:
        async with asyncio.timeout(limit):
            try:
                return await running
            except Exception as error:  # noqa: BLE001  # raised below, where it is not the limit's
                failure = error
    except TimeoutError:
        raise _out_of_time(name, limit) from None
    try:
        reraise(failure)
    finally:
        # A traceback holds this frame; this frame must not hold the error.
        del failure


def _collect(call: Callable[[], Iterable[Any]], items: list[Any]) -> list[Any]:
    for item in call():
        items.append(item)  # noqa: PERF402  # a failure must leave those before it
    return items


async def _items_of(generator: AsyncIterable[Any], items: list[Any]) -> list[Any]:
    async for item in generator:
        items.append(item)  # noqa: PERF401  # a failure must leave those before it
    return items
