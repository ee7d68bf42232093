"""How errors leave a run: without our frames, wrapped for the caller, or as JSON.

An error that its class and arguments rebuild is sent as these, any other as an ``EngineError`` with
the task, the class and the text. Reading looks for the class in loaded modules only, and builds an
``Exception`` only: no message can make us import or call anything else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from qtasks_pluggy.engines import safe_str
from qtasks_pluggy.exc import EngineError, TaskPluginTriggerError

# Every serializer takes values of these types; a whole number can have too many digits for JSON.
PLAIN: Final = frozenset({type(None), bool, float, str})
# The packages whose frames lead from an engine to a task: ours, and those that we wait with.
_OURS: Final = frozenset({"asyncio", "concurrent", "contextlib", "qtasks_pluggy", "threading"})


class HandsOver:
    """Cuts our leading frames from an error on its way to the engine (R6)."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Cut them, and let the error pass."""
        if error is not None:
            # Not the error's own method: a frozen class refuses it.
            BaseException.with_traceback(error, _theirs(error.__traceback__))


HANDS_OVER: Final = HandsOver()


def _theirs(traceback: TracebackType | None) -> TracebackType | None:
    """Find where a traceback enters code that is neither ours nor waits for us."""
    while traceback is not None and traceback.tb_next is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        if module.partition(".")[0] not in _OURS:
            break
        traceback = traceback.tb_next
    return traceback


def text_of(error: BaseException | None) -> str:
    """Return an error's class and text, even if its ``str`` fails."""
    return f"{type(error).__name__}: {safe_str(error)}"


def named(error: BaseException, engine: str) -> EngineError:
    """Wrap an error that is no ``Exception``: it would end the caller too.

    Args:
        error: ``SystemExit``, or a class of the user's own.
        engine: The engine's name.
    """
    failure = EngineError(f"engine {engine!r}: the task raised {text_of(error)}")
    failure.__cause__ = error
    return failure


def wrong_app(kind: Any, given: Any) -> TypeError:
    """Say what ``install`` takes.

    Args:
        kind: The class of engine.
        given: What it was given instead of the engine's own app.
    """
    package, got = kind.kind.__module__.partition(".")[0], type(given)
    return TypeError(
        f"engine {kind.name!r}: install() expected a {package}.{kind.kind.__name__}, got a"
        f" {got.__module__}.{got.__qualname__}; give it the object that you make with"
        f" {kind.name} itself"
    )


def check_storable(native: Any, run: Any, what: str, value: Any) -> None:
    """Refuse a value that an engine cannot store.

    Args:
        native: The engine.
        run: What its ``encode`` knows the run by.
        what: Whose value it is, for people.
        value: The error shows its type only.

    Raises:
        EngineError: It cannot be encoded.
    """
    if type(value) in PLAIN:
        return
    try:
        native.encode(run, value)
    except Exception as error:
        msg = (
            f"engine {native.name!r}: {what}, a {type(value).__name__}, cannot be stored"
            f" ({text_of(error)}); return something that can, an id or a path"
        )
        raise EngineError(msg) from error


def unsent(engine: str, task: str, error: BaseException | None, failure: Exception) -> EngineError:
    """Say that a retry could not be sent; the cause is the task's own error."""
    told = failure
    if not isinstance(told, EngineError):
        told = EngineError(
            f"engine {engine!r}, task {task!r}: a retry was decided, and the broker did not take"
            f" it: {text_of(failure)}; check that the broker runs and has room"
        )
    told.__cause__ = error
    return told


def pack_error(error: BaseException) -> dict[str, Any]:
    """Pack an error for JSON: its class, arguments, text and notes."""
    args = list(error.args)
    kwargs = error.kwargs if isinstance(error, TaskPluginTriggerError) else {}
    try:
        json.dumps([args, kwargs])
    except (TypeError, ValueError, RecursionError):
        args, kwargs = [safe_str(error)], {}
    kind = type(error)
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    return {
        "module": kind.__module__,
        "class": kind.__qualname__,
        "args": args,
        "kwargs": kwargs,
        "text": safe_str(error),
        "notes": notes,
    }


def unpack_error(told: Mapping[str, Any], who: str) -> Exception:
    """Rebuild an error from what ``pack_error`` returned.

    Args:
        told: The packed error; anybody may have written it.
        who: The engine and the task, for an error that cannot be rebuilt.

    Returns:
        The error, or an ``EngineError`` with its class and text.
    """
    try:
        module, name, text = told["module"], told["class"], told["text"]
        error = rebuilt(module, name, told["args"], told["kwargs"], text)
        if error is None:
            error = EngineError(f"{who}: {module}.{name}: {text}")
        for note in told["notes"]:
            error.add_note(note)
    except Exception as broken:  # noqa: BLE001  # whatever it holds
        return EngineError(f"{who}: its end cannot be read: {text_of(broken)}")
    return error


def rebuilt(module: str, name: str, args: Any, kwargs: Any, text: str) -> Exception | None:
    """Rebuild an error from its class and arguments; None if that gives another error."""
    # A loaded class only: whoever writes results must not choose what is imported.
    kind: Any = sys.modules.get(module)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        error = kind(*args, **kwargs)
        return error if str(error) == text else None
    except Exception:  # noqa: BLE001  # a class that takes other arguments
        return None


def portable(error: BaseException | None, who: str) -> BaseException | None:
    """Return an error that an engine can store by its class and arguments alone.

    Args:
        error: The error of the run.
        who: The engine and the task.

    Returns:
        The error itself if these rebuild it, else an ``EngineError`` with its class and text, and
        the error as its cause.
    """
    if error is None or isinstance(error, EngineError):
        return error
    kind, text = type(error), safe_str(error)
    if isinstance(error, TaskPluginTriggerError) and not error.args:
        # Its keywords would be lost.
        error.args = (text,)
    try:
        args = json.loads(json.dumps(error.args))
    except (TypeError, ValueError, RecursionError):
        args = None
    made = None if args is None else rebuilt(kind.__module__, kind.__qualname__, args, {}, text)
    if made is not None:
        return error
    told = EngineError(f"{who}: {kind.__module__}.{kind.__qualname__}: {text}")
    told.__cause__ = error
    return told
