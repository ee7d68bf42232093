"""What the tests of a run vary: the kind of function, the way to run it, and a plugin or two."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qtasks_hookspecs import TaskFunc, hookimpl
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import PluginError, PluginRegistrationError

KINDS = ("function", "coroutine", "generator", "async generator")


def function_of(kind: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """Make a task's function of some kind; a generator yields 1 and 2 before it calls the body."""

    def function(*args: Any, **kwargs: Any) -> Any:
        return body(*args, **kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return body(*args, **kwargs)

    def generator(*args: Any, **kwargs: Any) -> Any:
        yield from (1, 2)
        body(*args, **kwargs)

    async def async_generator(*args: Any, **kwargs: Any) -> Any:
        for item in (1, 2):
            await asyncio.sleep(0)
            yield item
        body(*args, **kwargs)

    return dict(zip(KINDS, (function, coroutine, generator, async_generator), strict=True))[kind]


def failing(kind: str, error: BaseException) -> Callable[..., Any]:
    """Make a task's function of some kind that raises this very error."""

    def body(*_: Any, **__: Any) -> None:
        raise error

    return function_of(kind, body)


@contextlib.contextmanager
def endless(kind: str, **options: Any) -> Iterator[TaskFunc]:
    """Make a task of some kind that goes on until the end of the ``with``."""
    release = threading.Event()

    def function() -> None:
        release.wait(60)

    async def coroutine() -> None:
        await asyncio.Event().wait()

    def generator() -> Any:
        yield from (1, 2)
        release.wait(60)

    async def async_generator() -> Any:
        yield 1
        yield 2
        await asyncio.Event().wait()

    made = dict(zip(KINDS, (function, coroutine, generator, async_generator), strict=True))
    try:
        yield TaskFunc("endless", made[kind], **options)
    finally:
        release.set()


def run_sync(executor: TaskExecutor) -> Any:
    """Run from plain code."""
    return executor.execute_sync()


def run_async(executor: TaskExecutor) -> Any:
    """Run from async code."""

    async def main() -> Any:
        return await executor.execute()

    return asyncio.run(main())


every_kind = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("run", [run_sync, run_async], ids=["execute_sync", "execute"])


def plugin(name: str, /, **hookimpls: Callable[..., Any]) -> Any:
    """Make a plugin of plain functions, by the names of their hooks."""
    marked = {hook: hookimpl(function) for hook, function in hookimpls.items()}
    return SimpleNamespace(name=name, **marked)


def answering(value: Any, name: str = "answering") -> Any:
    """Make a plugin that has the same answer to every error."""
    return plugin(name, task_executor_run_task_trigger_error=lambda: value)


class Listener:
    """A plugin without opinions that keeps what it hears."""

    def __init__(self, name: str = "listener") -> None:
        self.name = name
        self.heard: list[tuple[str, Any]] = []

    @property
    def asked(self) -> list[Any]:
        """The errors that plugins were asked about."""
        return [what for when, what in self.heard if when == "asked"]

    @property
    def failed(self) -> list[Any]:
        """The final failures."""
        return [what for when, what in self.heard if when == "failed"]

    @property
    def closed(self) -> list[Any]:
        """The runs that are over."""
        return [what for when, what in self.heard if when == "closed"]

    @hookimpl
    def task_executor_run_task_trigger_error(self, e: Any) -> None:
        self.heard.append(("asked", e))

    @hookimpl
    def task_executor_task_failed(self, e: Any) -> None:
        self.heard.append(("failed", e))

    @hookimpl
    def task_executor_task_close(self, task_executor: Any) -> None:
        self.heard.append(("closed", task_executor))


def registration_error(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the error of a call that finds faults of plugins."""
    with pytest.raises(PluginRegistrationError) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, PluginError)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value
