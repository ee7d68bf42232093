"""Submitting runs to an app's engine, one or many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

import attrs

from qtasks_hookspecs import RunningApp, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import CapabilityError, EngineError, TaskNameError
from qtasks_pluggy._submit.calls import enqueue
from qtasks_pluggy._submit.handle import TaskHandle
from qtasks_pluggy._submit.protocol import Engine
from qtasks_pluggy._text import closest_match
from qtasks_pluggy._waiting import ASYNCIO, SYNC, Backend, run_to_completion

R_co = TypeVar("R_co", covariant=True)


@attrs.frozen(eq=False)
class SubmitOptions:
    """The options of ``with_options`` besides the priority.

    Attributes:
        delay: Seconds before a run may begin.
        metadata: What travels with it.
    """

    delay: float | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)


_NO_OPTIONS: Final = SubmitOptions()


async def submit(
    app: RunningApp,
    backend: Backend,
    func: TaskFunc,
    options: SubmitOptions | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> TaskHandle[Any]:
    """Submit one run to the app's engine.

    Raises:
        CapabilityError: The engine cannot do what ``with_options`` asks for.
        EngineError: The app has no engine, or the engine failed.
        QueueFullError: It is full, and waiting for room would never end.
    """
    engine: Engine | None = app.engine
    options = options or _NO_OPTIONS
    if engine is None:
        msg = (
            f"app {app.name!r} has no engine, so task {func.name!r} cannot be submitted; give it"
            f" one, QueueTasks({app.name!r}, engine='memory://')"
        )
        raise EngineError(msg)
    if options is not _NO_OPTIONS or func.priority:
        check_supported(engine, func, options)
    message = TaskMessage(
        func.name,
        args,
        kwargs,
        priority=func.priority,
        engine=engine.name,
        metadata=options.metadata,
    )
    ticket = await enqueue(engine, backend, message, options.delay)
    return TaskHandle(engine, message, ticket)


def check_supported(engine: Engine, func: TaskFunc, options: SubmitOptions = _NO_OPTIONS) -> None:
    """Refuse a task, or options for one run of it, that an engine cannot honour.

    Raises:
        CapabilityError: The engine cannot do what is asked for.
    """
    can, about = engine.capabilities, f"so task {func.name!r} cannot have"
    if options.delay and not can.delay:
        msg = f"engine {engine.name!r} cannot delay a run, {about} delay={options.delay}"
    elif func.priority and not can.priority:
        msg = f"engine {engine.name!r} has no priorities, {about} priority={func.priority}"
    elif options.metadata and not can.metadata:
        msg = f"engine {engine.name!r} carries no metadata, {about} metadata=; leave it out"
    else:
        return
    raise CapabilityError(msg)


class Submissions(Generic[R_co]):
    """The handles of many runs, each submitted when iteration reaches it."""

    def __init__(self, app: RunningApp, task: Any, calls: Iterable[Any]) -> None:
        self._app: Any = app
        self._task = task
        self._calls = iter(calls)

    def __iter__(self) -> Iterator[TaskHandle[R_co]]:
        """Submit from plain code."""
        for args, kwargs in map(_call_of, self._calls):
            submitting = self._app._submit(SYNC, self._task, args, kwargs)  # noqa: SLF001  # ours
            yield run_to_completion(submitting)

    async def __aiter__(self) -> AsyncIterator[TaskHandle[R_co]]:
        """Submit from async code."""
        for args, kwargs in map(_call_of, self._calls):
            yield await self._app._submit(ASYNCIO, self._task, args, kwargs)  # noqa: SLF001  # ours


def _call_of(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(call, tuple):
        return call, {}
    return ((), dict(call)) if isinstance(call, Mapping) else ((call,), {})


def unknown_task(app: RunningApp, name: str) -> TaskNameError:
    """Return the error for a message of a task that the app does not have."""
    hint = f"did you mean {closest_match(name, app.tasks)!r}?" if app.tasks else "it has none."
    msg = (
        f"app {app.name!r} has no task {name!r}; {hint} A worker must import every module that"
        " declares tasks, and run the same code as the processes that submit"
    )
    return TaskNameError(msg)
