"""The app behind an engine's own app that ``install()`` was called on."""

from __future__ import annotations

from inspect import getmro
from typing import Any, Final

from qtasks_hookspecs import RunningApp

INSTALLED: Final = "qtasks_pluggy_app"
"""The attribute of a native app that has its plugins."""


def installed_in(native: Any) -> RunningApp | None:
    """Return the app behind an engine's own app, in workers and clients alike.

    Args:
        native: A Celery app, a Dramatiq or Taskiq broker, a Huey, or anything else.

    Returns:
        The app that ``install()`` made, with its plugins; None where it was not called.
    """
    if not hasattr(native, INSTALLED) and _is_celery(native):
        # Its setting task_annotations can stand for install(), and is read by this.
        native.finalize()
    plugged = getattr(native, INSTALLED, None)
    if plugged is None and isinstance(getattr(native, "job_class", None), type):
        # An RQ queue, whose class of jobs has the plugins.
        plugged = getattr(native.job_class, INSTALLED, None)
        if plugged is not None:
            plugged.queue = native
    return None if plugged is None else plugged.app


def _is_celery(native: Any) -> bool:
    packages = {kind.__module__.partition(".")[0] for kind in getmro(type(native))}
    return "celery" in packages and hasattr(native, "finalize")
