"""Arguments as text: JSON, with tags for the types that JSON lacks.

``{"$date": "2022-03-02"}`` is a date. What is written reads back as the same value, and that is
checked when it is written. A value that would not is kept as its ``repr``, for people, with the
reason why its run cannot be replayed. Nothing is ever unpickled or imported.

``Encoder`` writes, ``read_args`` and ``read_kwargs`` read, and ``from_text`` what people write.
"""

from __future__ import annotations

import base64
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fnmatch import translate
from typing import Any, Final, TypeAlias
from uuid import UUID

import attrs

MOST_SHOWN: Final = 200
MOST_DEEP: Final = 50
# By default, Python does not read or write an int with more digits.
MOST_BITS: Final = 13_000

# A value's place: that of what it is in, and its key there.
Where: TypeAlias = "tuple[Where | str, object]"


@attrs.frozen
class Arguments:
    """A run's arguments as they are stored.

    Attributes:
        written: What JSON holds: a dict with ``args`` and ``kwargs``; None where none are kept.
        not_replayable: Why a task cannot be called with them again; None if it can.
        size: About how many bytes they are.
    """

    written: dict[str, Any] | None
    not_replayable: str | None
    size: int = 0

    @property
    def text(self) -> str | None:
        """The JSON."""
        return None if self.written is None else _to_json(self.written)


class Encoder:
    """Writes the arguments of runs.

    Args:
        redact: Globs of the names whose values are hidden; the case of letters is ignored.
        most: The most bytes that the arguments of one run may take.
        hide: Whether to hide them from people; runs can still be replayed with them.
    """

    def __init__(self, redact: Iterable[str], most: int, *, hide: bool = False) -> None:
        self._marks = {"hidden": True} if hide else {}
        globs = list(redact)
        self.is_secret: Final = re.compile(_any(map(translate, globs)), re.IGNORECASE).match
        words = _any(re.escape(one.strip("*")).replace(r"\*", r"\w*") for one in globs)
        self._secret_in_text: Final = re.compile(
            rf"""(\w*{words}\w*['"]?\s*[=:]\s*)(?:'[^']*'?|"[^"]*"?|[^,)\]}}]*)""", re.IGNORECASE
        )
        self.most: Final = most

    def encode(
        self, args: Iterable[Any], kwargs: Mapping[str, Any], names: Sequence[str] = ()
    ) -> Arguments:
        """Write the arguments of a run; names are of the parameters of the positional ones."""
        writing = _Writing(self)
        positional: list[Any] = []
        for place, value in enumerate(args):
            if writing.is_full("args", place):
                positional.append(_AND_SO_ON)
                break
            name = names[place] if place < len(names) else ""
            positional.append(writing.argument(("args", place), name, value))
        keywords: dict[str, Any] = {}
        for name, value in kwargs.items():
            if writing.is_full("kwargs", name):
                keywords["..."] = _AND_SO_ON
                break
            keywords[str(name)] = writing.argument(("kwargs", name), str(name), value)
        written = {"args": positional, "kwargs": keywords, **self._marks}
        return Arguments(written, writing.why, self.most - writing.left)

    def shown(self, value: Any) -> str:
        """Return a value's ``repr`` for people: short, without the secrets that it names."""
        try:
            text = _SHORT.repr(value)
        except Exception as error:  # noqa: BLE001  # a number of too many digits, for example
            text = f"<{type(value).__qualname__}: its repr raises {type(error).__name__}>"
        return cut(self._secret_in_text.sub(r"\1[hidden]", text[: 4 * MOST_SHOWN]), MOST_SHOWN)


class _Writing:
    """Writes one run's arguments: counts the bytes left, and keeps the first fault."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.left = encoder.most
        self.why: str | None = None

    def is_full(self, of: str, key: object) -> bool:
        """Return whether there is no room for one more argument."""
        if self.left > 0:
            return False
        self.why = self.why or f"{_path((of, key))} and what follows have no room"
        return True

    def argument(self, where: Where, name: str, value: Any) -> Any:
        """Write one argument, or its ``repr`` if it is too large."""
        if name and self._encoder.is_secret(name):
            return self._hidden(where)
        room = self.left
        try:
            return self._write(value, where, 0)
        except _TooMuchError as error:
            # What was written of it is not kept, so its room is free again.
            self.left = room - MOST_SHOWN
            return self._shown(value, where, str(error))

    def _write(self, value: Any, where: Where, depth: int) -> Any:
        kind = type(value)
        self._take(len(value) if kind in (str, bytes) else 2)
        if kind in _PLAIN:
            return self._plain(value, where)
        if depth >= MOST_DEEP:
            msg = f"is nested more than {MOST_DEEP} levels deep, or contains itself"
            raise _TooMuchError(msg)
        if kind is list:
            return [self._write(one, (where, i), depth + 1) for i, one in enumerate(value)]
        if kind is dict:
            return self._dict(value, where, depth + 1)
        if kind in _SEQUENCES:
            items = [self._write(one, (where, i), depth + 1) for i, one in enumerate(value)]
            return {f"${kind.__name__}": items}
        return self._tagged(value, where) if kind in _TAGGED else self._shown(value, where)

    def _take(self, room: int) -> None:
        self.left -= room
        if self.left < 0:
            msg = f"is more than fits into {self._encoder.most:,} bytes"
            raise _TooMuchError(msg)

    def _plain(self, value: Any, where: Where) -> Any:
        if type(value) is str and not value.isascii():
            self._take(len(json.dumps(value)) - len(value))
        if type(value) is float and not math.isfinite(value):
            return {"$float": repr(value)}
        if type(value) is int and value.bit_length() > MOST_BITS:
            return self._shown(value, where, "is a whole number of too many digits")
        return value

    def _dict(self, value: dict[Any, Any], where: Where, depth: int) -> Any:
        if all(type(key) is str for key in value) and not _looks_tagged(value):
            return {key: self._item(key, one, where, depth) for key, one in value.items()}
        pairs = [
            [self._write(key, (where, key), depth), self._item(key, one, where, depth)]
            for key, one in value.items()
        ]
        return {"$dict": pairs}

    def _item(self, key: Any, value: Any, where: Where, depth: int) -> Any:
        if isinstance(key, str):
            self._take(len(key) + 3)
            if self._encoder.is_secret(key):
                return self._hidden((where, key))
        return self._write(value, (where, key), depth)

    def _tagged(self, value: Any, where: Where) -> Any:
        name, write, read = _TAGGED[type(value)]
        written = write(value)
        self._take(len(str(written)))
        try:
            if repr(read(written)) == repr(value):
                return {name: written}
        except Exception:  # noqa: BLE001, S110  # a tzinfo is somebody else's
            pass
        return self._shown(value, where, f"is a {type(value).__name__} that text does not hold")

    def _hidden(self, where: Where) -> Any:
        self.why = self.why or f"{_path(where)} is redacted"
        return {"$hidden": True}

    def _shown(self, value: Any, where: Where, why: str = "") -> Any:
        kind = type(value).__qualname__
        article = "an" if kind[:1].lower() in "aeiou" else "a"
        self.why = self.why or f"{_path(where)} {why or f'is {article} {kind}'}"
        shown = self._encoder.shown(value)
        self.left -= len(shown)
        return {"$repr": shown}


class _TooMuchError(Exception):
    """An argument that is too large or too deep; the text says which."""


class UnreadableError(ValueError):
    """Arguments that cannot be read back; the text says which, and why."""


def read_args(text: str) -> tuple[Any, ...]:
    """Read positional arguments back.

    Args:
        text: The JSON that ``Encoder`` has written.

    Raises:
        UnreadableError: One of them is not kept as a value, or is written in another way.
    """
    return _args(_part(text, "args", list))


def read_kwargs(text: str) -> dict[str, Any]:
    """Read keyword arguments back, as ``read_args`` does."""
    return _kwargs(_part(text, "kwargs", dict))


def from_text(name: str, text: str) -> Any:
    """Read what somebody has written: JSON, with the same tags.

    Args:
        name: ``args`` or ``kwargs``.
        text: Only these, an array or an object.

    Returns:
        What ``read_args`` or ``read_kwargs`` returns.

    Raises:
        UnreadableError: It is something else, or one of them cannot be read.
    """
    kind, form, read = _WRITTEN[name]
    try:
        value = json.loads(text)
        if isinstance(value, kind):
            return read(value)
        msg = f"expected {form}"
    except UnreadableError:
        raise
    except json.JSONDecodeError as error:
        msg = f"this is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    except (ValueError, RecursionError):
        msg = "a number is too long, or it is nested too deep"
    raise UnreadableError(msg)


def _args(written: list[Any]) -> tuple[Any, ...]:
    return tuple(_read(one, ("args", place)) for place, one in enumerate(written))


def _kwargs(written: dict[str, Any]) -> dict[str, Any]:
    return {name: _read(one, ("kwargs", name)) for name, one in written.items()}


def _part(text: str, name: str, kind: type) -> Any:
    try:
        part = json.loads(text)[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        part = None
    if not isinstance(part, kind):
        msg = f"{name} are not written as this version of qtasks-pluggy writes them"
        raise UnreadableError(msg)
    return part


def _read(written: Any, where: Where) -> Any:
    if type(written) is list:
        return [_read(one, (where, place)) for place, one in enumerate(written)]
    if type(written) is not dict:
        return written
    if not _looks_tagged(written):
        return {key: _read(one, (where, key)) for key, one in written.items()}
    ((tag, inner),) = written.items()
    why = _NOT_KEPT.get(tag)
    if why is not None:
        msg = f"{_path(where)} is {why}"
        raise UnreadableError(msg)
    try:
        if tag == "$dict":
            pairs = [(_read(key, where), (where, key), one) for key, one in inner]
            return {key: _read(one, place) for key, place, one in pairs}
        if tag in _INNER:
            return _INNER[tag](_read(one, (where, place)) for place, one in enumerate(inner))
        return _SIMPLE[tag](inner)
    except UnreadableError:
        raise
    except Exception as error:
        msg = f"{_path(where)} is written as {_SHORT.repr(tag)}, which cannot be read here"
        raise UnreadableError(msg) from error


def storable(text: str) -> str:
    """Spell out what no database takes as text: lone surrogates, and the character NUL."""
    if "\x00" in text:
        text = text.replace("\x00", "\\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, most: int) -> str:
    """Cut a text, and say so in it."""
    if 4 * len(text) <= most or len(text.encode("utf-8", "backslashreplace")) <= most:
        return text
    kept = text[:most].encode("utf-8", "backslashreplace")[:most].decode("utf-8", "ignore")
    return f"{kept}... [cut: {len(text):,} characters]"


def _any(patterns: Iterable[str]) -> str:
    """Join patterns; without any, nothing matches."""
    return f"(?:{'|'.join(patterns) or '(?!)'})"


def _looks_tagged(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _path(where: Where | str) -> str:
    """Write a place as Python would: ``args[1]['path']``."""
    keys: list[object] = []
    while not isinstance(where, str):
        where, key = where
        keys.append(key)
    return where + "".join(f"[{_SHORT.repr(key)}]" for key in reversed(keys))


def _bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


_to_json: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_SEQUENCES: Final = (tuple, set, frozenset)
_TAGGED: Final[Mapping[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    datetime: ("$datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("$date", date.isoformat, date.fromisoformat),
    time: ("$time", time.isoformat, time.fromisoformat),
    timedelta: (
        "$timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda written: timedelta(*written),
    ),
    Decimal: ("$decimal", str, Decimal),
    UUID: ("$uuid", str, UUID),
    bytes: ("$bytes", _bytes, lambda written: base64.b64decode(written, validate=True)),
}

_WRITTEN: Final[Mapping[str, tuple[type, str, Callable[[Any], Any]]]] = {
    "args": (list, "an array, as [1, 2]", _args),
    "kwargs": (dict, 'an object, as {"to": "EUR"}', _kwargs),
}
_AND_SO_ON: Final = {"$repr": "..."}
_NOT_KEPT: Final = {"$hidden": "redacted", "$repr": "kept only as text"}
_INNER: Final[Mapping[str, Callable[[Iterable[Any]], Any]]] = {
    f"${kind.__name__}": kind for kind in _SEQUENCES
}
_SIMPLE: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$float": float,
    **{tag: read for tag, _, read in _TAGGED.values()},
}


class _Short(reprlib.Repr):
    """``reprlib``, for bytes too: their whole ``repr`` is never made."""

    def repr_bytes(self, value: bytes, _: int) -> str:
        """Show the beginning."""
        return repr(value[:MOST_SHOWN])

    repr_bytearray = repr_bytes


_SHORT: Final = _Short()
_SHORT.maxstring = _SHORT.maxother = MOST_SHOWN
