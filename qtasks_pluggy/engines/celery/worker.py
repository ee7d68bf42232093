"""The plugins' life in the processes of a Celery worker: in each that does runs, once."""

# Celery has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from billiard.process import current_process
from celery import Celery, current_app, signals
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import is_started, load_plugins, lock_of, log_event, worker_lifespan

# What Celery sets in children that are no forks, and that import everything anew.
SPAWNED: Final = "FORKED_BY_MULTIPROCESSING"
_numbers: Final = count()


class WorkerLife:
    """Starts an app's plugins in a process that does runs, and stops them at its end.

    Args:
        native: The Celery app whose workers these are.
        app: Gives the app of this process.
        check: Called with the worker before it begins; an error of it refuses the worker.
    """

    def __init__(
        self, native: Celery, app: Callable[[], QueueTasks], check: Callable[[Any], None]
    ) -> None:
        self._native = native
        self._app = app
        self._check = check
        self._lock = lock_of(self)
        self._pid = 0
        self._life: Any = None
        self._heard: tuple[tuple[Any, Callable[..., None]], ...] = (
            (signals.worker_init, self._worker_begins),
            (signals.celeryd_after_setup, self._worker_is_set_up),
            (signals.worker_process_init, self._process_begins),
            (signals.worker_process_shutdown, self._ends),
            (signals.worker_shutdown, self._ends),
        )
        # By itself Celery knows it by a place in memory, which a later one can have.
        self._uid = f"qtasks_pluggy-{next(_numbers)}"
        for signal_, call in self._heard:
            signal_.connect(call, dispatch_uid=self._uid)

    def retire(self) -> None:
        """Hear nothing more: another one has these plugins' life."""
        for signal_, call in self._heard:
            signal_.disconnect(call, dispatch_uid=self._uid)

    def begin(self) -> None:
        """Start the plugins, unless this process has done so; before each run."""
        if self._pid == os.getpid():
            return
        with self._lock:
            app = self._app()
            # In the process that submits it is started already, and is not ours to stop.
            if self._pid != os.getpid() and not is_started(app):
                self._life = worker_lifespan(app)
                self._life.__enter__()
                self._pid = os.getpid()

    def _worker_begins(self, sender: Any, **_: Any) -> None:
        """Refuse, in a worker's main process, what would fail in all of its children."""
        if sender.app is not self._native:
            return
        try:
            self._check(sender)
            load_plugins(self._app())
            # The command has no log yet: there they begin when it is set up.
            if not has_children(sender) and not hasattr(sender, "setup_logging"):
                # Or else each run would fail in a plugin that does not start.
                self.begin()
        except Exception as error:
            raise self._refusal(error) from error

    def _worker_is_set_up(self, instance: Any, **_: Any) -> None:
        """Begin, in a worker whose main process does the runs."""
        if instance.app is not self._native or has_children(instance):
            return
        try:
            self.begin()
        except Exception as error:
            raise self._refusal(error) from error

    def _process_begins(self, **_: Any) -> None:
        spawned = SPAWNED in os.environ and current_app.main == self._native.main
        # Equal is the same: this one is a proxy.
        if current_app != self._native and not spawned:
            return
        try:
            self.begin()
        except Exception as error:
            if current_process().name != "MainProcess":
                # The pool would replace this child for ever.
                os.kill(os.getppid(), signal.SIGTERM)
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> SystemExit:
        log_event("error", "worker_cannot_start", app=self._native.main, exc_info=error)
        # Not an Exception, which Celery would log, and go on to take runs.
        return SystemExit(str(error))

    def end(self) -> None:
        """Stop the plugins, if they are started here; the next run starts those that are there."""
        with self._lock:
            if self._pid == os.getpid():
                self._pid = 0
                self._life.__exit__(None, None, None)

    def _ends(self, **_: Any) -> None:
        self.end()


def has_children(worker: Any) -> bool:
    """Say whether a worker has processes that do its runs."""
    # A name, as yet, where it comes from the settings.
    pool: Any = get_implementation(worker.pool_cls)
    return issubclass(pool, TaskPool)
