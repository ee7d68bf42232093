"""Finding the ``QueueTasks`` app that ``install()`` made for an existing engine app."""

from __future__ import annotations

from inspect import getmro
from typing import Any, Final

from qtasks_hookspecs import RunningApp

INSTALLED: Final = "qtasks_pluggy_app"
"""The attribute of a native app that holds its plugins."""


def installed_in(native: Any) -> RunningApp | None:
    """Return the app that ``install()`` made for an engine's own app, in workers and clients.

    Args:
        native: A Celery app, a Dramatiq or Taskiq broker, a Huey, an RQ queue, or anything else.

    Returns:
        The app with the plugins; None if ``install()`` was not called.
    """
    if not hasattr(native, INSTALLED) and _is_celery(native):
        # The setting task_annotations can replace install(); finalizing the app reads it.
        native.finalize()
    plugged = getattr(native, INSTALLED, None)
    if plugged is None and isinstance(getattr(native, "job_class", None), type):
        # An RQ queue: its job class has the plugins.
        plugged = getattr(native.job_class, INSTALLED, None)
        if plugged is not None:
            plugged.queue = native
    return None if plugged is None else plugged.app


def _is_celery(native: Any) -> bool:
    packages = {kind.__module__.partition(".")[0] for kind in getmro(type(native))}
    return "celery" in packages and hasattr(native, "finalize")
