"""Retries for engines without retries: the same worker makes all attempts of a run."""

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
    """One run, through all its attempts.

    Attributes:
        attempt: The number of the current attempt, from 1.
    """

    attempt = 1

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the task's function; return its result, or its coroutine if it is async."""
        raise NotImplementedError


class _NextAttemptError(Exception):
    """Tells ``make_attempts`` to start the next attempt after ``delay`` seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"again in {delay:g} s")
        self.delay = delay


_current: Final[ContextVar[Run]] = ContextVar("qtasks_pluggy_run_in_place")


class InPlace(Native[N]):
    """An engine that calls a task only once: a run keeps its worker until its last attempt ends."""

    def retry(self, run: Run, attempt: Attempt, number: int) -> Any:
        """Return the exception that makes ``make_attempts`` start the next attempt."""
        run.attempt = number
        return _NextAttemptError(attempt.delay or 0)

    def make_attempts(self, run: Run, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a run's attempts, from plain code, and return its result.

        Args:
            run: The run.
            func: What ``calling`` returned for the task's function.
            args: The run's positional arguments.
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
        """Make a run's attempts, as ``make_attempts`` does, from async code."""
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
    """Return a function with the signature of a task's function that calls the current run.

    Args:
        func: The task's function.
        is_async: Whether ``Run.call`` returns a coroutine; None if it does when ``func`` is async.
    """

    @wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _current.get().call(args, kwargs)

    @wraps(func)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        """Call the current run, from async code."""
        return await _current.get().call(args, kwargs)

    is_async = iscoroutinefunction(func) if is_async is None else is_async
    return call_async if is_async else call
