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

Plugins import only ``qtasks_hookspecs``.

The map, where each row imports only from the rows below it:

=====================  =========================================================================
``cli/``               the command ``qtasks-pluggy``
``failures/``          the built-in plugin that records what failed, why, and who decided
``testing/``           the test kit for plugins, and ``check`` and ``new-plugin``
``_console/``          what every command needs: finding an app, printing
``engines/``           adapters: memory, Celery, Dramatiq, Huey, Taskiq
``_app.py``            ``QueueTasks``: tasks by name, and its plugins
``_run/``              the life of one run: START HERE, in ``executor.py``
``_task.py``           ``AsyncTask`` and ``SyncTask``, and the ``ctx`` of a run
``_lifecycle.py``      an app's start and stop
``_submit/``           the interface between apps and engines
``_plugins/``          the plugin side: who is asked, in which order, and whose answer wins
``builtin/``           the built-in plugins ``fallback`` and ``retry``, off until enabled
``base_plugin.py``     plugins in QTasks' format, for migration
``_settings.py``       the operator's settings
``_settings_file.py``  the file that holds them
``_waiting.py``        how a run waits, in plain code and on an event loop
``_log.py``            where events go
``_text.py``           naming plugins, suggesting names
``_fork.py``           locks, recreated in a forked process
``exc.py``             the errors
=====================  =========================================================================

Where to look:

=====================================  =========================================================
which answer wins                      ``dispatch()`` in ``_plugins/dispatch.py``
which answers count                    ``does_count()`` in ``_plugins/answers.py``
where a plugin's time limit applies    ``ask()`` in ``_plugins/ask.py``
where a task's ``max_time`` applies    ``call_function()`` in ``_run/function.py``
where an entry point is loaded         ``import_plugin()`` in ``_plugins/discovery.py``
what an engine has to implement        ``Engine`` in ``_submit/protocol.py``
=====================================  =========================================================
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
