"""What adapters over message servers share: waiting for them, and what they can take."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from qtasks_hookspecs import RunningTask
from qtasks_pluggy import TaskExecutor, TaskMessage
from qtasks_pluggy.engines import Attempt, Host, RunResult
from qtasks_pluggy.engines.native import HANDS_OVER, PLAIN, attempt_of, text_of, unstorable
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskCancelError

__all__ = ["HANDS_OVER", "PLAIN", "attempt_of", "text_of", "unstorable"]

# Seconds, the least and the most, between two looks whether a run has ended.
POLL: Final = (0.001, 0.02)


def wait_by_looking(
    look: Callable[[], RunResult | None], timeout: float | None
) -> RunResult | None:
    """Wait, blocking, for a run's stored end, which nobody announces.

    Args:
        look: Reads the end, if there is one.
        timeout: The most seconds to wait; None for no limit.

    Returns:
        The end; None when the time is over.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pause, most = POLL
    while (ended := look()) is None:
        left = most if end is None else end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, most)
    return ended


def trouble_within(seconds: float, ask: Callable[[], object]) -> BaseException | None:
    """Ask a server that may never answer.

    Args:
        seconds: The most seconds to wait for it.
        ask: Asks; left behind in its thread where the server says nothing.

    Returns:
        What was raised, ``TimeoutError`` for silence; None when all is well.
    """
    answer: Future[object] = Future()

    def tell() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  # told to whoever started the thread
            answer.set_exception(error)

    threading.Thread(target=tell, name="qtasks-pluggy-reach", daemon=True).start()
    try:
        return answer.exception(seconds)
    except TimeoutError:
        return TimeoutError(f"no answer within {seconds:g} seconds")


def unserializable(message: TaskMessage, serialize: Callable[[Any], object]) -> str | None:
    """Name the first argument that does not travel, by its place and type, not its value."""
    for place, value in (*enumerate(message.args, 1), *message.kwargs.items()):
        try:
            serialize(value)
        except Exception:  # noqa: BLE001  # whatever a value's own methods raise
            return f"argument {place!r}, a {type(value).__name__},"
    return None


def is_answered(run: RunningTask) -> bool:
    """Say whether a plugin has had a say in a run; if not, its result is the engine's affair."""
    return any(record.won for record in run.trail)


def in_the_middle(engine: str, task: str, priority: int, most: int) -> int:
    """Translate a priority for a broker that has those from 0 to ``most``: ours begin half-way.

    Raises:
        CapabilityError: The broker has not so many.
    """
    middle = (most + 1) // 2
    if not 0 <= middle + priority <= most:
        msg = (
            f"engine {engine!r}, task {task!r}: priority={priority}; this broker takes those from"
            f" {-middle} to {most - middle}"
        )
        raise CapabilityError(msg)
    return middle + priority


def cut_by(error: BaseException, engine: Host) -> Attempt:
    """Say what an error comes to that left an attempt.

    Args:
        error: It is raised again if it ends the worker.
        engine: It knows.
    """
    if isinstance(error, asyncio.CancelledError):
        return Attempt("cancel", TaskCancelError("the task was cancelled"))
    failure = error if isinstance(error, Exception) else engine.failure(error)
    if failure is None:
        raise error
    return Attempt("fail", failure)


def named(error: BaseException, engine: str) -> EngineError:
    """Name an error that is no ``Exception``, for those who wait: it would end them too.

    Args:
        error: ``SystemExit``, or a class of the user's own.
        engine: The engine's name.
    """
    failure = EngineError(f"engine {engine!r}: the task raised {text_of(error)}")
    failure.__cause__ = error
    return failure


def refuse_url(given: Any, engine: str, wanted: str) -> None:
    """Refuse a URL where an engine's own object is wanted.

    Raises:
        EngineError: It is a text.
    """
    if isinstance(given, str):
        scheme = given.partition("://")[0]
        msg = (
            f"engine {engine!r} takes {wanted}, got a URL, {scheme}://...; make one with its"
            " broker's URL, and give that: QueueTasks(engine=...)"
        )
        raise EngineError(msg)


def settled(executor: TaskExecutor, outcome: Attempt, settle: Callable[[Attempt], Any]) -> Any:
    """Carry out an outcome; a retry that cannot be sent is the end of its run.

    Args:
        executor: It made the attempt.
        outcome: The attempt's outcome.
        settle: Raises an ``EngineError`` for a retry that cannot be sent.
    """
    try:
        return settle(outcome)
    except EngineError as unsent:
        if outcome.action != "retry":
            raise
        return settle(executor.give_up_sync(unsent))
