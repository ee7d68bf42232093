"""Calling a task's function: plain or async, returning or yielding, within its ``max_time``."""

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

    A generator's items go into ``items`` one by one, which is then the result. A ``StopIteration``
    is returned as ``Raised``.

    Raises:
        TaskTimeoutError: The task's ``max_time`` is over.
    """
    limit = func.max_time
    if func.is_async:
        running = _items_of(call(), items) if func.is_generator else call()
        if limit is not None:
            running = _within(running, limit, func)
        return await backend.awaitable(running)
    if func.is_generator:
        call = partial(_collect, call, items)
    try:
        if limit is not None:
            try:
                captured = await backend.thread(call, limit)
            except LimitExceededError:
                _log.event("warning", "task_abandoned", task=func.name, max_time=limit)
                raise _out_of_time(func) from None
            result = unwrap(captured)
        elif backend.function is not None:
            result = unwrap(await backend.function(call))
        else:
            result = call()
    except StopIteration as error:
        return Raised(error)
    # A decorator's plain function around an async one.
    return await backend.awaitable(result) if isinstance(result, CoroutineType) else result


def _out_of_time(func: TaskFunc) -> TaskTimeoutError:
    msg = f"task {func.name!r} took longer than its max_time of {func.max_time} seconds"
    return TaskTimeoutError(msg)


async def _within(running: Awaitable[Any], limit: float, func: TaskFunc) -> Any:
    """Wait for a task's function, for at most its ``max_time``."""
    failure: Exception | None = None
    try:
        async with asyncio.timeout(limit):
            try:
                return await running
            except Exception as error:  # noqa: BLE001  # raised below, outside of the limit
                failure = error
    except TimeoutError:
        raise _out_of_time(func) from None
    try:
        reraise(failure)
    finally:
        # A traceback holds this frame; this frame must not hold the error.
        del failure


def _collect(call: Callable[[], Iterable[Any]], items: list[Any]) -> list[Any]:
    for item in call():
        items.append(item)  # noqa: PERF402  # a failure keeps the items before it
    return items


async def _items_of(generator: AsyncIterable[Any], items: list[Any]) -> list[Any]:
    async for item in generator:
        items.append(item)  # noqa: PERF401  # a failure keeps the items before it
    return items
