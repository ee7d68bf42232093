"""Finding the adapter for an app's ``engine=``."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from inspect import getmro
from typing import Any, Final
from urllib.parse import parse_qsl

from qtasks_hookspecs.exc import EngineError
from qtasks_pluggy._submit.protocol import Engine
from qtasks_pluggy._text import closest_match

GROUP: Final = "qtasks_pluggy.engines"


def resolve_engine(target: Any) -> Engine:
    """Return the adapter for an app's ``engine=``.

    Args:
        target: A URL, an engine's own object, or an adapter.

    Raises:
        EngineError: No adapter knows it, or its package is not installed.
    """
    if isinstance(target, Engine) and not isinstance(target, type):
        return target
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if isinstance(target, str):
        scheme, separator, _ = target.partition("://")
        if scheme in known and separator:
            return _load_adapter(known[scheme], target)
        # Ours that are no scheme are packages, whose own object the engine takes.
        ours = "qtasks_pluggy.engines."
        schemes = {one for one, entry in known.items() if not entry.module.startswith(ours)}
        near = get_close_matches(scheme, {*_SCHEMES, *schemes}, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}://'? " if near else ""
        # Not the rest of it, which may hold a password.
        msg = (
            f"QueueTasks(engine='{scheme}{separator}...'): no engine has this scheme; {hint}{_URLS}"
            ", and the others take their own object"
        )
        raise EngineError(msg)
    for kind in getmro(type(target)):
        package = kind.__module__.partition(".")[0]
        if package in known:
            return _load_adapter(known[package], target)
    msg = (
        "QueueTasks(engine=...): expected a URL, an adapter, or the own object of one of"
        f" {', '.join(sorted(known))}; got {type(target).__module__}.{type(target).__qualname__}"
    )
    raise TypeError(msg)


_SCHEMES: Final = ("memory", "huey+sqlite")
_URLS: Final = "memory:// and huey+sqlite:///file.db are URLs"


def url_options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Read the options of a URL's query string.

    Args:
        url: The URL.
        options: Each option's name and default; the default's type, a number or a bool, is the
            option's.

    Raises:
        EngineError: An option is unknown (the nearest is named), or has a wrong value.
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
            found[name] = -1
        least, what = (1, "a whole number from 1") if kind is int else (0, "a number from 0")
        if not least <= found[name] < float("inf"):
            msg = f"engine {engine!r}: option {name!r} is {value!r}; expected {what}"
            raise EngineError(msg)
    return found


def _load_adapter(entry: EntryPoint, target: Any) -> Engine:
    try:
        adapter = entry.load()
    except ImportError as error:
        package = entry.name.partition("+")[0]
        msg = (
            f"engine {entry.name!r} cannot be imported: {error}; install it with"
            f" pip install 'qtasks-pluggy[{package}]'"
        )
        raise EngineError(msg) from error
    engine: Engine = adapter(target)
    if not hasattr(engine, "register"):
        msg = (
            f"engine {entry.name!r} runs only the tasks of its own apps: call install() of"
            f" {entry.module}, and leave engine= out"
        )
        raise EngineError(msg)
    return engine
