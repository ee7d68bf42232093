"""Finding the ``QueueTasks`` app that ``install()`` made for an existing engine app."""

from __future__ import annotations

import sys
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
    celery = sys.modules.get("celery")
    if celery is not None and isinstance(native, celery.Celery) and not hasattr(native, INSTALLED):
        # The setting task_annotations can replace install(); finalizing the app reads it.
        native.finalize()
    # An RQ queue's plugins are those of its job class.
    holder = getattr(native, "job_class", native)
    plugged: Any = getattr(holder, INSTALLED, None)
    if plugged is not None and holder is not native:
        plugged.queue = native
    return None if plugged is None else plugged.app
