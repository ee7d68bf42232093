"""The command replay on engines: of an app on one, and of an engine's own app with install()."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from uuid import uuid4

import pytest

from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.records import Filters
from tests.engines.conftest import guard, redis_url, worker  # noqa: F401  # fixtures
from tests.engines.processes import wait_until

pytest.importorskip("kombu", reason="of the engines' group")
from tests.engines.celery_apps import forget_connections  # needs it

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("patient")]

LONG = 60
BODY = """
import os
from pathlib import Path
HERE = Path(__file__).parent

def price(item, *, to="EUR"):
    if (HERE / "mended").exists() and item == "tea":
        return 3
    raise KeyError(item)
"""
HUEY = """
from huey import SqliteHuey
native = SqliteHuey("shop", filename=str(HERE / "runs.db"))
"""
CELERY = """
from celery import Celery
native = Celery("shop", broker=os.environ["BROKER"], set_as_current=False)
native.conf.task_default_queue = native.conf.control_exchange = os.environ["QUEUE"]
"""
FORWARD = """
from qtasks_pluggy import QueueTasks
app = QueueTasks("shop", engine=native, discover=False)
task = app.task(price)
submit = task.submit
"""
ENGINES = {
    "huey-forward": HUEY + FORWARD,
    "huey-install": HUEY
    + """
from qtasks_pluggy.engines.huey import install
app, submit = native, native.task()(price)
install(native, discover=False)
""",
    "celery-forward": CELERY + FORWARD,
    "celery-install": CELERY
    + """
from qtasks_pluggy.engines.celery import install
app, submit = native, native.task(name="price", shared=False)(price).delay
install(native, discover=False)
""",
    "memory": """
from qtasks_pluggy import QueueTasks
app = QueueTasks("shop", engine="memory://?workers=2", discover=False)
task = app.task(price)
submit = task.submit
""",
}


class Shop:
    """A module with an app whose failures are recorded."""

    def __init__(self, folder, module, place):
        self.folder, self.module, self.place = folder, module, place
        self.has_life = hasattr(module.app, "submit_many")

    def fail(self, *items):
        """Have runs of an app on an engine fail; its worker is at work."""
        if self.has_life:
            with self.module.app:
                self._submit(items)
        else:
            self._submit(items)
        assert wait_until(lambda: len(self.runs()) == len(items), LONG)

    def _submit(self, items):
        for item in items:
            self.module.submit(item, to="USD")
        forget_connections()

    def runs(self):
        """Return the recorded runs."""
        try:
            return self.place.reader().runs(Filters())
        except StoreError:  # nothing was recorded yet
            return []

    def replay(self, *words):
        """Run the command."""
        args = ["failures", "replay", "--app", f"{self.module.__name__}:app", *words]
        return subprocess.run(
            [sys.executable, "-m", "qtasks_pluggy.cli", *args],
            check=False,
            capture_output=True,
            text=True,
            timeout=LONG,
        )


@pytest.fixture(params=ENGINES)
def shop(request, tmp_path, place, monkeypatch, worker):  # noqa: F811  # the fixture
    """Give an app, with its engine's own worker in a process of its own where it has one."""
    name, kind = f"shop_{uuid4().hex}", request.param
    (tmp_path / "qtasks_pluggy.toml").write_text(
        f"enable = ['failures']\n[plugin.failures]\nurl = 'sqlite:///{place.path}'\n", "utf-8"
    )
    (tmp_path / f"{name}.py").write_text(BODY + ENGINES[kind], "utf-8")
    env = {"PYTHONPATH": str(tmp_path)}
    if kind.startswith("celery"):
        env |= {"BROKER": request.getfixturevalue("redis_url"), "QUEUE": name}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if kind.startswith("celery"):
        words = ("-m", "celery", "-A", f"{name}:native", "worker", "-c", "2", "-l", "INFO")
        worker(sys.executable, *words, cwd=tmp_path, env=env, ready="ready.")
    elif kind.startswith("huey"):
        words = ("-m", "huey.bin.huey_consumer", f"{name}.native", "-d", "0.01", "-m", "0.05")
        worker(sys.executable, *words, cwd=tmp_path, env=env, ready="Huey consumer started")
    yield Shop(tmp_path, importlib.import_module(name), place)
    sys.modules.pop(name, None)


def test_failed_runs_are_sent_again_and_what_they_came_to_is_recorded(shop):
    """The cause is mended for one of two: dry run, replay, status and lineage of both."""
    shop.fail("tea", "gold")
    asked = shop.replay("--dry-run", "--json")
    assert 2 == len(json.loads(asked.stdout)), asked.stderr
    assert "stand-in" not in asked.stderr

    (shop.folder / "mended").touch()
    ended = shop.replay("--yes", "--json")
    sent = {one["replay_of"]: one["uuid"] for one in json.loads(ended.stdout)}
    assert 2 == len(sent), ended.stderr

    def ends():
        shown = [shop.place.reader().run(uuid) for uuid in sent]
        return {one.args[0]: one.replays[0].status for one in shown}

    assert wait_until(lambda: None not in ends().values(), LONG), ends()
    assert {"tea": "succeeded", "gold": "failed"} == ends()
    replays = [
        one
        for status in ("succeeded", "failed")
        for one in shop.place.reader().runs(Filters(status=status))
        if one.replay_of
    ]
    assert sent == {one.replay_of: one.uuid for one in replays}


# Which way a run goes to its worker hardly matters here: each engine once.
@pytest.mark.parametrize("shop", ["celery-install", "huey-forward", "memory"], indirect=True)
def test_it_stops_after_so_many_that_fail_as_before(shop):
    """Each end is waited for in the store, or heard of in this process; the rest is free."""
    shop.fail(*(f"gold-{number}" for number in range(4)))

    ended = shop.replay("--yes", "--json", "--stop-after", "2")

    found = json.loads(ended.stdout)
    assert (1, ["failed"] * 2) == (ended.returncode, [one["status"] for one in found]), ended.stderr
    assert "2 of the new runs failed like the runs that they repeat" in ended.stderr
