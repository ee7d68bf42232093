"""Files of JSON lines that are whole at any moment, and the lines that a file has already."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from typing import BinaryIO, Final

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy._console.say import own_stdout

STDOUT: Final = "-"
FIFO_SECONDS: Final = 5.0
"""How long to wait for somebody who reads a named pipe."""


class Output:
    """A file of JSON lines; each is written whole, at once, or not at all.

    Raises:
        Trouble: The file cannot be written, or not resumed.
    """

    def __init__(self, name: str, *, resume: bool = False) -> None:
        self.name = "standard output" if name == STDOUT else name
        self.is_stdout = name == STDOUT
        self.done: set[tuple[int, str]] = set()
        try:
            access = os.O_RDWR if resume else os.O_WRONLY
            self._file = _stdout() if self.is_stdout else _open(name, access)
            self._is_ours = stat.S_ISREG(os.fstat(self._file).st_mode) and not self.is_stdout
        except OSError as error:
            msg = f"{name} cannot be written: {error.strerror}; name a file that can"
            raise Trouble(msg) from None
        self._end = self._read_done() if resume else 0

    def is_file(self, source: BinaryIO) -> bool:
        """Say whether this is the very file that the records are read from."""
        here, there = os.fstat(self._file), os.fstat(source.fileno())
        return stat.S_ISREG(here.st_mode) and os.path.samestat(here, there)

    def begin(self) -> None:
        """Throw away what is not kept."""
        if self._is_ours:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)

    def write(self, line: str) -> None:
        """Write one line.

        Raises:
            OSError: It cannot be written; what is in the file are whole lines.
        """
        rest = memoryview(f"{line}\n".encode("ascii"))
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            if self._is_ours:
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line) + 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read_done(self) -> int:
        """Read which records it has already; return where its last whole line ends."""
        if not self._is_ours:
            msg = f"--resume {self.name}: only a file can be resumed; give --out instead"
            raise Trouble(msg)
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # its process was killed; the run is done again
                try:
                    one = json.loads(line)
                    self.done.add((one["line"], one["input"]))
                except (ValueError, LookupError, TypeError, RecursionError):
                    msg = f"--resume {self.name}: line {number} is none that --out has written"
                    raise Trouble(msg) from None
                end += len(line)
        return end


def _stdout() -> int:
    try:
        return os.dup(own_stdout().fileno())
    except (AttributeError, ValueError):  # another object stands in for it, or it is closed
        return os.dup(1)


def _open(name: str, access: int) -> int:
    """Open a file; a named pipe once somebody reads it."""
    access |= os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    deadline = time.monotonic() + FIFO_SECONDS
    while True:
        try:
            file = os.open(name, access, 0o666)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() >= deadline:
                msg = f"{name} is a pipe that nobody has read for {FIFO_SECONDS:g} s; read it"
                raise Trouble(msg) from None
            time.sleep(FIFO_SECONDS / 100)
        else:
            os.set_blocking(file, True)
            return file
