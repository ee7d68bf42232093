"""How errors leave a run: without our frames, wrapped for the caller, or as JSON.

An error is sent as its class and arguments if these rebuild it, otherwise as an ``EngineError``
with the task, the class and the text. Reading looks for the class in loaded modules only, and
builds an ``Exception`` only: no message can make us import or call anything else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from qtasks_pluggy.engines import safe_str
from qtasks_pluggy.exc import EngineError, TaskPluginTriggerError

# Every serializer accepts values of these types, and ints of 64 bits.
PLAIN: Final = frozenset({type(None), bool, float, str})
_BITS: Final = 63
# Characters of arguments that are not in ``args``: for one, the whole document that is no JSON.
_MOST_ARGUMENTS: Final = 4_000
# The packages whose frames lead from an engine to a task: ours, and those that we use to wait.
_OURS: Final = frozenset({"asyncio", "concurrent", "contextlib", "qtasks_pluggy", "threading"})


class HandsOver:
    """Cuts our leading frames from an error on its way to the engine (R6)."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Cut our leading frames from the error, and let it pass."""
        if error is not None:
            # Not the error's own method, because a frozen class refuses it.
            BaseException.with_traceback(error, _theirs(error.__traceback__))


HANDS_OVER: Final = HandsOver()


def _theirs(traceback: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that follows our leading frames."""
    while traceback is not None and traceback.tb_next is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        if module.partition(".")[0] not in _OURS:
            break
        traceback = traceback.tb_next
    return traceback


def text_of(error: BaseException | None) -> str:
    """Return an error's class and text, even if its ``str`` fails, without passwords of URLs."""
    text = re.sub(r"//[^/\s]*@", "//...@", safe_str(error))
    return f"{type(error).__name__}: {text}"


def named(error: BaseException, engine: str) -> EngineError:
    """Wrap an error that is not an ``Exception``, because it would end the caller too.

    Args:
        error: ``SystemExit``, or an error of the user's own class.
        engine: The engine's name.
    """
    failure = EngineError(f"engine {engine!r}: the task raised {text_of(error)}")
    failure.__cause__ = error
    return failure


def check_storable(adapter: Any, run: Any, what: str, value: Any) -> None:
    """Refuse a value that an engine cannot store.

    Args:
        adapter: The engine's ``Native`` object.
        run: The run, as its ``encode`` takes it.
        what: The value's name in the error.
        value: The value; the error shows only its type.

    Raises:
        EngineError: The value cannot be encoded.
    """
    if type(value) in PLAIN or (type(value) is int and value.bit_length() <= _BITS):
        return
    try:
        adapter.encode(run, value)
    except Exception as error:
        msg = (
            f"engine {adapter.name!r}: {what}, a {type(value).__name__}, cannot be stored"
            f" ({text_of(error)}); return something that can be stored, such as an id or a path"
        )
        raise EngineError(msg) from error


def unsent(engine: str, task: str, error: BaseException | None, failure: Exception) -> EngineError:
    """Return the error for a retry that could not be sent; its cause is the task's own error."""
    if not isinstance(failure, EngineError):
        failure = EngineError(
            f"engine {engine!r}, task {task!r}: a plugin decided to retry, but the broker did not"
            f" accept the message: {text_of(failure)}; check that the broker runs and has room"
        )
    failure.__cause__ = error
    return failure


def pack_error(error: BaseException) -> dict[str, Any]:
    """Pack an error for JSON: its class, arguments, text and notes."""
    packed = {
        "module": type(error).__module__,
        "class": type(error).__qualname__,
        "args": _arguments(error),
        "kwargs": error.kwargs if isinstance(error, TaskPluginTriggerError) else {},
        "text": safe_str(error),
        "notes": [safe_str(note) for note in getattr(error, "__notes__", ())],
    }
    if not _fits_json(packed):
        packed |= {"args": [packed["text"]], "kwargs": {}}
    return packed


def _arguments(error: BaseException) -> list[Any]:
    """Return what rebuilds an error, as pickle sees it: not all of it has to be in ``args``.

    ``OSError`` has its file name elsewhere, and ``json.JSONDecodeError`` all but its text.
    """
    try:
        reduced: Any = error.__reduce__()
        kind, args = reduced[:2]
        is_short = len(json.dumps(args)) <= _MOST_ARGUMENTS
        return list(args if is_short and kind is type(error) else error.args)
    except Exception:  # noqa: BLE001  # a class of somebody else's
        return list(error.args)


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def unpack_error(told: Mapping[str, Any], who: str) -> Exception:
    """Rebuild an error from what ``pack_error`` returned.

    Args:
        told: The packed error; anybody may have written it.
        who: The engine and the task, for an error that cannot be rebuilt.

    Returns:
        The error, or an ``EngineError`` with its class and text.
    """
    try:
        error = _rebuilt(told)
        if error is None:
            error = EngineError(f"{who}: {told['module']}.{told['class']}: {told['text']}")
        for note in told["notes"]:
            error.add_note(note)
    except Exception as broken:  # noqa: BLE001  # whatever it holds
        return EngineError(f"{who}: its error cannot be read: {text_of(broken)}")
    return error


def _rebuilt(told: Mapping[str, Any]) -> Exception | None:
    """Rebuild an error from its class and arguments; return None if the text then differs."""
    # A loaded class only: whoever writes results must not choose what we import.
    kind: Any = sys.modules.get(told["module"])
    for part in told["class"].split("."):
        kind = getattr(kind, part, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    args, kwargs = told["args"], told["kwargs"]
    try:
        error = kind(*args, **kwargs)
        return error if str(error) == told["text"] else None
    except Exception:  # noqa: BLE001  # a class that takes other arguments
        return None


def portable(error: BaseException | None, who: str) -> BaseException | None:
    """Return an error that an engine can store by its class and arguments alone.

    Args:
        error: The error of the run.
        who: The engine and the task.

    Returns:
        The error itself if its class and arguments rebuild it. Otherwise, caused by it, one of its
        class with the text alone if the text is the same, or an ``EngineError``.
    """
    if error is None or isinstance(error, EngineError):
        return error
    if isinstance(error, TaskPluginTriggerError) and not error.args:
        # Its keyword arguments would be lost.
        error.args = (safe_str(error),)
    packed = {**pack_error(error), "kwargs": {}}
    if _fits_json(error.args):
        told = _rebuilt({**packed, "args": json.loads(json.dumps(error.args))})
        if type(told) is type(error):
            return error
    told = unpack_error({**packed, "args": [packed["text"]]}, who)
    told.__cause__ = error
    return told
