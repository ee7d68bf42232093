"""Finding the adapter for what an app was given as its engine."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from inspect import getmro
from typing import Any, Final
from urllib.parse import parse_qsl

from qtasks_hookspecs.exc import EngineError
from qtasks_pluggy._submit.protocol import Engine
from qtasks_pluggy._text import closest_match

GROUP: Final = "qtasks_pluggy.engines"


def resolve_engine(given: Any) -> Engine:
    """Find the adapter for what an app was given as its engine.

    Args:
        given: A URL, an engine's own object, or an adapter.

    Raises:
        EngineError: No adapter knows it, or its package is not installed.
    """
    if isinstance(given, Engine) and not isinstance(given, type):
        return given
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if isinstance(given, str):
        scheme, separator, _ = given.partition("://")
        if scheme in known and separator:
            return _load(known[scheme], given)
        # Not the rest of it, which may hold a password.
        near = closest_match(scheme, ["memory", *known])
        msg = (
            f"QueueTasks(engine='{scheme}{separator}...'): no engine has this scheme; did you mean"
            f" {near!r}? {_URLS}, and the others take their own object"
        )
        raise EngineError(msg)
    for kind in getmro(type(given)):
        package = kind.__module__.partition(".")[0]
        if package in known:
            return _load(known[package], given)
    msg = (
        "QueueTasks(engine=...): expected a URL, an adapter, or the own object of one of"
        f" {', '.join(sorted(known))}; got {type(given).__module__}.{type(given).__qualname__}"
    )
    raise TypeError(msg)


def check_workers(given: Any, app: str) -> None:
    """Refuse a number of workers that no engine can have: it would do no run, in silence.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is below 1.
    """
    what = f"app {app!r}, set_engine(workers=...): expected a whole number from 1, or None"
    if isinstance(given, bool) or not isinstance(given, int):
        msg = f"{what}; got {type(given).__name__}"
        raise TypeError(msg)
    if given < 1:
        msg = f"{what}; got {given}"
        raise ValueError(msg)


_URLS: Final = "memory:// and huey+sqlite:///file.db are URLs"


def url_options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Read the options behind a URL's question mark.

    Args:
        url: The URL.
        options: Each option's name and default, whose type, a number or a bool, is the option's.

    Raises:
        EngineError: An option is unknown, the nearest is named; or has a wrong value.
    """
    engine, _, query = url.partition("?")
    found = dict(options)
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            near = closest_match(name, options)
            msg = f"engine {engine!r} has no option {name!r}; did you mean {near!r}?"
            raise EngineError(msg)
        kind = type(options[name])
        if kind is bool:
            if value not in {"0", "1"}:
                msg = f"engine {engine!r}: option {name!r} is {value!r}; expected 0 or 1"
                raise EngineError(msg)
            found[name] = value == "1"
            continue
        try:
            found[name] = kind(value)
        except ValueError:
            found[name] = 0
        if not 0 < found[name] < float("inf"):
            what = "a whole number from 1" if kind is int else "a number above 0"
            msg = f"engine {engine!r}: option {name!r} is {value!r}; expected {what}"
            raise EngineError(msg)
    return found


def _load(entry: EntryPoint, given: Any) -> Engine:
    try:
        adapter = entry.load()
    except ImportError as error:
        package = entry.name.partition("+")[0]
        msg = (
            f"engine {entry.name!r} cannot be imported: {error}; install it with"
            f" pip install 'qtasks-pluggy[{package}]'"
        )
        raise EngineError(msg) from error
    engine: Engine = adapter(given)
    return engine
