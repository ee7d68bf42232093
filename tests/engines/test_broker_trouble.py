"""What brokers and plugins do to workers at the worst moment: nothing is lost, nobody hangs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.engines.processes import Process, wait_until

pytestmark = [pytest.mark.engines, pytest.mark.full]

LONG = 60
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ENGINES = ("celery", "dramatiq", "taskiq")
WAITING = """
import time
from itertools import islice
from pathlib import Path
from census_on import app, census, paths, start_worker

with app:
    handles = list(app.submit_many(census, ((path,) for path in islice(paths(), 40))))
    print("submitted", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    worker = start_worker(0)
    ended = 0
    for handle in handles:
        try:
            handle.result(timeout=60)
        except TimeoutError:
            raise
        except Exception:
            pass
        ended += 1
    worker.terminate()
    worker.wait()
print("ended", ended, flush=True)
"""
HANGING = """
import threading
from pathlib import Path
from qtasks_hookspecs import blocking, hookimpl
from census_on import app, native

class Hanging:
    @hookimpl
    @blocking
    def task_executor_run_task_trigger_error(self):
        Path("asked").touch()
        threading.Event().wait()

app.add_plugin(Hanging(), name="hanging")
"""
ASKING = """
import own
from census_on import BROKEN, app, census

with app:
    handle = census.submit(str(sorted(BROKEN.glob("*.py"))[0]))
    try:
        handle.result(60)
    except Exception as error:
        print("ended", type(error).__name__)
"""


@pytest.fixture
def drive(tmp_path, guard, request):
    """Run a script on an engine, in a folder of its own."""
    started = []

    def start(engine, broker, *command):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "QTASKS_"))}
        path = os.pathsep.join([str(BENCHMARKS), str(tmp_path), env.get("PYTHONPATH", "")])
        env |= {
            "CENSUS_ENGINE": engine,
            "CENSUS_BROKER": broker,
            "CENSUS_RESULTS": request.getfixturevalue("redis_url"),
            "CENSUS_NAME": name,
            "PYTHONPATH": path,
            "QTASKS_PLUGGY_DISABLE": "census-fallback",
            "QTASKS_PLUGGY_TIMEOUT": "1",
        }
        log = tmp_path / f"log-{len(started)}.txt"
        one = Process(sys.executable, *command, cwd=tmp_path, env=env, log=log, watched_by=guard)
        started.append(one)
        return one, log

    name = f"trouble-{uuid4().hex[:8]}"
    start.name = name
    yield start
    for one in started:
        one.kill()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("engine", ENGINES)
def test_runs_that_wait_outlive_their_broker(engine, broker, drive, request, tmp_path):
    """The broker is stopped and started while runs wait; all 40 of them have their end."""
    server = request.getfixturevalue(f"{broker}_server")
    one, log = drive(engine, server.url, "-c", WAITING)
    one.wait_ready("submitted", LONG)
    server.stop()
    server.start()
    (tmp_path / "go").touch()
    one.wait(LONG)
    assert "ended 40" in log.read_text()


WORKERS = {
    "celery": ("-m", "celery", "-A", "own:native", "worker", "-c", "1", "-n", "{0}@%h"),
    "dramatiq": ("-m", "dramatiq", "own:native", "-p", "1", "-t", "1"),
    "taskiq": ("-m", "taskiq", "worker", "own:native", "--workers", "1"),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plugin_that_hangs_holds_up_no_stop(engine, drive, rabbitmq_url, tmp_path):
    """A worker that is told to stop while a plugin hangs ends, and so does the run."""
    (tmp_path / "own.py").write_text(HANGING, "utf-8")
    command = [part.format(drive.name) for part in WORKERS[engine]]
    worker, log = drive(engine, rabbitmq_url, *command)
    asking, told = drive(engine, rabbitmq_url, "-c", ASKING)
    assert wait_until((tmp_path / "asked").exists, LONG), log.read_text() + told.read_text()
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(LONG)
    asking.wait(LONG)
    assert "ended TaskPluginTriggerError" in told.read_text()
