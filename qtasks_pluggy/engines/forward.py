"""An engine behind a ``QueueTasks`` app: its runs, on the base of ``native.py``.

``Forward`` is ``Native`` turned round: the plugins are the app's, and the engine's tasks are made
of the app's. What an engine says besides the answers of ``Native``:

==================  ============================================================================
``declare``         make a task of the engine's own
``send``            send a message to it, under the message's id; give a ticket
``read``            read a run's stored end, if it has one
``revoke``          have a run dropped that waits: what the engine's own revoke promises
``reach``           raise where its server does not answer
==================  ============================================================================

How errors travel is written in ``_errors.py``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, ClassVar, Final, TypeVar

from qtasks_pluggy import QueueTasks, TaskExecutor, TaskFunc, TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import Attempt, Backend, RunResult, executor_for, load_plugins
from qtasks_pluggy.engines._errors import (
    check_storable,
    named,
    pack_error,
    portable,
    text_of,
    unpack_error,
)
from qtasks_pluggy.engines.native import Host, Native
from qtasks_pluggy.exc import (
    CapabilityError,
    EngineError,
    QTasksError,
    TaskCancelError,
)

__all__ = [
    "PATIENCE",
    "POLL",
    "Forward",
    "pack_error",
    "portable",
    "trouble_within",
    "unpack_error",
]

N = TypeVar("N")
# Seconds in which a server has to answer when an app starts.
PATIENCE: Final = 8.0
# Seconds, the least and the most, between two looks whether a run has ended.
POLL: Final = (0.001, 0.02)


class Forward(Native[N]):
    """An engine behind an app.

    Args:
        given: The engine's own app.

    Attributes:
        worker: The command that does the runs, for people.
    """

    worker: ClassVar[str]

    # --- what an engine says

    def declare(self, task_func: TaskFunc) -> Any:
        """Make a task of the engine's own, which calls ``begin_for_run``, and returns ``work``.

        Raises:
            ValueError: The engine has a task of this name.
        """
        raise NotImplementedError

    def read(self, ticket: Any) -> RunResult | None:
        """Read a run's stored end, if it has one."""
        raise NotImplementedError

    def revoke(self, ticket: Any, reason: str) -> bool:  # noqa: ARG002  # an engine's
        """Have a run dropped that waits.

        Returns:
            Whether the engine was asked.
        """
        return False

    def reach(self) -> None:
        """Connect once; raise where the server cannot be used."""

    # --- what all engines share

    def __init__(self, given: Any) -> None:
        if isinstance(given, str):
            scheme = given.partition("://")[0]
            kind = self.kind.__name__
            msg = (
                f"engine {self.name!r} takes a {kind} object, not a URL, {scheme}://...; make one"
                f" with {self.name} itself, and pass it: QueueTasks(engine=...)"
            )
            raise EngineError(msg)
        super().__init__(self.unwrap(given))
        self._owner: QueueTasks | None = None
        self._declared: dict[str, Any] = {}

    @property
    def app(self) -> QueueTasks:
        """The app that it is behind."""
        owner: Any = self._owner
        return owner  # type: ignore[no-any-return]  # there since the first task

    @property
    def app_name(self) -> str:
        """The app's name."""
        return self.app.name

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The engine's tasks that are made of the app's."""
        return self._declared

    def check(self) -> None:
        """Refuse a worker whose plugins do not load."""
        load_plugins(self.app)

    def register(self, app: QueueTasks, task_func: TaskFunc) -> None:
        """Make a task known to the engine, under its own name.

        Raises:
            EngineError: The engine has a task of this name, or this is behind another app.
        """
        self._belong_to(app)
        name = task_func.name
        try:
            self._declared[name] = self.declare(task_func)
        except ValueError as error:
            msg = f"engine {self.name!r}: task {name!r} of app {app.name!r}: {error}"
            raise EngineError(msg) from error

    def _belong_to(self, app: QueueTasks) -> None:
        if self._owner is None:
            self._owner = app
            self.cover()
        if self._owner is not app:
            msg = (
                f"engine {self.name!r} is behind app {self._owner.name!r} already; make one for"
                " each app"
            )
            raise EngineError(msg)

    def start(self, app: QueueTasks, workers: int | None) -> None:
        """Look whether the server answers.

        Raises:
            EngineError: It does not, or this process is to do runs.
        """
        if workers:
            msg = (
                f"engine {self.name!r}: app {app.name!r} is to do runs in this process, and the"
                f" engine's own command does them: {self.worker}"
            )
            raise EngineError(msg)
        self._belong_to(app)
        trouble = trouble_within(PATIENCE, self.reach)
        if isinstance(trouble, EngineError):
            raise trouble
        if trouble is not None:
            msg = f"engine {self.name!r}, app {app.name!r}: {trouble}; start it, or name another"
            raise EngineError(msg) from trouble

    def stop(self) -> None:
        """Do nothing: the connections are the engine's."""

    def result(self, ticket: Any, timeout: float | None) -> RunResult | None:
        """Wait for a run's stored end, which nobody announces.

        Raises:
            CapabilityError: The engine keeps no results.
        """
        if not self.keeps(ticket):
            msg = f"engine {self.name!r}, app {self.app.name!r}: {self.no_results()}"
            raise CapabilityError(msg)
        end = None if timeout is None else time.monotonic() + timeout
        pause, most = POLL
        while (ended := self._read(ticket)) is None:
            left = most if end is None else end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, most)
        return ended

    def _read(self, ticket: Any) -> RunResult | None:
        try:
            return self.read(ticket)
        except QTasksError:
            raise
        except OSError as error:
            msg = (
                f"engine {self.name!r}: its results failed: {text_of(error)}; look whether it runs"
            )
            raise EngineError(msg) from error
        except Exception as error:  # noqa: BLE001  # whatever reading what others wrote raises
            msg = (
                f"engine {self.name!r}: a run's end cannot be read here: {text_of(error)}; import"
                " what the worker's result is made of"
            )
            return RunResult(TaskStatus.failed, error=EngineError(msg))

    def keeps(self, ticket: Any) -> bool:  # noqa: ARG002  # an engine's
        """Say whether a run's end can be read."""
        return self.capabilities.results

    def no_results(self) -> str:
        """Say what to do where results are not kept."""
        return "it keeps no results; give it a result backend"

    def status(self, ticket: Any) -> TaskStatus | None:
        """Tell how a run ended; nothing of one that has not."""
        ended = self._read(ticket) if self.keeps(ticket) else None
        return None if ended is None else ended.status

    def trail(self, ticket: Any) -> Trail | None:  # noqa: ARG002  # the seam's
        """Say nothing: the engine keeps results, and no more."""
        return None

    # --- one attempt, of a task of the app

    def _executor_for(self, run: Any, func: Any, message: TaskMessage) -> TaskExecutor:  # noqa: ARG002  # the app's task has it
        return executor_for(self.app, message)

    async def execute(self, executor: TaskExecutor, host: Host, backend: Backend) -> Attempt:
        """Make the attempt; whatever leaves it ends the run, unless it ends the worker."""
        try:
            return await executor.execute_attempt(host, backend)
        except asyncio.CancelledError:
            if backend.on_loop:
                raise
            return Attempt("cancel", TaskCancelError("the task was cancelled"))
        except Exception as error:  # noqa: BLE001  # of the life of a run itself
            return Attempt("fail", error)

    def failure(self, error: BaseException) -> BaseException | None:
        """Name an error that is no ``Exception``, for those who wait: it would end them too."""
        return None if isinstance(error, self.ends_worker) else named(error, self.name)

    def check_result(self, task: str, value: Any) -> None:
        """Refuse a result that cannot be stored.

        Raises:
            EngineError: It cannot be encoded.
        """
        check_storable(self, self._declared[task], f"the result of task {task!r}", value)


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
