"""How messages and ends of runs travel through Huey's storage: pickled."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, Final

from huey import Huey
from huey.api import Result
from huey.utils import Error

from qtasks_pluggy import TaskStatus, Trail
from qtasks_pluggy.engines import RunResult
from qtasks_pluggy.engines.huey.install import HEADER
from qtasks_pluggy.engines.servers import text_of, unstorable
from qtasks_pluggy.exc import EngineError

# Results of these types travel as they are: without being tried first, and bare if that is all.
PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


def check_storable(huey: Huey, what: str, value: Any) -> None:
    """Refuse what Huey's serializer cannot carry.

    Args:
        huey: Whose results it would be among.
        what: Whose value it is, for people.
        value: A result, or an answer.

    Raises:
        EngineError: It does not pickle.
    """
    if type(value) in PLAIN or not huey.results:
        return
    try:
        huey.serializer.deserialize(huey.serializer.serialize(value))
    except (Exception, SystemExit) as error:  # whatever a value's own methods raise
        raise unstorable(what, value, error, engine="huey") from error


def portable(ended: RunResult, task: str, serializer: Any) -> RunResult:
    """Replace an error that Huey's serializer cannot carry by one that says so."""
    try:
        serializer.deserialize(serializer.serialize(ended))
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever an error's own methods raise
        msg = (
            f"engine 'huey', task {task!r}: its error, {text_of(ended.error)}, does not pickle"
            f" ({text_of(error)}); raise something that does"
        )
        return RunResult(ended.status, error=EngineError(msg), trail=ended.trail)
    return ended


def ended_of(stored: Any) -> RunResult | None:
    """Make an end of what Huey has stored; None of an error that is to be retried.

    Huey before 3.5 stores those too.
    """
    if isinstance(stored, RunResult):
        return stored
    if isinstance(stored, Error):
        ended = stored.metadata.get(HEADER)
        if isinstance(ended, RunResult):
            return ended
        if stored.metadata.get("retries"):
            return None
        return RunResult(
            TaskStatus.failed, error=EngineError(f"Huey: {stored.metadata.get('error')}")
        )
    return RunResult(TaskStatus.succeeded, stored, trail=Trail())


def unreadable(ticket: Result, error: Exception) -> RunResult:
    """Make an end of one that cannot be read in this process."""
    msg = (
        f"engine 'huey', task {ticket.task.name!r}: its end cannot be read here:"
        f" {text_of(error)}; import what the worker's result is made of"
    )
    return RunResult(TaskStatus.failed, error=EngineError(msg))
