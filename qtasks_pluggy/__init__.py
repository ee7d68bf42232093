"""Plugins decide what happens when a task fails.

For apps:

===================  ===========================================================================
``QueueTasks``       an app: tasks, plugins, start and stop
``TaskExecutor``     one run, alone
``PluginManager``    plugins and hooks, alone
``TaskHandle``       a run that was submitted to the app's engine
``Retry`` ...        the five decisions, for handlers of ``app.on_error``
``exc``              the errors
===================  ===========================================================================

For plugins there is ``qtasks_hookspecs``, and only that.

The house, where each row imports only from the rows below it:

===================  ===========================================================================
``cli/``             the command ``qtasks-pluggy``
``engines/``         adapters: memory, Celery, Dramatiq, Huey, Taskiq
``_app.py``          ``QueueTasks``: tasks by name, and its plugins
``_run/``            the life of one run: START HERE, in ``executor.py``
``_task.py``         ``AsyncTask`` and ``SyncTask``, and the ``ctx`` of a run
``_lifecycle.py``    an app's start and stop
``_submit/``         the seam to engines: what app and engine say to each other
``_plugins/``        the plugin side: who is asked, in which order, and whose answer wins
``builtin/``         two plugins of our own, off until they are enabled
``base_plugin.py``   plugins of QTasks' own shape, for migration
``_settings.py``     the operator's settings
``_settings_file.py``  where their file is found, and whose it may be
``_waiting.py``      how a run waits, in plain code and on an event loop
``_log.py``          where events go
``_text.py``         how plugins are named, and misspelt names understood
``_fork.py``         locks that a fork makes anew
``exc.py``           the errors
===================  ===========================================================================
"""

from __future__ import annotations

from qtasks_pluggy import exc
from qtasks_pluggy._app import QueueTasks
from qtasks_pluggy._plugins.manager import PluginManager
from qtasks_pluggy._plugins.trail import Trail, TrailRecord
from qtasks_pluggy._run.executor import TaskExecutor
from qtasks_pluggy._submit.handle import TaskHandle
from qtasks_pluggy._submit.outcome import TaskStatus
from qtasks_pluggy._task import AsyncTask, SyncTask
from qtasks_pluggy.base_plugin import BasePlugin

# Defined for plugins, named here for apps: a handler of ``app.on_error`` answers decisions.
from qtasks_hookspecs import (  # isort: skip
    Cancel,
    DeadLetter,
    Raise,
    Replace,
    Retry,
    TaskFunc,
    TaskMessage,
)

__all__ = [
    "AsyncTask",
    "BasePlugin",
    "Cancel",
    "DeadLetter",
    "PluginManager",
    "QueueTasks",
    "Raise",
    "Replace",
    "Retry",
    "SyncTask",
    "TaskExecutor",
    "TaskFunc",
    "TaskHandle",
    "TaskMessage",
    "TaskStatus",
    "Trail",
    "TrailRecord",
    "exc",
]
