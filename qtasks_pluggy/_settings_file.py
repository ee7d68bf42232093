"""The settings' file: where it is looked up, which one is ours, and who may own it."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from qtasks_hookspecs.exc import SettingsError

FILE_VARIABLE: Final = "QTASKS_PLUGGY_FILE"
OWN_FILE: Final = "qtasks_pluggy.toml"
MISNAMED_FILE: Final = "qtasks-pluggy.toml"
SHARED_FILE: Final = "pyproject.toml"
SECTION: Final = "qtasks_pluggy"
# How like ours the name of another tool's section must be to be taken for a slip.
NEAR: Final = 0.85


class _UnreadableError(SettingsError):
    """A file that cannot be read or is not TOML."""


def find(skipped: dict[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return the path and the keys of the named file, else of the nearest one; or None.

    Args:
        skipped: Takes the paths that were passed over, each with the reason.

    Raises:
        SettingsError: The file cannot be read, its section is misspelt, or it was found and
            somebody else may have written it.
    """
    named = os.environ.get(FILE_VARIABLE)
    if named:
        content, _ = _read(Path(named))
        return named, _keys(Path(named), _parse(Path(named), content)) or {}
    try:
        here = Path.cwd()
    except OSError:
        # The folder is gone, as when a release is swapped under a running program.
        return None
    for folder in (here, *here.parents):
        for path in (folder / OWN_FILE, folder / SHARED_FILE):
            found = _found(path, skipped) if _is_there(path) else None
            if found is not None:
                return str(path), found
        if _is_there(folder / MISNAMED_FILE):
            msg = f"{folder / MISNAMED_FILE}: is not read; rename it to {OWN_FILE}"
            raise SettingsError(msg)
    return None


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False


def _found(path: Path, skipped: dict[str, str]) -> dict[str, Any] | None:
    """Read a file found in a folder; return None if it has none of our settings."""
    content = b""
    try:
        content, status = _read(path)
        keys = _keys(path, _parse(path, content))
    except _UnreadableError as error:
        # A pyproject.toml that does not name us is somebody else's, who may keep it as they like.
        if path.name == OWN_FILE or f"tool.{SECTION}".encode() in content:
            raise
        skipped[str(path)] = str(error)
        return None
    if keys is not None:
        _refuse_strangers(path, status)
    return keys


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error.strerror) from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        # Editors of Windows begin a file with a byte order mark.
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, why: object) -> _UnreadableError:
    return _UnreadableError(f"{path}: cannot be read: {why}; fix the file, or move it away")


def _refuse_strangers(path: Path, status: os.stat_result) -> None:
    """Refuse a file that somebody else may have written: settings decide what a run does."""
    if status.st_uid not in {0, os.geteuid()}:
        why = f"belongs to user {status.st_uid}, who is neither you nor root"
    elif status.st_mode & stat.S_IWOTH:
        why = "may be written by everybody"
    else:
        return
    msg = (
        f"{path}: {why}, so it is not used; change that, move it away, or set"
        f" {FILE_VARIABLE}={path} if you trust it"
    )
    raise SettingsError(msg)


def _keys(path: Path, document: dict[str, Any]) -> dict[str, Any] | None:
    """Return our keys in a file; None if a shared file has no section for us."""
    if path.name != SHARED_FILE:
        if "tool" in document:
            msg = f"{path}: write the keys without [tool.{SECTION}], which is for {SHARED_FILE}"
            raise SettingsError(msg)
        return document
    tool = document.get("tool", {})
    section = tool.get(SECTION, {}) if isinstance(tool, dict) else None
    if not isinstance(section, dict):
        msg = f"{path}: [tool.{SECTION}] must be a table"
        raise SettingsError(msg)
    slips = [name for name in document if _is_near(name)]
    slips += [f"tool.{name}" for name in tool if _is_near(name) and name != SECTION]
    if slips:
        msg = f"{path}: [{slips[0]}] is not read; did you mean [tool.{SECTION}]?"
        raise SettingsError(msg)
    return section if SECTION in tool else None


def _is_near(name: str) -> bool:
    like = name.lower().replace("-", "_")
    return bool(difflib.get_close_matches(like, [SECTION], cutoff=NEAR))
