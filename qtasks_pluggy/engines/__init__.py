"""Engines: what carries submitted runs to their workers.

====================  ==========================================================================
``native.py``         START HERE: the base of every ``install()``: plugins for an engine's tasks
``forward.py``        the other direction: an engine that does the runs of a ``QueueTasks`` app
``celery/``           Celery, on RabbitMQ or Redis
``dramatiq/``         Dramatiq, on RabbitMQ or Redis
``huey/``             Huey; on SQLite, ``huey+sqlite:///file.db``, durable without a server
``taskiq/``           Taskiq, on RabbitMQ or Redis
``rq.py``             RQ, on Redis; like the next three, it has only ``install()``
``procrastinate.py``  Procrastinate, on PostgreSQL
``django.py``         Django's tasks, on any of their backends
``qtasks.py``         QTasks
``in_place.py``       retries for Django's tasks and QTasks, which have none for plugins to use
``memory.py``         ``memory://``: runs in this process, lost when it ends
====================  ==========================================================================

An adapter for another engine is a class with everything that ``Engine`` names. It is called with
what the app got as ``engine=``: a URL or the engine's own object. An entry point of the group
``qtasks_pluggy.engines`` makes it known; the entry point's name is the scheme of the URLs, or the
package of the engine's own object. Adapters import what they need from here and ``qtasks_pluggy``.
"""

from __future__ import annotations

from typing import Any

from qtasks_hookspecs import TaskMessage
from qtasks_pluggy._fork import after_fork, lock_of, told_of_forks
from qtasks_pluggy._lifecycle import WorkerLifespan
from qtasks_pluggy._log import event as log_event
from qtasks_pluggy._run.executor import TaskExecutor
from qtasks_pluggy._submit.calls import (
    Elsewhere,
    is_here,
    is_pending,
    is_running,
    leave_behind,
    pauses,
    wait_for,
)
from qtasks_pluggy._submit.lookup import url_options
from qtasks_pluggy._submit.outcome import Attempt, RunResult, status_from
from qtasks_pluggy._submit.protocol import (
    Capabilities,
    Engine,
    EngineApp,
    FindsRuns,
    Host,
    NoRoomError,
)
from qtasks_pluggy._text import safe_str
from qtasks_pluggy._waiting import (
    ASYNCIO_WORKER,
    SYNC,
    Backend,
    LimitExceededError,
    background,
    run_to_completion,
    unwrap,
)
from qtasks_pluggy.engines._installed import installed_in

__all__ = [
    "ASYNCIO_WORKER",
    "SYNC",
    "Attempt",
    "Backend",
    "Capabilities",
    "Elsewhere",
    "Engine",
    "EngineApp",
    "FindsRuns",
    "Host",
    "LimitExceededError",
    "NoRoomError",
    "RunResult",
    "after_fork",
    "background",
    "executor_for",
    "installed_in",
    "is_here",
    "is_pending",
    "is_running",
    "is_started",
    "leave_behind",
    "load_plugins",
    "lock_of",
    "log_event",
    "pauses",
    "run_to_completion",
    "safe_str",
    "status_from",
    "told_of_forks",
    "unwrap",
    "url_options",
    "wait_for",
    "worker_lifespan",
]


def executor_for(app: Any, message: TaskMessage) -> TaskExecutor:
    """Return a new executor for a message that a worker received from an app's engine.

    Args:
        app: The app.
        message: The message, which names the task.

    Raises:
        NotRunningError: The app was stopped.
        TaskNameError: The app has no such task; the error suggests the nearest name.
    """
    return app._executor_for(message)  # type: ignore[no-any-return]  # noqa: SLF001  # our own class


def worker_lifespan(app: Any) -> WorkerLifespan:
    """Return a context manager, plain and async, that starts and stops an app in a worker process.

    It does what ``with app:`` does, except that it does not start the engine, which started the
    process.
    """
    return WorkerLifespan(app)


def is_started(app: Any) -> bool:
    """Return whether an app is started, or starting."""
    return app._is_started  # type: ignore[no-any-return]  # noqa: SLF001  # our own class


def load_plugins(app: Any, *, skip_faulty: bool = False) -> list[str]:
    """Read the settings and load the installed plugins, as a start or a first run does.

    Args:
        app: The app.
        skip_faulty: Whether to skip installed plugins that have faults.

    Returns:
        The faults of the skipped plugins.

    Raises:
        PluginRegistrationError: Installed plugins have faults; the error lists all of them.
        SettingsError: The settings have faults.
    """
    return app._load_plugins(skip_faulty=skip_faulty)  # type: ignore[no-any-return]  # noqa: SLF001  # our own class
