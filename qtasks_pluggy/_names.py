"""How errors and events name a plugin, and what they suggest for a name that nobody has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def who(plugin: str, distribution: str | None, version: str | None) -> str:
    """Name a plugin, with the distribution that installed it if one did."""
    if distribution is None:
        return f"plugin {plugin!r}"
    return f"plugin {plugin!r} ({distribution} {version})"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the name most like a given one; at least one name must be there."""
    by_letters = {one.casefold(): one for one in sorted(names)}
    near = difflib.get_close_matches(name.casefold(), by_letters, n=1, cutoff=0)
    return by_letters[near[0]]
