"""Stores that cannot be used: what the recorder and the readers make of each."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import make_url, update

from qtasks_hookspecs.exc import SettingsError
from qtasks_pluggy.failures.connection import StoreError, read_url, shown
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.schema import META
from qtasks_pluggy.failures.store import Batch, Keep, Store
from tests.failures.places import Place


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("sqlit:///x.db", "did you mean 'sqlite'"),
        ("postgresq+psycopg://u:hunter2@h/d", "did you mean 'postgresql+psycopg'"),
        ("postgres://u:hunter2@h/d", "did you mean 'postgresql+psycopg'"),
        ("mysql://u:hunter2@h/d", "no scheme 'mysql'"),
        ("u:hunter2@h/d", "cannot be read"),
        ("", "cannot be read"),
        ("postgresql+psycopg://u:hunter2@h:port/d", "cannot be read"),
        ("postgresql+psycopg://u:p@hunter2@h/d", "an @ of a password as %40"),
        ("postgresql+psycopg://u:p@hunter2:x@h:5432/d", "an @ of a password as %40"),
        ("postgresql+psycopg://u:p@x/hunter2@h/d", "an @ of a password as %40"),
        ("postgresql+psycopg://u:p@x?hunter2@h/d", "an @ of a password as %40"),
        ("sqlite://", "three slashes"),
        ("sqlite:///:memory:", "three slashes"),
        ("sqlite://hunter2/x.db", "three slashes"),
    ],
)
def test_a_url_that_is_wrong_says_what_to_write_and_shows_no_password(given, near):
    """The nearest scheme is named, and no text of the URL that could be a secret."""
    with pytest.raises(SettingsError) as caught:
        read_url(given)

    assert near in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "write sqlite:///path/of/failures.db" in str(caught.value)


@pytest.mark.parametrize("given", ["u@s:hunter2@h/d", "u:what?@h/d", "u@h/d?application_name=a@b"])
def test_an_at_sign_that_is_no_part_of_a_password_is_accepted(given):
    """Some services have an @ in the user's name."""
    pytest.importorskip("psycopg")
    url = read_url(f"postgresql+psycopg://{given}")
    assert ("h", "d") == (url.host, url.database)


@pytest.mark.parametrize(
    "given", ["u:hunter2@h/d", "u@h/d?password=hunter2", "/d?password=hunter2"]
)
def test_a_password_is_never_shown(given):
    """What events, errors and the page call the store has stars for it, and no query."""
    assert "hunter2" not in shown(make_url(f"postgresql+psycopg://{given}"))


def test_another_programs_database_is_left_alone(tmp_path):
    """A SQLite file with other tables is refused, and not one byte of it changes."""
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as link:
        link.execute("CREATE TABLE orders (id)")
    link.close()
    before = path.read_bytes()

    for use in (lambda url: Store(url, Keep()).write(Batch([])), Reader):
        with pytest.raises(StoreError, match="another program's database"):
            use(read_url(f"sqlite:///{path}"))
    assert before == path.read_bytes()


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    """Any other file is refused by name."""
    path = tmp_path / "notes.txt"
    path.write_text("call ann\n" * 200)

    for use in (lambda url: Store(url, Keep()).write(Batch([])), Reader):
        with pytest.raises(StoreError, match="not an SQLite database"):
            use(read_url(f"sqlite:///{path}"))
    assert path.read_text().startswith("call ann")


def test_a_store_that_is_not_there_is_not_made_by_reading(tmp_path):
    """Reading says that nothing was recorded, and makes no file and no folder."""
    with pytest.raises(StoreError, match="does not exist: no failures are recorded"):
        Reader(read_url(f"sqlite:///{tmp_path}/state/failures.db"))

    assert [] == list(tmp_path.iterdir())


def test_a_newer_store_is_refused(place):
    """A store of a version that this one does not know is neither written nor read."""
    store = place.store()
    store.write(Batch([place.record()]))
    with store._engine.begin() as link:
        link.execute(update(META).where(META.c.name == "version").values(value=99))

    for use in (lambda: place.store().write(Batch([place.record()])), place.reader):
        with pytest.raises(StoreError, match=r"newer .* of version 99, this one knows 2"):
            use()


READ_ONLY = """
import os, sys
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch, Keep, Store
url = read_url(f"sqlite:///{sys.argv[1]}")
Reader(url).groups(Filters())  # whatever is imported late is, before this user may not any more
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(len(Reader(url).groups(Filters())))
try:
    Store(url, Keep()).write(Batch([]))
except Exception as error:
    print(type(error).__name__)
"""


def test_a_read_only_store_can_be_read():
    """Whoever may read the file sees the groups; a batch fails, and changes nothing."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        store = place.store()
        store.write(Batch([place.record()]))
        store.close()
        Path(folder).chmod(0o755)
        place.path.chmod(0o444)
        place.path.parent.chmod(0o555)
        script = (sys.executable, "-c", READ_ONLY, str(place.path))

        ended = subprocess.run(script, check=False, capture_output=True, text=True)

        place.path.parent.chmod(0o755)
        assert 1 == len(place.reader().groups(Filters()))
    assert 0 == ended.returncode, ended.stderr
    assert "1\nOperationalError\n" == ended.stdout


def test_a_batch_is_written_whole_or_not_at_all(place):
    """A batch of which one record fails leaves nothing behind, and the next one is written."""
    store = place.store()
    store.write(Batch([place.record(uuid="before")]))

    with pytest.raises(Exception, match="NOT NULL"):
        store.write(Batch([place.record(uuid="good"), place.record(uuid="bad", reason=None)]))
    store.write(Batch([place.record(uuid="after")]))

    assert {"before", "after"} == {run.uuid for run in place.reader().runs(Filters())}
    assert {"failed": 2} == place.counts()


def test_a_full_disk_loses_no_batch_half(place):
    """A batch that finds no room is not written; when there is room again, it is."""
    store = place.store()
    store.write(Batch([place.record()]))
    pages = store._connection.connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.connection.execute(f"PRAGMA max_page_count={pages + 1}")
    batch = Batch([place.record(ValueError("x" * 60_000)) for _ in range(10)])

    with pytest.raises(Exception, match="full"):
        store.write(batch)
    store.write(batch)

    assert {"failed": 11} == place.counts()
