"""A plugin as tests name it: a module, an object, a class, an entry point."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, Final

import attrs

from qtasks_pluggy import PluginManager
from qtasks_pluggy.exc import PluginRegistrationError

GROUP: Final = "qtasks_pluggy"


@attrs.frozen
class Given:
    """A plugin to test.

    Attributes:
        make: Makes the plugin for one app: a new object if it is a class or a factory, as an
            app does for an entry point that names one.
        module: The name of the module that it comes from; None if that is unknown.
        entry_point: The name of the entry point that it was found by, if it was.
    """

    make: Callable[[], Any]
    module: str | None
    entry_point: str | None = None

    def name_of(self, plugin: Any) -> str:
        """Return the name of a plugin that was made, as an app names it."""
        return self.entry_point or PluginManager().get_canonical_name(plugin)


def find_plugin(plugin: Any) -> Given:
    """Find out what a test means by a plugin.

    Args:
        plugin: The name of an entry point; where to import it from (``"module"``,
            ``"module:attribute"``); or a module, an object, a class or a factory.

    Raises:
        PluginRegistrationError: It is a text that names nothing, or importing it failed, or no
            app can load the entry point of that name.
    """
    name = None
    if isinstance(plugin, str):
        name, plugin = _load(plugin)
    is_factory = isinstance(plugin, type) or (
        inspect.isroutine(plugin) and not hasattr(plugin, "qtasks_pluggy_impl")
    )
    make: Callable[[], Any] = plugin if is_factory else lambda: plugin
    module = plugin.__name__ if isinstance(plugin, ModuleType) else _module_of(plugin)
    return Given(make, module, name)


def _module_of(plugin: Any) -> str | None:
    owner = plugin if isinstance(plugin, type) or inspect.isroutine(plugin) else type(plugin)
    name: str | None = getattr(owner, "__module__", None)
    return name


def _load(text: str) -> tuple[str | None, Any]:
    """Load an entry point by its name, which is the plugin's, or import what the text names."""
    point = entry_point_named(text)
    try:
        return (None, resolve_name(text)) if point is None else (text, point.load())
    except Exception as error:
        known = ", ".join(sorted(importlib.metadata.entry_points(group=GROUP).names)) or "none"
        hint = f"fix the module of its entry point, {point.value!r}" if point else ""
        msg = (
            f"plugin {text!r} cannot be imported ({type(error).__name__}: {error}); "
            f"{hint or f'plugins that are installed in {sys.prefix}: {known}'}"
        )
        raise PluginRegistrationError(msg) from error


def entry_point_named(name: str) -> importlib.metadata.EntryPoint | None:
    """Return the entry point of an installed plugin, as apps find it; None if none has that name.

    Raises:
        PluginRegistrationError: Several distributions claim the name, so no app can load it.
    """
    points = [*importlib.metadata.entry_points(group=GROUP, name=name)]
    claims = {(one.dist.name if one.dist else "?", one.value) for one in points}
    if len(claims) > 1:
        others = " and ".join(f"{owner} ({value})" for owner, value in sorted(claims))
        msg = f"plugin {name!r}: {others} both claim this name, so no app starts; uninstall one"
        raise PluginRegistrationError(msg)
    return next(iter(points), None)


def names_of(distribution: str) -> list[str]:
    """Return the names of the plugins of one installed distribution.

    Raises:
        PluginRegistrationError: It is not installed, or has no plugin.
    """
    try:
        points = importlib.metadata.distribution(distribution).entry_points
    except importlib.metadata.PackageNotFoundError:
        msg = (
            f"distribution {distribution!r} is not installed in {sys.prefix}; install the plugin"
            " before its tests run, in its folder: python -m pip install --editable ."
        )
        raise PluginRegistrationError(msg) from None
    names = sorted(point.name for point in points if point.group == GROUP)
    if not names:
        msg = (
            f"distribution {distribution!r} has no entry point in the group {GROUP!r}; add one to"
            f" its pyproject.toml, [project.entry-points.{GROUP}], and install it again"
        )
        raise PluginRegistrationError(msg)
    return names
