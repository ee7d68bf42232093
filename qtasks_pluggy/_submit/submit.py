"""Handing runs to an app's engine, one or many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from qtasks_hookspecs import TaskMessage
from qtasks_hookspecs.exc import CapabilityError, EngineError, TaskNameError
from qtasks_pluggy._submit.calls import enqueue
from qtasks_pluggy._submit.handle import TaskHandle
from qtasks_pluggy._submit.protocol import SubmittingApp
from qtasks_pluggy._text import closest_match
from qtasks_pluggy._waiting import ASYNCIO, SYNC, Backend, run_to_completion

R_co = TypeVar("R_co", covariant=True)


async def submit(
    app: SubmittingApp, backend: Backend, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> TaskHandle[Any]:
    """Hand one run to the app's engine.

    Raises:
        CapabilityError: The engine cannot do what ``with_options`` asks for.
        EngineError: The app has no engine, or the engine failed.
        QueueFullError: It is full, and waiting for room would never end.
    """
    engine, func = app.engine, task.task_func
    if engine is None:
        msg = (
            f"app {app.name!r} has no engine, so task {func.name!r} cannot be submitted; give it"
            f" one, QueueTasks({app.name!r}, engine='memory://')"
        )
        raise EngineError(msg)
    if task.delay or func.priority:
        can, about = engine.capabilities, f"so task {func.name!r} cannot be submitted with"
        if task.delay and not can.delay:
            msg = f"engine {engine.name!r} cannot delay a run, {about} delay={task.delay}"
            raise CapabilityError(msg)
        if func.priority and not can.priority:
            msg = f"engine {engine.name!r} has no priorities, {about} priority={func.priority}"
            raise CapabilityError(msg)
    message = TaskMessage(func.name, args, kwargs, priority=func.priority, engine=engine.name)
    ticket = await enqueue(engine, backend, message, task.delay)
    return TaskHandle(engine, message, ticket)


class Submissions(Generic[R_co]):
    """The handles of many runs, each submitted when it is asked for.

    Args:
        app: The app.
        task: Its task.
        calls: The arguments of each run.
    """

    def __init__(self, app: SubmittingApp, task: Any, calls: Iterable[Any]) -> None:
        self._app = app
        self._task = task
        self._calls = iter(calls)

    def __iter__(self) -> Iterator[TaskHandle[R_co]]:
        """Submit from plain code."""
        for args, kwargs in map(_call_of, self._calls):
            yield run_to_completion(self._app.submit_on(SYNC, self._task, args, kwargs))

    async def __aiter__(self) -> AsyncIterator[TaskHandle[R_co]]:
        """Submit from async code."""
        for args, kwargs in map(_call_of, self._calls):
            yield await self._app.submit_on(ASYNCIO, self._task, args, kwargs)


def _call_of(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(call, tuple):
        return call, {}
    return ((), dict(call)) if isinstance(call, Mapping) else ((call,), {})


def unknown_task(app: SubmittingApp, name: str) -> TaskNameError:
    """Say that a message names a task that the app does not have."""
    hint = f"did you mean {closest_match(name, app.tasks)!r}?" if app.tasks else "it has none."
    msg = (
        f"app {app.name!r} has no task {name!r}; {hint} A worker must import every module that"
        " declares tasks, and run the same code as those who submit"
    )
    return TaskNameError(msg)
