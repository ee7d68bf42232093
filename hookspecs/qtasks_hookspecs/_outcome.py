"""How one attempt of a run ended, and the fingerprint that failures of one cause share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from types import CodeType, TracebackType
from typing import Any, Final

import attrs


class OutcomeStatus(StrEnum):
    """The ways in which an attempt can end."""

    succeeded = "succeeded"
    recovered = "recovered"
    retried = "retried"
    failed = "failed"
    cancelled = "cancelled"
    dead_lettered = "dead_lettered"


@attrs.frozen
class Origin:
    """Where an attempt's error came from: what a fingerprint is made of.

    Attributes:
        task_func: The task's definition.
        error: The task's own error, before any decision.
        traceback: Its traceback as it leaves the task; it grows longer on its way to the caller.
    """

    task_func: Any
    error: BaseException
    traceback: TracebackType | None


@attrs.frozen(kw_only=True, eq=False)
class Outcome:
    """How one attempt ended.

    Attributes:
        status: The way in which it ended.
        error: The task's own error, unwrapped, even if the run recovered; ``x`` after ``Raise(x)``;
            None only if the status is ``succeeded``.
        decided_by: The name of the plugin that decided; None if no plugin did.
        reason: Why, for people; may be empty.
        delay: Seconds before the next attempt; None if there is none or the engine chooses.
        seconds: How long the attempt took.
        attempt: Which attempt it was, from 1.
    """

    status: OutcomeStatus
    error: BaseException | None = None
    decided_by: str | None = None
    reason: str = ""
    delay: float | None = None
    seconds: float = 0.0
    attempt: int = 1
    _origin: Origin | None = attrs.field(default=None, repr=False, alias="origin")

    @property
    def fingerprint(self) -> str | None:
        """What failures of one cause have in common; None only if the status is ``succeeded``.

        A digest of the task's name, the class of its own error, the classes of that error's causes,
        and the app's own frames by module and function. It does not depend on values, texts, line
        numbers or where the app's files are. If the traceback was cut, the rest of it counts.
        """
        origin = self._origin
        if origin is None:
            if self.error is None:
                return None
            origin = Origin(None, self.error, self.error.__traceback__)
        from hashlib import blake2s  # noqa: PLC0415  # a plugin that never asks need not load it

        name = getattr(origin.task_func, "name", "")
        parts = [name, *_classes(origin.error), "", *_frames(origin)]
        return blake2s("\n".join(parts).encode(errors="replace"), digest_size=8).hexdigest()


def _classes(error: BaseException) -> Iterator[str]:
    """Name the class of an error, and those of its causes, which may go round in a circle."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        kind = type(cause)
        yield f"{_portable(kind.__module__)}.{kind.__qualname__}"
        cause = cause.__cause__


def _frames(origin: Origin) -> dict[str, None]:
    """Name the app's own frames, each once: how deep a function calls itself is a value."""
    own = str(getattr(getattr(origin.task_func, "func", None), "__module__", "")).partition(".")[0]
    frames: dict[str, None] = {}
    traceback = origin.traceback
    while traceback is not None:
        frame = traceback.tb_frame
        module = str(frame.f_globals.get("__name__", ""))
        if _is_apps_own(module, frame.f_code, own):
            frames[
                f"{_portable(module) or _stem(frame.f_code.co_filename)}:{frame.f_code.co_qualname}"
            ] = None
        traceback = traceback.tb_next
    return frames


def _is_apps_own(module: str, code: CodeType, own: str) -> bool:
    """Return whether a frame is the app's, and not ours, Python's or an installed library's.

    The task's own package is the app's even if it is installed.
    """
    package = module.partition(".")[0]
    if package in _OURS or code.co_filename.startswith("<frozen "):
        return False
    file = code.co_filename.replace(os.sep, "/")
    return package == own or not (
        file.startswith(_STDLIB) or "/site-packages/" in file or "/dist-packages/" in file
    )


def _portable(module: str) -> str:
    """Name a module as other processes do, where it is the program that was started in this one."""
    if module not in {"__main__", "__mp_main__"}:
        return module
    main: Any = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    return spec.name if spec is not None else _stem(getattr(main, "__file__", None) or module)


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]  # noqa: PTH119, PTH122  # pathlib is slow to import


_OURS: Final = frozenset({"qtasks_pluggy", "qtasks_hookspecs", "pluggy"})
_STDLIB: Final = os.path.dirname(os.__file__).replace(os.sep, "/") + "/"  # noqa: PTH120  # as above  # pathlib is slow to import
