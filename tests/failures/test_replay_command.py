"""``qtasks-pluggy failures replay``: what it asks, says, promises in JSON, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from qtasks_pluggy.cli._command import command
from qtasks_pluggy.failures.claims import Claims
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch

COMMAND = (sys.executable, "-m", "qtasks_pluggy.cli", "failures")
SHOP = """
import os, sys, time
from pathlib import Path
from uuid import uuid4
from qtasks_pluggy import QueueTasks

app = QueueTasks("shop", discover=False)
HERE = Path(__file__).parent
PRICES = {"tea": 3}

@app.task
def price(item, to="EUR"):
    with open(HERE / "seen.txt", "a") as file:
        print(item, to, file=file)
    if item == "hang":
        (HERE / "hangs").touch()
        time.sleep(600)
    print("the task prints")
    return PRICES[item]

@app.task
def other():
    pass
"""
USE_LAST = """
@app.on_error(KeyError)
def use_last(error):
    return 2 if error.args != ("rum",) else None
"""


class Place:
    """A folder with an app whose failures are recorded in it.

    Args:
        folder: The folder.
        place: The store.
    """

    def __init__(self, folder: Path, place) -> None:
        self.folder, self.place = folder, place
        # A name of its own: modules outlive a test.
        self.module = f"shop_{uuid4().hex}"
        self.app = folder / f"{self.module}.py"
        self.app.write_text(SHOP, "utf-8")
        section = f"[plugin.failures]\nurl = 'sqlite:///{place.path}'\n"
        (folder / "qtasks_pluggy.toml").write_text(f"enable = ['failures']\n{section}", "utf-8")

    def fail(self, *items: str, **values) -> list[str]:
        """Record a failed run for each item."""
        records = [
            self.place.record(KeyError(item), args=(item,), **self._made_of(item), **values)
            for item in items
        ]
        self.place.store().write(Batch(records))
        return [one.uuid for one in records]

    def _made_of(self, item):
        return {"error_arguments": json.dumps({"args": [item], "kwargs": {}})}

    def run(self, *args: str, **options) -> Result:
        """Run the command, which has no terminal."""
        return CliRunner().invoke(command, ["failures", *args], **options)

    def replay(self, *args: str) -> Result:
        """Replay."""
        sys.modules.pop(self.module, None)
        return self.run("replay", "--app", self.module, *args)

    def spawn(self) -> subprocess.Popen[str]:
        """Replay all in a process of its own."""
        words = ["replay", "--app", self.module, "--yes", "--json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *words], cwd=self.folder, text=True, **pipes)

    @property
    def seen(self) -> list[str]:
        """What the task was given."""
        path = self.folder / "seen.txt"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def marks(self, uuids) -> Counter[str]:
        """Count runs by how far a replay came with them."""
        return Counter(
            "sent" if run.sent_at else "claimed" if run.claimed_at else "free"
            for run in Claims(self.place.url).find(uuids)
        )


@pytest.fixture
def shop(tmp_path, place, monkeypatch):
    """Give a folder with an app and a store; it is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shop = Place(tmp_path, place)
    yield shop
    sys.modules.pop(shop.module, None)


def test_json_has_the_promised_fields_and_nothing_else(shop):
    """What a task prints goes to standard error; the exit code says that one failed."""
    shop.fail("tea", "gold")

    ended = shop.replay("--yes", "--json")
    found = json.loads(ended.stdout)

    assert 1 == ended.exit_code, ended.stderr
    assert [["uuid", "replay_of", "status"]] * 2 == [list(one) for one in found]
    assert {("run-1", "succeeded"), ("run-2", "failed")} == {
        (one["replay_of"], one["status"]) for one in found
    }
    assert "the task prints" in ended.stderr


def test_json_is_alone_on_standard_output_whatever_an_app_prints(shop):
    """An import, a start and a handler may print; that goes to standard error, as in a dry run."""
    shop.fail("gold")
    loud = "@app.on_error(KeyError)\ndef last():\n    print('a handler prints')\n"
    shop.app.write_text(f"{SHOP}\nprint('an import prints')\n{loud}", "utf-8")

    for words in (["--dry-run"], ["--yes"]):
        ended = shop.replay(*words, "--json")
        assert 1 == len(json.loads(ended.stdout))
        assert "an import prints\n" in ended.stderr
        assert "a handler prints\n" in ended.stderr


def test_all_that_failed_are_replayed_and_their_group_is_resolved(shop):
    """Without ids and filters these are meant; each once, the oldest first; the act is a row."""
    uuids = shop.fail("tea", "tea", group="tea-group")
    shop.fail("tea", status="recovered", decided_by="last", group="tea-group")

    first, second = shop.replay("--yes"), shop.replay("--yes")

    assert (0, 0) == (first.exit_code, second.exit_code), first.stderr
    assert "2 runs replayed: 2 succeeded\n1 group resolved" in first.stdout
    assert ("There is nothing to replay.\n", 2) == (second.stdout, len(shop.seen))
    assert "Left out: 2 replayed already" in second.stderr
    assert {"sent": 2} == shop.marks(uuids)
    (group,) = shop.place.reader().groups(Filters())
    assert ("resolved", {"failed": 2, "recovered": 1, "succeeded": 2}) == (
        group.state,
        group.counts,
    )
    resolve, replay = shop.place.reader().acts(10)
    assert ("replay", 2, "all that failed") == (replay.act, replay.number, replay.scope)
    assert ("resolve", 1) == (resolve.act, resolve.number)


def test_a_task_without_its_module_is_found_by_a_hint(shop):
    """Nothing is replayed, and what to write is said."""
    shop.fail("tea", task="proj.price")

    ended = shop.replay("--task", "price", "--yes")

    assert "There is nothing to replay.\n" == ended.stdout
    assert "There is a task 'proj.price': write --task '*price'.\n" == ended.stderr


def test_filters_that_match_only_runs_that_did_not_fail_say_so(shop):
    """They select failed runs by default; the hint names the statuses of the others."""
    for status, number in {"cancelled": 2, "recovered": 1}.items():
        shop.fail(*["tea"] * number, status=status, decided_by="last")
    found = (
        "Runs with another status match: 2 cancelled, 1 recovered;"
        " add --status cancelled or --status recovered."
    )

    for words in (["--yes"], ["--dry-run"]):
        ended = shop.replay("--plugin", "last", *words)
        assert (0, f"{found}\n") == (ended.exit_code, ended.stderr)
    for words in (["--plugin", "other"], ["--plugin", "last", "--status", "failed"], []):
        assert "" == shop.replay(*words).stderr
    shop.fail("tea", decided_by="last")
    replayed = shop.replay("--plugin", "last", "--yes")
    assert (True, "") == ("1 run replayed: 1 succeeded" in replayed.stdout, replayed.stderr)


def test_a_run_that_was_replayed_needs_again(shop):
    """By its id it is refused with code 1; --again sends it."""
    (uuid,) = shop.fail("tea")
    shop.replay(uuid, "--yes")

    refused, again = shop.replay(uuid, "--yes"), shop.replay(uuid, "--yes", "--again")

    assert (1, 0) == (refused.exit_code, again.exit_code)
    assert f"run {uuid} was replayed at" in refused.stderr
    assert "--again" in refused.stderr
    assert 2 == len(shop.seen)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run-1"], 2, "this would replay 1 run of app 'shop' (run run-1); there is no terminal"),
        (["nobody", "--yes"], 1, "no such run: nobody"),
        (["--rate", "0"], 2, "--rate"),
        (["--limit", "0"], 2, "--limit"),
        (["--stop-after", "0"], 2, "--stop-after"),
        (["--args", "{}"], 2, "--args: expected an array"),
        (["--kwargs", "[]"], 2, "--kwargs: expected an object"),
        (["--args", "[1"], 2, "--args: this is not JSON"),
        (["--args", "[" * 100_000], 2, "--args: a number is too long, or it is nested too deep"),
        (["--args", '[{"$date": "x"}]'], 2, "--args: args[0] is written as '$date'"),
        (["--status", "fail"], 2, "did you mean 'failed'?"),
        (["run-1", "--task", "x"], 2, "ids of runs or filters, not both"),
        (["--url", "sqlite:////nowhere/x.db"], 2, "does not exist"),
        (["gone", "--yes"], 1, "is of task 'vanished', which app 'shop' does not have"),
        (["theirs", "--yes"], 1, "was recorded by app 'other', and this is app 'shop'"),
        (["object", "--yes"], 1, "cannot be replayed: args[0] is an object; pass the arguments"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named_and_nothing_runs(shop, words, code, told):
    """One error, no traceback, and no run is touched."""
    shop.fail("tea")
    uuids = shop.fail("tea", uuid="gone", task="vanished") + shop.fail(
        "tea", uuid="theirs", app="other"
    )
    shop.place.store().write(Batch([shop.place.record(uuid="object", args=(object(),))]))

    ended = shop.replay(*words)

    assert (code, True) == (ended.exit_code, told in ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert ([], {"free": 4}) == (shop.seen, shop.marks([*uuids, "run-1", "object"]))


def test_filters_leave_out_what_cannot_be_replayed_and_count_it(shop):
    """Runs of other apps and tasks, and arguments that cannot be read, are named by number."""
    shop.fail("tea")
    shop.fail("tea", uuid="gone", task="vanished")
    shop.fail("tea", uuid="theirs", app="other")
    shop.place.store().write(Batch([shop.place.record(uuid="object", args=(object(),))]))

    ended = shop.replay("--error", "KeyError", "--yes", "--json")

    assert ["run-1"] == [one["replay_of"] for one in json.loads(ended.stdout)]
    for part in ("1 of app 'other'", "1 of task 'vanished'", "1 not replayable"):
        assert part in ended.stderr


def test_limit_takes_the_newest_and_goes_on_with_the_others(shop):
    """What was replayed does not use up the limit."""
    uuids = shop.fail(*["tea"] * 5)

    for left in (3, 1, 0):
        shop.replay("--limit", "2", "--yes")
        assert left == shop.marks(uuids)["free"]


def test_again_keeps_to_the_limit(shop):
    """Runs that were replayed before count like the others: the newest, and no more."""
    uuids = shop.fail(*["tea"] * 4)
    shop.replay(uuids[1], uuids[3], "--yes")

    ended = shop.replay("--again", "--limit", "3", "--yes", "--json")

    assert uuids[1:] == [one["replay_of"] for one in json.loads(ended.stdout)]


def test_other_arguments(shop):
    """What is not given stays as recorded; tags are understood as show shows them."""
    (uuid,) = shop.fail("gold")

    ended = shop.replay(uuid, "--yes", "--args", '["tea"]', "--kwargs", '{"to": {"$tuple": [1]}}')

    assert (0, ["tea (1,)"]) == (ended.exit_code, shop.seen)


def test_a_dry_run_asks_todays_plugins_and_sends_nothing(shop):
    """By decision and plugin; no run, no act, no mark; fields as promised."""
    uuids = shop.fail("gold", "silver", "rum")
    shop.app.write_text(SHOP + USE_LAST, "utf-8")

    shown, ended = shop.replay("--dry-run"), shop.replay("--dry-run", "--json")

    assert "3 asked: 2 would be recovered by use_last, 1 not\n" == shown.stdout, shown.stderr
    assert [
        {"uuid": uuids[0], "decided_by": "use_last", "decision": "value"},
        {"uuid": uuids[1], "decided_by": "use_last", "decision": "value"},
        {"uuid": uuids[2], "decided_by": None, "decision": None},
    ] == sorted(json.loads(ended.stdout), key=lambda one: uuids.index(one["uuid"]))
    assert ([], {"free": 3}, []) == (
        shop.seen,
        shop.marks(uuids),
        shop.place.reader().acts(10),
    )
    assert {"failed": 3} == shop.place.counts()


def test_a_dry_run_says_how_many_errors_were_stood_in_for(shop):
    """And an id that was replayed already can be asked about."""
    shop.place.store().write(Batch([shop.place.record(uuid="a", args=("tea",))]))
    shop.replay("a", "--yes")

    ended = shop.replay("a", "--dry-run")

    assert (0, "1 asked: no plugin would decide\n") == (ended.exit_code, ended.stdout)
    assert "Stand-ins were used for 1 error that could not be rebuilt." in ended.stderr


def test_an_app_that_does_not_start_is_named(shop):
    """Code 2, and nothing was claimed."""
    uuids = shop.fail("tea")
    (shop.folder / "qtasks_pluggy.toml").write_text(
        f"[plugin.failures]\nurl = 'sqlite:///{shop.place.path}'\n", "utf-8"
    )
    broken = "from qtasks_hookspecs import hookimpl\nclass P:\n    name = 'broken'\n"
    broken += "    @hookimpl\n    def qtasks_start(self): raise OSError('no port')\n"
    shop.app.write_text(f"{SHOP}\n{broken}\napp.add_plugin(P())\n", "utf-8")

    for words in (["--yes"], ["--dry-run"]):
        ended = shop.replay(*words)
        assert (2, True) == (ended.exit_code, "app 'shop' cannot start" in ended.stderr)
    assert {"free": 1} == shop.marks(uuids)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there."""
    ready = threading.Event()
    while not path.exists():
        assert process.poll() is None
        ready.wait(0.02)


@pytest.mark.engines
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"]
)
def test_a_replay_that_is_ended_half_way_has_marked_what_it_sent(shop, how, code):
    """Killed or interrupted: what was sent is marked, one is claimed, the rest is free."""
    uuids = shop.fail("tea", "tea", "hang", "tea", "tea")
    with shop.spawn() as process:
        wait_for(shop.folder / "hangs", process)
        os.kill(process.pid, how)
        out, err = process.communicate(timeout=60)

    assert code == process.returncode, err
    assert {"sent": 2, "claimed": 1, "free": 2} == shop.marks(uuids)
    shown = json.loads(shop.run("show", uuids[2], "--json").stdout)
    assert None in [one["uuid"] for one in shown["replays"]]
    assert "claimed by a replay, but not sent" in shop.run("show", uuids[2]).stdout
    if how == signal.SIGINT:
        assert ["succeeded"] * 2 == [one["status"] for one in json.loads(out)]
        assert "Interrupted." in err
        assert 2 == shop.place.reader().acts(1)[0].number


@pytest.mark.engines
def test_two_commands_at_the_same_moment_send_each_run_once(shop):
    """Each run is run once, whoever takes it, and both tell what they did."""
    uuids = shop.fail(*["tea"] * 30)
    with shop.spawn() as first, shop.spawn() as second:
        outs = [one.communicate(timeout=120)[0] for one in (first, second)]
    results = [one for out in outs for one in json.loads(out)]

    assert 30 == len(shop.seen)
    assert {"sent": 30} == shop.marks(uuids)
    assert 30 == sum(one["uuid"] is not None for one in results)


def test_on_a_terminal_it_asks(shop, monkeypatch):
    """No is code 1, and nothing runs; the question says scope and count."""
    shop.fail("tea", "tea")
    monkeypatch.setattr("qtasks_pluggy.failures.command.asking.sys", _Terminal())

    ended = shop.run("replay", "--app", shop.app.name, "--limit", "1", input="n\n")

    assert (1, []) == (ended.exit_code, shop.seen)
    assert "Replay 1 run of app 'shop' (--limit 1)?" in ended.output


class _Terminal:
    """What is asked of ``sys`` there: whether somebody can answer."""

    class stdin:  # noqa: N801  # sys's own name
        isatty = staticmethod(lambda: True)

    stderr = sys.stderr

    def __init__(self):
        self.stderr = type("err", (), {"isatty": lambda _: True, "encoding": "utf-8"})()


def test_a_list_marks_the_runs_that_were_replayed(shop):
    """A waiting one still waits; JSON has the new run's id."""
    shop.fail("tea", uuid="waits", status="waiting")
    before = shop.run("list").stdout
    (sent,) = json.loads(shop.replay("waits", "--yes", "--json").stdout)

    assert "replayed" not in before
    assert "waiting, replayed" in shop.run("list").stdout
    (listed,) = json.loads(shop.run("list", "--json").stdout)
    assert sent["uuid"] == listed["replayed_as"]


@pytest.mark.parametrize("words", [[], ["--yes"], ["--yes", "--json"]])
def test_a_loop_of_replays_is_said_before_it_goes_on(shop, words):
    """Whether it asks or not, it says how many of the runs are replays themselves."""
    shop.fail("gold")
    shop.replay("--yes")

    ended = shop.replay(*words)

    assert "1 of 1 run is a replay itself." in ended.stderr


@pytest.mark.parametrize("words", [["waits"], ["--status", "waiting"]], ids=["by-id", "by-status"])
def test_a_run_that_waits_is_replayed_only_if_somebody_means_it(shop, words):
    """All that failed does not include it; whoever names it reads that it may run twice."""
    shop.fail("tea", uuid="waits", status="waiting")

    nothing = shop.replay("--yes")
    meant = shop.replay(*words, "--yes")

    assert ("There is nothing to replay.\n", "") == (nothing.stdout, nothing.stderr)
    assert "1 run waits for its next attempt; what is still queued would run twice." in meant.stderr
    assert ["tea EUR"] == shop.seen
