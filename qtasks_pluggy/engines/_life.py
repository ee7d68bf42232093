"""The life of the plugins in a worker process of an engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import is_started, worker_lifespan


class Life:
    """Whether the plugins are started in this process, and for how many workers."""

    def __init__(self) -> None:
        self._pid = 0
        self._lifespan: Any = None
        self.workers = 0

    @property
    def is_begun(self) -> bool:
        """Whether they are started here."""
        return self._pid == os.getpid() and self._lifespan is not None

    def begin(self, app: Callable[[], QueueTasks]) -> None:
        """Start them, unless they are."""
        lifespan = self._new(app)
        if lifespan is not None:
            lifespan.__enter__()
            self._lifespan = lifespan

    async def begin_async(self, app: Callable[[], QueueTasks]) -> None:
        """Start them on this event loop, unless they are."""
        lifespan = self._new(app)
        if lifespan is not None:
            await lifespan.__aenter__()
            self._lifespan = lifespan

    def end(self) -> None:
        """Stop them after the last worker."""
        lifespan = self._over()
        if lifespan is not None:
            lifespan.__exit__(None, None, None)

    async def end_async(self) -> None:
        """Stop them on this event loop after the last worker."""
        lifespan = self._over()
        if lifespan is not None:
            await lifespan.__aexit__(None, None, None)

    def replace(self, app: QueueTasks | None) -> None:
        """Stop them, and start another app's, if they are started."""
        if app is None or not self.is_begun:
            return
        lifespan, self._lifespan = self._lifespan, None
        lifespan.__exit__(None, None, None)
        self.begin(lambda: app)

    def _new(self, app: Callable[[], QueueTasks]) -> Any:
        if self._pid != os.getpid():
            # A forked process has what its parent had begun.
            self._pid, self._lifespan, self.workers = os.getpid(), None, 0
        if self._lifespan is not None:
            return None
        new = app()
        # One that is started already is its starter's to stop.
        return None if is_started(new) else worker_lifespan(new)

    def _over(self) -> Any:
        if self._pid != os.getpid():
            return None
        self.workers = max(self.workers - 1, 0)
        if self.workers:
            return None
        lifespan, self._lifespan = self._lifespan, None
        return lifespan


def log_as(name: str) -> None:
    """Let a worker's log have our events too, where its command sets up the engine's logger alone.

    Args:
        name: The engine's logger.
    """
    ours, theirs = logging.getLogger("qtasks_pluggy"), logging.getLogger(name)
    if not ours.hasHandlers():
        for handler in theirs.handlers:
            ours.addHandler(handler)
        ours.setLevel(theirs.level)
