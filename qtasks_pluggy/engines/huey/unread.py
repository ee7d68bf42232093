"""An end for runs whose messages a worker cannot read: Huey has deleted them by then."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from huey import Huey
from huey.api import Task
from huey.exceptions import HueyException

from qtasks_pluggy import TaskStatus
from qtasks_pluggy.engines import RunResult, log_event
from qtasks_pluggy.engines.huey.install import MODULE
from qtasks_pluggy.engines.huey.ledger import Ledger
from qtasks_pluggy.engines.servers import text_of
from qtasks_pluggy.exc import EngineError


class Unread:
    """Watches the messages that a Huey takes out of its storage.

    Args:
        huey: The Huey.
        ledger: Its ledger, if it has one.
        tasks: The names of the tasks that this worker knows.
    """

    def __init__(self, huey: Huey, ledger: Ledger | None, tasks: Iterable[str]) -> None:
        self._huey: Any = huey
        self._ledger = ledger
        self._tasks = tasks
        self._taking = threading.local()
        native: Any = huey
        native.deserialize_task = self._or_end(native.deserialize_task)
        for method in ("dequeue", "read_schedule"):
            setattr(native, method, self._for_good(getattr(native, method)))

    def _for_good(self, native: Callable[..., Any]) -> Callable[..., Any]:
        """Mark calls by which Huey takes messages out of its storage."""

        def take(*args: Any) -> Any:
            self._taking.now = True
            try:
                return native(*args)
            finally:
                self._taking.now = False

        return take

    def _or_end(self, native: Callable[[bytes], Task]) -> Callable[[bytes], Task]:
        def deserialize_task(data: bytes) -> Task:
            try:
                return native(data)
            except Exception as error:
                if getattr(self._taking, "now", False):
                    self._end(data, error)
                raise

        return deserialize_task

    def _end(self, data: bytes, error: Exception) -> None:
        uuid = task = None
        with suppress(Exception):
            sent = self._huey.serializer.deserialize(data)
            uuid, task = sent.id, sent.name.removeprefix(f"{MODULE}.")
        why = text_of(error)
        if isinstance(error, HueyException):
            known = ", ".join(self._tasks) or "none"
            why = f"this worker has no task {task!r}; its tasks are {known}"
        msg = (
            f"engine 'huey', task {task or '?'!r}: the message cannot be read: {why}. A worker must"
            " import every module that declares tasks, and run the same code as those who submit"
        )
        log_event("error", "task_unreadable", task=task, uuid=uuid, why=msg)
        if uuid is not None:
            self._huey.put_result(uuid, RunResult(TaskStatus.failed, error=EngineError(msg)))
            if self._ledger is not None:
                self._ledger.delete(uuid)
