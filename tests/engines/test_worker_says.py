"""Workers say which plugins they ask: by each engine's own command, on each kind of pool."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from tests.engines.versions import is_older

pytestmark = pytest.mark.engines

# The first of Huey 3 leave it to their users.
PATCHES = find_spec("huey") is not None and not is_older("huey", "3.5")

OWN = """
    import types
    from qtasks_hookspecs import hookimpl
    from qtasks_pluggy.engines.{engine} import install
    {make}

    plugin = types.SimpleNamespace(name="mine", task_executor_task_close=hookimpl(lambda: None))

    @app.task{call}
    def price():
        return 1

    install(app, [plugin], discover=False)
"""
CELERY = {
    "engine": "celery",
    "make": 'from celery import Celery; app = Celery("own", broker="memory://")',
    "call": "",
}
HUEY = {
    "engine": "huey",
    "make": 'from huey import SqliteHuey; app = SqliteHuey("own", filename="runs.db")',
    "call": "()",
}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_r14_a_celery_worker_says_whom_it_asks(project, worker, pool):
    """R14: the worker's log has ``worker_asks_plugins``, whatever its pool is."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    folder = project({"own.py": OWN.format(**CELERY)})
    command = (sys.executable, "-m", "celery", "-A", "own", "worker", "-l", "info", "-c", "1")
    said = worker(*command, "-P", pool, cwd=folder, ready="worker_asks_plugins")
    assert "'mine'" in said.log()


@pytest.mark.parametrize(
    "kind",
    [
        "thread",
        "process",
        pytest.param(
            "greenlet", marks=pytest.mark.skipif(not PATCHES, reason="Huey patches nothing")
        ),
    ],
)
def test_r14_a_huey_consumer_says_whom_it_asks(project, worker, kind):
    """R14: Huey's command sets up the log of Huey alone, and ours goes there too."""
    if kind == "greenlet":
        pytest.importorskip("gevent")
    folder = project({"own.py": OWN.format(**HUEY)})
    command = (sys.executable, "-m", "huey.bin.huey_consumer", "own.app", "-k", kind)
    said = worker(*command, cwd=folder, ready="worker_asks_plugins")
    assert "'mine'" in said.log()
