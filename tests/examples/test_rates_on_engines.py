"""The task in an app of each engine's own, with one line added, over real servers."""

from __future__ import annotations

import json
import os
import sys
from uuid import uuid4

import pytest

from tests.engines.conftest import (  # noqa: F401  # fixtures
    guard,
    rabbitmq_url,
    redis_url,
    worker,
)
from tests.examples.conftest import RATES, run_python

pytestmark = pytest.mark.engines

# A project as people have it: its task knows nothing of plugins, and lets its errors out.
NATIVE = """
import os
from rates import RATES

BROKER, RESULTS, NAME = (os.environ[f"RATES_{name}"] for name in ("BROKER", "RESULTS", "NAME"))

def eur_100(day, currency):
    return round(100 * float(RATES[day][currency]), 2)
"""
OWN = {
    "celery": """
from celery import Celery
from qtasks_pluggy.engines.celery import install

native = Celery("own", broker=BROKER, backend=RESULTS)
native.conf.task_default_queue = native.conf.control_exchange = NAME
task = native.task()(eur_100)
install(native)

def ask_for(*call):
    return task.delay(*call).get(timeout=60)
""",
    "dramatiq": """
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from qtasks_pluggy.engines.dramatiq import install

native = RabbitmqBroker(url=BROKER.removesuffix("//"))
native.add_middleware(Results(backend=RedisBackend(url=RESULTS, namespace=NAME)))
task = dramatiq.actor(broker=native, queue_name=NAME, store_results=True)(eur_100)
install(native)

def ask_for(*call):
    return task.send(*call).get_result(
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
task = native.task()(eur_100)
install(native)

async def asked(*call):
    await native.startup()
    result = await (await task.kiq(*call)).wait_result(timeout=60)
    await native.shutdown()
    result.raise_for_error()
    return result.return_value

def ask_for(*call):
    return asyncio.run(asked(*call))
""",
    "huey": """
from huey import SqliteHuey
from qtasks_pluggy.engines.huey import install

native = SqliteHuey("own", filename="own.db")
task = native.task()(eur_100)
install(native)

def ask_for(*call):
    return task(*call).get(blocking=True, timeout=60)
""",
}
WORKERS = {
    "celery": ("-m", "celery", "-A", "own:native", "worker", "-c", "2", "-n", "{name}@%h"),
    "dramatiq": ("-m", "dramatiq", "own:native", "-p", "1", "-t", "2"),
    "taskiq": ("-m", "taskiq", "worker", "own:native", "--workers", "2"),
    "huey": ("-m", "huey.bin.huey_consumer", "own.native", "-w", "2"),
}


ASKED = """
import json
from own import ask_for
print(json.dumps([ask_for(day, "USD") for day in ("2022-04-14", "2022-04-17")]))
"""


@pytest.mark.parametrize("engine", OWN)
def test_an_existing_app_asks_the_installed_plugin(
    engine,
    site,
    tmp_path,
    request,
    worker,  # noqa: F811  # the fixture
):
    """One line in an app of the engine's own, the engine's own worker: the plugin's answer."""
    name = f"own-{uuid4().hex[:8]}"
    where = {
        "RATES_BROKER": request.getfixturevalue("rabbitmq_url"),
        "RATES_RESULTS": request.getfixturevalue("redis_url"),
        "RATES_NAME": name,
        "PYTHONPATH": os.pathsep.join([str(site), str(RATES), str(tmp_path)]),
    }
    (tmp_path / "own.py").write_text(NATIVE + OWN[engine], "utf-8")
    command = [part.format(name=name) for part in WORKERS[engine]]
    worker(sys.executable, *command, cwd=tmp_path, env=where)
    code, out, err = run_python("-c", ASKED, folder=tmp_path, **where)

    assert 0 == code, err
    assert [108.78, 108.78] == json.loads(out)
