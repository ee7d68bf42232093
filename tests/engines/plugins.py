"""Plugins that tests of several engines give to apps."""

from __future__ import annotations

from qtasks_hookspecs import hookimpl


class Ends:
    """Notes how attempts and runs end."""

    name = "ends"

    def __init__(self):
        self.attempts, self.runs = [], []

    @hookimpl
    def task_executor_attempt_ended(self, outcome):
        self.attempts.append((str(outcome.status), outcome.attempt, outcome.decided_by))

    @hookimpl
    def task_executor_task_close(self, outcome):
        self.runs.append(str(outcome.status))
