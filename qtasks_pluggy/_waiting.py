"""How a run waits: one backend for code on an event loop, and one for plain code.

The life of a run is one ``async def``. On an event loop its awaits suspend as usual. In plain
code they never do: each method of the backend has waited, in the calling thread, before it
returns, so ``run_to_completion`` can step the whole life to its end with a single ``send``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

import attrs

from qtasks_pluggy._fork import after_fork

T = TypeVar("T")

Captured: TypeAlias = list[Any]
"""A value and an error, one of them None. Errors cross threads, futures and coroutines as values,
because a coroutine cannot raise ``StopIteration``, and a future refuses it, so its waiter would
wait forever. A list, so that ``unwrap`` can empty it: no frame may keep an error that it passed
on."""


@attrs.frozen
class Raised:
    """A ``StopIteration`` on its way out of a coroutine, which cannot raise it."""

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
            LimitExceededError: ``limit`` seconds have passed; the awaitable was cancelled.
        """
        ...

    @property
    def function(self) -> Callable[[Callable[[], Any]], Awaitable[Captured]] | None:
        """What calls the function of a plain task; None if nothing is needed."""

    async def thread(
        self,
        function: Callable[[], Any],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> Captured:
        """Call a function in a daemon thread, because it would block the caller's thread.

        Raises:
            LimitExceededError: ``limit`` seconds have passed; the thread keeps running.
        """
        ...

    def cancellations(self) -> int:
        """Return how many cancellations have reached the caller so far."""
        ...

    def cancelled(self, count: int) -> bool:
        """Return whether more than ``count`` cancellations were requested."""
        ...


class LimitExceededError(Exception):
    """One of our time limits has passed; this error never leaves the package.

    Args:
        left_behind: What still runs, as the end of a sentence; empty if nothing does.
    """

    def __init__(self, left_behind: str = "") -> None:
        super().__init__(left_behind)
        self.left_behind = left_behind


_IN_ITS_THREAD: Final = "; it was left behind in its thread"
_SWALLOWED: Final = "; it swallowed its cancellation and was left behind"
# Seconds for a cancelled coroutine to clean up; one that takes longer is left running.
CANCEL_GRACE: Final = 0.1
# Seconds between two checks of a thread that waits for async code.
POLL_SECONDS: Final = 0.5


async def with_timeout(
    thing: Awaitable[T], limit: float, context: contextvars.Context | None = None
) -> T:
    """Wait for an awaitable in a new task, for at most ``limit`` seconds.

    If the waiter is cancelled, and so is the awaitable, an error of the awaitable's clean-up is the
    ``__cause__`` of the cancellation.
    """
    task = asyncio.create_task(_await(thing), context=context)
    try:
        # The first step needs no timer, and most hookimpls need no other step.
        await asyncio.sleep(0)
        if task.done() or (await asyncio.wait({task}, timeout=limit))[0]:
            return task.result()
    except asyncio.CancelledError as cut:
        if not task.done():
            await _cancel(task)
            if task.done() and not task.cancelled():
                cut.__cause__ = task.exception()
        raise
    await _cancel(task)
    raise LimitExceededError("" if task.done() else _SWALLOWED)


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and give it a moment to clean up."""
    task.cancel()
    # Retrieves a late exception, so that asyncio does not log it.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.wait({task}, timeout=CANCEL_GRACE)


async def _await(thing: Awaitable[T]) -> T:
    """Turn any awaitable into a coroutine."""
    return await thing


def _close(thing: Any) -> None:
    """Close a coroutine that will never be awaited; other awaitables need no closing."""
    with suppress(AttributeError):
        thing.close()


def capture(function: Callable[[], Any]) -> Captured:
    """Call a function; return its value or its error."""
    try:
        return [function(), None]
    except BaseException as error:  # noqa: BLE001  # raised by the waiter
        return [None, error]


def reraise(error: BaseException) -> NoReturn:
    """Raise a caught error and keep its ``__context__``.

    A plain ``raise`` would change it if some caller is handling another error.
    """
    context = error.__context__
    try:
        raise error
    finally:
        # Bypasses the class's own __setattr__: it may be frozen.
        vars(BaseException)["__context__"].__set__(error, context)
        # Otherwise the error's traceback would hold this frame, and this frame the error.
        del error, context


def unwrap(captured: Captured) -> Any:
    """Return the captured value, or raise the captured error."""
    value, error = captured
    captured.clear()
    if error is None:
        return value
    try:
        reraise(error)
    finally:
        del error, captured


def _copy_back(context: contextvars.Context) -> None:
    """Copy context variables back from a copied context, because a run has only one context."""
    for variable, value in context.items():
        # Our own variables describe the other thread's work.
        if not variable.name.startswith("qtasks_pluggy_") and variable.get(_UNBOUND) is not value:
            variable.set(value)


_UNBOUND: Final = object()


def _in_daemon_thread(
    function: Callable[[], Any], context: contextvars.Context, *, holds_the_loop: bool
) -> concurrent.futures.Future[Captured]:
    """Call a function in a new thread, in the given context."""
    future: concurrent.futures.Future[Captured] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    if holds_the_loop and background.in_loop_thread():
        # The loop's plain code waits for this thread, so this thread must not wait for the loop.
        context.run(_holds_the_loop.set, True)  # noqa: FBT003  # ContextVar's own signature

    def body() -> None:
        future.set_result(context.run(capture, function))

    threading.Thread(target=body, name="qtasks-pluggy-blocking", daemon=True).start()
    return future


def _is_no_loop_running() -> bool:
    """Return whether no event loop runs; that happens when an unfinished run is disposed of."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class _OnLoop:
    on_loop = True

    def __init__(self, *, own_threads: bool) -> None:
        self._own_threads = own_threads

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
        """Call the function of a plain task, which would block the loop."""
        context = contextvars.copy_context()
        try:
            # Plain code that waits for async code that waits for plain code, and so on, could fill
            # a bounded pool with threads that wait for each other.
            if self._own_threads or background.in_loop_thread():
                thread = _in_daemon_thread(function, context, holds_the_loop=False)
                return await asyncio.wrap_future(thread)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, lambda: context.run(capture, function))
        finally:
            _copy_back(context)

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
            _copy_back(elsewhere)
        if not done:
            # Otherwise the thread might report its end to a closed loop.
            future.cancel()
            raise LimitExceededError(_IN_ITS_THREAD)
        return future.result()

    def cancellations(self) -> int:
        task = _current_task()
        requested = 0 if task is None else task.cancelling()
        # One requested since the last suspension is not counted: the next suspension raises it.
        return requested and requested - getattr(task, "_must_cancel", False)

    def cancelled(self, count: int) -> bool:
        task = _current_task()
        return task is not None and task.cancelling() > count


def _current_task() -> asyncio.Task[Any] | None:
    """Return the asyncio task that calls this, fast, because every run counts by it.

    None in a callback of the loop, and where no loop runs because a run is being disposed of.
    """
    # Passing a loop saves asyncio from looking up the running one; up to Python 3.11, that calls
    # getpid() each time. A loop that no longer runs has no current task.
    loop = _seen.loop
    task = None if loop is None else current_task(loop)
    if task is None:
        with suppress(RuntimeError):
            _seen.loop = asyncio.get_running_loop()
            task = current_task(_seen.loop)
    return task


class _Seen(threading.local):
    """The event loop that was last seen running in this thread."""

    loop: asyncio.AbstractEventLoop | None = None


_seen: Final = _Seen()


class _InThread:
    on_loop = False
    function = None

    async def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, threading.TIMEOUT_MAX))  # noqa: ASYNC251  # this very class never suspends

    async def awaitable(
        self,
        thing: Awaitable[T],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        return background.run(thing, limit, context)

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
                _copy_back(elsewhere)

    def cancellations(self) -> int:
        return 0

    def cancelled(self, count: int) -> bool:  # noqa: ARG002  # nobody cancels plain code
        return False


ASYNCIO: Final[Backend] = _OnLoop(own_threads=False)
# For an engine's runs, whose plain functions may wait for each other.
ASYNCIO_WORKER: Final[Backend] = _OnLoop(own_threads=True)
SYNC: Final[Backend] = _InThread()


def run_to_completion(life: Coroutine[Any, Any, T]) -> T:
    """Step a coroutine that waits with ``SYNC`` to its end, without an event loop."""
    try:
        life.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # what the coroutine returned
    life.close()
    msg = "qtasks_pluggy: a run in plain code suspended; every wait must go through _waiting"
    raise RuntimeError(msg)


class _BackgroundLoop:
    """An event loop in a separate thread, for async code that plain code calls.

    Created on first use, and again in a forked process.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Reset in a forked process, which has the loop's state but not its thread."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(
        self,
        thing: Awaitable[T],
        limit: float | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        """Wait for an awaitable that runs on this loop, in ``context`` or a copy of the caller's.

        Raises:
            LimitExceededError: ``limit`` seconds have passed; the awaitable was cancelled.
            RuntimeError: The caller is on the loop's own thread, where waiting would never end.
        """
        loop = self._started()
        self._refuse_to_wait_for_itself(thing)
        future: concurrent.futures.Future[Captured] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        tasks: list[asyncio.Task[Captured]] = []

        async def body() -> Captured:
            try:
                return [await (thing if limit is None else with_timeout(thing, limit)), None]
            except BaseException as error:  # noqa: BLE001  # raised by the waiter
                return [None, error]

        def end(task: asyncio.Task[Captured]) -> None:
            # Set after the task is done, not by the task: the process may end right afterwards.
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
            captured: Captured | None = None
            while captured is None:
                # An engine's own time limit can raise in this thread only between two waits.
                with suppress(concurrent.futures.TimeoutError):
                    captured = future.result(POLL_SECONDS)
        except BaseException:
            # Such as Ctrl-C in the waiting thread: the task must not go on unseen.
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            with suppress(Exception):
                future.result(CANCEL_GRACE)
            raise
        if context is None and limit is None:
            _copy_back(elsewhere)
        return unwrap(captured)  # type: ignore[no-any-return]  # what the awaitable returned

    def _refuse_to_wait_for_itself(self, thing: Awaitable[Any]) -> None:
        """Raise a ``RuntimeError`` if waiting for this loop would never end."""
        if self.in_loop_thread() or _holds_the_loop.get():
            _close(thing)
            msg = (
                "qtasks_pluggy: plain code on the background event loop called async code, and"
                " waiting for it there would never end; in an async function use"
                " 'await task(...)' or 'await executor.execute()' of an async task instead"
            )
            raise RuntimeError(msg)

    def in_loop_thread(self) -> bool:
        """Return whether the caller is on the loop's own thread."""
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
        # A task that raises one of these also stops the loop, so run the loop again.
        with suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


_holds_the_loop: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar(
    "qtasks_pluggy_holds_the_loop", default=False
)
background: Final = _BackgroundLoop()


def _reset_after_fork() -> None:  # pragma: no cover  # in processes that are not measured
    background.reset_after_fork()
    _seen.loop = None


after_fork(_reset_after_fork)
