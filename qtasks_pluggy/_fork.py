"""What a forked process recreates: locks, and the background event loop."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

_lock_owners: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def lock_of(owner: Any) -> threading.RLock:
    """Return a lock for an object to keep as ``_lock``, recreated in a forked process.

    There, a thread that was not forked may hold it forever.
    """
    _lock_owners.add(owner)
    return threading.RLock()


def _recreate_locks() -> None:  # pragma: no cover  # in processes that are not measured
    for owner in _lock_owners:
        owner._lock = threading.RLock()  # noqa: SLF001  # its owner said so


def after_fork(function: Callable[[], None]) -> None:
    """Call a function in every forked process; nothing to do on Windows, which has no fork."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows
        os.register_at_fork(after_in_child=function)


after_fork(_recreate_locks)


def told_of_forks(tell_one: Callable[[Any], object]) -> weakref.WeakSet[Any]:
    """Return a set; a function is called with everything in it in every forked process."""
    told: weakref.WeakSet[Any] = weakref.WeakSet()

    def tell() -> None:
        for one in list(told):
            tell_one(one)

    after_fork(tell)
    return told
