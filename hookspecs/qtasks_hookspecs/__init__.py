"""What a plugin imports: the hooks, the decisions, the records and the errors.

=================  =================================================================
``_markers.py``    the project's name and entry point group, and the marks for hooks
``_hooks.py``      every hook, in the order in which a run meets it: START HERE
``_on_error.py``   ``on_error``, the short form of the hook that most plugins use
``_decisions.py``  what a hookimpl may answer besides a plain value
``_outcome.py``    how one attempt ended
``_types.py``      hooks' parameters: the task, the message, the run, the app
``exc.py``         the errors
=================  =================================================================

A plugin is a module of functions that are named after hooks and marked with ``hookimpl``. An entry
point in the group ``qtasks_pluggy`` installs it::

    from qtasks_hookspecs import Replace, hookimpl


    @hookimpl
    def task_executor_run_task_trigger_error(task_func, e):
        return Replace(0) if e.kwargs.get("kind") == "empty" else None
"""

from __future__ import annotations

from qtasks_hookspecs import exc
from qtasks_hookspecs._decisions import Cancel, DeadLetter, Raise, Replace, Retry
from qtasks_hookspecs._markers import blocking, hookimpl, hookspec, when
from qtasks_hookspecs._on_error import on_error
from qtasks_hookspecs._outcome import Outcome, OutcomeStatus
from qtasks_hookspecs._types import RunningApp, RunningTask, TaskFunc, TaskMessage

__all__ = [
    "Cancel",
    "DeadLetter",
    "Outcome",
    "OutcomeStatus",
    "Raise",
    "Replace",
    "Retry",
    "RunningApp",
    "RunningTask",
    "TaskFunc",
    "TaskMessage",
    "blocking",
    "exc",
    "hookimpl",
    "hookspec",
    "on_error",
    "when",
]
