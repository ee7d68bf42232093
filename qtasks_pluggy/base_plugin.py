"""``BasePlugin``: plugins in QTasks' format, adapted to hookimpls. For migration only."""

from __future__ import annotations

from typing import Any

__all__ = ["BasePlugin"]


class BasePlugin:
    """A plugin in QTasks' format; write new plugins as modules of hookimpls.

    ``trigger`` is called with a hook's name and exactly the hook's parameters, and its value is
    the hook's answer. If the plugin has a dict ``handlers`` when it is added, only the hooks among
    its keys are called; otherwise all are. Any of the three methods may be an ``async def``.

    Args:
        name: The plugin's name; its class's name without one.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name: str = name or type(self).__name__

    def start(self, *args: Any, **kwargs: Any) -> Any:
        """Get ready; called when the app starts."""

    def stop(self, *args: Any, **kwargs: Any) -> Any:
        """Clean up; called when the app stops."""

    def trigger(self, name: str, **kwargs: Any) -> Any:
        """Answer the hook ``name``; None means no opinion."""
        del name, kwargs
