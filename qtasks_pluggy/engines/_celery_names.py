"""Plugins by names, by which another process can import them."""

from __future__ import annotations

from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from qtasks_pluggy.exc import PluginRegistrationError


def resolved(plugin: Any) -> Any:
    """Import a plugin that is given by its name.

    Raises:
        PluginRegistrationError: There is none of this name.
    """
    if not isinstance(plugin, str):
        return plugin
    try:
        return resolve_name(plugin)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"install(): plugin {plugin!r} cannot be imported: {error}; name 'module:attribute'"
        raise PluginRegistrationError(msg) from error


def name_of(plugin: Any) -> str | None:
    """Name a plugin so that another process can import it."""
    if isinstance(plugin, str):
        return plugin
    name = (
        plugin.__name__
        if isinstance(plugin, ModuleType)
        else f"{getattr(plugin, '__module__', '')}:{getattr(plugin, '__qualname__', '')}"
    )
    try:
        return name if resolve_name(name) is plugin else None
    except (ImportError, AttributeError, ValueError):
        return None
