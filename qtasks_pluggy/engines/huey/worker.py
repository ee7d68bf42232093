"""The plugins' life in a process that does runs: begun by its first thread, ended by its last."""

# Huey has no types, and carries what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import count
from typing import Final

from huey import Huey

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import is_started, lock_of, log_event, worker_lifespan
from qtasks_pluggy.engines.huey.install import stop_consumer
from qtasks_pluggy.engines.native import log_as


class WorkerLife:
    """Starts an app's plugins before this process takes a run, and stops them behind the last.

    Args:
        huey: Its workers, threads or processes, say when they begin and end.
        app: Gives the app; None while there is none. An error of it refuses the worker.
        name: Under which Huey knows this; of its own, if not given.
    """

    def __init__(
        self, huey: Huey, app: Callable[[], QueueTasks | None], name: str | None = None
    ) -> None:
        self._huey = huey
        self._app = app
        self._lock = lock_of(self)
        self._pid = 0
        self._threads: set[int] = set()
        name = name or f"qtasks_pluggy-{next(_numbers)}"
        huey.on_startup(name=name)(self._begin)
        huey.on_shutdown(name=name)(self._end)

    def _begin(self) -> None:
        with self._lock:
            try:
                log_as("huey")
                app = self._app()
                # In the process that submits it is started already, and is not ours to stop.
                if app is not None and self._pid != os.getpid() and not is_started(app):
                    self._threads.clear()
                    self._life = worker_lifespan(app)
                    self._life.__enter__()
                    self._pid = os.getpid()
            except Exception as error:
                log_event("error", "worker_cannot_start", app=self._huey.name, exc_info=error)
                stop_consumer()
                # Not an Exception, which Huey would log, and go on to take runs.
                raise SystemExit(str(error)) from error
            self._threads.add(threading.get_ident())

    def _end(self) -> None:
        with self._lock:
            self._threads.discard(threading.get_ident())
            if not self._threads and self._pid == os.getpid():
                self._pid = 0
                self._life.__exit__(None, None, None)


_numbers: Final = count()
