"""``resolve``, ``ignore``, ``reopen`` and ``upgrade``: what they ask, do, and say they did."""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from qtasks_pluggy.failures import acts
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch
from tests.cli.test_terminal import Terminal
from tests.failures.test_command import GROUP

ACTS = ["resolve", "ignore", "reopen"]
STATES = {"resolve": "resolved", "ignore": "ignored", "reopen": "open"}


def _states(place):
    return {group.id: group.state for group in place.reader().groups(Filters())}


@pytest.mark.parametrize("act", ["resolve", "ignore"])
def test_an_act_on_runs_is_one_on_their_groups(filled, run, act):
    """The groups of these runs get their state, each once; others keep theirs."""
    ended = run(act, "one", "two", "one", "--yes")

    assert (0, f"1 group (runs one, two): {STATES[act]} now\n") == (ended.exit_code, ended.output)
    assert {"a-group": STATES[act], "other": "open"} == _states(filled)


def test_an_act_is_one_row_with_the_login_name(filled, run, monkeypatch):
    """Who, what, of which scope, and how many; also where the system knows no name."""
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    run("ignore", "--task", "*", "--since", "2h", "--yes")

    def unknown():
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", unknown)
    run("reopen", "--group", "other", "--yes")

    assert [("", "reopen", "--group other", 1), ("ann", "ignore", "--task '*' --since 2h", 2)] == [
        (one.who, one.act, one.scope, one.number) for one in filled.reader().acts(10)
    ]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_without_a_terminal_an_act_needs_yes(filled, run, more):
    """It says what it would do to how many, and does nothing; code 2."""
    ended = run("resolve", "--task", "*", *more)

    assert (2, "") == (ended.exit_code, ended.stdout)
    assert "this would resolve 2 groups (--task '*')" in ended.stderr
    assert "add --yes" in ended.stderr
    assert {"open"} == set(_states(filled).values())


@pytest.mark.parametrize(
    ("answer", "code", "told", "state"),
    [
        ("y\n", 0, "1 group (run one): resolved now\n", "resolved"),
        ("n\n", 1, "", "open"),
        ("\n", 1, "", "open"),
    ],
)
def test_on_a_terminal_it_asks(filled, answer, code, told, state):
    """It names what and how many on standard error; only a yes does it."""
    terminal = Terminal()
    words = ["failures", "resolve", "one", "--url", filled.text]
    process = subprocess.Popen(
        [sys.executable, "-m", "qtasks_pluggy.cli", *words],
        stdin=terminal.writing,
        stderr=terminal.writing,
        stdout=subprocess.PIPE,
        text=True,
    )
    terminal.read_until(r"Resolve 1 group \(run one\)\? \[y/N\]:")
    os.write(terminal.reading, answer.encode())
    out, _ = process.communicate(timeout=60)
    os.close(terminal.writing)
    seen = terminal.read_until(None)
    os.close(terminal.reading)

    # Older clicks write the blank after the question to standard output.
    assert (code, told) == (process.returncode, out.removeprefix(" ")), seen
    assert (code == 1) == ("Nothing was done." in seen)
    assert state == _states(filled)["a-group"]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["one", "nobody", "none"], "no such run: nobody, none"),
        (["--group", "nothing"], "no such group: nothing"),
    ],
)
def test_what_is_not_there_is_named_with_code_1(filled, run, act, words, missing):
    """One that is missing keeps the others from being changed."""
    ended = run(act, *words, "--yes", "--json")

    assert (1, "") == (ended.exit_code, ended.stdout)
    assert missing in ended.stderr
    assert {"open"} == set(_states(filled).values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give ids of runs, --group ID"),
        (["--limit", "3"], "give ids of runs, --group ID"),
        (["one", "--task", "price"], "ids of runs or filters, not both: one and --task"),
        (["--state", "opne"], "--state: there is no 'opne'; did you mean 'open'?"),
        (["--status", "fail"], "--status: there is no 'fail'; did you mean 'failed'?"),
        (["--since", "noon"], "--since: 'noon' is not a time"),
        (["one", "--url", "postgresq+psycopg://u:hunter2@h/d"], "mean 'postgresql+psycopg'?"),
        (["one", "--url", "sqlite:////nowhere/x.db"], "does not exist"),
    ],
)
def test_what_is_wrong_is_named_with_code_2(filled, run, words, told):
    """Nothing is changed, and no password is shown."""
    ended = run("ignore", *words, "--yes")

    assert (2, True) == (ended.exit_code, told in ended.output), ended.output
    assert "hunter2" not in ended.output
    assert {"open"} == set(_states(filled).values())


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        (["--group", "other"], ["other"]),
        (["--task", "pri*"], ["a-group"]),
        (["--error", "ValueError"], ["other"]),
        (["--plugin", "last-rate"], ["a-group"]),
        (["--status", "recovered"], ["a-group"]),
        (["--state", "open"], ["a-group", "other"]),
        (["--since", "1h"], ["a-group", "other"]),
        (["--since", "2100-01-01"], []),
        (["--text", "GONE"], ["other"]),
        (["--task", "*", "--limit", "1"], ["other"]),
        (["--task", "*", "--error", "KeyError", "--status", "failed"], ["a-group"]),
    ],
)
def test_every_filter_narrows_an_act(filled, run, words, groups):
    """The JSON is an array of the groups that were changed, as they are now."""
    done = json.loads(run("resolve", *words, "--yes", "--json").stdout)

    assert groups == sorted(one["id"] for one in done)
    assert all(GROUP == list(one) and "resolved" == one["state"] for one in done)
    assert groups == sorted(one for one, state in _states(filled).items() if state == "resolved")


def test_an_act_is_about_all_that_match(place, run):
    """Other than a list, an act has no limit unless one is given."""
    place.store().write(Batch([place.record(group=f"group-{n}") for n in range(150)]))

    assert (
        "150 groups (--state open): resolved now"
        in run("resolve", "--state", "open", "--yes").output
    )


def test_ignored_groups_are_left_out_unless_they_are_named(filled, run):
    """Lists and acts leave them out; their state, their id or a run of theirs names them."""
    run("ignore", "one", "--yes")

    def ids(*words):
        return [one.get("uuid", one.get("id")) for one in json.loads(run(*words, "--json").stdout)]

    assert (["other"], ["three"]) == (ids("groups"), ids("list"))
    assert ["a-group"] == ids("groups", "--state", "ignored") == ids("groups", "--group", "a-group")
    assert ["two", "one"] == ids("list", "--state", "ignored") == ids("list", "--group", "a-group")
    assert "Nothing to do" in run("resolve", "--task", "price", "--yes").output
    assert ["a-group"] == ids("reopen", "one", "--yes")
    assert {"open"} == set(_states(filled).values())


@pytest.mark.parametrize("act", ["resolve", "ignore"])
def test_reopen_undoes_an_act_by_the_same_filters(filled, run, act):
    """It finds ignored groups too, unless a state is named."""
    run(act, "--task", "*", "--yes")

    other = run("reopen", "--task", "*", "--state", "regressed", "--yes")
    undone = run("reopen", "--task", "*", "--yes")

    assert "Nothing to do" in other.output
    assert "2 groups (--task '*'): open now\n" == undone.output


def test_an_act_that_finds_nothing_to_change_asks_nothing(filled, run):
    """Done once more it says so, with code 0, and is no row."""
    run("resolve", "--task", "*", "--yes")

    again, as_json = run("resolve", "--task", "*"), run("resolve", "one", "--json")

    assert (0, 0, []) == (again.exit_code, as_json.exit_code, json.loads(as_json.stdout))
    assert "none of 2 groups (--task '*') is open or regressed or ignored" in again.output
    assert 1 == len(filled.reader().acts(10))


def test_a_store_that_somebody_has_locked_is_named(filled, run, monkeypatch):
    """An act that cannot be written ends with code 2, and has changed nothing."""
    monkeypatch.setattr(acts, "ACT_SECONDS", 0.05)
    with filled.store()._engine.begin():
        ended = run("resolve", "one", "--yes")

    assert 2 == ended.exit_code
    told = f"the failures store {filled.text} cannot be used: OperationalError: database is locked"
    assert told in ended.output
    assert {"open"} == set(_states(filled).values())


@pytest.fixture
def old_place(place):
    """Give a store of version 1."""
    place.path.parent.mkdir(mode=0o700)
    link = sqlite3.connect(place.path)
    link.executescript(Path(__file__).with_name("version_1.sql").read_text("utf-8"))
    link.close()
    return place


def test_an_old_store_is_upgraded_by_one_command(old_place, run):
    """Others name the command; it says what it did, and done again that nothing was to do."""
    before = run("groups")
    assert (2, True) == (before.exit_code, "qtasks-pluggy failures upgrade" in before.output)

    first, second = run("upgrade"), run("upgrade")

    assert f"{old_place.text} is upgraded from version 1 to version 2.\n" == first.output
    assert f"{old_place.text} is of version 2 already; there is nothing to do.\n" == second.output
    assert 4 == len(json.loads(run("list", "--json").stdout))


def test_an_upgrade_says_the_same_in_json(old_place, run):
    """One value: the store, the version that it had, and that which it has."""
    said = [json.loads(run("upgrade", "--json").stdout) for _ in range(2)]

    assert [1, 2] == [one["from"] for one in said]
    assert [{"store": old_place.text, "from": 2, "to": 2}] == said[1:]


def test_there_is_nothing_to_upgrade_where_nothing_was_recorded(place, run):
    """A store that is not there is named with code 2, and not made."""
    ended = run("upgrade")

    assert (2, True) == (ended.exit_code, "does not exist" in ended.output)
    assert not place.path.exists()
