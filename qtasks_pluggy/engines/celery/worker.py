"""The plugins' life in the processes of a Celery worker."""

# Celery and billiard have no types.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Any, Final

from billiard import get_start_method
from billiard.process import current_process
from celery import bootsteps, current_app, signals
from celery.concurrency.prefork import TaskPool

from qtasks_pluggy.exc import EngineError

# Celery sets this in spawned children, which import everything anew.
SPAWNED: Final = "FORKED_BY_MULTIPROCESSING"
_numbers: Final = count()


class WorkerLife:
    """Starts and stops the plugins in every process that does runs.

    Args:
        plugged: The ``CeleryNative`` that has them.
    """

    def __init__(self, plugged: Any) -> None:
        self._plugged = plugged
        # Celery knows steps by name, and receivers by a place in memory that is used again.
        uid = f"qtasks_pluggy-{next(_numbers)}"
        begins = self._worker_begins

        class Step(bootsteps.Step):  # type: ignore[misc]  # it has no types
            """Runs when a worker has its log and its pool's class, and no children yet."""

            name: Any = uid

            def __init__(self, worker: Any, **options: Any) -> None:
                begins(worker)
                super().__init__(worker, **options)

        plugged.native.steps["worker"].add(Step)
        signals.worker_process_init.connect(self._child_begins, dispatch_uid=uid)
        signals.worker_process_shutdown.connect(self._ends, dispatch_uid=uid)
        signals.worker_shutdown.connect(self._ends, dispatch_uid=uid)

    def _worker_begins(self, worker: Any) -> None:
        """Refuse, in the main process, what would fail in all children; begin if it has none."""
        plugged = self._plugged
        try:
            plugged.native.finalize()
            if not issubclass(worker.pool_cls, TaskPool):
                plugged.begin()
                return
            plugged.check()
            self._check_names(worker)
        except Exception as error:
            raise plugged.refusal(error) from error

    def _check_names(self, worker: Any) -> None:
        """Refuse plugins that spawned children cannot import."""
        plugged = self._plugged
        start = getattr(worker, "pool_start_method", None) or get_start_method()
        if None in plugged.names and start != "fork":
            nameless = plugged.plugins[plugged.names.index(None)]
            msg = (
                f"engine 'celery', {plugged.app_name}: this worker's children are made by"
                f" {start!r}, and plugin {nameless!r} cannot be imported there by name; give"
                " install() a module, a BasePlugin class, or a name, 'module:attribute'"
            )
            raise EngineError(msg)

    def _child_begins(self, **_: Any) -> None:
        """Start the plugins in a child of this app's worker."""
        plugged = self._plugged
        spawned = SPAWNED in os.environ and current_app.main == plugged.native.main
        # By equality: ``current_app`` is a proxy.
        if current_app != plugged.native and not spawned:
            return
        try:
            # The main process has checked the tasks; a spawned child has not imported them yet.
            plugged.begin_for_run()
        except Exception as error:
            if current_process().name != "MainProcess":
                # Or the pool would replace this child for ever.
                os.kill(os.getppid(), signal.SIGTERM)
            raise plugged.refusal(error) from error

    def _ends(self, **_: Any) -> None:
        """Stop the plugins."""
        self._plugged.end()
