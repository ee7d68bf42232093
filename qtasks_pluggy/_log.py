"""Where events go: the host's structlog, else the host's logging, else warnings to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Final

import structlog

from qtasks_pluggy._text import printable

NAME: Final = "qtasks_pluggy"
_stdlib: Final = logging.getLogger(NAME)


def logger() -> Any:
    """Return the logger of this moment.

    Asked for anew at each event, because a host may configure its logging at any time. A host
    that configured structlog gets the events through it; one that configured ``logging`` alone
    gets them there as ``event key=value``; until then warnings and worse go to stderr.
    """
    if structlog.is_configured():
        return structlog.get_logger(NAME)
    if _stdlib.hasHandlers():
        return _to_logging
    return _to_stderr


def event(level: str, name: str, /, **values: Any) -> None:
    """Log an event, whatever the host's log makes of it: no run is lost for a broken pipe.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        name: The event's name.
        **values: What is known.
    """
    # Closed streams, and processors of the host's that fail.
    with suppress(Exception):
        getattr(logger(), level)(name, **values)


def debug_enabled() -> bool:
    """Say whether a debug event would reach anybody, without building it."""
    return _is_enabled(logging.DEBUG)


def info_enabled() -> bool:
    """Say whether an info event would reach anybody, without building it."""
    return _is_enabled(logging.INFO)


def _is_enabled(level: int) -> bool:
    if structlog.is_configured():
        # A host's own wrapper class may lack the question; then the event is built.
        asked = getattr(structlog.get_logger(NAME).bind(), "is_enabled_for", None)
        return asked is None or bool(asked(level))
    return _stdlib.isEnabledFor(level) and _stdlib.hasHandlers()


def _as_text(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    # Errors keep their traceback through logging's own exc_info.
    keywords = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    text = " ".join(
        [str(event.pop("event")), *(f"{name}={value!r}" for name, value in event.items())]
    )
    # Escaped, because logging formats a message that comes with arguments only, and none come.
    return (text,), keywords


_to_logging: Final = structlog.wrap_logger(
    _stdlib, processors=[_as_text], wrapper_class=structlog.stdlib.BoundLogger
)


class _Stderr:
    """Writes to what ``sys.stderr`` is now, not to what it was at import."""

    def msg(self, message: str) -> None:
        """Write one line, where there is a standard error at all."""
        if sys.stderr is not None:
            print(printable(message), file=sys.stderr, flush=True)  # noqa: T201  # the sink of last resort

    log = debug = info = warning = warn = error = critical = exception = fatal = msg


_to_stderr: Final = structlog.wrap_logger(
    _Stderr(),
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=False),
    ],
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
)
