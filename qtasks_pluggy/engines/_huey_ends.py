"""How messages and ends of runs travel through Huey's storage: pickled."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from huey.api import Result, Task
from huey.utils import Error

from qtasks_pluggy import TaskMessage, TaskStatus, Trail
from qtasks_pluggy.engines import Ended
from qtasks_pluggy.engines._huey_ledger import HEADER
from qtasks_pluggy.exc import EngineError

# Results of these types travel as they are: without being tried first, and bare if that is all.
PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


def unserializable(serializer: Any, message: TaskMessage, error: Exception) -> EngineError:
    """Name the first argument that does not travel, by its place and type, not its value."""
    what = "an argument"
    for place, value in (*enumerate(message.args, 1), *message.kwargs.items()):
        try:
            serializer.serialize(value)
        except Exception:  # noqa: BLE001  # whatever a value's own methods raise
            what = f"argument {place!r}, a {type(value).__name__},"
            break
    return EngineError(
        f"engine 'huey' cannot take task {message.name!r}: {what} does not pickle"
        f" ({text_of(error)}); give it something that does, an id or a path"
    )


def text_of(error: BaseException) -> str:
    """Return an error's class and text, whatever the class makes of ``str``."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # whatever an error's own methods raise
        return type(error).__name__


def portable(ended: Ended, task: Task, serializer: Any) -> Ended:
    """Replace what Huey's serializer cannot carry by an error that says so."""
    if ended.error is None and type(ended.result) in PLAIN:
        return ended
    try:
        serializer.deserialize(serializer.serialize(ended))
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a value's own methods raise
        if ended.error is None:
            what = f"its result, a {type(ended.result).__name__},"
        else:
            what = f"its error, {text_of(ended.error)},"
        msg = (
            f"engine 'huey', task {task.name!r}: {what} does not pickle"
            f" ({text_of(error)}); return something that does"
        )
        status = TaskStatus.failed if ended.error is None else ended.status
        return Ended(status, error=EngineError(msg), trail=ended.trail)
    return ended


def ended_of(stored: Any) -> Ended:
    """Make an end of what Huey has stored."""
    if isinstance(stored, Ended):
        return stored
    if isinstance(stored, Error):
        ended = stored.metadata.get(HEADER)
        if isinstance(ended, Ended):
            return ended
        return Ended(TaskStatus.failed, error=EngineError(f"Huey: {stored.metadata.get('error')}"))
    return Ended(TaskStatus.succeeded, stored, trail=Trail())


def unreadable(ticket: Result, error: Exception) -> Ended:
    """Make an end of one that cannot be read in this process."""
    msg = (
        f"engine 'huey', task {ticket.task.name!r}: its end cannot be read here:"
        f" {text_of(error)}; import what the worker's result is made of"
    )
    return Ended(TaskStatus.failed, error=EngineError(msg))
