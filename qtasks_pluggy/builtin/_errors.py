"""For both plugins: error classes by name, and unknown keys."""

from __future__ import annotations

import builtins
import difflib
from typing import Any

from qtasks_hookspecs.exc import SettingsError, is_named

# How much two names have in common, of 1, where one may be a slip for the other.
_ALIKE = 0.85
_BUILTIN = sorted(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)


def read_error_names(value: Any, where: str) -> tuple[str, ...]:
    """Return the names of error classes, written as one name or a list of them.

    Raises:
        SettingsError: It is not a name or a list of names, or a bare name is not a built-in one.
    """
    found = [value] if isinstance(value, str) else value
    if not (isinstance(found, (list, tuple)) and found and all(isinstance(n, str) for n in found)):
        msg = (
            f"{where} takes the name of an exception class or a list of names,"
            f" got {type(value).__name__}"
        )
        raise SettingsError(msg)
    for number, name in enumerate(found, start=1):
        if "." not in name and name not in _BUILTIN:
            # Anything else may be a secret that was put here by mistake.
            is_class = name.isidentifier() and name.endswith(("Error", "Exception"))
            shown = repr(name) if is_class else f"name {number}"
            near = difflib.get_close_matches(name, _BUILTIN, n=1, cutoff=_ALIKE)
            meant = f" did you mean {near[0]!r}? If not," if near else ""
            msg = (
                f"{where}: {shown} is not a built-in exception;{meant} a class outside of builtins"
                " needs its module, 'smtplib.SMTPException'"
            )
            raise SettingsError(msg)
    return tuple(found)


def matches(error: BaseException, wanted: tuple[str, ...]) -> bool:
    """Return whether an error or its cause is of a named class, without importing anything."""
    classes = [type(one) for one in (error, error.__cause__) if one is not None]
    return any(is_named(cls, name) for cls in classes for name in wanted)


def refuse_unknown_keys(where: str, section: Any, known: tuple[str, ...]) -> None:
    """Refuse keys that a section does not have.

    Raises:
        SettingsError: There is another key; the nearest is named.
    """
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
            msg = f"{where}: unknown key {key!r}; did you mean {near!r}?"
            raise SettingsError(msg)
