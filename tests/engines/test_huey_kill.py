"""Huey on SQLite loses no run, whatever happens to the processes that do them."""

from __future__ import annotations

import collections
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

LONG = 60
CONSUMER = (sys.executable, "-m", "huey.bin.huey_consumer", "app.huey", "-d", "0.01", "-m", "0.05")
APP = """
    import os, time
    from pathlib import Path
    from qtasks_pluggy import QueueTasks

    HERE = Path(__file__).parent
    app = QueueTasks("shop", engine=f"huey+sqlite:///{HERE}/runs.db", discover=False)
    huey = app.engine.native

    def tell(what, uuid):
        with (HERE / what).open("a") as file:
            file.write(f"{uuid} {os.getpid()}\\n")

    @app.task(echo=True)
    def work(self, number, seconds=0.02):
        tell("began", self.ctx.uuid)
        time.sleep(seconds)
        tell("done", self.ctx.uuid)
        return number * 2

    @app.task(echo=True)
    def wait(self):
        tell("began", self.ctx.uuid)
        while not (HERE / "go").exists():
            time.sleep(0.01)
        return "waited"
"""


@pytest.fixture
def shop(project, worker):
    """An app in a file, imported here, and a way to start consumers of it."""
    folder = project({"app.py": APP})
    spec = importlib.util.spec_from_file_location("app", folder / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def told(what):
        path = folder / what
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines]

    def consumer(*options, ready="Huey consumer started"):
        return worker(*CONSUMER, *options, cwd=folder, ready=ready)

    return SimpleNamespace(app=module.app, told=told, consumer=consumer, folder=folder)


def test_a_second_consumer_is_refused(shop):
    """One consumer does the runs of a file; a second one ends, and says so."""
    with shop.app:
        handle = shop.app.tasks["wait"].submit()
        first = shop.consumer()
        assert wait_until(lambda: shop.told("began"), LONG)
        second = shop.consumer("-w", "2")
        second.wait(LONG)
        assert "another consumer holds the lock" in second.log()
        first.kill()
        first.wait(LONG)
        (shop.folder / "go").touch()
        shop.consumer()
        assert "waited" == handle.result(timeout=LONG)
    times = collections.Counter(uuid for uuid, _ in shop.told("began"))
    assert {2} == set(times.values())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_consumer_that_is_stopped_leaves_no_run_behind(shop, how):
    """SIGINT lets a run finish, SIGTERM cuts it, and the next consumer does it again."""
    with shop.app:
        handle = shop.app.tasks["wait"].submit()
        first = shop.consumer()
        assert wait_until(lambda: shop.told("began"), LONG)
        os.kill(first.pid, how)
        if how == signal.SIGINT:
            (shop.folder / "go").touch()
            assert "waited" == handle.result(timeout=LONG)
        first.wait(LONG)
        (shop.folder / "go").touch()
        if how == signal.SIGTERM:
            shop.consumer()
            assert "waited" == handle.result(timeout=LONG)
    assert (1 if how == signal.SIGINT else 2) == len(shop.told("began"))


def test_a_delayed_run_outlives_a_killed_consumer(shop):
    """A run that waits for its time, or for its next attempt, is kept as well."""
    with shop.app:
        # First, because it may take longer to begin than the delay.
        first = shop.consumer()
        handle = shop.app.tasks["work"].with_options(delay=2).submit(21)
        scheduled = shop.app.engine.native.scheduled_count
        assert wait_until(lambda: scheduled() == 1, LONG)
        first.kill()
        shop.consumer()

        assert 42 == handle.result(timeout=LONG)
    assert 1 == len(shop.told("began"))


def test_an_app_that_starts_again_does_what_was_lost_in_between(shop):
    """The workers of a process's second start recover as those of its first did."""
    app, (work, wait) = shop.app, (shop.app.tasks[name] for name in ("work", "wait"))
    app.set_engine(app.engine, workers=1)
    with app:
        assert 42 == work.submit(21).result(timeout=LONG)
    app.set_engine(app.engine)
    with app:
        handle = wait.submit()
        other = shop.consumer()
        assert wait_until(lambda: len(shop.told("began")) == 2, LONG)
        other.kill()
        other.wait(LONG)
    (shop.folder / "go").touch()
    app.set_engine(app.engine, workers=1)
    with app:
        assert "waited" == handle.result(timeout=LONG)


def test_without_the_ledger_a_killed_worker_takes_its_run_along(shop, project, worker):
    """What ``?ledger=0`` gives up: the run that was being done is not done again."""
    folder = project({"app.py": APP.replace("runs.db", "runs.db?ledger=0")})
    spec = importlib.util.spec_from_file_location("app", folder / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.app:
        assert not module.app.engine.capabilities.at_least_once
        lost = module.app.tasks["wait"].submit()
        first = worker(*CONSUMER, cwd=folder)
        assert wait_until(lambda: shop.told("began"), LONG)
        first.kill()
        Path(folder / "go").touch()
        worker(*CONSUMER, cwd=folder)
        assert 42 == module.app.tasks["work"].submit(21).result(timeout=LONG)
        with pytest.raises(TimeoutError):
            lost.result(timeout=0)
