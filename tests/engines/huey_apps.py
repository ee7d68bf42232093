"""Apps on Huey, for the tests of its adapter."""

from __future__ import annotations

import contextlib

from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks

LONG = 30


def app_on(engine, *plugins, workers=1, **options):
    """An app with no plugins but these, and workers in this process."""
    app = QueueTasks("shop", plugins=plugins, discover=False, **options)
    app.set_engine(engine, workers=workers)
    return app


class Keeps:
    """Takes down what the plugins hear."""

    name = "keeps"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.messages, self.heard, self.causes = [], [], []

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_broker, e):
        self.messages.append(task_broker)
        self.causes.append(e.cause)
        return self.answers.pop(0) if self.answers else None

    @hookimpl
    def task_executor_task_failed(self):
        self.heard.append("failed")

    @hookimpl
    def task_executor_task_close(self):
        self.heard.append("close")

    @hookimpl
    def qtasks_start(self):
        self.heard.append("start")

    @hookimpl
    def qtasks_stop(self):
        self.heard.append("stop")


@contextlib.contextmanager
def consuming(native, **options):
    """Run a consumer of a native Huey in this process, as its command would."""
    options = {"workers": 1, "initial_delay": 0.01, "max_delay": 0.02} | options
    consumer = native.create_consumer(**options)
    # The process's signals are pytest's.
    consumer._set_signal_handlers = lambda: None
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop(graceful=True)
