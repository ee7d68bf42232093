"""``qtasks-pluggy failures``: what failed, why, who decided, and how often."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import click

from qtasks_pluggy import _settings
from qtasks_pluggy._console.load import Trouble, load_plugins
from qtasks_pluggy._console.say import say, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy._text import closest_match
from qtasks_pluggy.exc import SettingsError

if TYPE_CHECKING:
    from qtasks_pluggy.failures.queries import Filters, Reader

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_GROUPS: Final = [
    Column("group", style="bold"),
    Column("task"),
    Column("error"),
    Column("runs"),
    Column("last seen"),
    Column("state"),
    Column("message", below=True),
]
_RUNS: Final = [
    Column("run", style="bold"),
    Column("task"),
    Column("status"),
    Column("attempts", right=True),
    Column("decided by"),
    Column("at"),
    Column("error", below=True),
]
_TRAIL: Final = [
    Column("plugin", style="bold"),
    Column("version"),
    Column("hook"),
    Column("did"),
    Column("ms", right=True),
    Column(""),
]


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command, or say what to install for it."""
        if find_spec("sqlalchemy") is None:
            msg = (
                "failures needs sqlalchemy, which is not installed; install the extra that brings"
                " it: python -m pip install 'qtasks-pluggy[failures]'"
            )
            raise Trouble(msg)
        return super().invoke(ctx)


@click.group(name="failures", cls=_Group)
def failures() -> None:
    """See what failed, why, who decided, and how often.

    The plugin that records it is off until you enable it: QTASKS_PLUGGY_ENABLE=failures.

    \b
    Exit codes:
      0  all is well
      1  a run is not there
      2  usage, settings, or a store that cannot be read
    """  # noqa: D301  # \b is click's own mark, not an escape


_STORE: Final = [
    click.option("--url", metavar="URL", help="The store; else that of the settings."),
    click.option("--app", "app_spec", metavar="APP", help="The app whose settings name the store."),
    click.option("--json", "as_json", is_flag=True, help="Write JSON instead of a table."),
]
_FILTERS: Final = [
    click.option("--group", metavar="ID", help="Of this group."),
    click.option("--task", metavar="GLOB", help="Of tasks with such names."),
    click.option("--error", metavar="NAME", help="With this class of error."),
    click.option("--plugin", metavar="NAME", help="About which this plugin decided."),
    click.option("--status", metavar="S", help="Ended so: failed, recovered, retried, ..."),
    click.option("--state", metavar="S", help="Of groups that are open, resolved, ..."),
    click.option("--since", metavar="WHEN", help="30m, 2h, 7d, or a time as 2026-11-28T12:00."),
    click.option("--text", metavar="T", help="With this in the error's text."),
    click.option("--limit", metavar="N", type=click.IntRange(1), default=100, show_default=True),
]


def _with(options: Iterable[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed([*options]):
            command = option(command)
        return command

    return add


@failures.command(name="groups")
@_with([*_FILTERS, *_STORE])
def groups(url: str | None, app_spec: str | None, *, as_json: bool, **given: Any) -> None:
    """List failures by cause, the last one first.

    Without --state all but ignored ones.
    """
    filters = _filters(given, states=("open", "regressed", "resolved"))
    reader = _open(url, app_spec)
    found = [attrs.asdict(one) for one in _reading(lambda: reader.groups(filters))]
    dropped = _reading(reader.dropped)
    if as_json:
        say_json(found)
    elif found:
        rows = [
            [
                one["id"],
                one["task"],
                one["error"],
                ", ".join(f"{n:,} {status}" for status, n in one["counts"].items()),
                _short_time(one["last_seen"]),
                one["state"],
                one["message"],
            ]
            for one in found
        ]
        show_table(_GROUPS, rows)
    else:
        say("There are no such failures.")
    if dropped:
        text = f"{dropped:,} failures came too fast to be kept; they are counted, and not listed."
        say(text, err=True)


@failures.command(name="list")
@_with([*_FILTERS, *_STORE])
def list_runs(url: str | None, app_spec: str | None, *, as_json: bool, **given: Any) -> None:
    """List runs that failed at least once, the last one first."""
    filters = _filters(given)
    reader = _open(url, app_spec)
    found = [attrs.asdict(one) for one in _reading(lambda: reader.runs(filters))]
    if as_json:
        say_json(found)
    elif found:
        rows = [
            [
                one["uuid"],
                one["task"],
                one["status"],
                str(one["attempts"]),
                _decided(one),
                _short_time(one["at"]),
                f"{one['error']}: {one['message']}",
            ]
            for one in found
        ]
        show_table(_RUNS, rows)
    else:
        say("There are no such runs.")


@failures.command(name="show")
@click.argument("uuid")
@_with(_STORE)
def show(uuid: str, url: str | None, app_spec: str | None, *, as_json: bool) -> None:
    """Show one run: arguments, attempts, who decided what."""
    reader = _open(url, app_spec)
    whole = _reading(lambda: reader.run(uuid))
    if whole is None:
        say(f"Error: no run {uuid} is recorded", err=True)
        click.get_current_context().exit(1)
    found = attrs.asdict(whole)
    found = {**found.pop("run"), **found}
    if as_json:
        say_json(found)
    else:
        _show(found)


def _show(run: dict[str, Any]) -> None:
    attempts = run["attempts"]
    say(f"{run['task']} {run['status']}, run {run['uuid']}", bold=True)
    for label, value in (
        ("at", run["at"]),
        ("app", run["app"]),
        ("engine", run["engine"]),
        ("queue", run["queue"]),
        ("group", run["group"]),
        ("decided by", _decided(run)),
        ("reason", run["reason"]),
        ("replay of", run["replay_of"]),
        ("replays", ", ".join(run["replays"])),
        ("arguments", _arguments(run)),
        ("no replay", run["not_replayable"]),
    ):
        if value:
            say(f"{label + ':':12}{value}")
    for one in attempts:
        say(f"\nattempt {one['attempt']}, {one['seconds']:.3f} s", bold=True)
        say(one["traceback"].rstrip())
        if one["trail"]:
            say()
            show_table(_TRAIL, [_asked(line) for line in one["trail"]])


def _arguments(run: dict[str, Any]) -> str:
    if run["args"] is None:
        return "not shown"
    given = [json.dumps(one) for one in run["args"]]
    given += [f"{name}={json.dumps(one)}" for name, one in run["kwargs"].items()]
    return f"({', '.join(given)})"


def _asked(line: dict[str, Any]) -> list[str]:
    did = f"{line['status'].replace('_', ' ')} {line['kind'] or ''}".strip()
    return [
        line["plugin"],
        f"{line['distribution']} {line['version']}" if line["distribution"] else "",
        line["hook"],
        f"{did}, observed only" if line["observed"] else did,
        f"{line['seconds'] * 1000:.2f}",
        "won" if line["won"] else "",
    ]


def _decided(run: dict[str, Any]) -> str:
    return " ".join(one for one in (run["decided_by"], run["decision"]) if one)


def _short_time(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _open(url: str | None, app_spec: str | None) -> Reader:
    """Open the store: that of ``--url``, else of the settings, else the default one.

    Raises:
        Trouble: It cannot be read.
    """
    from qtasks_pluggy.failures.connection import default_url, read_url  # noqa: PLC0415  # an extra
    from qtasks_pluggy.failures.queries import Reader  # noqa: PLC0415  # an extra

    try:
        where = read_url(url or _url_of_settings(app_spec) or default_url())
    except SettingsError as error:
        raise Trouble(str(error)) from None
    return _reading(lambda: Reader(where))


def _url_of_settings(app_spec: str | None) -> str | None:
    loaded = (
        _settings.load(read_environment=True)
        if app_spec is None
        else load_plugins(app_spec)[0].loaded
    )
    settings = loaded.for_plugins(["failures"]).settings
    url: str | None = settings.plugin.get("failures", {}).get("url")
    return url


Read = TypeVar("Read")


def _reading(read: Callable[[], Read]) -> Read:
    """Read from the store.

    Raises:
        Trouble: It cannot be read.
    """
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # an extra

    from qtasks_pluggy.failures.connection import StoreError, why  # noqa: PLC0415  # an extra

    try:
        return read()
    except StoreError as error:
        raise Trouble(str(error)) from None
    except (SQLAlchemyError, OSError) as error:
        msg = f"the failures store cannot be read: {why(error)}"
        raise Trouble(msg) from None


def _filters(given: dict[str, Any], states: Iterable[str] | None = None) -> Filters:
    from qtasks_pluggy.failures.queries import Filters  # noqa: PLC0415  # an extra
    from qtasks_pluggy.failures.records import STATES, STATUSES  # noqa: PLC0415  # an extra

    state, since = given.pop("state"), given.pop("since")
    _known("--state", state, STATES)
    _known("--status", given["status"], STATUSES)
    return Filters(
        states=tuple(states or STATES) if state is None else (state,),
        since=0.0 if since is None else _since(since),
        **given,
    )


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
        msg = f"--since: {text!r} is no time; write 30m, 2h, 7d, or 2026-11-28T12:00 (in UTC)"
        raise Trouble(msg) from None
