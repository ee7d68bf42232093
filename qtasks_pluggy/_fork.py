"""Locks that are recreated in a forked process."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Final

_lock_owners: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def lock_of(owner: Any) -> threading.RLock:
    """Return a lock for an object to keep as ``_lock``, recreated in a forked process.

    There, a thread that was not forked may hold it for ever.
    """
    _lock_owners.add(owner)
    return threading.RLock()


def _after_fork() -> None:  # pragma: no cover  # in processes that are not measured
    for owner in _lock_owners:
        owner._lock = threading.RLock()  # noqa: SLF001  # its owner said so


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
