"""The four ways in which a run waits, once for code on an event loop and once for plain code.

The life of a run is one ``async def``. On an event loop its awaits suspend as usual. In plain
code none of them ever does: each of these methods has waited, in the calling thread, before it
returns, so that ``run_to_completion`` can step the whole life to its end with a single ``send``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

import attrs

T = TypeVar("T")

Captured: TypeAlias = list[Any]
"""A value and an error, one of them None. Errors cross threads, futures and coroutines as values:
a coroutine cannot raise ``StopIteration``, and a future that refuses it is waited for for ever. A
list, so that ``unwrap`` can empty it: no frame that carried an error must hold it."""


@attrs.frozen
class Raised:
    """A ``StopIteration`` on its way out of a coroutine."""

    error: StopIteration


class Backend(Protocol):
    """How a run waits."""

    on_loop: bool

    async def sleep(self, seconds: float) -> None:
        """Pause for some seconds."""

    async def awaitable(
        self,
        thing: Awaitable[T],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        """Wait for an awaitable.

        Raises:
            LimitExceededError: ``limit`` seconds are over; it was cancelled.
        """
        ...

    async def function(self, function: Callable[[], Any]) -> Captured:
        """Call the function of a plain task."""
        ...

    async def thread(
        self,
        function: Callable[[], Any],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> Captured:
        """Call a function that must not hold up the caller's thread, in a daemon thread.

        Raises:
            LimitExceededError: ``limit`` seconds are over; the thread is left behind.
        """
        ...

    def cancellations(self) -> int:
        """Count the cancellations that whoever waits here has met already."""
        ...

    def cancelled(self, met: int) -> bool:
        """Whether somebody asked for another cancellation than those that were ``met``."""
        ...


class LimitExceededError(Exception):
    """A time limit of ours has run out; never leaves the package.

    Args:
        left_behind: How it goes on, as the end of a sentence; empty where it does not.
    """

    def __init__(self, left_behind: str = "") -> None:
        super().__init__(left_behind)
        self.left_behind = left_behind


_IN_ITS_THREAD: Final = "; it was left behind in its thread"
_SWALLOWED: Final = "; it swallowed its cancellation and was left behind"
# Time for a cancelled coroutine to clean up; one that takes longer is left behind.
CANCEL_GRACE: Final = 0.1
# Seconds that a thread waits for async code at a time.
POLL_SECONDS: Final = 0.5


async def with_timeout(
    thing: Awaitable[T], limit: float, context: contextvars.Context | None = None
) -> T:
    """Wait for an awaitable in a task of its own, at most for some seconds."""
    task = asyncio.create_task(_await(thing), context=context)
    try:
        # Its first step comes before any timer: most hookimpls need no other.
        await asyncio.sleep(0)
        if task.done() or (await asyncio.wait({task}, timeout=limit))[0]:
            return task.result()
    except asyncio.CancelledError:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_GRACE)
        raise
    task.cancel()
    await asyncio.wait({task}, timeout=CANCEL_GRACE)
    # Looked at, whatever it comes to, so that asyncio does not complain.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    raise LimitExceededError("" if task.done() else _SWALLOWED)


async def _await(thing: Awaitable[T]) -> T:
    """Wait for any awaitable, as a coroutine of its own."""
    return await thing


def _close(thing: Any) -> None:
    """Close a coroutine that nobody will await; other awaitables need no closing."""
    with suppress(AttributeError):
        thing.close()


def capture(function: Callable[[], Any]) -> Captured:
    """Call a function; return its value or its error."""
    try:
        return [function(), None]
    except BaseException as error:  # noqa: BLE001  # unpacked, and raised, by whoever waits
        return [None, error]


def reraise(error: BaseException) -> NoReturn:
    """Raise an error that was caught before, its ``__context__`` untouched.

    Raising it while another one is being handled, by a caller far up, would set it.
    """
    context = error.__context__
    try:
        raise error
    finally:
        # Past the class's own __setattr__, which a frozen one has.
        vars(BaseException)["__context__"].__set__(error, context)
        # Else the error's traceback holds this frame, and this frame the error.
        del error, context


def unwrap(carried: Captured) -> Any:
    """Return the value that was carried, or raise the error."""
    value, error = carried
    carried.clear()
    if error is None:
        return value
    try:
        reraise(error)
    finally:
        del error, carried


def _adopt(context: contextvars.Context) -> None:
    """Bind here what was bound elsewhere, in a copy of this context: a run has one context."""
    for variable, value in context.items():
        # Ours say what the other thread is in the middle of.
        if not variable.name.startswith("qtasks_pluggy_") and variable.get(_UNBOUND) is not value:
            variable.set(value)


_UNBOUND: Final = object()


def _in_daemon_thread(
    function: Callable[[], Any], context: contextvars.Context, *, holds_the_loop: bool
) -> concurrent.futures.Future[Captured]:
    """Call a function in a thread of its own, in a context that nobody else is in."""
    future: concurrent.futures.Future[Captured] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    if holds_the_loop and background.in_loop_thread():
        # Plain code on that loop waits for this thread, so this thread cannot wait for the loop.
        context.run(_holds_the_loop.set, True)  # noqa: FBT003  # ContextVar's own signature

    def body() -> None:
        future.set_result(context.run(capture, function))

    threading.Thread(target=body, name="qtasks-pluggy-blocking", daemon=True).start()
    return future


def _is_no_loop_running() -> bool:
    """Say whether a run is stepped without a loop, for the last time."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class _OnLoop:
    on_loop = True

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def awaitable(
        self,
        thing: Awaitable[T],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        if limit is None or _is_no_loop_running():
            return await thing
        return await with_timeout(thing, limit, context)

    async def function(self, function: Callable[[], Any]) -> Captured:
        context = contextvars.copy_context()
        try:
            if self._needs_own_threads():
                thread = _in_daemon_thread(function, context, holds_the_loop=False)
                return await asyncio.wrap_future(thread)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, lambda: context.run(capture, function))
        finally:
            _adopt(context)

    async def thread(
        self,
        function: Callable[[], Any],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> Captured:
        elsewhere = contextvars.copy_context() if context is None else context
        future = asyncio.wrap_future(_in_daemon_thread(function, elsewhere, holds_the_loop=False))
        done, _ = await asyncio.wait({future}, timeout=limit)
        if context is None:
            _adopt(elsewhere)
        if not done:
            # So that the thread, when it ends, finds nobody to tell, were the loop closed by then.
            future.cancel()
            raise LimitExceededError(_IN_ITS_THREAD)
        return future.result()

    def _needs_own_threads(self) -> bool:
        # There plain code waits for async code that waits for plain code, and so on: a pool with
        # an end to it could be full of threads that wait for each other.
        return background.in_loop_thread()

    def cancellations(self) -> int:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # a run that is stepped without a loop, for the last time
            return 0
        asked_for = 0 if task is None else task.cancelling()
        # One that was asked for since the last suspension has not been met: the next one raises it.
        return asked_for and asked_for - getattr(task, "_must_cancel", False)

    def cancelled(self, met: int) -> bool:
        # Given a loop, asyncio does not look for the running one, for which it asks the system for
        # the process's id up to Python 3.11. A loop that has stopped has no current task.
        loop = _seen.loop
        task = None if loop is None else asyncio.current_task(loop)
        if task is None:
            _seen.loop = asyncio.get_running_loop()
            task = asyncio.current_task(_seen.loop)
        return task is not None and task.cancelling() > met


class _Seen(threading.local):
    """The event loop that was last seen running in this thread."""

    loop: asyncio.AbstractEventLoop | None = None


_seen: Final = _Seen()


class _OnEngineLoop(_OnLoop):
    """On an event loop, for an engine's runs, whose plain functions may wait for each other."""

    def _needs_own_threads(self) -> bool:
        return True


class _InThread:
    on_loop = False

    async def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, threading.TIMEOUT_MAX))  # noqa: ASYNC251  # this very class never suspends

    async def awaitable(
        self,
        thing: Awaitable[T],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        return background.run(thing, limit, context)

    async def function(self, function: Callable[[], Any]) -> Captured:
        return capture(function)

    async def thread(
        self,
        function: Callable[[], Any],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> Captured:
        elsewhere = contextvars.copy_context() if context is None else context
        try:
            return _in_daemon_thread(function, elsewhere, holds_the_loop=True).result(
                None if limit is None else min(limit, threading.TIMEOUT_MAX)
            )
        except concurrent.futures.TimeoutError:
            raise LimitExceededError(_IN_ITS_THREAD) from None
        finally:
            if context is None:
                _adopt(elsewhere)

    def cancellations(self) -> int:
        return 0

    def cancelled(self, met: int) -> bool:  # noqa: ARG002  # nobody cancels plain code
        return False


ASYNCIO: Final[Backend] = _OnLoop()
ASYNCIO_WORKER: Final[Backend] = _OnEngineLoop()
SYNC: Final[Backend] = _InThread()


def run_to_completion(life: Coroutine[Any, Any, T]) -> T:
    """Step a coroutine that waits by ``SYNC`` to its end, without an event loop."""
    try:
        life.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # what the coroutine returned
    life.close()
    msg = "qtasks_pluggy: a run in plain code suspended; every wait must go through _waiting"
    raise RuntimeError(msg)


class _BackgroundLoop:
    """One event loop for async code that plain code needs, in a thread of its own.

    Made on first use, and again in a process that was forked.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Begin anew, as in a forked process, which has the loop's state but not its thread."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(
        self,
        thing: Awaitable[T],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        """Wait for an awaitable that runs on this loop, in a context or a copy of the caller's.

        Raises:
            LimitExceededError: ``limit`` seconds are over; it was cancelled.
            RuntimeError: The caller is on the loop's own thread, where waiting would never end.
        """
        loop = self._started()
        if self.in_loop_thread() or _holds_the_loop.get():
            _close(thing)
            msg = (
                "qtasks_pluggy: plain code on the background event loop needs async code to be"
                " run, and waiting for it there would never end; in an async function use"
                " 'await task(...)' or 'await executor.execute()' of an async task instead"
            )
            raise RuntimeError(msg)
        future: concurrent.futures.Future[Captured] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        tasks: list[asyncio.Task[Captured]] = []

        async def body() -> Captured:
            try:
                return [await (thing if limit is None else with_timeout(thing, limit)), None]
            except BaseException as error:  # noqa: BLE001  # raised by whoever waits
                return [None, error]

        def end(task: asyncio.Task[Captured]) -> None:
            # Told when the task is over, not by the task: the process may end right after.
            future.set_result(
                [None, asyncio.CancelledError()] if task.cancelled() else task.result()
            )

        def start() -> None:
            task = loop.create_task(body(), context=elsewhere)
            task.add_done_callback(end)
            tasks.append(task)

        elsewhere = contextvars.copy_context() if context is None else context
        try:
            loop.call_soon_threadsafe(start)
            carried: Captured | None = None
            while carried is None:
                # What an engine raises in this thread, as for a time limit, waits for a wait's end.
                with suppress(concurrent.futures.TimeoutError):
                    carried = future.result(POLL_SECONDS)
        except BaseException:
            # Ctrl-C in the waiting thread: what it waited for must not go on unseen.
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            with suppress(Exception):
                future.result(CANCEL_GRACE)
            raise
        if context is None and limit is None:
            _adopt(elsewhere)
        return unwrap(carried)  # type: ignore[no-any-return]  # what the awaitable returned

    def in_loop_thread(self) -> bool:
        """Say whether the caller is on the loop's own thread."""
        return threading.current_thread() is self._thread

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run_for_ever, args=(loop,), name="qtasks-pluggy-loop", daemon=True
                )
                self._thread.start()
                self._loop = loop
            return self._loop


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # A task that ends in one of these stops a loop, though whoever awaits it is told as well.
        with suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


_holds_the_loop: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar(
    "qtasks_pluggy_holds_the_loop", default=False
)
background: Final = _BackgroundLoop()


def _after_fork() -> None:  # pragma: no cover  # in processes that are not measured
    background.reset_after_fork()
    # The parent's loop, which goes on in the parent alone.
    _seen.loop = None


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
