"""Which processes are at work on one database: each holds a lock, which goes when it goes.

A lock of this kind belongs to one process, not to its children, and to no other process with the
same number, earlier or in another container. It goes with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qtasks_pluggy.engines import lock_of

# The byte of the file by which one process at a time is alone; each process's own is behind it.
_ALONE: Final = 0


class Presence:
    """The processes at work on one database, this one among them.

    Args:
        path: The file of their locks.
    """

    def __init__(self, path: Path) -> None:
        self._lock = lock_of(self)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._close = weakref.finalize(self, os.close, self._file)
        self._token = self._pid = 0

    @property
    def token(self) -> int:
        """By what the others know this process; it is at work from the first time this is read."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    token = secrets.randbits(62) + 1
                    fcntl.lockf(self._file, fcntl.LOCK_EX, 1, token)
                    self._token, self._pid = token, os.getpid()
        return self._token

    def is_at_work(self, token: int) -> bool:
        """Say whether the process with this token is alive."""
        if token == self._token and self._pid == os.getpid():
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, token)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, token)
        return False

    @contextmanager
    def alone(self) -> Generator[None]:
        """Keep all other processes, and threads of this one, waiting."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _ALONE)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _ALONE)


def presence_on(database: str) -> Presence:
    """Give the one object for a database in this process.

    One, because closing a file ends the locks that the process has on it by other openings too.

    Raises:
        OSError: The file for the locks, beside the database, cannot be written.
    """
    path = Path(f"{database}.workers").resolve()
    found = _of_path.get(path)
    if found is None:
        found = _of_path[path] = Presence(path)
    return found


_of_path: Final[weakref.WeakValueDictionary[Path, Presence]] = weakref.WeakValueDictionary()
