"""A store for each test: a file, or a database of a PostgreSQL that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.schema import TABLES
from tests.failures.places import Place


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """One PostgreSQL for all tests of a process."""
    from tests.failures.servers import running

    with running() as url:
        yield url


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Give a store that is not there yet."""
    return Place(tmp_path)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.engines)])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Give a store that is not there yet, of either kind."""
    place = Place(tmp_path)
    if request.param == "postgresql":
        place.url = read_url(request.getfixturevalue("postgresql_url"))
        TABLES.drop_all(place.store()._engine)
    return place
