"""Workers that are killed between a dead letter's commit and its acknowledgement."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import attrs
import pytest

from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.queries import Filters
from tests.engines.conftest import (  # noqa: F401  # fixtures
    Workers,
    guard,
    project,
    rabbitmq_url,
    worker,
)
from tests.engines.processes import Process, wait_until
from tests.failures.places import Place

pytestmark = pytest.mark.engines

LONG = 60
POLICY = """
    import os, signal
    from pathlib import Path
    from qtasks_hookspecs import DeadLetter, hookimpl

    HERE = Path(__file__).parent

    @hookimpl
    def task_executor_run_task_trigger_error():
        return DeadLetter("look at it")

    @hookimpl
    def task_executor_dead_letter(task_broker):
        # Asked after the plugin ``failures``, which has committed.
        with (HERE / "letters").open("a+") as file:
            file.write(f"{task_broker.uuid}\\n")
            file.seek(0)
            letters = len(file.readlines())
        kills = HERE / "kills"
        for kill in kills.iterdir():
            if int(kill.name) <= letters:
                kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
"""
ON_HUEY = """
    from pathlib import Path
    import policy
    from qtasks_pluggy import QueueTasks

    runs = Path(__file__).with_name("runs.db")
    app = QueueTasks("shop", engine=f"huey+sqlite:///{runs}", plugins=[policy], discover=False)
    huey = app.engine.native

    @app.task(name="price", intercept=Exception)
    def price(number):
        raise KeyError(number)
"""
ON_CELERY = """
    import os
    from celery import Celery
    from qtasks_pluggy.engines.celery import at_least_once, install

    celery = Celery("shop", broker=os.environ["BROKER"])
    celery.conf.task_default_queue = celery.conf.control_exchange = os.environ["QUEUE"]

    @celery.task(name="price", ignore_result=True)
    def price(number):
        raise KeyError(number)

    at_least_once(celery)
    install(celery, ["policy"], discover=False)
"""
SEND = {
    "huey": """
import sys, app
with app.app:
    for run in app.app.submit_many(app.price, range(int(sys.argv[1]))):
        print(run.uuid)
""",
    "celery": """
import sys, app
for number in range(int(sys.argv[1])):
    print(app.price.delay(number).id)
""",
}
HUEY = ("huey.bin.huey_consumer", "app.huey", "-d", "0.01", "-m", "0.05", "-w", "2")
CELERY = ("celery", "-A", "app:celery", "worker", "--loglevel", "INFO", "-P", "solo")


@attrs.frozen
class Shop:
    """An app in a folder, whose every run is a dead letter.

    Attributes:
        folder: The folder.
        place: Its failures.
        start: Starts a worker.
        send: Sends so many runs, and returns their ids.
    """

    folder: Path
    place: Place
    start: Callable[[], Process]
    send: Callable[[int], list[str]]

    def letters(self) -> list[str]:
        """Return the id of each run that was kept, as often as it was."""
        path = self.folder / "letters"
        return path.read_text("utf-8").splitlines() if path.exists() else []


@pytest.fixture(params=["huey", "celery"])
def shop(request, project, worker, tmp_path):  # noqa: F811  # fixtures
    """Make a shop on Huey, and one on Celery and RabbitMQ."""
    kind = request.param
    source, command = (ON_HUEY, HUEY) if kind == "huey" else (ON_CELERY, CELERY)
    folder, place = project({"app.py": source, "policy.py": POLICY}), Place(tmp_path)
    env = {
        "QTASKS_PLUGGY_ENABLE": "failures",
        "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": f"sqlite:///{place.path}",
    }
    if kind == "celery":
        env["BROKER"] = request.getfixturevalue("rabbitmq_url")
        env["QUEUE"] = f"letters-{uuid4().hex[:8]}"

    def start() -> Process:
        # Of the same name there can be one, also for a while after it was killed.
        name = () if kind == "huey" else ("-n", f"{uuid4().hex}@%h")
        words = (sys.executable, "-m", *command, *name)
        return worker(*words, cwd=folder, env=env)

    def send(number: int) -> list[str]:
        words = (sys.executable, "-c", SEND[kind], str(number))
        sender = worker(*words, cwd=folder, env=env)
        assert 0 == sender.wait(LONG), sender.log()
        return [line for line in sender.log().splitlines() if len(line) == 36]

    return Shop(folder, place, start, send)


def _kept(place: Place) -> int:
    try:
        return len(place.reader().runs(Filters(limit=1_000)))
    except StoreError:
        return 0


def kill_after_commits(shop: Shop, runs: int, kills: int) -> None:
    """Send so many runs, and kill the worker so often right after a commit."""
    (shop.folder / "kills").mkdir()
    for number in range(kills):
        (shop.folder / "kills" / str((number + 1) * runs // (kills + 1))).touch()
    sent = shop.send(runs)
    assert runs == len(set(sent))
    for _ in range(kills):
        assert -9 == shop.start().wait(LONG)
    one = shop.start()
    # As many as there are, and once more those that the dead worker had not acknowledged.
    assert wait_until(lambda: _kept(shop.place) == runs, LONG), one.log()
    assert wait_until(lambda: len(shop.letters()) >= runs + kills, LONG), one.log()
    one.terminate()

    found = [run.uuid for run in shop.place.reader().runs(Filters(limit=10_000))]
    assert sorted(sent) == sorted(found)
    assert set(sent) == set(shop.letters())
    (group,) = shop.place.reader().groups(Filters())
    assert {"dead_lettered": runs} == group.counts
    assert all(1 == len(shop.place.reader().run(uuid).attempts) for uuid in sent)


def test_a_letter_outlives_a_kill_before_its_acknowledgement(shop):
    """Of 12 letters none is lost and none is there twice, though the worker is killed after one."""
    kill_after_commits(shop, 12, 1)


@pytest.mark.full
def test_two_hundred_letters_outlive_five_kills(shop):
    """Of 200 letters none is lost and none is there twice, with five kills in their midst."""
    kill_after_commits(shop, 200, 5)
