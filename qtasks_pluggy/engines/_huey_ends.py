"""How messages and ends of runs travel through Huey's storage: pickled."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from huey import CancelExecution
from huey.api import Result
from huey.utils import Error

from qtasks_pluggy import TaskStatus, Trail
from qtasks_pluggy.engines import Ended
from qtasks_pluggy.engines._huey_ledger import HEADER
from qtasks_pluggy.exc import EngineError

# Results of these types travel as they are: without being tried first, and bare if that is all.
PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


def text_of(error: BaseException | None) -> str:
    """Return an error's class and text, whatever the class makes of ``str``."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # whatever an error's own methods raise
        return type(error).__name__


def cancel_execution(text: str) -> CancelExecution:
    """Make what ends a Huey task for good.

    Huey 3.5 changed the order of its arguments.
    """
    error = CancelExecution(retry=False)
    error.args = (text,)
    return error


def check_result(serializer: Any, task: str, result: Any) -> None:
    """Refuse a result that Huey's serializer cannot carry.

    Raises:
        EngineError: It does not pickle.
    """
    if type(result) in PLAIN:
        return
    try:
        serializer.deserialize(serializer.serialize(result))
    except (Exception, SystemExit) as error:  # whatever a value's own methods raise
        msg = (
            f"engine 'huey', task {task!r}: its result, a {type(result).__name__}, does not pickle"
            f" ({text_of(error)}); return something that does"
        )
        raise EngineError(msg) from error


def portable(ended: Ended, task: str, serializer: Any) -> Ended:
    """Replace an error that Huey's serializer cannot carry by one that says so."""
    try:
        serializer.deserialize(serializer.serialize(ended))
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever an error's own methods raise
        msg = (
            f"engine 'huey', task {task!r}: its error, {text_of(ended.error)}, does not pickle"
            f" ({text_of(error)}); raise something that does"
        )
        return Ended(ended.status, error=EngineError(msg), trail=ended.trail)
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
