"""The lock of the one consumer that does the runs of a Huey."""

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
    """The lock of the one consumer of a Huey, shared by the processes that it forks.

    Args:
        huey: One on SQLite.

    Attributes:
        token: The consumer's name.
    """

    def __init__(self, huey: Huey) -> None:
        storage: Any = huey.storage
        self.token = uuid4().hex
        self._path = f"{storage.filename}-{quote(storage.name, safe='')}.lock"
        self._opened_in = os.getpid()
        self._holders = 0
        try:
            # Opened here, in the process that forks the others: they share the lock of one opened
            # file. Only this user may open it, because a reader's lock would keep us waiting.
            self._file: Any = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            # A client needs no lock.
            self._file = error

    def acquire(self) -> None:
        """Become the consumer, for one of its workers.

        Raises:
            EngineError: There is another consumer, or the file cannot be used.
        """
        try:
            if isinstance(self._file, OSError):
                raise self._file
            _flock(self._file)
        except BlockingIOError:
            msg = (
                f"engine 'huey', the ledger: another consumer does the runs of {self._path!r}; give"
                " one consumer more workers instead, or use an engine with a server"
            )
            raise EngineError(msg) from None
        except OSError as error:
            msg = (
                f"engine 'huey', the ledger: {self._path!r}, which the one consumer locks, cannot"
                f" be used: {error.strerror}; let this user write there, or go without the ledger"
            )
            raise EngineError(msg) from error
        self._holders += 1

    def release(self) -> None:
        """Let another process be the consumer, after the last of this one's threads."""
        if self._holders:
            self._holders -= 1
            if not self._holders and self._opened_in == os.getpid():
                _flock(self._file, release=True)

    def is_new(self) -> bool:
        """Return whether no worker of this consumer has recovered yet."""
        return os.pread(self._file, len(self.token), 0) != self.token.encode()

    def sign(self) -> None:
        """Note that one has."""
        os.pwrite(self._file, self.token.encode(), 0)

    def has(self, owner: tuple[str, int]) -> bool:
        """Return whether this is a living process of this consumer."""
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
