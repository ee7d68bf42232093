"""The protocols of an engine's adapter, and of the app as the adapter sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

import attrs

from qtasks_hookspecs import RunningTask, TaskFunc, TaskMessage
from qtasks_hookspecs.exc import QueueFullError
from qtasks_pluggy._plugins.trail import Trail
from qtasks_pluggy._submit.outcome import TaskStatus


class EngineApp(Protocol):
    """What an adapter may read of the app whose runs it carries.

    In a worker it uses ``executor_for(app, message)`` and ``worker_lifespan(app)`` of
    ``qtasks_pluggy.engines`` besides.
    """

    @property
    def name(self) -> str:
        """The app's name."""
        ...

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Its tasks by name."""
        ...


@attrs.frozen(kw_only=True)
class Capabilities:
    """What an engine can do; anything else is refused, never emulated.

    Attributes:
        delay: Run a message, or make another attempt, only after some seconds.
        dead_letter: Keep a dead-lettered run, or hand it to the app.
        cancel_queued: Cancel a run that waits.
        results: Return the result to the code that submitted the run.
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
    """An engine as the executor of one of its runs sees it, in a worker."""

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
        """Its own exceptions, which tasks raise to control it; no plugin is asked about them."""
        ...

    def will_retry(self, error: BaseException) -> bool:
        """Return whether the engine itself runs the task again after this error.

        If so, the run has not ended, and the plugins' hooks for its end are not called.

        Args:
            error: One of ``control``, or an error about which no plugin had an opinion.
        """
        ...

    def failure(self, error: BaseException) -> BaseException | None:
        """Return the run's error after its task raised one that is not an ``Exception``.

        Args:
            error: ``SystemExit``, ``KeyboardInterrupt``, or a class of the user's own; no
                cancellation.

        Returns:
            The error that the caller and the plugins get; None to let the original one go on,
            because it ends the worker.
        """
        ...

    def check_answer(self, value: Any) -> None:
        """Refuse, in a worker, a plugin's answer that it cannot store.

        Args:
            value: The answer, of ``Replace`` its value.

        Raises:
            EngineError: It cannot; the plugin has failed, and its answer is void.
        """
        ...

    def check_result(self, run: RunningTask) -> None:
        """Refuse, in a worker before the run ends, a result that the engine cannot store.

        Args:
            run: The run, its ``result`` the function's or a plugin's answer.

        Raises:
            EngineError: It cannot; the run fails with this error.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """An adapter over one engine.

    ``start``, ``stop``, ``submit`` and ``result`` are written once, in the kind that suits the
    engine: plain or ``async def``; all but ``submit`` may return a ``concurrent.futures.Future``
    instead of what they give. The caller waits for them in its own way, on an event loop or not.

    Attributes:
        name: The engine's name, as messages carry it.
        native: The engine's own object; None if it has none.
        capabilities: What it can do.
        blocking: Whether its plain methods do I/O, so that they must not be called on an event
            loop.
        loop: The event loop that its ``async def`` methods need; None if any will do.
    """

    name: str
    native: Any
    capabilities: Capabilities
    blocking: bool
    loop: asyncio.AbstractEventLoop | None

    def register(self, app: EngineApp, task_func: TaskFunc) -> None:
        """Register a task with the engine, under the task's own name.

        Its body, in a worker, makes a message of what the engine delivered, calls
        ``execute_attempt`` or ``execute_attempt_sync`` of ``executor_for(app, message)`` with a
        ``Host``, and does what the ``Attempt`` says.

        Args:
            app: The app that runs it.
            task_func: The task.

        Raises:
            CapabilityError: The engine cannot do what the task's declaration asks for.
        """
        ...

    def start(self, app: EngineApp, workers: int | None) -> Any:
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
            A ``RunResult``; None when the time is over.

        Raises:
            CapabilityError: The engine keeps no results.
        """
        ...

    def status(self, ticket: Any) -> TaskStatus | None:
        """Return how far a run is; None if the engine does not know."""
        ...

    def trail(self, ticket: Any) -> Trail | None:
        """Return who was asked about a run's errors so far; None if the engine does not know."""
        ...

    def revoke(self, ticket: Any, reason: str) -> bool:
        """Ask for a run's cancellation.

        Returns:
            Whether it was asked.

        Raises:
            CapabilityError: The engine cannot.
        """
        ...


@runtime_checkable
class FindsRuns(Protocol):
    """An engine that keeps results, and finds a run by its id alone, in any process."""

    def ticket_for(self, uuid: str) -> Any:
        """Make the ticket of a submitted run, without asking the engine's server.

        Args:
            uuid: The run's id; perhaps of no run at all.
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
