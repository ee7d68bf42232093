"""The plugins' life in a process that does runs: begun by its first thread, ended by its last."""

# Huey has no types, and carries what is ours.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from huey import Huey
from huey.consumer import Consumer

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import is_started, lock_of, log_event, worker_lifespan


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
        self._consumers = _consumers_of(huey)
        name = name or f"qtasks_pluggy-{next(_numbers)}"
        huey.on_startup(name=name)(self._begin)
        huey.on_shutdown(name=name)(self._end)

    def _begin(self) -> None:
        with self._lock:
            try:
                _log_as_huey_does()
                app = self._app()
                # In the process that submits it is started already, and is not ours to stop.
                if app is not None and self._pid != os.getpid() and not is_started(app):
                    self._threads.clear()
                    self._life = worker_lifespan(app)
                    self._life.__enter__()
                    self._pid = os.getpid()
            except Exception as error:
                log_event("error", "worker_cannot_start", app=self._huey.name, exc_info=error)
                for consumer in self._consumers:
                    # It would put another in this one's place, again and again, and do nothing.
                    consumer.stop_flag.set()
                # Not an Exception, which Huey would log, and go on to take runs.
                raise SystemExit(str(error)) from error
            self._threads.add(threading.get_ident())

    def _end(self) -> None:
        with self._lock:
            self._threads.discard(threading.get_ident())
            if not self._threads and self._pid == os.getpid():
                self._pid = 0
                self._life.__exit__(None, None, None)


def _log_as_huey_does() -> None:
    """Let the consumer's log have our events too, where nobody else has set up logging.

    Its command sets up the logger of Huey alone.
    """
    ours, theirs = logging.getLogger("qtasks_pluggy"), logging.getLogger("huey")
    if not ours.hasHandlers():
        for handler in theirs.handlers:
            ours.addHandler(handler)
        ours.setLevel(theirs.level)


def _consumers_of(huey: Huey) -> weakref.WeakSet[Consumer]:
    """Give the consumers that a Huey has made, and will make, in this process."""
    found: weakref.WeakSet[Consumer] | None = getattr(huey, "qtasks_pluggy_consumers", None)
    if found is not None:
        return found
    made = huey.qtasks_pluggy_consumers = weakref.WeakSet[Consumer]()
    native = huey.create_consumer

    def create_consumer(**options: Any) -> Consumer:
        consumer = native(**options)
        made.add(consumer)
        return consumer

    huey.create_consumer = create_consumer
    return made


_numbers: Final = count()
