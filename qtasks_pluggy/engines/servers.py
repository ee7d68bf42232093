"""What the engine in memory shared with adapters before ``forward.py``."""

from __future__ import annotations

from qtasks_pluggy.engines.native import text_of
from qtasks_pluggy.exc import EngineError


def named(error: BaseException, engine: str) -> EngineError:
    """Name an error that is no ``Exception``, for those who wait: it would end them too.

    Args:
        error: ``SystemExit``, or a class of the user's own.
        engine: The engine's name.
    """
    failure = EngineError(f"engine {engine!r}: the task raised {text_of(error)}")
    failure.__cause__ = error
    return failure
