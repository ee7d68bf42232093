"""Tests that describe what an engine itself does from a certain version on."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def is_older(package, than):
    """Say whether an older version of an engine's package is installed."""
    return Version(version(package)) < Version(than)


def since(package, lowest, reason):
    """Leave a test out where an engine's package is older.

    Args:
        package: The package.
        lowest: The lowest version that does what the test describes.
        reason: What an older one does.
    """
    return pytest.mark.skipif(is_older(package, lowest), reason=reason)
