"""Ends of runs that travel as JSON, for engines that keep no more than a result."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from qtasks_pluggy import TaskStatus
from qtasks_pluggy.engines import RunResult
from qtasks_pluggy.exc import EngineError, TaskPluginTriggerError

# The key under which an end is known among results.
KEY: Final = "__qtasks_pluggy__"


def packed(ended: RunResult) -> dict[str, Any]:
    """Make a result of a run's end that is no success: status, the error's class and arguments."""
    error = ended.error
    kind = type(error)
    args = [] if error is None else list(error.args)
    kwargs = error.kwargs if isinstance(error, TaskPluginTriggerError) else {}
    try:
        json.dumps([args, kwargs])
    except (TypeError, ValueError, RecursionError):
        args, kwargs = [str(error)], {}
    told = {
        "module": kind.__module__,
        "class": kind.__qualname__,
        "args": args,
        "kwargs": kwargs,
        "text": str(error),
    }
    return {KEY: {"status": str(ended.status), "error": told}}


def unpacked(result: Any, who: str) -> RunResult:
    """Make an end of a result.

    Args:
        result: A native result; what ``packed`` made is no success.
        who: The engine and the task, for an error that cannot be made again.
    """
    if not isinstance(result, dict) or KEY not in result:
        return RunResult(TaskStatus.succeeded, result)
    told = result[KEY]
    return RunResult(TaskStatus(told["status"]), error=_error(told["error"], who))


def _error(told: dict[str, Any], who: str) -> BaseException:
    # Only a class that is there already: whoever writes results must not choose what is imported.
    kind: Any = sys.modules.get(told["module"])
    for name in told["class"].split("."):
        kind = getattr(kind, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(*told["args"], **told["kwargs"])
        except Exception:  # noqa: BLE001, S110  # a class that is made in another way
            pass
        else:
            if str(error) == told["text"]:
                return error
    name = f"{told['module']}.{told['class']}"
    msg = f"{who}: {name}: {told['text']}"
    if not isinstance(kind, type):
        msg += "; import its module to have the error itself"
    return EngineError(msg)
