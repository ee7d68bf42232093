"""Opening the database, and explaining what is wrong with a storage that cannot be used."""

# Huey has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from huey import Huey, SqliteHuey

from qtasks_pluggy.engines import url_options
from qtasks_pluggy.exc import EngineError

SCHEME: Final = "huey+sqlite://"
_REMEDIES: Final = {
    "unable to open": "create its folder, and give this user write access",
    "locked": "another process holds a lock on it; end that process, or wait",
    "full": "the disk is full, or the file may not grow; free some space",
    "disk i/o": "the disk is full or broken, or the file may not grow; check the disk",
    "not a database": "it is not a database, or it is damaged; move it away, or restore it",
    "malformed": "it is damaged; move it away, or restore it",
    "readonly": "give this user write access to it and to its folder",
    "no such table": "it was replaced while this app ran; restart the app",
}


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
    if not path or "\0" in path:
        msg = f"engine {url!r} has no file; write {SCHEME}/file.db, or {SCHEME}//folder/file.db"
        raise EngineError(msg)
    if path == ":memory:":
        msg = f"engine {url!r} is not a file: each thread would have its own; use memory://"
        raise EngineError(msg)
    # Each thread opens the file on its own, perhaps after the process has changed its folder.
    path = str(Path(path).absolute())
    try:
        huey = SqliteHuey(name, filename=path, store_none=True)
    except sqlite3.Error as error:
        raise unusable(path, error, "the app") from error
    return huey, options["ledger"]


def unusable(path: str, error: Exception, who: str) -> EngineError:
    """Return an error that says what is wrong with a database, and what to do."""
    text = str(error)
    remedies = (what for words, what in _REMEDIES.items() if words in text.lower())
    todo = next(remedies, "check the file")
    return EngineError(
        f"engine 'huey', {who}: the database {path!r} cannot be used: {text}; {todo}"
    )


def told(huey: Huey, who: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that uses the storage; if the storage fails, explain why.

    Raises:
        EngineError: The storage cannot be used.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        storage: Any = huey.storage
        if isinstance(error, sqlite3.Error):
            raise unusable(getattr(storage, "filename", "?"), error, who) from error
        if type(error).__module__.partition(".")[0] in {"redis", "valkey"}:
            kind = type(storage).__name__
            msg = (
                f"engine 'huey', {who}: its {kind} cannot be used: {error};"
                " check that the server is up, and that this Huey has its address"
            )
            raise EngineError(msg) from error
        raise
