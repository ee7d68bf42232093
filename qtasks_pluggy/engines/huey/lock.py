"""The lock that allows a Huey only one consumer."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from huey import Huey

from qtasks_pluggy.exc import EngineError


class ConsumerLock:
    """The lock that allows a Huey only one consumer, shared by the processes that it forks.

    Args:
        huey: A Huey on SQLite.

    Attributes:
        token: The consumer's unique name.
    """

    def __init__(self, huey: Huey) -> None:
        storage: Any = huey.storage
        self.token = uuid4().hex
        self._path = f"{storage.filename}-{quote(storage.name, safe='')}.lock"
        self._opened_in = os.getpid()
        self._holders = 0
        try:
            # Opened here, in the process that forks the others, so that all share one lock. Only
            # this user may open the file, because another user's lock on it would block us.
            self._file: Any = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            # A client does not need the lock.
            self._file = error

    def acquire(self) -> None:
        """Become the consumer, for one of its workers.

        Raises:
            EngineError: Another consumer is running, or the file cannot be used.
        """
        try:
            if isinstance(self._file, OSError):
                raise self._file
            _flock(self._file)
        except BlockingIOError:
            msg = (
                f"engine 'huey', the ledger: another consumer holds the lock {self._path!r}; give"
                " one consumer more workers instead, or use an engine with a server"
            )
            raise EngineError(msg) from None
        except OSError as error:
            msg = (
                f"engine 'huey', the ledger: the lock file {self._path!r} cannot be used:"
                f" {error.strerror}; give this user write access, or switch the ledger off"
            )
            raise EngineError(msg) from error
        self._holders += 1

    def release(self) -> None:
        """Release the lock when the last worker of this process ends."""
        if self._holders:
            self._holders -= 1
            if not self._holders and self._opened_in == os.getpid():
                _flock(self._file, release=True)

    def is_new(self) -> bool:
        """Return whether no worker of this consumer has recovered lost runs yet."""
        return os.pread(self._file, len(self.token), 0) != self.token.encode()

    def sign(self) -> None:
        """Note that a worker of this consumer has recovered lost runs."""
        os.pwrite(self._file, self.token.encode(), 0)

    def has(self, owner: tuple[str, int]) -> bool:
        """Return whether the owner of a run is a living process of this consumer."""
        token, pid = owner
        if token != self.token:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True


def _flock(file: int, *, release: bool = False) -> None:
    """Lock a file, or unlock it, without waiting."""
    import fcntl  # noqa: PLC0415  # Windows has none, and install() works there

    fcntl.flock(file, fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB)
