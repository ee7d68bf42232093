"""Engines: what carries submitted runs to whoever does them.

====================  ==========================================================================
``native.py``         START HERE: the base of every ``install()``: plugins for an engine's tasks
``forward.py``        the same turned round: an engine behind an app
``celery/``           Celery, on RabbitMQ or Redis
``dramatiq/``         Dramatiq, on RabbitMQ or Redis
``huey/``             Huey; on SQLite, ``huey+sqlite:///file.db``, durable with no server
``taskiq/``           Taskiq, on RabbitMQ or Redis
``rq.py``             RQ, on Redis; as the next three it has ``install()`` alone
``procrastinate.py``  Procrastinate, on PostgreSQL
``django.py``         Django's tasks, on any backend of theirs
``qtasks.py``         QTasks
``in_place.py``       retries for those last two, which have none that plugins could ask for
``memory.py``         ``memory://``: in this process, gone with it
====================  ==========================================================================

An adapter for another engine is a class that is called with what the app was given, a URL or the
engine's own object, and has all that ``Engine`` names. It is found by an entry point of the group
``qtasks_pluggy.engines``, whose name is the scheme of its URLs, or the package that the engine's
own object comes from. This module has what an adapter needs besides ``qtasks_pluggy`` itself.
"""

from __future__ import annotations

from typing import Any

from qtasks_hookspecs import TaskMessage
from qtasks_pluggy._fork import lock_of
from qtasks_pluggy._lifecycle import WorkerLifespan
from qtasks_pluggy._log import event as log_event
from qtasks_pluggy._run.executor import TaskExecutor
from qtasks_pluggy._submit.calls import is_here, is_pending, wait_for
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
from qtasks_pluggy._waiting import ASYNCIO_WORKER, SYNC, Backend, background, run_to_completion
from qtasks_pluggy.engines._installed import installed_in

__all__ = [
    "ASYNCIO_WORKER",
    "SYNC",
    "Attempt",
    "Backend",
    "Capabilities",
    "Engine",
    "EngineApp",
    "FindsRuns",
    "Host",
    "NoRoomError",
    "RunResult",
    "background",
    "executor_for",
    "installed_in",
    "is_here",
    "is_pending",
    "is_started",
    "load_plugins",
    "lock_of",
    "log_event",
    "prepare",
    "run_in_place",
    "run_to_completion",
    "status_from",
    "url_options",
    "wait_for",
    "worker_lifespan",
]


def executor_for(app: Any, message: TaskMessage) -> TaskExecutor:
    """Make the executor for a message that an app's engine handed to a worker.

    Args:
        app: The app.
        message: It names the task.

    Raises:
        NotRunningError: The app was stopped.
        TaskNameError: The app has no such task; the nearest is named.
    """
    executor: TaskExecutor = app._executor_for(message)  # noqa: SLF001  # an app of ours
    return executor


async def run_in_place(app: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a task here and now, from async code, as a call of a ``SyncTask`` does from plain code.

    Args:
        app: The app.
        name: The task's name.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        NotRunningError: The app was stopped.
    """
    return await app._run_async(app.tasks[name], args, kwargs)  # noqa: SLF001  # an app of ours


def worker_lifespan(app: Any) -> WorkerLifespan:
    """Return an app's life in a worker process of its engine, for ``with`` and ``async with``.

    As ``with app:``, except that the engine, which began the process, is not started.
    """
    lifespan: WorkerLifespan = app._worker_lifespan()  # noqa: SLF001  # an app of ours
    return lifespan


def is_started(app: Any) -> bool:
    """Say whether an app is started, or starting."""
    return bool(app._is_started)  # noqa: SLF001  # an app of ours


def prepare(app: Any) -> None:
    """Load the installed plugins for an app's first run, if that has not been done.

    Raises:
        NotRunningError: The app was stopped; it has to be started again instead.
        PluginRegistrationError: Faults of the installed plugins, all of them.
        SettingsError: Faults of the settings.
    """
    app._ensure_loaded()  # noqa: SLF001  # an app of ours


def load_plugins(app: Any, *, skip_faulty: bool = False) -> list[str]:
    """Read the settings and load the installed plugins, as a start or a first run does.

    Args:
        app: The app.
        skip_faulty: Whether to go on without the installed plugins that have faults.

    Returns:
        The faults of the plugins that were left out.

    Raises:
        PluginRegistrationError: Faults of the installed plugins, all of them.
        SettingsError: Faults of the settings.
    """
    faults: list[str] = app._load_plugins(skip_faulty=skip_faulty)  # noqa: SLF001  # an app of ours
    return faults
