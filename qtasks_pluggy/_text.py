"""How errors and events name a plugin, quote its error, and correct a name that nobody has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def describe_plugin(plugin: str, distribution: str | None, version: str | None) -> str:
    """Name a plugin, with the distribution that installed it if one did."""
    if distribution is None:
        return f"plugin {plugin!r}"
    return f"plugin {plugin!r} ({distribution} {version})"


def closest_match(name: str, names: Iterable[str]) -> str:
    """Return the name most like a given one; at least one name must be there."""
    by_letters = {one.casefold(): one for one in sorted(names)}
    near = difflib.get_close_matches(name.casefold(), by_letters, n=1, cutoff=0)
    return by_letters[near[0]]


def safe_str(error: BaseException) -> str:
    """Return an error's text, whatever its class makes of ``str()``."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001  # somebody else's __str__
        return f"(no text: its __str__ raises {type(another).__name__})"
