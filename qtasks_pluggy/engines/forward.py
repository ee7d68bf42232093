"""An engine that executes the runs of a ``QueueTasks`` app; it builds on ``native.py``.

``Forward`` is ``Native`` the other way round: the plugins belong to the app, and the engine gets a
task of its own for each task of the app. Besides the methods of ``Native``, an engine implements:

==================  ============================================================================
``declare``         make a task of the engine's own
``send``            send a message to it, under the message's id; return a ticket
``read``            read a run's stored outcome, if it has one
``revoke``          drop a queued run, as far as the engine's own revoke promises
``reach``           raise if its server does not answer
==================  ============================================================================

``_errors.py`` says how errors travel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pickle import PickleError
from typing import Any, ClassVar, Final, TypeVar

from qtasks_pluggy import QueueTasks, TaskExecutor, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import (
    SYNC,
    Attempt,
    Backend,
    Host,
    LimitExceededError,
    RunResult,
    executor_for,
    load_plugins,
    pauses,
    run_to_completion,
    unwrap,
)
from qtasks_pluggy.engines._errors import (
    check_storable,
    named,
    pack_error,
    portable,
    text_of,
    unpack_error,
)
from qtasks_pluggy.engines.native import Native
from qtasks_pluggy.exc import CapabilityError, EngineError, QTasksError, TaskCancelError

__all__ = ["PATIENCE", "POLL", "Forward", "pack_error", "portable", "unpack_error"]

N = TypeVar("N")
# Seconds that a server has to answer when an app starts.
PATIENCE: Final = 8.0
# The shortest and the longest pause, in seconds, between two polls for a run's outcome.
POLL: Final = (0.001, 0.02)
# What reading raises for an outcome that nobody can read here, such as one of a missing class.
_UNREADABLE: Final = (AttributeError, ImportError, LookupError, PickleError, TypeError, ValueError)


class Forward(Native[N]):
    """An engine that executes the runs of an app.

    Args:
        given: The engine's own app.

    Attributes:
        worker: The command that starts a worker, as people type it.
        no_results: What to do if the engine stores no results.
    """

    worker: ClassVar[str]
    no_results: ClassVar[str] = "give it a result backend"

    # --- what an engine answers

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a task of the engine's own that calls ``begin_for_run`` and returns ``work(...)``.

        Raises:
            ValueError: The engine already has a task with this name.
        """
        raise NotImplementedError

    def read(self, ticket: Any) -> RunResult | None:
        """Read a run's stored outcome; return None before it has one."""
        raise NotImplementedError

    def revoke(self, ticket: Any, reason: str) -> bool:  # noqa: ARG002  # an engine's
        """Drop a queued run; by default, refuse.

        Returns:
            Whether the engine was asked to drop it.

        Raises:
            CapabilityError: The engine cannot take a message back.
        """
        msg = f"engine {self.name!r} cannot cancel a run, so it goes on"
        raise CapabilityError(msg)

    def reach(self) -> None:
        """Connect once; raise if the server cannot be used."""

    # --- what all engines share

    def __init__(self, given: Any) -> None:
        if isinstance(given, str):
            msg = (
                f"engine {self.name!r} takes a {self.kind.__name__} object, not a URL; create one"
                f" with {self.name} itself, and pass it: QueueTasks(engine=...)"
            )
            raise EngineError(msg)
        super().__init__(self.unwrap(given))
        self._declared: dict[str, Any] = {}

    @property
    def app_name(self) -> str:
        """The app's name."""
        return self.app.name

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's own tasks, one for each task of the app."""
        return self._declared

    def check(self) -> None:
        """Refuse a worker whose plugins do not load."""
        load_plugins(self.app)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Register a task with the engine, under its own name.

        Raises:
            EngineError: The engine has a task with this name, or belongs to another app.
        """
        self._belong_to(app)
        name = task_func.name
        try:
            self._declared[name] = self.declare(task_func)
        except ValueError as error:
            msg = f"engine {self.name!r}: task {name!r} of app {app.name!r}: {error}"
            raise EngineError(msg) from error

    def _belong_to(self, app: QueueTasks) -> None:
        if self._app is None:
            self._app = app
            self.cover()
        if self._app is not app:
            msg = (
                f"engine {self.name!r} already executes the runs of app {self.app_name!r};"
                " create one for each app"
            )
            raise EngineError(msg)

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Check that the server answers.

        Raises:
            EngineError: It does not, or workers were requested in this process.
        """
        if workers:
            msg = (
                f"engine {self.name!r}: app {app.name!r} cannot execute runs in this process; start"
                f" the engine's own command: {self.worker}"
            )
            raise EngineError(msg)
        self._belong_to(app)
        try:
            unwrap(run_to_completion(SYNC.thread(self.reach, PATIENCE)))
        except QTasksError:
            raise
        except Exception as error:
            late = isinstance(error, LimitExceededError)
            why = f"no answer within {PATIENCE:g} seconds" if late else text_of(error)
            who = f"engine {self.name!r}, app {app.name!r}"
            msg = f"{who}: {why}; start the server, or use another"
            raise EngineError(msg) from error

    def stop(self) -> None:
        """Do nothing: the connections belong to the engine's own app."""

    def result(self, ticket: Any, timeout: float | None) -> RunResult | None:
        """Wait for a run's stored outcome by polling.

        Raises:
            CapabilityError: The engine does not store results.
        """
        if not self.keeps(ticket):
            msg = (
                f"engine {self.name!r}, app {self.app.name!r}: it stores no results;"
                f" {self.no_results}"
            )
            raise CapabilityError(msg)
        waits = pauses(*POLL, timeout)
        while (ended := self._read(ticket)) is None and (pause := next(waits, None)) is not None:
            time.sleep(pause)
        return ended

    def _read(self, ticket: Any) -> RunResult | None:
        try:
            return self.read(ticket)
        except QTasksError:
            raise
        except Exception as error:
            failure = EngineError(
                f"engine {self.name!r}: a run's result cannot be read here: {text_of(error)}; check"
                " that the result backend runs, and import the classes of the results"
            )
            if isinstance(error, _UNREADABLE):
                return RunResult(TaskStatus.failed, error=failure)
            # A server may answer again.
            raise failure from error

    def keeps(self, ticket: Any) -> bool:  # noqa: ARG002  # an engine's
        """Return whether a run's outcome can be read; called for each look, so it must be fast."""
        return self.capabilities.results

    def status(self, ticket: Any) -> TaskStatus | None:
        """Return how a run ended; None before that."""
        ended = self._read(ticket) if self.keeps(ticket) else None
        return None if ended is None else ended.status

    def trail(self, ticket: Any) -> Trail | None:  # noqa: ARG002  # the seam's
        """Return None: the engine stores only results."""
        return None

    # --- one attempt, of a task of the app

    def _executor_for(self, run: Any, func: Any, message: TaskMessage) -> TaskExecutor:  # noqa: ARG002  # the app's task has it
        return executor_for(self.app, message)

    async def execute(self, executor: TaskExecutor, host: Host, backend: Backend) -> Attempt:
        """Make the attempt; in plain code, a cancellation ends the run, not the worker."""
        try:
            return await super().execute(executor, host, backend)
        except asyncio.CancelledError:
            if backend.on_loop:
                raise
            return Attempt("cancel", TaskCancelError("the task was cancelled"))

    def failure(self, error: BaseException) -> BaseException | None:
        """Wrap an error that is not an ``Exception``, because it would end the caller too."""
        return None if isinstance(error, self.ends_worker) else named(error, self.name)

    def check_result(self, task: str, value: Any) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: The result cannot be encoded.
        """
        check_storable(self, self._declared[task], f"the result of task {task!r}", value)
