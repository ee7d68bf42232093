"""The census on each engine over real servers: run by run the same as direct calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from uuid import uuid4

import pytest

from tests.engines.conftest import (  # noqa: F401  # fixtures
    guard,
    rabbitmq_url,
    redis_url,
    worker,
)
from tests.examples.conftest import BROKEN, EXAMPLES

pytestmark = pytest.mark.engines

ENGINES = ("celery", "dramatiq", "taskiq")
# A project as people have it: its task never heard of plugins, and lets the parser's error out.
NATIVE = """
import ast, os
from pathlib import Path

BROKER, RESULTS, NAME = (os.environ[f"CENSUS_{name}"] for name in ("BROKER", "RESULTS", "NAME"))

def census(path):
    return {"path": path, "statements": len(ast.parse(Path(path).read_bytes()).body)}
"""
OWN = {
    "celery": """
from celery import Celery
from qtasks_pluggy.engines.celery import install

native = Celery("own", broker=BROKER, backend=RESULTS)
native.conf.task_default_queue = native.conf.control_exchange = NAME
task = native.task()(census)
install(native)

def ask_for(path):
    return task.delay(path).get(timeout=60)
""",
    "dramatiq": """
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from qtasks_pluggy.engines.dramatiq import install

native = RabbitmqBroker(url=BROKER.removesuffix("//"))
native.add_middleware(Results(backend=RedisBackend(url=RESULTS, namespace=NAME)))
task = dramatiq.actor(broker=native, queue_name=NAME, store_results=True)(census)
install(native)

def ask_for(path):
    return task.send(path).get_result(
        backend=native.get_results_backend(), block=True, timeout=60_000
    )
""",
    "taskiq": """
import asyncio
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
from taskiq_redis import RedisAsyncResultBackend
from qtasks_pluggy.engines.taskiq import install

native = AioPikaBroker(BROKER, exchange=Exchange(name=NAME), task_queues=[Queue(name=NAME)])
native = native.with_result_backend(RedisAsyncResultBackend(RESULTS, prefix_str=NAME))
task = native.task()(census)
install(native)

async def asked(path):
    await native.startup()
    result = await (await task.kiq(path)).wait_result(timeout=60)
    await native.shutdown()
    result.raise_for_error()
    return result.return_value

def ask_for(path):
    return asyncio.run(asked(path))
""",
    "huey": """
from huey import SqliteHuey
from qtasks_pluggy.engines.huey import install

native = SqliteHuey("own", filename="own.db")
task = native.task()(census)
install(native)

def ask_for(path):
    return task(path).get(blocking=True, timeout=60)
""",
}
WORKERS = {
    "celery": ("-m", "celery", "-A", "own:native", "worker", "-c", "2", "-n", "{name}@%h"),
    "dramatiq": ("-m", "dramatiq", "own:native", "-p", "1", "-t", "2"),
    "taskiq": ("-m", "taskiq", "worker", "own:native", "--workers", "2"),
    "huey": ("-m", "huey.bin.huey_consumer", "own.native", "-w", "2"),
}
DIRECT = """
import json, sys
from itertools import islice
from census import app, census
from census_on import paths
with app:
    for path in islice(paths(), int(sys.argv[1])):
        print(json.dumps(census(path), sort_keys=True))
"""


def run(*command, folder, site, **more):
    """Run a script beside the census, with the example plugin installed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    path = os.pathsep.join([str(site), str(EXAMPLES), str(folder), env.pop("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**env, "PYTHONPATH": path, **more},
        text=True,
        timeout=900,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", OWN)
def test_an_app_that_is_there_asks_the_installed_plugin(
    engine,
    site,
    tmp_path,
    request,
    worker,  # noqa: F811  # the fixture
):
    """One line in an app of the engine's own, a plugin that pip installed, a worker: its answer."""
    name = f"own-{uuid4().hex[:8]}"
    where = {
        "CENSUS_BROKER": request.getfixturevalue("rabbitmq_url"),
        "CENSUS_RESULTS": request.getfixturevalue("redis_url"),
        "CENSUS_NAME": name,
    }
    path = os.pathsep.join(
        [str(site), str(EXAMPLES), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    )
    (tmp_path / "own.py").write_text(NATIVE + OWN[engine], "utf-8")
    command = [part.format(name=name) for part in WORKERS[engine]]
    worker(sys.executable, *command, cwd=tmp_path, env={**where, "PYTHONPATH": path})
    asked = f"""
import json, sys
from own import ask_for
print(json.dumps([ask_for(path) for path in {[str(BROKEN[0]), __file__]!r}]))
"""
    broken, good = json.loads(run("-c", asked, folder=tmp_path, site=site, **where))
    assert broken.pop("approximate")
    assert "approximate" not in good
    assert [str(BROKEN[0]), __file__] == [broken["path"], good["path"]]


@pytest.mark.parametrize(
    "runs", [200, pytest.param(10_000, marks=pytest.mark.full)], ids=["200", "10000"]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_over_servers_comes_to_the_same(
    engine, runs, site, tmp_path, request, record_testsuite_property
):
    """Two workers over RabbitMQ: every run by uuid, results and recoveries those in place."""
    where = {
        "CENSUS_ENGINE": engine,
        "CENSUS_BROKER": request.getfixturevalue("rabbitmq_url"),
        "CENSUS_RESULTS": request.getfixturevalue("redis_url"),
        "CENSUS_NAME": f"census-{uuid4().hex[:8]}",
    }
    options = ("--runs", str(runs), "--workers", "2", "--out", "out.jsonl")
    told = run(str(EXAMPLES / "census_on.py"), *options, folder=tmp_path, site=site, **where)
    record_testsuite_property(f"census on {engine}, {runs}", told)
    direct = run("-c", DIRECT, str(runs), folder=tmp_path, site=site, **where)

    assert f"{runs:,} runs by uuid" in told
    counted = dict(re.findall(r"^ +([\d,]+)  (\w+)", told, re.MULTILINE))
    counted = {end: int(number.replace(",", "")) for number, end in counted.items()}
    results = [json.loads(line) for line in direct.splitlines()]
    # Besides every twentieth, whatever in this installation no parser takes.
    recovered = sum("approximate" in result for result in results)
    assert recovered >= runs // 20
    assert {"good": runs - recovered, "recovered": recovered} == counted
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert results == [json.loads(line) for line in lines]
