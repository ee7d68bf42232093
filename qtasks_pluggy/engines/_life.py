"""The life of an engine's plugins in the processes of its workers."""

from __future__ import annotations

import logging
from operator import methodcaller
from typing import Any, ClassVar, Final

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import (
    ASYNCIO_WORKER,
    SYNC,
    Backend,
    is_started,
    load_plugins,
    lock_of,
    log_event,
    run_to_completion,
    told_of_forks,
    worker_lifespan,
)
from qtasks_pluggy.exc import EngineError


class InWorkers:
    """Starts the plugins with a process's first worker, and stops them after its last one.

    Attributes:
        name: The engine's name.
        hint: What to do when ``install`` covers no task.
    """

    name: ClassVar[str]
    hint: ClassVar[str] = "import the modules that declare them before the worker starts"

    def __init__(self) -> None:
        self._lock = lock_of(self)
        self._app: Any = None
        self._lifespan: Any = None
        self._workers = 0
        _everybody.add(self)

    @property
    def app(self) -> QueueTasks:
        """The app that holds the plugins."""
        return self._app  # type: ignore[no-any-return]  # there before the first task

    @property
    def app_name(self) -> str:
        """The name of that app."""
        return self.name

    def count(self) -> int:
        """Count the covered tasks."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse a worker that covers no task, or whose plugins do not load.

        Raises:
            EngineError: No task is covered.
            PluginRegistrationError: The installed plugins have faults.
            SettingsError: The settings have faults.
        """
        if not self.count():
            msg = f"engine {self.name!r}, {self.app.name}: install() covers no task; {self.hint}"
            raise EngineError(msg)
        load_plugins(self.app)

    @property
    def is_begun(self) -> bool:
        """Whether the plugins are started in this process."""
        return self._lifespan is not None

    def begin(self) -> None:
        """Start the plugins in this process, for one of its workers.

        Raises:
            BaseException: ``check`` failed, or a plugin did not start; see ``refusal``.
        """
        with self._lock:
            run_to_completion(self._begin(SYNC))

    async def begin_async(self) -> None:
        """Start the plugins on this event loop, as ``begin`` does."""
        await self._begin(ASYNCIO_WORKER)

    async def _begin(self, backend: Backend) -> None:
        try:
            if not self.is_begun:
                self.check()
                await self._start(backend)
        except Exception as error:
            refusal = self.refusal(error)
            if refusal is error:
                # Bare, so that it keeps its cause.
                raise
            raise refusal from error
        self._workers += 1

    def begin_for_run(self) -> None:
        """Start the plugins before a run, in a process whose worker did not call ``begin``."""
        if not self.is_begun:
            with self._lock:
                run_to_completion(self._start(SYNC))

    async def _start(self, backend: Backend) -> None:
        # If the app is already started, whoever started it will stop it.
        if not is_started(self.app):
            lifespan = worker_lifespan(self.app)
            await lifespan.start(backend)
            self._lifespan = lifespan

    def end(self) -> None:
        """Stop the plugins after the last of this process's workers."""
        with self._lock:
            run_to_completion(self._end(SYNC))

    async def end_async(self) -> None:
        """Stop the plugins on this event loop, as ``end`` does."""
        await self._end(ASYNCIO_WORKER)

    async def _end(self, backend: Backend) -> None:
        self._workers = max(self._workers - 1, 0)
        if self.is_begun and not self._workers:
            lifespan, self._lifespan = self._lifespan, None
            await lifespan.stop(backend)

    def refusal(self, error: Exception) -> BaseException:
        """Log why a worker cannot start, and return the error to raise.

        By default, it is not an ``Exception``, because engines log those and carry on.
        """
        log_event("error", "worker_cannot_start", app=self.app_name, exc_info=error)
        return SystemExit(str(error))

    def forked(self) -> None:
        """Forget, in a forked process, what its parent began."""
        self._lifespan, self._workers = None, 0


_everybody: Final = told_of_forks(methodcaller("forked"))


def log_as(name: str) -> None:
    """Send our events to a worker's log if its command sets up only the engine's logger.

    Args:
        name: The engine's logger.
    """
    ours, theirs = logging.getLogger("qtasks_pluggy"), logging.getLogger(name)
    if not ours.hasHandlers():
        for handler in theirs.handlers:
            ours.addHandler(handler)
        ours.setLevel(theirs.level)
