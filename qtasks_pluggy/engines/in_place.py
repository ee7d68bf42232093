"""Retries for engines that have none: the next attempt is made where the last one failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, wraps
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar

from qtasks_pluggy.engines import Attempt
from qtasks_pluggy.engines.native import HANDS_OVER, Native

N = TypeVar("N")


class Run:
    """A run in all of its attempts.

    Attributes:
        attempt: The number of the attempt at work.
    """

    attempt = 1

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the task's function; give what it returns, of an async one a coroutine."""
        raise NotImplementedError


class _NextAttemptError(Exception):
    """An attempt has ended, and the next one begins after some seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"again in {delay:g} s")
        self.delay = delay


_current: Final[ContextVar[Run]] = ContextVar("qtasks_pluggy_run_in_place")


class InPlace(Native[N]):
    """An engine that calls a task once: a worker is busy with a run through all of its attempts."""

    def retry(self, run: Run, attempt: Attempt, number: int) -> Any:
        """Give what has the next attempt made."""
        run.attempt = number
        return _NextAttemptError(attempt.delay or 0)

    def make_attempts(self, run: Run, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a run's attempts in plain code.

        Args:
            run: It calls ``func``.
            func: What ``calling`` made of the task's function.
            args: The run's arguments.
            kwargs: Its keyword arguments.
        """
        token = _current.set(run)
        try:
            while True:
                try:
                    with HANDS_OVER:
                        return self.work(run, func, args, kwargs)
                except _NextAttemptError as again:
                    time.sleep(again.delay)
        finally:
            _current.reset(token)

    async def make_attempts_async(
        self, run: Run, func: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Make a run's attempts on this event loop, as ``make_attempts`` does."""
        token = _current.set(run)
        try:
            while True:
                try:
                    with HANDS_OVER:
                        return await self.work_async(run, func, args, kwargs)
                except _NextAttemptError as again:
                    await asyncio.sleep(again.delay)
        finally:
            _current.reset(token)


@lru_cache(maxsize=1024)
def calling(func: Callable[..., Any], *, is_async: bool | None = None) -> Callable[..., Any]:
    """Make what looks like a task's function, and has the run at work call it.

    Args:
        func: The function.
        is_async: Whether the run gives a coroutine; None where it does if the function does.
    """

    @wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _current.get().call(args, kwargs)

    @wraps(func)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        """Call it on an event loop."""
        return await _current.get().call(args, kwargs)

    is_async = iscoroutinefunction(func) if is_async is None else is_async
    return call_async if is_async else call
