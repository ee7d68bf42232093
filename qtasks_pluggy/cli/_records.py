"""From a file's lines, or the command's arguments, to the arguments of runs."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import attrs

from qtasks_pluggy._console.load import Trouble
from qtasks_pluggy._text import closest_match

STDIN: Final = "-"
MOST_BYTES: Final = 16 * 1024 * 1024
"""A longer line is no record: whatever it is, it is not held in memory."""


@attrs.frozen
class Record:
    """What one run is to be called with.

    Attributes:
        line: The line of the input on which it begins.
        args: The positional arguments.
        kwargs: The keyword arguments.
        problem: Why there is nothing to call with, where the line is no record.
    """

    line: int | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = attrs.field(factory=dict)
    problem: str | None = None


def from_arguments(words: Sequence[str]) -> Record:
    """Read ARGS: ``key=value`` is a keyword, and each value is JSON, else text.

    Args:
        words: The words of the command line.

    Returns:
        The record.

    Raises:
        Trouble: A keyword is given twice.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key.isidentifier()):
            args.append(_value(word))
        elif key in kwargs:
            msg = f"keyword {key!r} is given twice, the second time as {word!r}; leave one out"
            raise Trouble(msg)
        else:
            kwargs[key] = _value(value)
    return Record(None, tuple(args), kwargs)


class Records:
    """The records of a file, read as they are asked for: no more than one line is held.

    Args:
        name: The file's name: CSV if it ends in ``.csv``, else JSON lines; ``-`` for standard
            input.

    Raises:
        Trouble: The file cannot be read, or is a CSV file without a usable header.
    """

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == STDIN else name
        self.size: int | None = None
        self._lines = _Lines(self._open(name))
        try:
            csv_file = name.lower().endswith(".csv")
            self._records = self._csv() if csv_file else self._json()
        except Trouble:
            self._lines.close()
            raise

    def __enter__(self) -> Self:
        """Hold the file."""
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Let go of the file."""
        self._lines.close()

    @property
    def position(self) -> int:
        """How many bytes have been read."""
        return self._lines.position

    def __iter__(self) -> Iterator[Record]:
        """Read on."""
        return self._records

    def is_file(self, other: str) -> bool:
        """Say whether a path leads to the very file that is read."""
        try:
            there = Path(other).stat()
        except OSError:
            return False
        here = os.fstat(self._lines.source.fileno())
        return stat.S_ISREG(here.st_mode) and os.path.samestat(here, there)

    def is_terminal(self) -> bool:
        """Say whether somebody is typing the records."""
        return self._lines.source.isatty()

    def _open(self, name: str) -> BinaryIO:
        if name == STDIN:
            # Not sys.stdin, whose lock a thread that waits for input would hold at exit.
            try:
                return open(0, "rb", closefd=False)
            except OSError as error:
                msg = f"standard input cannot be read: {error.strerror}; give a file instead"
                raise Trouble(msg) from None
        path = Path(name)
        try:
            source = path.open("rb")
        except OSError as error:
            hint = "look at its permissions"
            if isinstance(error, IsADirectoryError):
                hint = "name a file in it"
            elif isinstance(error, FileNotFoundError):
                beside = [str(one) for one in path.parent.glob("*") if one.is_file()]
                hint = (
                    f"did you mean {closest_match(name, beside)}?"
                    if beside
                    else "look at its folder"
                )
            msg = f"the records cannot be read from {name}: {error.strerror}; {hint}"
            raise Trouble(msg) from None
        about = os.fstat(source.fileno())
        self.size = about.st_size if stat.S_ISREG(about.st_mode) else None
        return source

    def _json(self) -> Iterator[Record]:
        for number, text, problem in self._lines:
            if problem is None:
                if not text.strip():
                    continue
                yield self._json_record(number, text)
            else:
                yield Record(number, problem=problem)

    def _json_record(self, number: int, text: str) -> Record:
        try:
            value = json.loads(text, parse_constant=_refuse)
        except RecursionError:
            return Record(number, problem="this line is nested too deeply to be read as JSON")
        except json.JSONDecodeError as error:
            cut = "" if text.endswith("\n") else ", and the file ends in this line: is it whole?"
            where = f"{error.msg} at {error.colno}{cut}"
            return Record(number, problem=f"this line is not JSON: {where}")
        except ValueError as error:
            return Record(number, problem=f"this line is not JSON: {error}")
        if isinstance(value, dict):
            return Record(number, (), value)
        if isinstance(value, list):
            return Record(number, tuple(value))
        return Record(
            number,
            problem=f"this line is the JSON value {text.strip()[:40]}, but a record is an object"
            " (keyword arguments) or an array (positional ones)",
        )

    def _csv(self) -> Iterator[Record]:
        lines = _CsvLines(self._lines)
        reader = csv.reader(lines, strict=True)
        header = self._header(reader)
        return self._csv_records(lines, reader, header)

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        what = f"the first line of {self.name}"
        try:
            header = next(reader)
        except StopIteration:
            msg = f"{self.name} is empty; the first line of a CSV file names the keywords"
            raise Trouble(msg) from None
        except (csv.Error, _NoTextError) as error:
            msg = f"{what} is no header: {error}; it has to name the keywords"
            raise Trouble(msg) from None
        for name in header or [""]:
            if not name.strip():
                msg = f"{what} leaves a column without a name; each column is a keyword"
                raise Trouble(msg)
            if header.count(name) > 1:
                msg = f"{what} names {name!r} twice; each column is a keyword of its own"
                raise Trouble(msg)
        return [name.strip() for name in header]

    def _csv_records(
        self, lines: _CsvLines, reader: Iterator[list[str]], header: list[str]
    ) -> Iterator[Record]:
        while True:
            lines.first = None
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, _NoTextError) as error:
                yield Record(lines.first, problem=f"this is not a row of a CSV file: {error}")
                continue
            if not row:
                continue
            if len(row) == len(header):
                values = map(_value, row)
                yield Record(lines.first, (), dict(zip(header, values, strict=True)))
                continue
            yield Record(
                lines.first,
                problem=f"this row has {len(row)} values, but the header names {len(header)}",
            )


class _Lines:
    """The lines of a file: number, text, and what is wrong with it.

    Args:
        source: The file.
    """

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.position = 0
        self._number = 0
        self._reading = False

    def __iter__(self) -> Iterator[tuple[int, str, str | None]]:
        """Read on."""
        return self

    def __next__(self) -> tuple[int, str, str | None]:
        """Read one line."""
        line = self._read()
        if not line:
            raise StopIteration
        self._number += 1
        if len(line) > MOST_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._read()
            return self._number, "", f"this line is longer than {MOST_BYTES // 1024**2} MiB"
        try:
            text = line.decode("utf-8-sig" if self._number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return self._number, "", f"this line is not UTF-8: {error.reason} at {error.start + 1}"
        return self._number, text, None

    def close(self) -> None:
        """Close the file, unless another thread waits for input: closing would wait for that."""
        if not self._reading:
            self.source.close()

    def _read(self) -> bytes:
        self._reading = True
        line = self.source.readline(MOST_BYTES + 1)
        self._reading = False
        self.position += len(line)
        return line


class _NoTextError(Exception):
    """A line that cannot be text."""


class _CsvLines:
    """Lines for a CSV reader, which may take several for one row.

    Args:
        lines: All lines.
    """

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self.first: int | None = None

    def __iter__(self) -> Iterator[str]:
        """Read on."""
        return self

    def __next__(self) -> str:
        """Read one line, and remember the first of a row."""
        number, text, problem = next(self._lines)
        if self.first is None:
            self.first = number
        if problem is not None:
            raise _NoTextError(problem)
        return text


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (RecursionError, ValueError):
        return text


def _refuse(constant: str) -> None:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)
