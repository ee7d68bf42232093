"""A store for each test: a file, or a database of a PostgreSQL that all tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from qtasks_pluggy.cli._command import command
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.schema import TABLES
from qtasks_pluggy.failures.store import Batch
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


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """Collect the log events, of all threads."""
    with capture_logs() as events:
        yield events


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run the command on the place's store, which is that of the settings."""
    monkeypatch.chdir(tmp_path)
    section = {"failures": {"url": place.text}}
    monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN", json.dumps(section))
    return lambda *args: CliRunner().invoke(command, ["failures", *args])


@pytest.fixture
def filled(place: Place) -> Place:
    """Three runs of two groups."""
    place.store().write(
        Batch(
            [
                place.record(uuid="one", args=(1,), kwargs={"to": "EUR"}),
                place.record(uuid="two", status="recovered", decided_by="last-rate"),
                place.record(ValueError("\x1b[2Jgone"), uuid="three", group="other", task="mail"),
            ]
        )
    )
    return place
