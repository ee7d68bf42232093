"""Many failures of three causes on Celery over RabbitMQ, and one replay that mends them all."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from uuid import uuid4

import pytest

from qtasks_pluggy.failures.connection import StoreError
from qtasks_pluggy.failures.records import Filters
from tests.engines.conftest import (  # noqa: F401  # fixtures
    environment_in,
    guard,
    project,
    rabbitmq_url,
    worker,
)
from tests.engines.processes import wait_until

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("patient")]

log = logging.getLogger(__name__)
WORKERS, CHILDREN = 2, "1"
SHOP = """
    import json
    import os
    from pathlib import Path
    from celery import Celery
    from qtasks_pluggy.engines.celery import install

    app = Celery("shop", broker=os.environ["BROKER"])
    app.conf.task_default_queue = app.conf.control_exchange = os.environ["QUEUE"]
    install(app, discover=False)

    @app.task(name="convert", ignore_result=True)
    def convert(amount, currency):
        rates = json.loads(Path("rates.json").read_text())
        return amount / float(rates[currency])
"""
# A rate that is missing, one that is zero, and one that is no number.
BROKEN = {"JPY": "0", "GBP": "0,85"}
MENDED = {"CHF": "0.99", "JPY": "138", "GBP": "0.85"}
SEND = """
import sys, shop
for number in range(int(sys.argv[1])):
    shop.convert.delay(number, ["CHF", "JPY", "GBP"][number % 3])
"""
CAUSES = ("KeyError", "ZeroDivisionError", "ValueError")


class Shop:
    """A Celery app in a folder, with two workers.

    Args:
        folder: The folder.
        place: Where its failures are recorded.
        env: The environment of its processes.
        start: Starts a process.
        deadline: How many seconds each step may take.
    """

    def __init__(self, folder, place, env, start, deadline):
        self._folder, self._place, self._env, self._start = folder, place, env, start
        self._deadline = deadline
        self.took = {}

    @contextmanager
    def timed(self, what):
        """Take down how many seconds it takes."""
        begin = time.perf_counter()
        yield
        self.took[what] = round(time.perf_counter() - begin, 1)

    @contextmanager
    def workers(self):
        """Have workers at work."""
        words = ("-m", "celery", "-A", "shop", "worker", "-c", CHILDREN, "-l", "CRITICAL", "-n")
        started = [
            self._start(
                *(sys.executable, *words, f"{uuid4().hex}@%h"), cwd=self._folder, env=self._env
            )
            for _ in range(WORKERS)
        ]
        yield
        for one in started:
            one.terminate(self._deadline)

    def send(self, number):
        """Send so many runs."""
        words = (sys.executable, "-c", SEND, str(number))
        sender = self._start(*words, cwd=self._folder, env=self._env)
        assert 0 == sender.wait(self._deadline), sender.log()

    def publish(self, rates):
        """Give the task other rates."""
        (self._folder / "rates.json").write_text(json.dumps(rates), "utf-8")

    def replay(self):
        """Replay all, by the command; return what it says of each."""
        words = ("failures", "replay", "--app", "shop", "--yes", "--json")
        done = subprocess.run(
            [sys.executable, "-m", "qtasks_pluggy.cli", *words],
            check=False,
            capture_output=True,
            cwd=self._folder,
            env=environment_in(self._folder) | self._env,
            text=True,
            timeout=self._deadline,
        )
        assert (0, "") == (done.returncode, done.stderr)
        return json.loads(done.stdout)

    def counts(self):
        """Return how many runs of each cause ended how."""
        try:
            return {one.error: one.counts for one in self._place.reader().groups(Filters())}
        except StoreError:  # nothing was recorded yet
            return {}

    def wait_for(self, number, *statuses):
        """Wait until each of so many runs, of three causes, has ended in each of these ways."""
        expected = {
            cause: dict.fromkeys(statuses, len(range(place, number, 3)))
            for place, cause in enumerate(CAUSES)
        }
        assert wait_until(lambda: expected == self.counts(), self._deadline), self.counts()


@pytest.fixture(params=[90, pytest.param(10_000, marks=pytest.mark.full, id="many")])
def number(request):
    """So many failures, a third of each cause."""
    return request.param


@pytest.fixture
def shop(number, project, worker, place, rabbitmq_url):  # noqa: F811  # fixtures
    """Give the app; with --log-cli-level=INFO pytest shows what its steps took."""
    env = {
        "BROKER": rabbitmq_url,
        "QUEUE": f"many-{uuid4().hex[:8]}",
        "QTASKS_PLUGGY_ENABLE": "failures",
        "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": place.text,
    }
    shop = Shop(project({"shop.py": SHOP}), place, env, worker, 60 if number < 1_000 else 900)
    yield shop
    log.info("%d failures, in seconds: %s", number, shop.took)


def test_one_replay_mends_the_failures_of_three_causes(shop, number, run):
    """Two workers fail: three groups; the rates are mended, and one command repeats each run."""
    shop.publish(BROKEN)
    with shop.workers():
        with shop.timed("sent"):
            shop.send(number)
        with shop.timed("then failed and recorded"):
            shop.wait_for(number, "failed")

        shop.publish(MENDED)
        with shop.timed("replayed"):
            sent = shop.replay()
        with shop.timed("then done and recorded"):
            shop.wait_for(number, "failed", "succeeded")

    assert number == len({one["replay_of"] for one in sent}) == len({one["uuid"] for one in sent})
    assert {"succeeded", None} >= {one["status"] for one in sent}
    with shop.timed("groups"):
        groups = json.loads(run("groups", "--json").stdout)
    assert Counter(CAUSES) == Counter(one["error"] for one in groups)
    # The command has resolved them where it found every run's end; workers may be slower than it.
    assert 0 == run("resolve", "--task", "convert", "--yes").exit_code
    assert {"resolved"} == {one["state"] for one in json.loads(run("groups", "--json").stdout)}
