"""A ``BasePlugin`` as hookimpls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from qtasks_hookspecs import hookimpl
from qtasks_pluggy.base_plugin import BasePlugin

# The triggers of each component that only QTasks calls, as its release 1.7.3 has them.
_OF_COMPONENTS: Final = {
    "broker": "add_after add_before add_worker flush_all get listen_start remove_finished_task"
    " running_older_tasks start stop update",
    "global_config": "get get_all get_match set set_status start stop",
    "qtasks": "add_task_after_broker add_task_before_broker flush_all get ping",
    "starter": "start stop",
    "stats": "inspect",
    "storage": "add add_process delete_finished_tasks flush_all get get_all remove_finished_task"
    " running_older_tasks start stop update",
    "task_executor": "after_execute after_execute_result_replace before_execute decode"
    " middlewares_execute run_task_gen",
    "worker": "add execute_after execute_before remove_finished_task run_task_before start stop"
    " task_error_retry",
}
QTASKS_TRIGGERS: Final = frozenset(
    f"{component}_{name}" for component, names in _OF_COMPONENTS.items() for name in names.split()
)


class Adapter:
    """The hookimpls of a ``BasePlugin``, one for each hook that it is asked for."""

    def __init__(self, plugin: BasePlugin, hooks: Iterable[str]) -> None:
        self.plugin: BasePlugin = plugin
        for hook in hooks:
            setattr(self, hook, hookimpl(self._hookimpl(hook)))

    def _hookimpl(self, hook: str) -> Callable[..., Any]:
        plugin = self.plugin

        # Their names are what the log and the trail show as the handler.
        def start() -> Any:
            return plugin.start()

        def stop() -> Any:
            return plugin.stop()

        def trigger(**kwargs: Any) -> Any:
            return plugin.trigger(hook, **kwargs)

        return {"qtasks_start": start, "qtasks_stop": stop}.get(hook, trigger)


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


def is_of_qtasks(plugin: Any) -> bool:
    """Return whether a plugin is a ``BasePlugin`` of QTasks, which need not be installed."""
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(plugin).__mro__}
    return "qtasks.plugins.base.BasePlugin" in names
