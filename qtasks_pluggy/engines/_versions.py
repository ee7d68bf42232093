"""The check that an engine's package is new enough for its adapter."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version


def require(package: str, lowest: str) -> None:
    """Refuse a package that is too old, before an adapter imports it.

    Args:
        package: The name of the distribution, which is that of the engine.
        lowest: The lowest version that works, as in pyproject.toml.

    Raises:
        ImportError: An older version is installed.
    """
    try:
        installed = version(package)
    except PackageNotFoundError:
        # The import of the package raises a clear error.
        return
    if _release(installed) < _release(lowest):
        msg = f"engine {package!r} needs {package} {lowest} or later, {installed} is installed"
        raise ImportError(msg)


def _release(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version; our bounds have no other parts."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return () if found is None else tuple(map(int, found[0].split(".")))
