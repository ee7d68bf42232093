"""What ``submit`` returns: a handle on the run."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qtasks_hookspecs import TaskMessage
from qtasks_hookspecs._decisions import check_seconds
from qtasks_pluggy._plugins.trail import Trail
from qtasks_pluggy._submit.calls import call_engine
from qtasks_pluggy._submit.outcome import RunResult, TaskStatus
from qtasks_pluggy._submit.protocol import Engine
from qtasks_pluggy._waiting import ASYNCIO, SYNC, Backend, Raised, reraise, run_to_completion

if TYPE_CHECKING:
    from uuid import UUID

R_co = TypeVar("R_co", covariant=True)


class TaskHandle(Generic[R_co]):
    """A run that was submitted.

    Args:
        engine: What carries it.
        message: What was submitted.
        ticket: What the engine knows the run by.
    """

    __slots__ = ("__weakref__", "_ended", "_engine", "_message", "_ticket", "_traceback")

    def __init__(self, engine: Engine, message: TaskMessage, ticket: Any) -> None:
        self._engine = engine
        self._message = message
        self._ticket = ticket
        self._ended: RunResult | None = None
        self._traceback: TracebackType | None = None

    @property
    def uuid(self) -> UUID | str:
        """The run's id."""
        return self._message.uuid

    @property
    def task_name(self) -> str | None:
        """The task's name; None if only the run's id is known, as after ``app.handle(uuid)``."""
        return self._message.name or None

    @property
    def _run(self) -> str:
        """The run as errors name it."""
        task = self.task_name
        return f"run {self.uuid}" if task is None else f"run {self.uuid} of task {task!r}"

    @property
    def ticket(self) -> Any:
        """The engine's own result or message for the run, if it has one."""
        return self._ticket

    @property
    def status(self) -> TaskStatus | None:
        """How far the run is; None if the engine does not know."""
        if self._ended is not None:
            return self._ended.status
        return self._engine.status(self._ticket)

    @property
    def trail(self) -> Trail | None:
        """Who was asked about the run's errors; None if the engine cannot carry the trail."""
        if self._ended is not None and self._ended.trail is not None:
            return self._ended.trail
        return self._engine.trail(self._ticket)

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the run's end, blocking.

        Args:
            timeout: The most seconds to wait, or a ``timedelta``; None for no limit.

        Returns:
            The function's result, or what the plugins made of its error.

        Raises:
            CapabilityError: The engine keeps no results.
            EngineError: The engine failed.
            RuntimeError: The run, or its result, needs this thread's event loop.
            TypeError: ``timeout`` is not a number.
            ValueError: ``timeout`` is negative, or not a number of seconds.
            TimeoutError: The time is up; the run goes on.
        """
        limit = None if timeout is None else check_seconds(timeout, "result(timeout=...)")
        result = run_to_completion(self._wait(SYNC, limit))
        if type(result) is Raised:
            raise result.error
        return result  # type: ignore[no-any-return]  # the function's

    def __await__(self) -> Generator[Any, Any, R_co]:
        """Wait for the run's end, as ``result()`` does, without blocking."""
        return self._wait(ASYNCIO, None).__await__()

    def cancel(self, reason: str = "") -> bool:
        """Request the run's cancellation; blocking if the engine is a server.

        Args:
            reason: Why; the text of the ``TaskCancelError`` that the run ends in.

        Returns:
            Whether it was requested; False if the run has ended or can no longer be cancelled.

        Raises:
            CapabilityError: The engine cannot cancel.
            TypeError: ``reason`` is not a string.
        """
        if not isinstance(reason, str):
            msg = (
                f"cancel(reason=...) of {self._run}: expected a string, got"
                f" {type(reason).__name__}; leave it out if there is none"
            )
            raise TypeError(msg)
        return self._ended is None and self._engine.revoke(self._ticket, reason)

    async def _wait(self, backend: Backend, limit: float | None) -> Any:
        ended = self._ended
        if ended is None:
            ended = await call_engine(self._engine, backend, "result", self._ticket, limit)
            # Another waiter may have set it by now; on a timeout there is nothing to set.
            if ended is not None and self._ended is None:
                if ended.error is not None:
                    self._traceback = ended.error.__traceback__
                self._ended = ended
            ended = self._ended
        if ended is None:
            msg = f"{self._run} has no end after {limit} seconds; it goes on"
            raise TimeoutError(msg)
        if isinstance(ended.error, StopIteration) and not backend.on_loop:
            return Raised(ended.error)
        if ended.error is not None:
            # The run's own, as futures do: else each waiter would add its frames for the next.
            reraise(ended.error.with_traceback(self._traceback))
        return ended.result

    def __repr__(self) -> str:
        """Show the task and the run's id; no result, which may be a secret."""
        return f"<TaskHandle of {self._run}>"
