"""Where events go: to the app's structlog if it is configured, otherwise to ``logging``."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Final

import structlog

NAME: Final = "qtasks_pluggy"
_stdlib: Final = logging.getLogger(NAME)


def logger() -> Any:
    """Return the logger to use now.

    Looked up for each event, because an app may configure its logging at any time. Unless structlog
    is configured, events go to ``logging`` as ``event key=value``, which writes warnings and errors
    to stderr until it is configured itself.
    """
    return structlog.get_logger(NAME) if structlog.is_configured() else _to_logging


def event(level: str, name: str, /, **values: Any) -> None:
    """Log an event. No run is lost to a failing log, such as a broken pipe.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        name: The event's name.
        **values: The event's fields.
    """
    # Closed streams, and the app's own processors that fail.
    with suppress(Exception):
        getattr(logger(), level)(name, **values)


def debug_enabled() -> bool:
    """Return whether anybody would see a debug event, without building it."""
    return _enabled(logging.DEBUG)


def info_enabled() -> bool:
    """Return whether anybody would see an info event, without building it."""
    return _enabled(logging.INFO)


def _enabled(level: int) -> bool:
    return _structlog_enabled(level) if structlog.is_configured() else _stdlib.isEnabledFor(level)


def _structlog_enabled(level: int) -> bool:
    """Ask structlog for a level; its filtering loggers differ by their class alone."""
    global _asked  # noqa: PLW0603  # a cache, until structlog is configured again
    wrapper_class = structlog.get_config()["wrapper_class"]
    if wrapper_class is not _asked[0]:
        bound = structlog.get_logger(NAME).bind()
        # Of the class: some loggers' instances have every attribute.
        has_levels = hasattr(type(bound), "is_enabled_for")
        _asked = wrapper_class, bound.is_enabled_for if has_levels else None
    asks = _asked[1]
    # A logger without ``is_enabled_for`` gets every event.
    return asks is None or bool(asks(level))


# structlog's wrapper class, and the ``is_enabled_for`` of one that is bound: binding is slow.
_asked: tuple[Any, Any] = (None, None)


def _as_text(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Make an event the message of a log record; an error keeps its traceback by ``exc_info``."""
    keywords = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    text = " ".join(
        [str(event.pop("event")), *(f"{name}={value!r}" for name, value in event.items())]
    )
    # Not escaped, because logging formats a message that comes with arguments only.
    return (text,), keywords


_to_logging: Final = structlog.wrap_logger(
    _stdlib, processors=[_as_text], wrapper_class=structlog.stdlib.BoundLogger
)
