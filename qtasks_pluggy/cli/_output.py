"""JSON, and files of JSON lines that are whole at any moment."""

from __future__ import annotations

import json
import os
import reprlib
import stat
from types import TracebackType
from typing import Any, Final, Self

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy.cli._ended import Ended

STDOUT: Final = "-"


class UnwritableResultError(Exception):
    """A result that JSON cannot hold.

    Attributes:
        kind: What it is or holds, in a word.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def to_json(value: Any) -> str:
    """Write a value as JSON, all in ASCII.

    Args:
        value: Any value.

    Returns:
        The text, in one line.

    Raises:
        UnwritableResultError: JSON cannot hold it; the text says what it is.
    """
    found: list[object] = []

    def take_down(inner: object) -> None:
        found.append(inner)
        raise TypeError

    try:
        return json.dumps(value, allow_nan=False, default=take_down)
    except (TypeError, ValueError, RecursionError) as error:
        if found:
            inner = type(found[0]).__qualname__
            kind = inner if found[0] is value else f"{type(value).__qualname__} with {inner}"
        else:
            # A number that is none, a key that is no text, something that contains itself.
            kind = f"{type(value).__qualname__} ({error})"
        text = (
            f"the result is of type {kind}, which JSON cannot hold: {_shown(value)};"
            " return text, numbers, True, False, None, or lists and dicts of them"
        )
        raise UnwritableResultError(kind, text) from None


def as_line(ended: Ended) -> tuple[str, UnwritableResultError | None]:
    """Write how a run ended as one line of JSON.

    Args:
        ended: How it ended.

    Returns:
        The line, and what was wrong with the result if JSON cannot hold it.
    """
    error = None if ended.error is None else f"{ended.kind}: {ended.why}"
    unwritable = None
    try:
        result = to_json(ended.result)
    except UnwritableResultError as fault:
        unwritable = fault
        result = "null"
        error = str(fault)
    fields = {
        "line": json.dumps(ended.line),
        "uuid": json.dumps(ended.uuid),
        "status": json.dumps(ended.status),
        "result": result,
        "plugin": json.dumps(ended.plugin),
        "error": json.dumps(error),
    }
    return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}", unwritable


class Output:
    """A file of JSON lines; each is written whole, at once, or not at all.

    Args:
        name: The file's name; ``-`` for standard output.

    Raises:
        Trouble: The file cannot be written.
    """

    def __init__(self, name: str) -> None:
        self.name = "standard output" if name == STDOUT else name
        self.is_stdout = name == STDOUT
        try:
            self._file = 1 if self.is_stdout else os.open(name, os.O_WRONLY | os.O_CREAT, 0o666)
            regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        except OSError as error:
            msg = f"--out {name}: {error.strerror}; give a file that can be written"
            raise Trouble(msg) from None
        # What stands before the first line, and behind the last, is another's on standard output.
        self._is_ours = regular and not self.is_stdout
        self._end = 0

    def __enter__(self) -> Self:
        """Begin with an empty file."""
        if self._is_ours:
            os.ftruncate(self._file, 0)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Close it."""
        if not self.is_stdout:
            os.close(self._file)

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


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception as error:  # noqa: BLE001  # anything can come from a foreign __repr__
        return f"(not shown: its __repr__ raised {type(error).__name__})"
