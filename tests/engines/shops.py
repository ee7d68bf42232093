"""Apps on ``memory://`` for the tests, and ways to hold up a worker and to hear of a run's end."""

from __future__ import annotations

import threading
from typing import Any

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks, TaskHandle

LONG = 30.0


def app_of(options: str = "", **more: Any) -> QueueTasks:
    """Make an app on this engine."""
    return QueueTasks("shop", engine=f"memory://{options}", discover=False, **more)


class Gate:
    """A task that says that it runs, and waits; and one that takes down when it ran."""

    def __init__(self, app: QueueTasks) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.done: list[Any] = []

        @app.task
        def hold():
            self.entered.release()
            assert self.open.wait(LONG)

        @app.task
        def mark(what):
            self.done.append(what)
            return what

        self.hold, self.mark = hold, mark

    def occupy(self) -> TaskHandle[None]:
        """Keep one worker busy until ``open`` is set."""
        handle = self.hold.submit()
        assert self.entered.acquire(timeout=LONG)
        return handle


class Closing:
    """Takes down the ends of runs."""

    name = "closing"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.closed: list[str] = []
        self.asked = threading.Semaphore(0)

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        self.asked.release()
        return self.answer

    @hookimpl
    def task_executor_task_close(self, task_func):
        self.closed.append(task_func.name)
