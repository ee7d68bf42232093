"""A store of version 1, as the code of that version made it, and what becomes of it."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, update

from qtasks_pluggy.failures import connection, recorder
from qtasks_pluggy.failures.connection import StoreError, engine_for, upgrade
from qtasks_pluggy.failures.recorder import Recorder
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.schema import META, TABLES, VERSION
from qtasks_pluggy.failures.store import Batch

VERSION_1 = Path(__file__).with_name("version_1.sql").read_text("utf-8")


def _link(place):
    return engine_for(place.url, seconds=30, writes=True).begin()


@pytest.fixture
def old_place(any_place):
    """Give a store of version 1, with four runs of two groups."""
    if any_place.url.drivername == "sqlite":
        any_place.path.parent.mkdir(mode=0o700)
        link = sqlite3.connect(any_place.path)
        link.execute("PRAGMA journal_mode=WAL")
        link.executescript(VERSION_1)
        link.close()
    else:
        with _link(any_place) as link:
            # The one type that has another name there.
            link.exec_driver_sql(VERSION_1.replace(" DOUBLE ", " DOUBLE PRECISION "))
    return any_place


def _shape(place):
    """Describe each table: columns, key and indices."""
    with _link(place) as link:
        seen = inspect(link)
        return {
            table: (
                {one["name"]: (str(one["type"]), one["nullable"]) for one in columns},
                seen.get_pk_constraint(table)["constrained_columns"],
                {one["name"]: one["column_names"] for one in seen.get_indexes(table)},
            )
            for table in TABLES.tables
            for columns in [seen.get_columns(table)]
        }


def _version(place):
    with _link(place) as link:
        return link.scalar(select(META.c.value).where(META.c.name == "version"))


def test_an_upgraded_store_is_as_a_new_one_and_has_lost_nothing(old_place):
    """All tables have the shape of new ones, and every run, count and group is there."""
    assert 1 == upgrade(old_place.url)

    upgraded, reader = _shape(old_place), old_place.reader()
    assert ["four", "three", "two", "one"] == [run.uuid for run in reader.runs(Filters())]
    assert {
        "price-key": {"failed": 2, "recovered": 1},
        "mail-value": {"failed": 1},
    } == {group.id: group.counts for group in reader.groups(Filters())}
    assert ([1], {"to": "EUR"}, ["four"]) == (
        (whole := reader.run("one")).args,
        whole.kwargs,
        [one.uuid for one in whole.replays],
    )
    assert 7 == reader.dropped()
    with _link(old_place) as link:
        TABLES.drop_all(link)
    old_place.store().write(Batch([]))
    assert _shape(old_place) == upgraded


def test_an_upgraded_store_is_written_as_before(old_place):
    """New records come into the groups that were there."""
    upgrade(old_place.url)

    news = old_place.store().write(Batch([old_place.record(group="price-key")]))

    assert () == (*news.new, *news.regressed)
    assert {"failed": 3, "recovered": 1} == old_place.counts("price-key")


def test_a_second_upgrade_finds_nothing_to_do(old_place):
    """Whoever upgrades again is told the version that is there, and nothing changes."""
    assert [1, VERSION, VERSION] == [upgrade(old_place.url) for _ in range(3)]


def test_of_two_upgrades_at_the_same_moment_one_does_it(old_place):
    """The other waits, and finds it done."""
    ready = threading.Barrier(4)

    def press(_):
        ready.wait()
        return upgrade(old_place.url)

    with ThreadPoolExecutor(4) as pool:
        assert [1, 2, 2, 2] == sorted(pool.map(press, range(4)))


def test_an_upgrade_that_fails_has_changed_nothing(old_place, monkeypatch):
    """An error on the way leaves the store as it was, and the next upgrade does it all."""
    step = connection._UPGRADES[1]

    def break_off(link):
        step(link)
        raise OSError

    before = _shape_of_old(old_place)
    monkeypatch.setattr(connection, "_UPGRADES", {1: break_off})
    with pytest.raises(OSError, match=r"^$"):
        upgrade(old_place.url)
    monkeypatch.undo()

    assert (before, 1) == (_shape_of_old(old_place), _version(old_place))
    assert 1 == upgrade(old_place.url)


def _shape_of_old(place):
    with _link(place) as link:
        seen = inspect(link)
        tables = [name for name in seen.get_table_names() if name.startswith("failures_")]
        return {name: [one["name"] for one in seen.get_columns(name)] for name in tables}


def test_an_old_store_is_neither_read_nor_written(old_place):
    """Reader and writer name the version, what they need, and the command."""
    for use in (lambda: old_place.store().write(Batch([old_place.record()])), old_place.reader):
        with pytest.raises(StoreError, match=r"of version 1, .* 2\); .* failures upgrade") as told:
            use()
        assert "hunter2" not in str(told.value)
    assert 1 == _version(old_place)


def test_a_worker_on_an_old_store_says_so_once_and_writes_what_waited(old_place, told, monkeypatch):
    """It records nothing until somebody upgrades, names the command once, and loses nothing."""
    monkeypatch.setattr(recorder, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(recorder, "LONGEST_PAUSE", 0.01)
    tried = _times_tried(monkeypatch)
    taking = Recorder(old_place.store, "the store")
    for number in range(20):
        taking.add(old_place.record(uuid=f"new-{number}", group="price-key"))
    assert tried.acquire(timeout=30)
    assert tried.acquire(timeout=30)
    assert tried.acquire(timeout=30)

    upgrade(old_place.url)
    taking.close()

    (one,) = told
    assert "failures_store_unavailable" == one["event"]
    assert "qtasks-pluggy failures upgrade" in one["why"]
    assert {"failed": 22, "recovered": 1} == old_place.counts("price-key")


def _times_tried(monkeypatch):
    tried, prepare = threading.Semaphore(0), connection.prepare

    def trying(engine):
        tried.release()
        prepare(engine)

    monkeypatch.setattr("qtasks_pluggy.failures.store.prepare", trying)
    return tried


def test_a_newer_store_is_not_upgraded(any_place):
    """It is refused by its version, and stays as it is."""
    any_place.store().write(Batch([any_place.record()]))
    with _link(any_place) as link:
        link.execute(update(META).where(META.c.name == "version").values(value=99))

    with pytest.raises(StoreError, match=r"newer .* of version 99, this one knows 2"):
        upgrade(any_place.url)
    assert 99 == _version(any_place)


def test_an_upgrade_makes_no_store(place):
    """Where nothing was recorded there is nothing to upgrade, and no file afterwards."""
    with pytest.raises(StoreError, match="does not exist"):
        upgrade(place.url)

    assert not place.path.exists()
