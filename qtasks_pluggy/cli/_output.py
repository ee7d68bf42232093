"""Output files of JSON lines, and the records that such a file already has."""

from __future__ import annotations

import json
import os
import stat
from typing import BinaryIO, Final

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy._console.say import own_stdout

STDOUT: Final = "-"


class Output:
    """A file of JSON lines; each line is written whole or not at all.

    Raises:
        Trouble: The file cannot be written or resumed, or is the source of the records.
    """

    def __init__(
        self, name: str, source: BinaryIO, *, resume: bool = False, retry_failed: bool = False
    ) -> None:
        self.name = "standard output" if name == STDOUT else name
        self.is_stdout = name == STDOUT
        self.done: set[tuple[int, str]] = set()
        self.failed: set[tuple[int, str]] = set()
        try:
            access = os.O_RDWR if resume else os.O_WRONLY
            self._file = (
                _stdout()
                if self.is_stdout
                else os.open(name, access | os.O_CREAT | os.O_CLOEXEC, 0o666)
            )
            here, there = os.fstat(self._file), os.fstat(source.fileno())
        except OSError as error:
            msg = f"{name} cannot be written: {error.strerror}; give another file"
            raise Trouble(msg) from None
        is_file = stat.S_ISREG(here.st_mode)
        if is_file and os.path.samestat(here, there):
            msg = f"{name} is the input file; give another output file"
            raise Trouble(msg)
        self._is_ours = is_file and not self.is_stdout
        self._end = self._read_done() if resume else 0
        if retry_failed:
            self.done -= self.failed

    def begin(self) -> None:
        """Drop what is not kept."""
        if self._is_ours:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)

    def write(self, line: str) -> None:
        """Write one line.

        Raises:
            OSError: It cannot be written; the lines in the file are whole.
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
            msg = f"--resume {self.name}: only a file can be resumed; use --out instead"
            raise Trouble(msg)
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # its process was killed; the run is done again
                try:
                    one = json.loads(line)
                    key = one["line"], one["input"]
                    self.done.add(key)
                    # A later line of the same record is that of a retry.
                    (self.failed.discard if one["error"] is None else self.failed.add)(key)
                except (ValueError, LookupError, TypeError, RecursionError):
                    msg = f"--resume {self.name}: line {number} was not written by --out"
                    raise Trouble(msg) from None
                end += len(line)
        return end


def _stdout() -> int:
    try:
        return os.dup(own_stdout().fileno())
    except (AttributeError, ValueError):  # another object stands in for it, or it is closed
        return os.dup(1)
