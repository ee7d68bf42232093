"""``qtasks-pluggy failures``: what it shows, what it promises in JSON, and how it fails."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from qtasks_pluggy import TrailRecord
from qtasks_pluggy.cli._command import command
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.store import Batch
from tests.failures.places import Place

GROUP = ["id", "task", "error", "message", "state", "first_seen", "last_seen", "counts"]
RUN = [
    *["uuid", "task", "app", "engine", "queue", "status", "error", "message", "group"],
    *["attempts", "decided_by", "decision", "reason", "at"],
    *["replayable", "not_replayable", "replay_of", "replayed_as"],
]
NOW = 1_700_000_000.0
ATTEMPT = ["attempt", "error", "message", "traceback", "seconds", "trail"]


def test_json_has_the_promised_fields_and_nothing_else(filled, run):
    """groups, list and show write one JSON value each, with these fields in this order."""
    groups, runs, shown = (
        json.loads(run(*words, "--json").stdout)
        for words in (["groups"], ["list"], ["show", "one"])
    )

    assert [GROUP, GROUP] == [list(one) for one in groups]
    assert [RUN] * 3 == [list(one) for one in runs]
    assert {*RUN, "args", "kwargs", "replays"} == set(shown)
    assert [ATTEMPT] == [list(one) for one in shown["attempts"]]
    assert ([1], {"to": "EUR"}, []) == (shown["args"], shown["kwargs"], shown["replays"])


class NoPriceError(Exception):
    """An error of a module; built-in ones have none."""

    __module__ = "shop.errors"


def test_each_field_has_what_it_promises(place, run):
    """Times are in UTC, what is not there is null, a class has its module, counts are by status."""
    first = place.record(uuid="one", at=NOW, args=(Path(),), app="", replay_of="zero")
    second = {"uuid": "two", "at": NOW + 1.5, "engine": "celery", "queue": "q", "attempt": 2}
    decided = {"decided_by": "last-rate", "decision": "Replace", "reason": "as of noon"}
    saved = place.record(NoPriceError("EUR"), status="recovered", **second, **decided)
    place.store().write(Batch([first, saved]))

    (group,) = json.loads(run("groups", "--json").stdout)
    two, one = json.loads(run("list", "--json").stdout)
    shown = json.loads(run("show", "two", "--json").stdout)

    assert {
        "id": "a-group",
        "task": "price",
        "error": "shop.errors.NoPriceError",
        "message": "EUR",
        "state": "open",
        "first_seen": "2023-11-14T22:13:20+00:00",
        "last_seen": "2023-11-14T22:13:21.500000+00:00",
        "counts": {"failed": 1, "recovered": 1},
    } == group
    assert {
        "uuid": "two",
        "task": "price",
        "app": "shop",
        "engine": "celery",
        "queue": "q",
        "status": "recovered",
        "error": "shop.errors.NoPriceError",
        "message": "EUR",
        "group": "a-group",
        "attempts": 2,
        "decided_by": "last-rate",
        "decision": "Replace",
        "reason": "as of noon",
        "at": "2023-11-14T22:13:21.500000+00:00",
        "replayable": True,
        "not_replayable": None,
        "replay_of": None,
        "replayed_as": None,
    } == two
    assert {
        "app": None,
        "engine": None,
        "queue": None,
        "error": "KeyError",
        "decided_by": None,
        "decision": None,
        "reason": "",
        "replayable": False,
        "replay_of": "zero",
    }.items() <= one.items()
    assert one["not_replayable"].startswith("args[0] is a ")
    attempt = {
        "attempt": 2,
        "error": "shop.errors.NoPriceError",
        "message": "EUR",
        "traceback": "shop.errors.NoPriceError: EUR\n",
        "seconds": 0.25,
        "trail": [],
    }
    assert {**two, "args": [], "kwargs": {}, "replays": [], "attempts": [attempt]} == shown


def test_tables_show_groups_runs_and_a_run(filled, run):
    """People see counts, who decided, arguments and the traceback."""
    groups, runs, shown = run("groups").output, run("list").output, run("show", "one").output

    assert "1 failed, 1 recovered" in groups
    assert "last-rate" in runs
    assert '(1, to="EUR")' in shown
    assert "KeyError: 'EUR'" in shown


def test_nothing_recorded_changes_a_terminal(filled, run):
    """What an error says is made printable, in tables, in text and in JSON."""
    for words in (["groups"], ["list"], ["show", "three"], ["groups", "--json"]):
        assert "\x1b" not in run(*words).output
        assert "gone" in run(*words).output


def test_filters_narrow(filled, run):
    """Filters are those of the command line; ignored groups are shown when asked for."""
    ids = [one["id"] for one in json.loads(run("groups", "--error", "ValueError", "--json").stdout)]

    assert ["other"] == ids
    assert "No failures match." in run("groups", "--state", "ignored").output
    assert "No runs match." in run("list", "--since", "2100-01-01").output


@pytest.mark.parametrize("since", ["30m", "2h", "7d", "1w", "iso"])
def test_since_takes_a_span_or_a_time(filled, run, since):
    """A number with a unit counts back from now; a time without a zone is in UTC."""
    when = datetime.now(UTC) - timedelta(minutes=5)
    word = when.replace(tzinfo=None).isoformat() if since == "iso" else since

    assert 3 == len(json.loads(run("list", "--since", word, "--json").stdout))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["groups", "--state", "opened"], "--state: there is no 'opened'; did you mean 'open'?"),
        (["list", "--status", "fail"], "--status: there is no 'fail'; did you mean 'failed'?"),
        (["list", "--since", "yesterday"], "--since: 'yesterday' is not a time"),
        (["list", "--limit", "0"], "--limit"),
        (["groups", "--url", "sqlit:///x.db"], "did you mean 'sqlite'?"),
        (["groups", "--url", "sqlite:////nowhere/x.db"], "does not exist"),
        (["groups", "--url", "sqlite:////dev"], "sqlite:////dev is not a file"),
        (["groups", "--app", "nothing:app"], "there is no module 'nothing'"),
    ],
)
def test_what_is_wrong_is_named_with_code_2(filled, run, words, told):
    """Usage, settings and stores that cannot be read end with one error, and code 2."""
    ended = run(*words)

    assert (2, True) == (ended.exit_code, told in ended.output), ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("name", ["proj.tasks.convert", "proj.tasks:convert"])
def test_a_task_without_its_module_is_found_by_a_hint(place, run, name):
    """Engines name tasks in full; who names the function alone reads what to write."""
    place.store().write(Batch([place.record(task=name)]))
    hint = f"There is a task '{name}': write --task '*convert'.\n"

    for words in (["groups"], ["list"], ["resolve", "--yes"]):
        assert run(*words, "--task", "convert").output.endswith(hint)
    assert "proj" not in run("list", "--task", "vert").output
    assert "There is" not in run("list", "--task", "*convert", "--status", "recovered").output


@pytest.mark.engines
def test_a_store_out_of_reach_is_named_without_its_secrets(run):
    """Which one it is, because the settings may name another than somebody thinks."""
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{nobody_listens.getsockname()[1]}"
        url = f"postgresql+psycopg://ann:hunter2@{server}/shop?passfile=hunter2"
        ended = run("groups", "--url", url)

    store = f"the failures store postgresql+psycopg://ann:***@{server}/shop cannot be used: "
    assert (2, True) == (ended.exit_code, store in ended.output), ended.output
    assert "hunter2" not in ended.output


def test_a_run_that_is_not_there_is_named_with_code_1(filled, run):
    """Show of an unknown run says which."""
    ended = run("show", "nobody", "--json")

    assert (1, "") == (ended.exit_code, ended.stdout)
    assert "no such run: nobody" in ended.stderr


@pytest.mark.parametrize("words", [["show"], ["resolve", "--yes"], ["ignore", "one"]])
def test_a_groups_id_where_a_run_is_wanted_is_said_to_be_one(filled, run, words):
    """Who takes it from the list of groups reads where it belongs; nothing is done."""
    ended = run(*words, "a-group")

    told = "no such run: a-group is a group; list, replay and resolve take it by --group"
    assert (1, True) == (ended.exit_code, told in ended.output), ended.output


def test_what_was_dropped_is_said_beside_the_groups(filled, run):
    """The count of failures without a row is on standard error, also with --json."""
    filled.store().write(Batch([], dropped=1_234))

    ended = run("groups", "--json")

    assert 2 == len(json.loads(ended.stdout))
    assert "1,234 failures came too fast to be kept" in ended.stderr


def test_the_url_of_the_command_line_is_stronger_than_the_settings(filled, run, tmp_path):
    """--url is read, and the store of the settings is not."""
    ended = run("groups", "--url", f"sqlite:///{tmp_path}/none.db")

    assert (2, True) == (ended.exit_code, "none.db does not exist" in ended.output)


@pytest.mark.parametrize("strongest", ["option", "environment", "file", "app", "default"])
def test_the_store_is_that_of_whoever_is_strongest(tmp_path, monkeypatch, strongest):
    """--url, else environment, else file, else the app's settings, else the user's folder."""
    names = ["option", "environment", "file", "app", "default"]
    urls = {}
    for name in names:
        place = Place(tmp_path / name)
        if name == "default":
            place.path = tmp_path / "default" / "qtasks-pluggy" / "failures.db"
            place.url = read_url(f"sqlite:///{place.path}")
        place.store().write(Batch([place.record(group=name)]))
        urls[name] = f"sqlite:///{place.path}"
    there = names[names.index(strongest) :]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "default"))
    if "environment" in there:
        monkeypatch.setenv("QTASKS_PLUGGY_PLUGIN_FAILURES_URL", urls["environment"])
    if "file" in there:
        section = f"[tool.qtasks_pluggy.plugin.failures]\nurl = '{urls['file']}'\n"
        (tmp_path / "pyproject.toml").write_text(section)
    own = {"plugin": {"failures": {"url": urls["app"]}}} if "app" in there else {}
    (tmp_path / f"shop_{strongest}.py").write_text(
        "from qtasks_pluggy import QueueTasks\n"
        f"app = QueueTasks('shop', settings={own}, discover=False)\n"
    )
    words = ["groups", "--json", "--app", f"shop_{strongest}.py"]
    words += ["--url", urls["option"]] if "option" in there else []

    ended = CliRunner().invoke(command, ["failures", *words])

    assert [strongest] == [one["id"] for one in json.loads(ended.stdout)], ended.output


def test_without_the_extra_the_command_says_what_to_install(run, monkeypatch):
    """The group is always there; its commands name the extra, and help works."""
    monkeypatch.setattr("qtasks_pluggy.failures.command.find_spec", lambda _: None)

    ended = run("groups")

    assert (2, True) == (ended.exit_code, "'qtasks-pluggy[failures]'" in ended.output)


def test_a_locked_store_can_be_read(filled, run):
    """Somebody who writes for minutes keeps nobody from reading."""
    with filled.store()._engine.begin():
        begun = time.monotonic()
        ended = run("groups", "--json")

    assert 2 == len(json.loads(ended.stdout))
    assert time.monotonic() - begun < 4


def test_the_first_characters_of_an_id_are_enough_if_unique(place, run):
    """An ambiguous beginning names its runs; an unknown or empty one is refused."""
    uuids = ["ab_1", "abc2", *(f"b-{number}" for number in range(9))]
    place.store().write(Batch([place.record(uuid=one) for one in uuids]))

    assert "ab_1" == json.loads(run("show", "ab_", "--json").stdout)["uuid"]
    assert "1 group (run abc2): resolved now\n" == run("resolve", "abc", "--yes").output
    for words, told in (
        (["show", "ab"], "several runs match ab: ab_1, abc2; give more characters"),
        (["resolve", "b"], "several runs match b: b-0, b-1, b-2, b-3, b-4, ...; give more"),
        (["show", "x"], "no such run: x"),
        (["resolve", ""], "no such run: "),
    ):
        ended = run(*words)
        assert (1, True) == (ended.exit_code, told in ended.stderr), ended.output


def _asked(status, hook="task_executor_run_task_trigger_error"):
    return TrailRecord("last-rate", None, None, hook, 1, status)


@pytest.mark.parametrize(
    ("error", "trail", "told"),
    [
        (KeyError("EUR"), (), "either no plugin has a handler, or intercept="),
        (SystemExit(1), (), "plugins never decide about SystemExit"),
        (KeyError("EUR"), (_asked("filtered"),), "every handler was filtered"),
        (KeyError("EUR"), (_asked("answered", "task_executor_task_failed"),), "either no plugin"),
        (KeyError("EUR"), (_asked("filtered"), _asked("no_opinion")), None),
    ],
)
def test_show_says_where_no_plugin_was_asked(place, run, error, trail, told):
    """One line with the reason, as far as the store knows it; none where a plugin was asked."""
    place.store().write(Batch([place.record(error, uuid="one", trail=trail)]))

    output = run("show", "one").output

    assert (told is not None) == ("no plugin was asked: " in output), output
    assert f"no plugin was asked: {told or ''}" in output or told is None


def test_tables_say_once_that_times_are_in_utc(filled, run):
    """The head of the column says it."""
    assert 1 == run("groups").output.count("last seen (UTC)") == run("groups").output.count("UTC")
    assert 1 == run("list").output.count("at (UTC)") == run("list").output.count("UTC")


def test_an_empty_store_is_no_fault(place, run):
    """It is said in words, with code 0, and JSON is an empty list."""
    place.store().write(Batch([]))

    for words in (["groups"], ["groups", "--task", "price"], ["list"]):
        ended = run(*words)
        assert (0, "No failures are recorded yet.\n") == (ended.exit_code, ended.output)
    assert [] == json.loads(run("groups", "--json").stdout)
    place.store().write(Batch([place.record()]))
    run("ignore", "--group", "a-group", "--yes")
    assert "No failures match.\n" == run("groups").output


def test_a_missing_store_says_what_to_enable(run):
    """It is code 2, as every store that cannot be used."""
    ended = run("groups")

    assert (2, True) == (ended.exit_code, "QTASKS_PLUGGY_ENABLE=failures where" in ended.stderr)


def test_a_missing_store_names_the_whole_list_to_enable(run, monkeypatch):
    """The variable would replace what is enabled now; with ``--url`` wrong settings do no harm."""
    monkeypatch.setenv("QTASKS_PLUGGY_ENABLE", "retry")
    whole = run("groups").stderr
    monkeypatch.setenv("QTASKS_PLUGGY_STRIKT", "1")
    wrong = run("groups", "--url", "sqlite:///nowhere.db").stderr

    assert "set QTASKS_PLUGGY_ENABLE=retry,failures where" in whole
    assert "set QTASKS_PLUGGY_ENABLE=failures where" in wrong


def test_without_the_extra_the_page_names_its_own(run, monkeypatch):
    """``web`` needs more than the other commands."""
    monkeypatch.setattr("qtasks_pluggy.failures.command.find_spec", lambda _: None)

    ended = run("web")

    assert (2, True) == (ended.exit_code, "'qtasks-pluggy[web]'" in ended.output)


def test_the_first_hour_of_1970_counts_once(place):
    """A clock that was never set does not make two runs of one."""
    place.store().write(Batch([place.record(at=12.0)]))

    assert {"failed": 1} == place.counts()
