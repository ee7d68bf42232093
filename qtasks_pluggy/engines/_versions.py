"""The lowest version of each engine's package that its adapter works with."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version


def require(package: str, lowest: str) -> None:
    """Refuse a package that is too old; called before an adapter imports anything of it.

    Args:
        package: The distribution, named as its engine.
        lowest: The lowest version, as pyproject.toml has it.

    Raises:
        ImportError: An older one is installed.
    """
    try:
        installed = version(package)
    except PackageNotFoundError:
        # Python says so when it is imported.
        return
    if _release(installed) < _release(lowest):
        msg = f"engine {package!r} needs {package} {lowest} or later, {installed} is installed"
        raise ImportError(msg)


def _release(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, which are all that a bound is about."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return () if found is None else tuple(map(int, found[0].split(".")))
