"""A ``BasePlugin`` as hookimpls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qtasks_hookspecs import hookimpl
from qtasks_pluggy.base_plugin import BasePlugin


class Adapter:
    """The hookimpls of a ``BasePlugin``, one for each hook that it is asked for."""

    def __init__(self, plugin: BasePlugin, hooks: Iterable[str]) -> None:
        self.plugin: BasePlugin = plugin
        for hook in hooks:
            setattr(self, hook, hookimpl(self._hookimpl(hook)))

    def _hookimpl(self, hook: str) -> Callable[..., Any]:
        plugin = self.plugin

        def adapted(**kwargs: Any) -> Any:
            if hook == "qtasks_start":
                return plugin.start()
            if hook == "qtasks_stop":
                return plugin.stop()
            return plugin.trigger(hook, **kwargs)

        return adapted


def original_plugin(plugin: Any) -> Any:
    """Return a registered plugin as the app added it, without its adapter."""
    return plugin.plugin if type(plugin) is Adapter else plugin


def wanted_triggers(
    plugin: BasePlugin, limit: Iterable[str] | None, hooks: Iterable[str]
) -> list[str]:
    """Return the triggers that a ``BasePlugin`` wants within the app's limit, known or not."""
    handlers = getattr(plugin, "handlers", None)
    all_hooks = [hook for hook in hooks if hook not in {"qtasks_start", "qtasks_stop"}]
    wanted = list(handlers) if isinstance(handlers, dict) else all_hooks
    if limit is None:
        return wanted
    chosen = list(limit)
    return [name for name in chosen if name in wanted or name not in all_hooks]
