"""Plugins decide what happens when a task fails.

For apps:

===================  ===========================================================================
``QueueTasks``       an app: tasks, plugins, start and stop
``TaskExecutor``     one run, alone
``PluginManager``    plugins and hooks, alone
``TaskHandle``       a run that was submitted to the app's engine
``exc``              the errors
===================  ===========================================================================

For plugins there is ``qtasks_hookspecs``, and only that.

The modules, in the order in which a run meets them:

===================  ===========================================================================
``_app.py``          ``QueueTasks``: tasks by name, and its plugins
``_lifecycle.py``    an app's start and stop
``_task.py``         ``AsyncTask`` and ``SyncTask``, and the ``ctx`` of a run
``_submit.py``       handing runs to the app's engine
``_engine.py``       the seam to engines
``_adapters.py``     finding the adapter for a URL or an engine's own object
``_handle.py``       what ``submit`` gives back
``_executor.py``     START HERE: the life of one run
``_run.py``          what plugins may read of a run
``_function.py``     calling a task's function
``_dispatch.py``     the call convention: who is asked, and whose answer wins
``_answers.py``      which answers count
``_outcome.py``      what the plugins' decision comes to
``_waiting.py``      how a run waits, in plain code and on an event loop
``_plugins.py``      the plugin manager: what is registered, and each hook's chain
``_discovery.py``    the installed plugins
``_registry.py``     which plugin is which
``_validation.py``   what can be wrong with a plugin
``_chain.py``        the links of a hook's chain, and their order
``_filter.py``       which links are asked about an error
``_quarantine.py``   leaving alone what keeps failing
``_report.py``       how a dispatch is told
``_trail.py``        who was asked, what each answered, what won
``_settings.py``     the operator's settings
``_locks.py``        locks that a fork makes anew
``_names.py``        how plugins are named, and misspelt names understood
``_log.py``          where events go
``base_plugin.py``   plugins of QTasks' own shape, for migration
``exc.py``           the errors
``builtin/``         two plugins of our own, off until they are enabled
``engines/``         adapters: memory, Celery, Dramatiq, Huey, Taskiq
``cli/``             the command ``qtasks-pluggy``
===================  ===========================================================================
"""

from __future__ import annotations

from qtasks_pluggy import exc
from qtasks_pluggy._app import QueueTasks
from qtasks_pluggy._executor import TaskExecutor
from qtasks_pluggy._handle import TaskHandle
from qtasks_pluggy._outcome import TaskStatus
from qtasks_pluggy._plugins import PluginManager
from qtasks_pluggy._task import AsyncTask, SyncTask
from qtasks_pluggy._trail import Trail, TrailRecord
from qtasks_pluggy.base_plugin import BasePlugin

# Defined for plugins, named here for apps.
from qtasks_hookspecs import TaskFunc, TaskMessage  # isort: skip

__all__ = [
    "AsyncTask",
    "BasePlugin",
    "PluginManager",
    "QueueTasks",
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
