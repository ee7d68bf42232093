"""The seam to engines: what carries the messages of submitted runs, as the app sees it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial
from inspect import iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import attrs

from qtasks_hookspecs import TaskFunc, TaskMessage
from qtasks_hookspecs.exc import QueueFullError
from qtasks_pluggy._outcome import Outcome, TaskStatus
from qtasks_pluggy._trail import Trail
from qtasks_pluggy._waiting import Waiting, carry, unpack

if TYPE_CHECKING:
    from qtasks_hookspecs import RunningTask
    from qtasks_pluggy._app import QueueTasks


@attrs.frozen(kw_only=True)
class Capabilities:
    """What an engine can do; what it cannot is refused, never done in another way.

    Attributes:
        delay: Run a message, or make another attempt, only after some seconds.
        dead_letter: Keep a run that was set aside, or hand it to the app.
        cancel_queued: Cancel a run that waits.
        results: Give the result to whoever submitted.
        at_least_once: Run a message again whose worker was killed.
        priority: Run messages of higher priority first.
        metadata: Carry a message's metadata.
    """

    delay: bool = False
    dead_letter: bool = False
    cancel_queued: bool = False
    results: bool = False
    at_least_once: bool = False
    priority: bool = False
    metadata: bool = False


class Host(Protocol):
    """As much of an engine as the executor of one of its runs looks at; see ``Engine``."""

    @property
    def name(self) -> str:
        """The engine's name."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    @property
    def control(self) -> tuple[type[Exception], ...]:
        """Its own exceptions, about which no plugin is asked."""
        ...

    def goes_on(self, error: BaseException) -> bool:
        """Say whether it runs the task again by itself after an attempt that ended in this."""
        ...

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that it cannot give to whoever waits."""
        ...


@runtime_checkable
class Engine(Protocol):
    """An adapter over one engine.

    ``start``, ``stop``, ``submit`` and ``result`` are written once, in the kind that suits the
    engine: plain or ``async def``; all but ``submit`` may return a ``concurrent.futures.Future``
    instead of what they give. Whoever calls them, on an event loop or not, waits in his own way.

    Attributes:
        name: The engine's name, as messages carry it.
        native: The engine's own object; None where there is none.
        capabilities: What it can do.
        control: Exceptions of the engine's own, by which a task tells it what to do: no plugin is
            asked about them.
        blocking: Whether its plain methods wait for something outside of this process, so that
            they must not be called on an event loop.
        loop: The event loop that its ``async def`` methods need; None if any will do.
    """

    name: str
    native: Any
    capabilities: Capabilities
    control: tuple[type[Exception], ...]
    blocking: bool
    loop: asyncio.AbstractEventLoop | None

    def goes_on(self, error: BaseException) -> bool:
        """Say whether it runs the task again by itself after an attempt that ended in this.

        Then the run has not ended, and the plugins are not told that it has.

        Args:
            error: One of ``control``, or an error about which no plugin had an opinion.
        """
        ...

    def check_result(self, run: RunningTask) -> None:
        """Refuse a result that it cannot give to whoever waits, in a worker, before the run ends.

        Args:
            run: The run, its ``result`` the function's or a plugin's answer.

        Raises:
            EngineError: It cannot; the run fails in this, and the plugins are told so.
        """
        ...

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Make a task known to the engine, under the task's own name.

        Its body, in a worker, makes a message of what the engine handed over, calls
        ``attempt_on`` or ``attempt_on_sync`` of ``app.executor_for(message)`` with the engine, and
        carries out the outcome.

        Args:
            app: The app that runs it.
            task_func: The task.

        Raises:
            CapabilityError: The engine cannot do what the task's declaration asks for.
        """
        ...

    def start(self, app: QueueTasks, workers: int | None) -> Any:
        """Get ready to submit; in an app that starts.

        Args:
            app: The app.
            workers: How many runs at a time this process is to do itself; None for the engine's
                own default, which for most engines is none: their own command does them.

        Raises:
            EngineError: The engine cannot be reached, or is set up in a way that loses runs.
        """
        ...

    def stop(self) -> Any:
        """Let go, in an app that stops; runs that this process does itself are finished first."""
        ...

    def submit(self, message: TaskMessage, delay: float | None) -> Any:
        """Hand over a message.

        Args:
            message: Its ``uuid`` is to be the engine's own id, where the engine lets us choose.
            delay: Seconds before it may run; None and 0 for at once.

        Returns:
            A ticket, by which the other methods know the run.

        Raises:
            EngineError: The engine cannot be reached.
            NoRoomError: It takes no more for now; the caller is to wait.
            QueueFullError: It takes no more, and waiting for room would never end.
        """
        ...

    def result(self, ticket: Any, timeout: float | None) -> Any:
        """Wait for a run's end.

        Args:
            ticket: What ``submit`` gave.
            timeout: The most seconds to wait; None for no limit.

        Returns:
            An ``Ended``; None when the time is over.

        Raises:
            CapabilityError: The engine keeps no results.
        """
        ...

    def status(self, ticket: Any) -> TaskStatus | None:
        """Tell how far a run is; None where that cannot be told."""
        ...

    def trail(self, ticket: Any) -> Trail | None:
        """Tell who was asked about a run's errors so far; None where that cannot be told."""
        ...

    def cancel(self, ticket: Any, reason: str) -> bool:
        """Ask for a run's cancellation.

        Returns:
            Whether it was asked.

        Raises:
            CapabilityError: The engine cannot.
        """
        ...

    def message(self, native: Any) -> TaskMessage:
        """Make a message of what the engine hands to a worker; what is not known is None."""
        ...

    def carry_out(self, outcome: Outcome, native: Any) -> Any:
        """Do in a worker what an attempt came to: return the result, or raise what says it.

        Args:
            outcome: The attempt's outcome.
            native: What the engine handed to the worker.
        """
        ...


class NoRoomError(QueueFullError):
    """An engine's ``submit`` takes no more for now.

    Args:
        room: Becomes the ticket, once there is room; cancelled, if the caller does not wait.
    """

    def __init__(self, room: Future[Any]) -> None:
        super().__init__("the queue is full")
        self.room = room


# Seconds, the least and the most, between two looks of async code whether a run has ended.
_LOOKS: Final = (0.002, 0.1)


async def hand_over(
    engine: Engine, waiting: Waiting, message: TaskMessage, delay: float | None
) -> Any:
    """Call an engine's ``submit``, and wait in the caller's way, for room too.

    Raises:
        QueueFullError: It is full, and waiting here would never end.
    """
    try:
        if engine.blocking and waiting.on_loop and not iscoroutinefunction(engine.submit):
            submit = partial(engine.submit, message, delay)
            return unpack(await asyncio.to_thread(carry, submit))
        ticket = engine.submit(message, delay)
        return await settle(ticket, engine, waiting, "submit") if iscoroutine(ticket) else ticket
    except NoRoomError as full:
        room = full.room
    return await settle(room, engine, waiting, "room")


async def reach(engine: Engine, waiting: Waiting, method: str, /, *args: Any) -> Any:
    """Call an engine's method of any kind, and wait for it in the caller's way.

    Raises:
        RuntimeError: The caller blocks the very event loop that the engine needs.
    """
    call = getattr(engine, method)
    if waiting.on_loop and engine.blocking and not iscoroutinefunction(call):
        if method != "result":
            thread = asyncio.ensure_future(asyncio.to_thread(carry, partial(call, *args)))
            try:
                return unpack(await asyncio.shield(thread))
            except asyncio.CancelledError:
                # A start goes on in its thread, and nobody would stop what has begun there.
                if method == "start" and (await asyncio.wait({thread}))[0]:
                    _, failure = thread.result()
                    if failure is None:
                        await asyncio.to_thread(carry, engine.stop)
                raise
        # No thread waits: there are few of them, and all else that the caller does needs them too.
        look, (pause, most) = partial(call, args[0], 0), _LOOKS
        while (ended := unpack(await asyncio.to_thread(carry, look))) is None:
            await waiting.sleep(pause)
            pause = min(pause * 1.5, most)
        return ended
    thing = call(*args)
    if has_to_be_waited_for(thing):
        limit = args[1] if method == "result" else None
        return await settle(thing, engine, waiting, method, limit)
    return thing


def has_to_be_waited_for(thing: Any) -> bool:
    """Say whether an engine's method gave something to wait for, instead of what it is to give."""
    return isinstance(thing, Future) or hasattr(type(thing), "__await__")


async def settle(
    thing: Any, engine: Engine, waiting: Waiting, method: str, limit: float | None = None
) -> Any:
    """Wait for what an engine's method gave, in the caller's way.

    Raises:
        QueueFullError: It is room that is waited for, and waiting here would never end.
        RuntimeError: The caller blocks the very event loop that the engine needs.
    """
    if isinstance(thing, Future):
        return await _wait_for(thing, engine, waiting, method, limit)
    loop = engine.loop
    if loop is None:
        return await waiting.awaitable(thing)
    if _is_here(loop):
        if waiting.on_loop:
            return await thing
        thing.close()
        raise _would_never_end(engine, method)
    future = asyncio.run_coroutine_threadsafe(thing, loop)
    return await _wait_for(future, engine, waiting, "call", None)


async def _wait_for(
    future: Future[Any], engine: Engine, waiting: Waiting, method: str, limit: float | None
) -> Any:
    shared = method == "result"  # others may wait for it too
    if waiting.on_loop:
        thing = asyncio.wrap_future(future)
        return await (asyncio.shield(thing) if shared else thing)
    if not future.done() and _is_here(engine.loop):
        if not shared:
            future.cancel()
        raise _would_never_end(engine, method)
    try:
        return future.result(limit)
    except TimeoutError:
        # The time is over; or the end came in that very moment, or it is the engine's own error.
        return future.result() if future.done() else None
    except BaseException:
        if not shared:
            future.cancel()
        raise


def _would_never_end(engine: Engine, method: str) -> Exception:
    if method == "room":
        msg = (
            f"engine {engine.name!r} takes no more for now, and this is its own event loop's"
            " thread, where waiting for room would never end; use 'await task.submit_async(...)'"
        )
        return QueueFullError(msg)
    msg = (
        f"engine {engine.name!r} needs this thread's event loop for {method}, so waiting for it"
        " here would never end; await the handle, or the async form of the call, instead"
    )
    return RuntimeError(msg)


def _is_here(loop: asyncio.AbstractEventLoop | None) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
