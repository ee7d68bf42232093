"""The lock that allows a Huey only one consumer."""

from __future__ import annotations

import os
from contextlib import suppress

from qtasks_pluggy.exc import EngineError


class ConsumerLock:
    """The lock that allows a Huey only one consumer, shared by the processes that it forks.

    Args:
        path: The lock's file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened_in = os.getpid()
        self._file: int | None = None
        # Opened here, in the process that forks the others, so that all share one lock. A client,
        # which may lack the right to open it, does not need it.
        with suppress(OSError):
            self._file = self._open()

    def _open(self) -> int:
        # Only this user may open the file, because another user's lock on it would block us.
        return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)

    def acquire(self) -> None:
        """Become the consumer, or stay it.

        Raises:
            EngineError: Another consumer is running, or the file cannot be used.
        """
        import fcntl  # noqa: PLC0415  # Windows has none, and install() works there

        try:
            if self._file is None:
                self._file = self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

    def release(self) -> None:
        """Allow another consumer; a forked process leaves that to the one that forked it."""
        import fcntl  # noqa: PLC0415  # Windows has none, and install() works there

        if self._file is not None and self._opened_in == os.getpid():
            fcntl.flock(self._file, fcntl.LOCK_UN)
