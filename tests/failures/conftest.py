"""A store for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.failures.places import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Give a store that is not there yet."""
    return Place(tmp_path)
