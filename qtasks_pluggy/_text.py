"""Text: naming plugins and errors, suggesting names, and escaping for a terminal."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Callable, Iterable

from qtasks_hookspecs.exc import safe_str

__all__ = [
    "closest_match",
    "describe_error",
    "describe_plugin",
    "disable_hint",
    "near_match",
    "printable",
    "safe_str",
]


def describe_plugin(plugin: str, distribution: str | None, version: str | None) -> str:
    """Name a plugin, and the distribution that installed it, if one did."""
    if distribution is None:
        return f"plugin {plugin!r}"
    return f"plugin {plugin!r} ({distribution} {version})"


def disable_hint(plugin: str) -> str:
    """Name the setting that disables a plugin: the variable, unless a list cannot hold the name."""
    if "," in plugin:
        return f"disable = [{json.dumps(plugin)}] in qtasks_pluggy.toml"
    return f"QTASKS_PLUGGY_DISABLE={plugin}"


def closest_match(name: str, names: Iterable[str]) -> str:
    """Return the most similar of several names; there must be at least one."""
    return _by_likeness(name, names, least=0)[0]


def near_match(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of several names, if one may be a slip for the other."""
    return next(iter(_by_likeness(name, names, least=0.5)), None)


def _by_likeness(name: str, names: Iterable[str], *, least: float) -> list[str]:
    """Return the most similar of several names, if it is similar enough."""
    by_letters = {one.casefold(): one for one in sorted(names)}
    near = difflib.get_close_matches(name.casefold(), by_letters, n=1, cutoff=least)
    return [by_letters[one] for one in near]


def describe_error(error: BaseException) -> str:
    """Name an error's class, and show its text."""
    return f"{type(error).__name__}: {safe_str(error)}"


def printable(text: str, spell: Callable[[str], str] = lambda one: ascii(one)[1:-1]) -> str:
    """Escape what a terminal obeys instead of showing it; lines, tabs and blanks stay.

    Escape sequences, marks of direction, surrogates and their like go to ``spell``, one letter
    at a time.
    """
    if text.isprintable():
        return text
    return "".join(one if _is_shown(one) else spell(one) for one in text)


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"
