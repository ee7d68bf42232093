"""Reaching a store: its URL, its file, its version.

A store is SQLite in a file of its own, or PostgreSQL for several hosts.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError
from sqlalchemy.pool import NullPool

from qtasks_hookspecs.exc import SettingsError
from qtasks_pluggy.failures.schema import (
    ACTS,
    ATTEMPTS,
    COUNTS,
    GROUPS,
    META,
    RUNS,
    TABLES,
    VERSION,
)

SCHEMES: Final = ("postgresql+psycopg", "sqlite")
# Any number will do that nobody else locks.
_CREATING: Final = 7_226_417_034
UPGRADE_SECONDS: Final = 60.0
"""How long an upgrade waits for writers."""


class StoreError(Exception):
    """A store that cannot be used as it is. The text says why, and what to do."""


class NoStoreError(StoreError):
    """A store that nothing has been recorded in yet."""


def default_url() -> str:
    """Return the URL of the store in this user's folder for what programs keep."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG standard says to ignore a path that is not absolute.
    folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return f"sqlite:///{folder / 'qtasks-pluggy' / 'failures.db'}"


def read_url(given: str) -> URL:
    """Read a store's URL; it may hold a password, which no error shows."""
    takes = (
        "write sqlite:///path/of/failures.db or postgresql+psycopg://user@host/database, and an @"
        " of a password as %40"
    )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        msg = f"the url of the failures store cannot be read; {takes}"
        raise SettingsError(msg) from None
    scheme = url.drivername
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0)[0]
        msg = f"the failures store has no scheme {scheme!r}; did you mean {near!r}? Or {takes}"
        raise SettingsError(msg)
    if scheme == "sqlite":
        if url.database in {None, "", ":memory:"} or url.host:
            msg = f"the failures store needs a file, with three slashes and its path; {takes}"
            raise SettingsError(msg)
    elif _is_password_cut(url, given):
        msg = f"the url of the failures store has an @ after its user's; {takes}"
        raise SettingsError(msg)
    elif find_spec("psycopg") is None:
        msg = (
            "a failures store on PostgreSQL needs psycopg, which is not installed;"
            " run: python -m pip install 'qtasks-pluggy[postgresql]'"
        )
        raise SettingsError(msg)
    return url


def _is_password_cut(url: URL, given: str) -> bool:
    """Return whether an @ of the password made a part of it the host, which would be shown."""
    if "@" in f"{url.host or ''}{url.database or ''}":
        return True
    if url.password is None:
        return False
    # A ? of the password may have begun the query, where the rest of the password is.
    user_and_rest = given.partition("://")[2]
    password_and_rest = user_and_rest.partition(":")[2]
    return "@" in password_and_rest.partition("@")[2]


def shown(url: URL) -> str:
    """Return a URL as it can be shown, without its password, which its query may hold too."""
    return url.set(query={}).render_as_string(hide_password=True)


def why(error: Exception) -> str:
    """Describe a store's error without the statement and its values."""
    text = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return f"{type(error).__name__}: {text.strip()}"


def unusable(url: URL, error: Exception) -> str:
    """Say which store cannot be used, and why."""
    return f"the failures store {shown(url)} cannot be used: {why(error)}"


def engine_for(url: URL, *, seconds: float, writes: bool) -> Engine:
    """Make a store's engine; it waits ``seconds`` for a lock or for a server's answer."""
    if url.drivername != "sqlite":
        waits = f"-c lock_timeout={int(seconds * 1000)}"
        connects = {"connect_timeout": max(2, int(seconds)), "options": waits}
        return create_engine(url, poolclass=NullPool, connect_args=connects)
    # Parameters have names on both dialects, so that rows are the same for either driver.
    connects = {"timeout": seconds, "check_same_thread": False}
    engine = create_engine(url, poolclass=NullPool, paramstyle="named", connect_args=connects)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        # The driver begins no transaction by itself: one that reads first could not wait to write.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=NORMAL")  # it finds out whether it is a database

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def file_of(engine: Engine) -> tuple[int, int] | None:
    """Identify a store's file, even against another one at that path; None if there is none."""
    if engine.dialect.name != "sqlite":
        return None
    try:
        found = os.stat(engine.url.database or "")  # noqa: PTH116  # for each batch: half the time
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def set_durable(connection: Connection, *, is_durable: bool) -> None:
    """Set, between transactions, whether a commit must be on the disk when it returns.

    Without it SQLite may forget the last commits at a power cut, and nothing else. PostgreSQL's
    server decides: its ``synchronous_commit`` is on unless somebody turned it off.
    """
    if connection.dialect.name == "sqlite":
        link = connection.connection.driver_connection
        assert link is not None  # noqa: S101  # it is open
        link.execute(f"PRAGMA synchronous={'FULL' if is_durable else 'NORMAL'}")


def connect(engine: Engine) -> Connection:
    """Connect to a store; refuse a file that is not a database."""
    try:
        return engine.connect()
    except DatabaseError as error:
        if "not a database" not in str(error.orig):
            raise
        url = shown(engine.url)
        msg = f"{url} is not an SQLite database; give the failures store a file of its own"
        raise StoreError(msg) from None


def prepare(engine: Engine) -> None:
    """Create the store if it does not exist; check that it is ours and of this version."""
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or "").resolve()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made before SQLite does, so that nobody else may read it, not even at first. An existing
        # file is never opened here: closing it would drop every lock of this process on it, and
        # another process could delete the log that this one is writing to.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with connect(engine) as connection:
            _refuse_strangers(connection)
        _write_ahead(engine)
    with engine.begin() as connection:
        _alone(connection)
        if not inspect(connection).has_table(META.name):
            TABLES.create_all(connection)
            rows = {"version": VERSION, "runs": 0, "dropped": 0}
            given = [{"name": name, "value": value} for name, value in rows.items()]
            connection.execute(META.insert(), given)
        check(connection)


def check(connection: Connection) -> None:
    """Check that a store is ours and of this version."""
    version = _version(connection)
    if version < VERSION:
        msg = (
            f"{shown(connection.engine.url)} was made by an older qtasks-pluggy (its tables are of"
            f" version {version}, this one needs {VERSION}); with the same settings, or --url, run:"
            " qtasks-pluggy failures upgrade"
        )
        raise StoreError(msg)


def upgrade(url: URL) -> int:
    """Upgrade a store in place to this version; all of it or nothing.

    If two upgrades start at the same moment, the second one waits and finds it done.

    Args:
        url: Where it is.

    Returns:
        The version that it had.

    Raises:
        StoreError: There is none, it is another program's, or of a newer version.
        sqlalchemy.exc.SQLAlchemyError: It cannot be written; it is as it was.
    """
    must_be_there(url)
    engine = engine_for(url, seconds=UPGRADE_SECONDS, writes=True)
    with connect(engine) as connection, connection.begin():
        _alone(connection)
        before = _version(connection)
        for version in range(before, VERSION):
            _UPGRADES[version](connection)
        now = META.update().where(META.c.name == "version").values(value=VERSION)
        connection.execute(now)
    return before


def _to_version_2(connection: Connection) -> None:
    # Groups first, as writers do: then neither waits for what the other has.
    columns = (
        GROUPS.c.state_since,
        *(RUNS.c[name] for name in ("claimed_at", "sent_at", "sent_as")),
        ATTEMPTS.c.error_arguments,
    )
    for column in columns:
        kind = column.type.compile(connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {column.table} ADD COLUMN {column.name} {kind}")
    ACTS.create(connection)
    for index in (*GROUPS.indexes, *COUNTS.indexes):
        index.create(connection, checkfirst=True)


_UPGRADES: Final[Mapping[int, Callable[[Connection], None]]] = {1: _to_version_2}


def must_be_there(url: URL) -> None:
    """Check that the store's file exists, because opening would create it."""
    if url.drivername != "sqlite":
        return
    try:
        mode = Path(url.database or "").stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        msg = f"{shown(url)} does not exist: no failures are recorded yet"
        raise NoStoreError(msg) from None
    if not S_ISREG(mode):
        msg = f"{shown(url)} is not a file; give the failures store a file of its own"
        raise StoreError(msg)


def _alone(connection: Connection) -> None:
    """Wait until nobody else makes or upgrades the store; SQLite has one writer anyway."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATING})")


def _version(connection: Connection) -> int:
    """Return the version of a store that is ours, unless it is newer than what we know."""
    if connection.dialect.name == "sqlite":
        _refuse_strangers(connection)
    if not inspect(connection).has_table(META.name):
        msg = f"{shown(connection.engine.url)} is empty: no failures are recorded yet"
        raise NoStoreError(msg)
    version: int | None = connection.scalar(select(META.c.value).where(META.c.name == "version"))
    if version is None or version > VERSION:
        msg = (
            f"{shown(connection.engine.url)} was made by a newer qtasks-pluggy (its tables are of"
            f" version {version}, this one knows {VERSION}); upgrade qtasks-pluggy here"
        )
        raise StoreError(msg)
    return version


def _refuse_strangers(connection: Connection) -> None:
    """Refuse a file that another program made."""
    tables = inspect(connection).get_table_names()
    if tables and META.name not in tables:
        url = shown(connection.engine.url)
        msg = f"{url} is another program's database; give the failures store a file of its own"
        raise StoreError(msg)


def _write_ahead(engine: Engine) -> None:
    """Let readers and one writer work side by side; the file remembers it."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode=WAL")
    finally:
        raw.close()
