"""The plugins' life in the processes of a Celery worker."""

# Celery and billiard have no types.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import signal
from mmap import mmap
from typing import Any
from uuid import uuid4

from celery import Celery, bootsteps, current_app, signals
from celery.concurrency.prefork import TaskPool
from celery.platforms import EX_FAILURE

from qtasks_pluggy.engines.native import Native


class InCeleryWorkers(Native[Celery]):
    """Plugins that start and stop in every process that does runs of a Celery app."""

    def cover(self) -> None:
        """Follow the app's workers."""
        # Forked processes share this byte; a spawned one has its own, and the worker exits with 0.
        self._is_refused = mmap(-1, 1)
        # Celery knows steps by name, and receivers by a place in memory that is used again.
        uid = f"qtasks_pluggy-{uuid4()}"
        begins = self._worker_begins

        class Step(bootsteps.Step):  # type: ignore[misc]  # it has no types
            """Runs when a worker has its log and its pool's class."""

            name: Any = uid

            def __init__(self, parent: Any, **options: Any) -> None:
                # Before any step makes its pool.
                begins(parent)
                super().__init__(parent, **options)

        steps: Any = self.native.steps
        steps["worker"].add(Step)
        signals.worker_process_init.connect(self._child_begins, dispatch_uid=uid)
        signals.worker_process_shutdown.connect(self._process_ends, dispatch_uid=uid)
        signals.worker_shutdown.connect(self._worker_ends, dispatch_uid=uid)

    def _worker_begins(self, worker: Any) -> None:
        """Refuse, in the main process, what would fail in all children; begin if it has none."""
        begin = self.check if issubclass(worker.pool_cls, TaskPool) else self.begin
        try:
            begin()
        except Exception as error:
            raise self.refusal(error) from error

    def _child_begins(self, **_: Any) -> None:
        # By equality: ``current_app`` is a proxy.
        if current_app != self.native:
            return
        try:
            # The main process has checked the tasks; under ``-P solo`` it has begun, too.
            self.begin_for_run()
        except Exception as error:
            # Or the pool would replace this child forever.
            self._is_refused[0] = True
            os.kill(os.getppid(), signal.SIGTERM)
            raise self.refusal(error) from error

    def _process_ends(self, **_: Any) -> None:
        self.end()

    def _worker_ends(self, sender: Any, **_: Any) -> None:
        self.end()
        if self._is_refused[0]:
            # After a signal, Celery's own is 0, and a supervisor would see a success.
            sender.exitcode = EX_FAILURE
