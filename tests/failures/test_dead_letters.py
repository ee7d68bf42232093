"""Dead letters: on the disk before the run ends, or the run hears that they are not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from qtasks_hookspecs import DeadLetter, hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import TaskDeadLetteredError
from qtasks_pluggy.failures import buffer, recorder
from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.queries import Filters
from qtasks_pluggy.failures.recorder import Recorder
from qtasks_pluggy.failures.store import Batch, _Transaction
from tests.failures.places import Place


def _policy(name="policy", **hooks):
    decide = hookimpl(lambda: DeadLetter("look at it"))
    marked = {f"task_executor_{hook}": hookimpl(body) for hook, body in hooks.items()}
    return SimpleNamespace(name=name, task_executor_run_task_trigger_error=decide, **marked)


def _shop(place, *plugins, **section):
    app = QueueTasks(
        "shop",
        plugins=plugins or [_policy()],
        intercept=Exception,
        discover=False,
        settings={
            "enable": ["failures"],
            "plugin": {"failures": {"url": f"sqlite:///{place.path}"} | section},
        },
    )

    @app.task
    def price(kind):
        raise ValueError(kind)

    @app.task
    async def later(kind):
        raise ValueError(kind)

    return app


@pytest.mark.parametrize("name", ["price", "later"])
def test_a_dead_letter_is_in_the_store_before_its_run_ends(place, name):
    """What is asked after the plugin finds the whole record, and the engine's place is not used."""
    found = []

    def look(task_broker):
        found.append(place.reader().run(str(task_broker.uuid)))

    app = _shop(place, _policy(dead_letter=look))

    async def run():
        with pytest.raises(TaskDeadLetteredError):
            await app.tasks["later"]("tea")

    with app:
        if name == "later":
            asyncio.run(run())
        else:
            with pytest.raises(TaskDeadLetteredError):
                app.tasks["price"]("tea")

    (whole,) = found
    letter = whole.run
    assert (name, "dead_lettered", "ValueError", "tea", "look at it") == (
        letter.task,
        letter.status,
        letter.error,
        letter.message,
        letter.reason,
    )
    assert ("policy", "DeadLetter", ["tea"]) == (letter.decided_by, letter.decision, whole.args)
    assert f"in {name}\n" in whole.attempts[0].traceback


def test_a_letter_and_the_end_of_its_attempt_are_one_row_in_one_group(place):
    """The record that follows takes the place of the letter: one run, one attempt, counted once."""
    groups = []

    def look(task_broker):
        groups.append(place.reader().run(str(task_broker.uuid)).run.group)

    with _shop(place, _policy(dead_letter=look)) as app:
        for _ in range(3):
            with pytest.raises(TaskDeadLetteredError):
                app.tasks["price"]("tea")

    (group,) = place.reader().groups(Filters())
    assert {"dead_lettered": 3} == group.counts
    assert [group.id] * 3 == groups
    for run in place.reader().runs(Filters()):
        (attempt,) = place.reader().run(run.uuid).attempts
        assert attempt.seconds > 0
        assert "task_executor_dead_letter" in {line["hook"] for line in attempt.trail}


DIES = """
import os, sys
from pathlib import Path
from tests.failures.places import Place
from tests.failures.test_dead_letters import _policy, _shop

def die(task_broker):
    if task_broker.args == ("die",):
        os._exit(9)

with _shop(Place(Path(sys.argv[1])), _policy(dead_letter=die)) as app:
    for kind in ("live", "die"):
        try:
            app.tasks["price"](kind)
        except Exception:
            pass
"""


@pytest.mark.engines
def test_a_process_that_dies_after_the_commit_leaves_its_letter_in_its_group(tmp_path):
    """The letter that nothing followed is in the same group as one whose attempt has ended."""
    ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)

    assert 9 == ended.returncode
    place = Place(tmp_path)
    (group,) = place.reader().groups(Filters())
    assert group.counts["dead_lettered"] >= 1
    assert "die" in {run.message for run in place.reader().runs(Filters())}


def test_the_group_is_the_outcomes_also_if_a_keeper_makes_the_traceback_longer(place):
    """One fingerprint, while the letter is kept and in the outcome, whatever keepers do."""
    told = []

    def own_frame(task_executor, e):
        told.append(task_executor.fingerprint)
        raise e

    def ended(outcome):
        told.append(outcome.fingerprint)

    app = _shop(place, _policy(dead_letter=own_frame, attempt_ended=ended))
    with app, pytest.raises(TaskDeadLetteredError):
        app.tasks["price"]("tea")

    (group,) = place.reader().groups(Filters())
    assert [group.id, group.id] == told


def test_dead_letters_can_be_left_to_others(place, caplog):
    """With ``dead_letters = false`` the plugin keeps none, and records them as any other end."""
    app = _shop(place, dead_letters=False)
    with caplog.at_level(logging.WARNING), app, pytest.raises(TaskDeadLetteredError):
        app.tasks["price"]("tea")

    assert "task_dead_lettered" in caplog.text
    assert ["dead_lettered"] == [run.status for run in place.reader().runs(Filters())]


def test_a_letters_commit_waits_for_the_disk_and_others_do_not(place, monkeypatch):
    """SQLite is at synchronous=FULL for the letter alone: NORMAL may forget the last commits."""
    levels = {}
    write = _Transaction.write

    def look(self, batch):
        level = self._connection.exec_driver_sql("PRAGMA synchronous").scalar()
        levels.setdefault(batch.records[0].uuid, level)
        return write(self, batch)

    monkeypatch.setattr(_Transaction, "write", look)
    taking = Recorder(place.store, "the store")
    for name in ("one", "two"):
        taking.keep(place.record(uuid=f"letter-{name}", status="dead_lettered"))
        taking.add(place.record(uuid=name))
        taking.close()

    assert {"letter-one": 2, "one": 1, "letter-two": 2, "two": 1} == levels


@pytest.mark.parametrize("fault", ["folder", "stranger", "locked", "newer"])
def test_r7_a_letter_that_cannot_be_kept_is_said_with_the_reason(place, monkeypatch, caplog, fault):
    """The hookimpl fails within its bound, and the run goes where it goes without the plugin."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 0.05)
    monkeypatch.setattr(buffer, "LETTER_SECONDS", 0.3)
    monkeypatch.setattr(recorder, "DRAIN_SECONDS", 0.1)
    place.store().write(Batch([]))
    with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as link:
        reason = _break(place, fault, link)
        with caplog.at_level(logging.WARNING), _shop(place) as app:
            begun = time.monotonic()
            with pytest.raises(TaskDeadLetteredError) as caught:
                app.tasks["price"]("tea")
            took = time.monotonic() - begun

    assert took < 5
    (failed,) = [one.getMessage() for one in caplog.records if "plugin_failed" in one.getMessage()]
    assert "task_executor_dead_letter" in failed
    assert "task_dead_lettered" in caplog.text
    assert reason in caplog.text
    assert any("failures" in note for note in caught.value.__cause__.__notes__)


def _break(place, fault, link):
    """Break a store; return what is said of it."""
    if fault == "locked":
        link.execute("BEGIN IMMEDIATE")
        return "locked"
    if fault == "newer":
        link.execute("UPDATE failures_meta SET value = 99 WHERE name = 'version'")
        return "newer"
    link.close()
    for path in place.path.parent.iterdir():
        path.unlink()
    if fault == "folder":
        place.path.mkdir()
        return "OperationalError"
    place.path.write_text("not a database " * 500)
    return "not an SQLite database"


class Hanging:
    """A store that does nothing until it may, and then writes."""

    def __init__(self, store):
        self.may_write = threading.Event()
        self.asked = threading.Event()
        self._store = store
        self.retain, self.close = store.retain, store.close

    def write(self, batch):
        """Write a batch."""
        self.asked.set()
        self.may_write.wait(60)
        return self._store.write(batch)


def test_a_store_that_hangs_holds_up_a_letter_for_its_bound_only(place, monkeypatch):
    """The run hears that it is not kept; what comes of the letter later, the end of it follows."""
    monkeypatch.setattr(buffer, "LETTER_SECONDS", 0.2)
    store = Hanging(place.store())
    taking = Recorder(lambda: store, "the store")
    letter = place.record(uuid="late", status="dead_lettered")

    begun = time.monotonic()
    with pytest.raises(StoreError, match="within"):
        taking.keep(letter)
    assert 0.2 <= time.monotonic() - begun < 30
    taking.add(place.record(uuid="late", status="failed"))
    with pytest.raises(StoreError, match="within"):
        taking.keep(place.record(uuid="given up", status="dead_lettered"))
    store.may_write.set()
    taking.close()

    (run,) = place.reader().runs(Filters())
    assert ("late", "failed") == (run.uuid, run.status)
    assert {"failed": 1} == place.counts()


def test_a_letter_waits_neither_for_records_nor_for_the_pause_after_a_fault(
    place, told, monkeypatch
):
    """However much waits, and however lately the store was away, a letter is tried at once."""
    monkeypatch.setattr(recorder, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(recorder, "LONGEST_PAUSE", 60.0)
    place.path.mkdir(parents=True)
    taking = Recorder(place.store, "the store")
    for _ in range(2_000):
        taking.add(place.record())
    while not told:
        time.sleep(0.01)
    with pytest.raises(StoreError, match="OperationalError"):
        taking.keep(place.record(status="dead_lettered"))
    place.path.rmdir()

    begun = time.monotonic()
    taking.keep(place.record(uuid="letter", status="dead_lettered"))

    assert time.monotonic() - begun < buffer.LETTER_SECONDS
    assert place.reader().run("letter") is not None
    taking.close()
    assert {"failed": 2_000, "dead_lettered": 1} == place.counts()


def test_a_letter_that_no_store_takes_fails_alone(place):
    """What is wrong with one letter is no other's reason; they are committed together."""
    store = Hanging(place.store())
    taking = Recorder(lambda: store, "the store")
    ended = {}

    def keep(name, **values):
        record = place.record(uuid=name, status="dead_lettered", **values)
        try:
            taking.keep(record)
        except StoreError as error:
            ended[name] = str(error)
        else:
            ended[name] = "kept"

    first = threading.Thread(target=keep, args=("first",))
    first.start()
    assert store.asked.wait(30)
    others = [threading.Thread(target=keep, args=(str(n),)) for n in range(5)]
    others.append(threading.Thread(target=keep, args=("bad",), kwargs={"reason": None}))
    for one in others:
        one.start()
    while len(taking._buffer._letters) < len(others):
        time.sleep(0.001)
    store.may_write.set()
    for one in (first, *others):
        one.join()
    taking.close()

    assert "NOT NULL" in ended.pop("bad")
    assert {"first", *"01234"} == {name for name, end in ended.items() if end == "kept"}
    assert {"dead_lettered": 6} == place.counts()


def test_letters_of_many_threads_are_all_kept(place):
    """Eight threads, letters and other failures at once: each letter is there when it is told."""
    taking = Recorder(place.store, "the store")
    missing = []

    def work(name):
        for number in range(20):
            uuid = f"{name}-{number}"
            taking.keep(place.record(uuid=uuid, status="dead_lettered"))
            with contextlib.closing(sqlite3.connect(place.path)) as link:
                asked = "SELECT 1 FROM failures_runs WHERE uuid = ?"
                missing.extend([] if link.execute(asked, [uuid]).fetchone() else [uuid])
            taking.add(place.record())

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    taking.close()

    assert not missing
    assert {"dead_lettered": 160, "failed": 160} == place.counts()


@pytest.mark.engines
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_keeps_letters_of_its_own(place):
    """A child that ends by ``os._exit`` right after has kept its letter, as its parent has."""
    taking = Recorder(place.store, "the store")
    for number in range(5):
        taking.keep(place.record(uuid=f"parent-{number}", status="dead_lettered"))
        child = os.fork()
        if child == 0:
            taking.keep(place.record(uuid=f"child-{number}", status="dead_lettered"))
            os._exit(0)
        assert (child, 0) == os.waitpid(child, 0)
    taking.close()

    assert {"dead_lettered": 10} == place.counts()


READ_ONLY = """
import os, sys
from pathlib import Path
from tests.failures.places import Place
from qtasks_pluggy.failures.recorder import Recorder
place = Place(Path(sys.argv[1]))
place.reader()
recorder = Recorder(place.store, "the store")
letter = place.record(status="dead_lettered")
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    recorder.keep(letter)
except Exception as error:
    print(error)
"""


@pytest.mark.engines
def test_a_letter_for_a_read_only_store_is_not_kept():
    """A store that this user may only read takes no letter, and says so at once."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        store = place.store()
        store.write(Batch([place.record()]))
        store.close()
        Path(folder).chmod(0o755)
        place.path.chmod(0o444)
        place.path.parent.chmod(0o555)

        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, folder], check=True, capture_output=True, text=True
        )

        place.path.parent.chmod(0o755)
    assert "did not accept the dead letter: OperationalError" in done.stdout
