"""``groups``, ``list`` and ``show``: what failed, why, who decided, and how often."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from qtasks_pluggy._console.say import say, say_json
from qtasks_pluggy._console.table import Column, show_table
from qtasks_pluggy.failures.command.options import (
    STORE,
    NotThereError,
    filters,
    hint_at_names,
    read_filters,
    reading,
    store_url,
    takes,
    whole_ids,
)
from qtasks_pluggy.failures.records import TRIGGER, WAITING, Filters, about_retry

if TYPE_CHECKING:
    from qtasks_pluggy.failures.queries import Reader

_NOT_ASKED: Final = frozenset({"filtered", "quarantined", "reentered"})
"""What a trail says of handlers that were not called."""
_NEVER_SHOWN: Final = frozenset(
    {
        *("asyncio.exceptions.CancelledError", "KeyboardInterrupt", "SystemExit"),
        *("GeneratorExit", "qtasks_hookspecs.exc.TaskCancelError"),
    }
)

_GROUPS: Final = [
    Column("group", style="bold"),
    Column("task"),
    Column("error"),
    Column("runs"),
    Column("last seen (UTC)"),
    Column("state"),
    Column("message", below=True),
]
_RUNS: Final = [
    Column("run", style="bold"),
    Column("task"),
    Column("status"),
    Column("attempts", right=True),
    Column("decided by"),
    Column("at (UTC)"),
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


@click.command(name="groups")
@takes(*filters(limit=100), *STORE)
def groups(url: str | None, app_spec: str | None, *, as_json: bool, **given: Any) -> None:
    """List failures by cause, most recent first.

    --since chooses groups that failed since then; their runs are counted from the beginning.
    """
    wanted = read_filters(given)
    with reading(store_url(url, app_spec)) as reader:
        found = [attrs.asdict(one) for one in reader.groups(wanted)]
        dropped = reader.dropped()
        nothing = "" if found else _nothing(reader, "failures", wanted)
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
        say(nothing)
    if dropped:
        text = f"{dropped:,} failures came too fast to be kept; they are counted, but not listed."
        say(text, err=True)


def _nothing(reader: Reader, things: str, wanted: Filters) -> str:
    """Return why a list is empty."""
    if not reader.groups(Filters(limit=1)):
        return "No failures are recorded yet."
    return f"No {things} match.{hint_at_names(reader, wanted)}"


@click.command(name="list")
@takes(*filters(limit=100), *STORE)
def list_runs(url: str | None, app_spec: str | None, *, as_json: bool, **given: Any) -> None:
    """List runs that failed at least once, most recent first."""
    wanted = read_filters(given)
    with reading(store_url(url, app_spec)) as reader:
        found = [attrs.asdict(one) for one in reader.runs(wanted)]
        nothing = "" if found else _nothing(reader, "runs", wanted)
    if as_json:
        say_json(found)
    elif found:
        rows = [
            [
                one["uuid"],
                one["task"],
                f"{one['status']}, replayed" if one["replayed_as"] else one["status"],
                str(one["attempts"]),
                _decided(one),
                _short_time(one["at"]),
                f"{one['error']}: {one['message']}",
            ]
            for one in found
        ]
        show_table(_RUNS, rows)
    else:
        say(nothing)


@click.command(name="show")
@click.argument("uuid")
@takes(*STORE)
def show(uuid: str, url: str | None, app_spec: str | None, *, as_json: bool) -> None:
    """Show one run: its arguments, its attempts, and who decided what.

    The first characters of UUID are enough, if no other run's id begins with them.
    """
    with reading(store_url(url, app_spec)) as reader:
        (uuid,) = whole_ids(reader, [uuid])
        whole = reader.run(uuid)
        originals = reader.originals(whole.run.replay_of) if whole else []
    if whole is None:  # retention deleted it just now
        msg = f"no such run: {uuid}"
        raise NotThereError(msg)
    found = attrs.asdict(whole)
    found = {**found.pop("run"), **found}
    if as_json:
        say_json(found)
    else:
        _show(found, originals)


def _show(run: dict[str, Any], originals: list[str]) -> None:
    attempts = run["attempts"]
    waits = run["status"] == WAITING
    status = "waits for its next attempt" if waits else run["status"]
    say(f"{run['task']} {status}, run {run['uuid']}", bold=True)
    for label, value in (
        ("since" if waits else "at", run["at"]),
        ("app", run["app"]),
        ("engine", run["engine"]),
        ("queue", run["queue"]),
        ("group", run["group"]),
        ("decided by", _decided(run)),
        ("reason", run["reason"]),
        ("replay of", ", a replay of ".join(originals)),
        ("replays", ", ".join(map(_replay, run["replays"]))),
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
            show_table(_TRAIL, [_asked(line, one["attempt"]) for line in one["trail"]])
        why = _why_nobody(one)
        if why:
            say(f"\nno plugin was asked: {why}")


def _replay(replay: dict[str, Any]) -> str:
    if replay["uuid"] is None:
        return "claimed by a replay, but not sent"
    return f"{replay['uuid']} {(replay['status'] or 'not known yet').replace('_', '-')}"


def _arguments(run: dict[str, Any]) -> str:
    if run["args"] is None:
        return "not shown"
    given = [json.dumps(one) for one in run["args"]]
    given += [f"{name}={json.dumps(one)}" for name, one in run["kwargs"].items()]
    return f"({', '.join(given)})"


def _why_nobody(attempt: dict[str, Any]) -> str:
    """Return why no plugin was asked about an attempt's error; empty if one was."""
    asked = {line["status"] for line in attempt["trail"] if line["hook"] == TRIGGER}
    if asked - _NOT_ASKED or not attempt["error"]:
        return ""
    if asked:
        return f"every handler was {' or '.join(sorted(asked))}"
    if attempt["error"] in _NEVER_SHOWN:
        return f"plugins never decide about {attempt['error']}"
    return (
        "either no plugin has a handler, or intercept= of the task or app does not show the error"
        " to plugins"
    )


def _asked(line: dict[str, Any], attempt: int) -> list[str]:
    did = f"{line['status'].replace('_', ' ')} {line['kind'] or ''}".strip()
    if more := about_retry(line, attempt):
        did = f"{did}, {more}"
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
