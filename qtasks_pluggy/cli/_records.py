"""Reads the arguments of runs from a file or the command line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import stat
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import attrs

from qtasks_pluggy._console.load import Trouble

FORMATS: Final = ("jsonl", "json", "csv")
MOST_BYTES: Final = 16 * 1024 * 1024
"""The longest line that is read; a longer one is an error, and not held in memory."""


@attrs.frozen
class Record:
    """The arguments of one run.

    Attributes:
        line: The line of the input on which it begins; in a JSON array, its number.
        problem: Why the line is not a valid record, if so.
    """

    line: int | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = attrs.field(factory=dict)
    problem: str | None = None

    @property
    def digest(self) -> str:
        """What tells this input from another one on the same line, without its values."""
        text = json.dumps([self.args, self.kwargs, self.problem], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def from_arguments(words: Sequence[str]) -> Record:
    """Read ARGS: ``key=value`` is a keyword, and each value is JSON, else text.

    Raises:
        Trouble: A keyword is given twice, or an object or array is not valid as an argument.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for number, word in enumerate(words, start=1):
        key, equals, text = word.partition("=")
        is_keyword = bool(equals) and key.isidentifier()
        if is_keyword and key in kwargs:
            msg = f"keyword {key!r} is given twice; leave one out"
            raise Trouble(msg)
        try:
            value = _value(text if is_keyword else word)
        except ValueError as error:
            msg = f"argument {number} cannot be used: {error}"
            raise Trouble(msg) from None
        if is_keyword:
            kwargs[key] = value
        else:
            args.append(value)
    return Record(None, tuple(args), kwargs)


class _File(io.FileIO):
    """A file that counts what has been read from it."""

    taken = 0

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        self.taken += count or 0
        return count


def open_input(name: str) -> BinaryIO:
    """Open a file of records; ``-`` is standard input.

    Raises:
        Trouble: It cannot be read.
    """
    try:
        # Not sys.stdin, whose lock a thread that waits for input would hold at exit.
        return io.BufferedReader(_File(0, closefd=False) if name == "-" else _File(name), 65_536)
    except OSError as error:
        what = "standard input" if name == "-" else name
        msg = f"the records cannot be read from {what}: {error.strerror}; give another file"
        raise Trouble(msg) from None


class Records:
    """The records of a file, read as they are asked for.

    Of JSON lines and CSV no more than a line, or a row, is held; a JSON array is read whole.

    Raises:
        Trouble: The file is not a JSON array, or a CSV file without a usable header.
    """

    def __init__(self, source: BinaryIO, form: str, *, json_cells: bool = False) -> None:
        self.position = 0
        about = os.fstat(source.fileno())
        self.size = about.st_size if stat.S_ISREG(about.st_mode) else None
        self._source = source
        self._read_cell = _value if json_cells else str
        self._records = {"jsonl": self._lines, "json": self._array, "csv": self._csv}[form]()

    def __iter__(self) -> Iterator[Record]:
        """Read on."""
        return self._records

    def may_wait(self) -> bool:
        """Return whether the next line may take a while to arrive."""
        if self.size is not None:
            return False
        # With nothing in its buffer, looking into it would wait.
        source: Any = self._source
        return source.raw.taken == self.position or b"\n" not in source.peek()

    def _raw(self) -> Iterator[bytes]:
        """Read the lines, none of them longer than the limit, without a byte order mark."""
        while line := self._source.readline(MOST_BYTES + 1):
            mark = b"" if self.position else BOM_UTF8
            rest = line
            self.position += len(line)
            while len(rest) > MOST_BYTES and not rest.endswith(b"\n"):
                rest = self._source.readline(MOST_BYTES + 1)
                self.position += len(rest)
            yield line.removeprefix(mark)

    def _lines(self) -> Iterator[Record]:
        for number, line in enumerate(self._raw(), start=1):
            try:
                if len(line) > MOST_BYTES:
                    yield Record(number, problem=f"this line is longer than {MOST_BYTES:,} bytes")
                elif line.strip():
                    yield _record(number, _STRICT.decode(line.decode()))
            except UnicodeDecodeError as error:
                where = f"{error.reason} at {error.start + 1}"
                yield Record(number, problem=f"this line is not UTF-8: {where}")
            except (ValueError, RecursionError) as error:
                hint = "" if line.endswith(b"\n") else ", and the file ends here: is it whole?"
                if number == 1 and line.strip() == b"[":
                    hint = "; for a JSON array give --format json"
                yield Record(
                    number, problem=f"this line is not JSON: {_reason(error, number)}{hint}"
                )

    def _array(self) -> Iterator[Record]:
        try:
            text = self._source.read().removeprefix(BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            msg = f"the input is not UTF-8: {error.reason} at byte {error.start + 1}"
            raise Trouble(msg) from None
        if not text.lstrip().startswith("["):
            msg = "the input is not a JSON array; for JSON lines give --format jsonl"
            raise Trouble(msg)
        return self._elements(text)

    def _elements(self, text: str) -> Iterator[Record]:
        number, at = 0, text.index("[")
        while True:
            number += 1
            at = _skip(text, at + 1)
            if number == 1 and text.startswith("]", at):
                break
            try:
                value, at = _STRICT.raw_decode(text, at)
                yield _record(number, value)
            except (ValueError, RecursionError) as error:
                problem = f"this is not a record: {_reason(error)}"
                try:
                    _, at = _LENIENT.raw_decode(text, at)
                except (ValueError, RecursionError):
                    yield Record(number, problem=f"{problem}; nothing after it can be read")
                    return
                yield Record(number, problem=problem)
            at = _skip(text, at)
            if text.startswith("]", at):
                break
            if not text.startswith(",", at):
                problem = "a comma or the end of the array is missing before this"
                yield Record(number + 1, problem=problem)
                return
        if text[at + 1 :].strip():
            yield Record(number + 1, problem="this comes after the end of the array")

    def _csv(self) -> Iterator[Record]:
        # Bytes that are not UTF-8 become surrogates, which the row check finds.
        lines = (line.decode("utf-8", "surrogateescape") for line in self._raw())
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in _row(reader) or ()]
        except ValueError as error:
            msg = f"the first line is not a header: {error}; it must name the keywords"
            raise Trouble(msg) from None
        twice = [name for name, times in Counter(header).items() if times > 1]
        if not self.position:
            msg = "the input is empty; the first line of a CSV file names the keywords"
        elif not all(header or [""]):
            msg = "the first line has a column without a name; each column is a keyword"
        elif twice:
            msg = f"the first line names {twice[0]!r} twice; each column is a keyword of its own"
        else:
            return self._rows(reader, header)
        raise Trouble(msg)

    def _rows(self, reader: Any, header: list[str]) -> Iterator[Record]:
        while True:
            line = reader.line_num + 1
            try:
                row = _row(reader)
                if row is None:
                    return
                if row and len(row) != len(header):
                    msg = f"it has {len(row)} values, but the header names {len(header)}"
                    raise ValueError(msg)  # noqa: TRY301  # told as the others are
                if row:
                    cells = map(self._read_cell, row)
                    yield Record(line, (), dict(zip(header, cells, strict=True)))
            except ValueError as error:
                yield Record(line, problem=f"this row cannot be used: {error}")


def _row(reader: Any) -> list[str] | None:
    """Read a row of a CSV file; None is its end."""
    try:
        row: list[str] | None = next(reader, None)
        "".join(row or ()).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        msg = str(error) if isinstance(error, csv.Error) else "it is not UTF-8"
        raise ValueError(msg) from None
    return row


def _reason(error: Exception, line: int = 1) -> str:
    """Return what is wrong with JSON that starts in this line of the input."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (line {line + error.lineno - 1}, column {error.colno})"
    return str(error).partition(";")[0]


def _record(number: int, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(number, (), value)
    if isinstance(value, list):
        return Record(number, tuple(value))
    what = f"this is the JSON value {json.dumps(value)[:40]}"
    rule = "a record is an object (keyword arguments) or an array (positional ones)"
    return Record(number, problem=f"{what}, but {rule}")


def _value(text: str) -> Any:
    """Read a value as JSON, or else as text.

    Raises:
        ValueError: It is an object or array that has a key twice, NaN, or the like.
    """
    try:
        return _STRICT.decode(text)
    except (json.JSONDecodeError, RecursionError):
        return text
    except ValueError as error:
        if text.lstrip()[:1] in {"{", "["}:
            raise ValueError(_reason(error)) from None
        return text


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in {" ", "\t", "\r", "\n"}:
        at += 1
    return at


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            msg = f"the key {key!r} occurs twice"
            raise ValueError(msg)
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        msg = f"the number {text[:20]} is too large"
        raise ValueError(msg)
    return value


def _refuse(constant: str) -> None:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_once, parse_float=_finite, parse_constant=_refuse
)
_LENIENT: Final = json.JSONDecoder(parse_int=len)
