"""The operator's settings: environment over file over what the app gave.

Each key is declared once, in ``Settings``: its type, its default and its documentation.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Final

import attrs

from qtasks_hookspecs.exc import SettingsError

ENVIRONMENT_PREFIX: Final = "QTASKS_PLUGGY_"


def _declare(default: Any, says: str) -> Any:
    return attrs.field(default=default, metadata={"says": says})


@attrs.frozen
class Settings:
    """Every key, with its default.

    Attributes are declared with their documentation in ``metadata["says"]``.
    """

    disable: tuple[str, ...] = _declare((), "plugins that are not loaded, by name")
    strict: bool = _declare(
        False, "a plugin that fails raises PluginError at once, for development"
    )


KEYS: Final = tuple(field.name for field in attrs.fields(Settings))


def load(given: Mapping[str, Any] | None = None, *, outside: bool = False) -> Settings:
    """Make the settings of one app.

    Args:
        given: What the app gave, by key.
        outside: Whether to look at the environment as well.

    Returns:
        The settings.

    Raises:
        SettingsError: A key is unknown (the nearest is named), or a value is not what it takes.
    """
    values: dict[str, Any] = {}
    for source, found in (("settings", given or {}), ("environment", _environment(outside))):
        for key, value in found.items():
            if key not in KEYS:
                raise _unknown(key, source)
            values[key] = _convert(key, value, source)
    return Settings(**values)


def _environment(outside: bool) -> dict[str, str]:
    if not outside:
        return {}
    start = len(ENVIRONMENT_PREFIX)
    return {
        name[start:].lower(): value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }


def _spelled(key: str, source: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{key.upper()}" if source == "environment" else repr(key)


def _unknown(key: str, source: str) -> SettingsError:
    nearest = difflib.get_close_matches(key, KEYS, n=1, cutoff=0)[0]
    return SettingsError(
        f"{source}: unknown key {_spelled(key, source)}; did you mean {_spelled(nearest, source)}?"
        f" The keys are {', '.join(KEYS)}."
    )


def _convert(key: str, value: Any, source: str) -> Any:
    if key == "strict":
        if isinstance(value, bool):
            return value
        words = {"1": True, "true": True, "yes": True, "on": True}
        words |= {"0": False, "false": False, "no": False, "off": False}
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        wanted = "true or false"
    else:
        if isinstance(value, str) and source == "environment":
            value = [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(value)
        wanted = "a list of plugin names"
    msg = f"{source}: {_spelled(key, source)} takes {wanted}, got {value!r}"
    raise SettingsError(msg)
