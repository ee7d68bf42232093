"""The commands' options, and opening the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import click

from qtasks_pluggy import QueueTasks, _settings
from qtasks_pluggy._console.load import Trouble, load_app
from qtasks_pluggy._console.problems import enabling
from qtasks_pluggy._console.say import json_option
from qtasks_pluggy._text import closest_match
from qtasks_pluggy.engines import load_plugins as load_plugins_of
from qtasks_pluggy.exc import SettingsError
from qtasks_pluggy.failures.records import IGNORED, STATES, STATUSES, Filters

if TYPE_CHECKING:
    from sqlalchemy import URL

    from qtasks_pluggy.failures.queries import Reader

Command = TypeVar("Command")
Option: TypeAlias = Callable[[Any], Any]
"""What ``click.option`` returns: a decorator."""

STORE: Final[list[Option]] = [
    click.option("--url", metavar="URL", help="The store; by default that of the settings."),
    click.option("--app", "app_spec", metavar="APP", help="The app whose settings name the store."),
    json_option,
]
_FILTERS: Final[list[Option]] = [
    click.option("--group", metavar="ID", help="Only this group."),
    click.option("--task", metavar="GLOB", help="Only tasks with matching names."),
    click.option("--error", metavar="NAME", help="Only this class of error."),
    click.option("--plugin", metavar="NAME", help="Only what this plugin decided about."),
    click.option(
        "--status", metavar="S", help="Only runs that are failed, recovered, retried, waiting, ..."
    ),
    click.option(
        "--state", metavar="S", help="Only groups in this state; by default all but ignored."
    ),
    click.option(
        "--since", metavar="WHEN", help="Only since 30m, 2h, 7d ago, or 2026-11-28T12:00 (UTC)."
    ),
    click.option("--text", metavar="T", help="Only errors with this text."),
]
MOST_NAMED: Final = 5
"""Ids that a message names."""
_AS_GIVEN: Final = ("group", "task", "error", "plugin", "status", "text", "limit")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class NotThereError(click.ClickException):
    """A run or a group does not exist: exit code 1."""

    exit_code = 1


def filters(limit: int | None) -> list[Option]:
    """Make the options that say which groups or runs are wanted.

    Args:
        limit: How many at most, unless ``--limit`` says it; None for all.
    """
    number, told = click.IntRange(1), "At most N, the newest ones."
    how_many = click.option(
        "--limit", metavar="N", type=number, default=limit, show_default=True, help=told
    )
    return [*_FILTERS, how_many]


def takes(*options: Option) -> Callable[[Command], Command]:
    """Add options to a command; its help shows them in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            option(command)
        return command

    return add


def read_filters(given: dict[str, Any]) -> Filters:
    """Read the options of ``filters``.

    Raises:
        Trouble: A state, a status or a time is wrong.
    """
    state, since = given["state"], given["since"]
    _known("--state", state, STATES)
    _known("--status", given["status"], STATUSES)
    states: Sequence[str]
    if state is not None:
        states = [state]
    elif given["group"] is not None:
        states = STATES  # a group that is named counts in any state
    else:
        states = [one for one in STATES if one != IGNORED]
    others: dict[str, Any] = {name: given[name] for name in _AS_GIVEN}
    return Filters(states=states, since=0.0 if since is None else _since(since), **others)


def _known(option: str, word: str | None, words: Iterable[str]) -> None:
    if word is not None and word not in set(words):
        msg = f"{option}: there is no {word!r}; did you mean {closest_match(word, words)!r}?"
        raise Trouble(msg)


def _since(text: str) -> float:
    short = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    try:
        if short is not None:
            ago = timedelta(**{_UNITS[short[2]]: int(short[1])})
            return (datetime.now(UTC) - ago).timestamp()
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        msg = f"--since: {text!r} is not a time; write 30m, 2h, 7d, or 2026-11-28T12:00 (in UTC)"
        raise Trouble(msg) from None


def store_url(url: str | None, app: str | QueueTasks | None) -> URL:
    """Find the store: that of ``--url``, else of the settings, else the default one.

    Args:
        url: What ``--url`` says.
        app: The app whose settings count, or what ``--app`` says; None for settings of no app.

    Raises:
        Trouble: Its URL is wrong, or there is no such app.
    """
    from qtasks_pluggy.failures.connection import default_url, read_url  # noqa: PLC0415  # an extra

    try:
        return read_url(url or setting_of(app, "url") or default_url())
    except SettingsError as error:
        raise Trouble(str(error)) from None


def setting_of(app: str | QueueTasks | None, key: str) -> Any:
    """Find the value that the settings have for a key of the plugin's section, or None.

    Args:
        app: The app whose settings count, or what ``--app`` says; None for settings of no app.
        key: The key.
    """
    if isinstance(app, str):
        app = load_app(app, or_native=True)
    if app is None:
        loaded = _settings.load(read_environment=True)
    else:
        load_plugins_of(app, skip_faulty=True)
        loaded = app.plugins.loaded
    settings = loaded.for_plugins(["failures"]).settings
    return settings.plugin.get("failures", {}).get(key)


@contextmanager
def reading(url: URL) -> Generator[Reader]:
    """Open a store for reading.

    Raises:
        Trouble: It cannot be used.
    """
    from qtasks_pluggy.failures.queries import Reader  # noqa: PLC0415  # an extra

    with using_store(url):
        yield Reader(url)


def whole_ids(reader: Reader, given: Sequence[str]) -> tuple[str, ...]:
    """Complete the ids of runs: the first characters of an id are enough if they are unique.

    Raises:
        NotThereError: No run has such an id, or several have.
    """
    known = reader.groups_of(given)
    found: list[str] = []
    missing: list[str] = []
    for one in given:
        ids = [one] if one in known else reader.ids_from(one, MOST_NAMED + 1) if one else []
        if len(ids) > 1:
            more = ", ..." if len(ids) > MOST_NAMED else ""
            named = ", ".join(ids[:MOST_NAMED])
            msg = f"several runs match {one}: {named}{more}; give more characters"
            raise NotThereError(msg)
        (found if ids else missing).extend(ids or [one])
    for one in missing:
        if reader.groups(Filters(group=one)):
            msg = f"no such run: {one} is a group; list, replay and resolve take it by --group"
            raise NotThereError(msg)
    refuse_missing("run", missing)
    return tuple(dict.fromkeys(found))


def hint_at_names(reader: Reader, wanted: Filters) -> str:
    """Return a hint if ``--task`` names a task without its module; else an empty text."""
    tasks = reader.tasks() if wanted.task is not None else []
    if any(fnmatchcase(one, wanted.task or "") for one in tasks):
        return ""
    meant = [one for one in tasks if fnmatchcase(one, f"*[.:]{wanted.task}")]
    return f" There is a task {meant[0]!r}: write --task '*{wanted.task}'." if meant else ""


def refuse_missing(what: str, missing: Sequence[str]) -> None:
    """Name what is not recorded, if anything is missing.

    Args:
        what: What it would be: ``run``, ``group``.
        missing: The ids.

    Raises:
        NotThereError: Something is missing.
    """
    if missing:
        msg = f"no such {what}: {', '.join(missing)}"
        raise NotThereError(msg)


@contextmanager
def using_store(url: URL) -> Generator[None]:
    """Report a store that cannot be used, with exit code 2.

    Args:
        url: Where it is.

    Raises:
        Trouble: It cannot be used.
    """
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # an extra

    from qtasks_pluggy.failures.connection import (  # noqa: PLC0415  # an extra
        NoStoreError,
        StoreError,
        unusable,
    )

    try:
        yield
    except NoStoreError as error:
        enabled: Sequence[str] = ()
        with suppress(SettingsError):  # with --url they are not needed
            enabled = _settings.load(read_environment=True).settings.enable
        msg = (
            f"{error}; to record them, set {enabling('failures', enabled)} where the tasks run, and"
            " name another store by --url if they are recorded elsewhere"
        )
        raise Trouble(msg) from None
    except StoreError as error:
        raise Trouble(str(error)) from None
    except (SQLAlchemyError, OSError) as error:
        raise Trouble(unusable(url, error)) from None
