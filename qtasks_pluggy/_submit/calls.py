"""Calling an engine's methods, plain or async, and waiting as the caller does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from inspect import iscoroutine, iscoroutinefunction
from typing import Any, Final

from qtasks_hookspecs import TaskMessage
from qtasks_hookspecs.exc import EngineError, QueueFullError
from qtasks_pluggy._submit.protocol import Engine, NoRoomError
from qtasks_pluggy._waiting import Backend, capture, unwrap

# Seconds, the least and the most, between two polls of async code for a run's end.
_POLL_SECONDS: Final = (0.002, 0.1)
# Seconds after which an event loop that is not running counts as stopped.
_REST_SECONDS: Final = 1.0
# Seconds that an engine has to stop after the wait for it was cancelled or interrupted.
_STOP_SECONDS: Final = 5.0
# The event loops that run only in the process that this one was forked from.
_left_behind: Final[set[asyncio.AbstractEventLoop]] = set()


async def enqueue(
    engine: Engine, backend: Backend, message: TaskMessage, delay: float | None
) -> Any:
    """Call an engine's ``submit``, and wait for it, and for room too.

    Raises:
        QueueFullError: It is full, and waiting here would never end.
    """
    try:
        if engine.blocking and backend.on_loop and not iscoroutinefunction(engine.submit):
            submit = partial(engine.submit, message, delay)
            return unwrap(await asyncio.to_thread(capture, submit))
        ticket = engine.submit(message, delay)
        return await wait_for(ticket, engine, backend, "submit") if iscoroutine(ticket) else ticket
    except NoRoomError as full:
        room = full.room
    return await wait_for(room, engine, backend, "room")


async def call_engine(engine: Engine, backend: Backend, method: str, /, *args: Any) -> Any:
    """Call an engine's method, plain or async, and wait for it.

    Raises:
        RuntimeError: The caller blocks the very event loop that the engine needs.
    """
    call = getattr(engine, method)
    if backend.on_loop and engine.blocking and not iscoroutinefunction(call):
        if method != "result":
            thread = asyncio.ensure_future(asyncio.to_thread(capture, partial(call, *args)))
            try:
                return unwrap(await asyncio.shield(thread))
            except asyncio.CancelledError:
                if method in {"start", "stop"}:
                    # It goes on in its thread: what was started must be stopped, and while runs
                    # end, the plugins that they ask must not be stopped.
                    await asyncio.wait(
                        {thread}, timeout=_STOP_SECONDS if method == "stop" else None
                    )
                    if method == "start" and thread.result()[1] is None:
                        await asyncio.to_thread(capture, engine.stop)
                raise
        # No thread waits: there are few of them, and the caller's other work needs them too.
        poll, waits = partial(call, args[0], 0), pauses(*_POLL_SECONDS)
        while (ended := unwrap(await asyncio.to_thread(capture, poll))) is None:
            await backend.sleep(next(waits))
        return ended
    thing = call(*args)
    if is_pending(thing):
        limit = args[1] if method == "result" else None
        return await wait_for(thing, engine, backend, method, limit)
    return thing


def pauses(shortest: float, longest: float, timeout: float | None = None) -> Iterator[float]:
    """Yield the seconds to pause between polls, each longer than the last, until a timeout is over.

    Args:
        shortest: The first pause.
        longest: The longest pause.
        timeout: The most seconds of all pauses; None for no limit.
    """
    # The time begins now, not with the first pause.
    return _pauses(shortest, longest, math.inf if timeout is None else time.monotonic() + timeout)


def _pauses(pause: float, longest: float, end: float) -> Iterator[float]:
    while (left := end - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.5, longest)


def is_pending(thing: Any) -> bool:
    """Return whether an engine's method returned something to wait for instead of its value."""
    return isinstance(thing, Future) or hasattr(type(thing), "__await__")


async def wait_for(
    thing: Any, engine: Engine, backend: Backend, method: str, limit: float | None = None
) -> Any:
    """Wait for what an engine's method returned.

    Raises:
        EngineError: The engine's event loop is not running, so waiting would never end.
        QueueFullError: It is room that is waited for, and waiting here would never end.
        RuntimeError: The caller blocks the very event loop that the engine needs.
    """
    if isinstance(thing, Future):
        return await _wait_for_future(thing, engine, backend, method, limit)
    loop = engine.loop
    if loop is None:
        return await backend.awaitable(thing)
    if is_here(loop):
        if backend.on_loop:
            return await thing
        thing.close()
        raise _deadlock_error(engine, method)
    try:
        await _check_running(loop, engine, backend, method, limit)
    except BaseException:
        thing.close()
        raise
    what = method if method == "stop" else "call"
    return await _wait_for_future(Elsewhere(thing, loop), engine, backend, what, None)


class Elsewhere(Future[Any]):
    """A coroutine on an event loop of another thread.

    Unlike that of ``run_coroutine_threadsafe``, it ends only when the coroutine has ended, also
    after ``cancel``.

    Args:
        thing: The coroutine.
        loop: The event loop.
    """

    def __init__(self, thing: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._loop = loop
        self._task: Any = None
        loop.call_soon_threadsafe(self._start, thing)

    def _start(self, thing: Coroutine[Any, Any, Any]) -> None:
        self._task = self._loop.create_task(thing)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        # Plain code that waits gets an ``Exception``, as from any other future.
        error = CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self.set_result(task.result())
        else:
            self.set_exception(error)

    def cancel(self) -> bool:
        """Cancel the coroutine, and return False, because it has not ended yet."""
        # Not before its first step, which it would never make.
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: self._loop.call_soon(self._task.cancel))
        return False


async def _wait_for_future(
    future: Future[Any], engine: Engine, backend: Backend, method: str, limit: float | None
) -> Any:
    shared = method == "result"  # others may wait for it too
    if backend.on_loop and not shared and method != "stop":
        return await asyncio.wrap_future(future)
    if backend.on_loop:
        try:
            await _until_done(future)
        except asyncio.CancelledError:
            if not shared and not future.cancel():
                # The plugins stop only after the engine, unless this is cancelled once more.
                with suppress(TimeoutError):
                    await asyncio.wait_for(_until_done(future), _STOP_SECONDS)
            raise
        try:
            return future.result()
        except CancelledError:
            # An ``Exception``, which no code on an event loop expects.
            raise asyncio.CancelledError from None
    if not future.done() and is_here(engine.loop):
        if not shared:
            future.cancel()
        raise _deadlock_error(engine, method)
    try:
        return future.result(limit)
    except TimeoutError:
        # The time is over, or the end came just now, or it is the engine's own error.
        return future.result() if future.done() else None
    except BaseException:
        if not shared and not future.cancel() and method == "stop":
            # The plugins stop only after the engine, unless this is interrupted once more.
            wait([future], _STOP_SECONDS)
        raise


async def _until_done(future: Future[Any]) -> None:
    """Wait on this event loop for a future that it leaves alone if the wait is cancelled.

    A shielded ``wrap_future`` does the same, and takes as long as a run even if the future's end
    comes from this very loop.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: object) -> None:
        if is_here(loop):
            done.set()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    await done.wait()


async def _check_running(
    loop: asyncio.AbstractEventLoop,
    engine: Engine,
    backend: Backend,
    method: str,
    limit: float | None,
) -> None:
    """Wait until a loop that rests between two calls of ``run_until_complete`` runs again."""
    if loop in _left_behind:
        msg = (
            f"engine {engine.name!r} is open in the process that this one was forked from, so"
            f" waiting for its {method} here would never end; start the app after the fork, or"
            " spawn the process"
        )
        raise EngineError(msg)
    rest = _REST_SECONDS if limit is None else min(limit, _REST_SECONDS)
    waits = pauses(*_POLL_SECONDS, rest)
    while not loop.is_running():
        if loop.is_closed() or (pause := next(waits, None)) is None:
            msg = (
                f"engine {engine.name!r} is open on an event loop that is not running, so waiting"
                f" for its {method} would never end; keep that loop running, or close the engine on"
                " it first"
            )
            raise EngineError(msg)
        await backend.sleep(pause)


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether an event loop runs in this process, in whatever thread."""
    return loop.is_running() and loop not in _left_behind


def leave_behind(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Note, in a forked process, an engine's event loop that ran at the fork; return whether so.

    It runs only in the parent. One that rested can run in either process.
    """
    if loop is None or not loop.is_running():
        return False
    _left_behind.add(loop)
    return True


# What does not block an event loop's thread, by what is waited for.
_INSTEAD: Final = {
    "result": "await the handle",
    "start": "use 'async with app:'",
    "stop": "use 'async with app:'",
}


def _deadlock_error(engine: Engine, method: str) -> Exception:
    hint = _INSTEAD.get(method, "use 'await task.submit_async(...)'")
    msg = (
        f"engine {engine.name!r} needs this thread's event loop, so waiting for its {method} here"
        f" would never end; {hint}"
    )
    return QueueFullError(msg) if method == "room" else RuntimeError(msg)


def is_here(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Return whether this thread is running an event loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
