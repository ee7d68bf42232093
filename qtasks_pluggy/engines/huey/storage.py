"""Opening the database, and explaining what is wrong with a storage that cannot be used."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from huey import SqliteHuey

from qtasks_pluggy.engines import url_options
from qtasks_pluggy.exc import EngineError

SCHEME: Final = "huey+sqlite://"


def sqlite_huey(url: str, name: str) -> tuple[SqliteHuey, bool]:
    """Make the Huey that a URL describes.

    Returns:
        The Huey, and whether it should have a ledger.

    Raises:
        EngineError: The URL is wrong, or the database cannot be used.
    """
    options = url_options(url, {"ledger": True})
    if not url.startswith(SCHEME):
        msg = f"engine {url.partition(':')[0]!r} takes a Huey, or {SCHEME}/file.db"
        raise EngineError(msg)
    path = unquote(url.partition("?")[0].removeprefix(SCHEME).removeprefix("/"))
    if path in {"", ":memory:"}:
        msg = (
            f"engine {url!r} has no file; write {SCHEME}/file.db or {SCHEME}//folder/file.db, or"
            " use memory://"
        )
        raise EngineError(msg)
    # Each thread opens the file on its own, perhaps after the process has changed its folder.
    path = str(Path(path).absolute())
    with explained(path, "the app"):
        return SqliteHuey(name, filename=path, store_none=True), options["ledger"]


@contextmanager
def explained(storage: str, who: str) -> Generator[None]:
    """Say what to do about an error of a storage.

    Args:
        storage: The database's path, or what else Huey stores runs in.
        who: The app or the task.

    Raises:
        EngineError: The storage cannot be used.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        msg = (
            f"engine 'huey', {who}: the storage {storage!r} cannot be used: {error}; check that it"
            " is there, that this user may write to it, that it has room, and that no other"
            " process locks it"
        )
        raise EngineError(msg) from error
