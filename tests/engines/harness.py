"""How the contract suite runs an app on each engine, with no server: one class an engine."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import RunResult
from qtasks_pluggy.engines.memory import MemoryEngine

ROOT = Path(__file__).parents[2]


class Memory:
    """``memory://`` in an app that plain code started."""

    # Whether arguments and answers leave the process as bytes.
    serializes = False

    def engine(self) -> Any:
        """What ``QueueTasks(engine=...)`` gets; a new one for every test."""
        return "memory://?workers=2&grace=5"

    @contextlib.contextmanager
    def running(self, app: QueueTasks) -> Iterator[None]:
        """Start the app, and a worker in this process."""
        with app:
            yield


class Pool(Memory):
    """The adapter that the documentation shows how to write."""

    def engine(self) -> Any:
        """Make the adapter of the page."""
        page = ROOT / "docs/how-to/write-an-engine.md"
        code = re.search(
            r"```python\n((?:(?!```).)*class PoolEngine.+?)```", page.read_text("utf-8"), re.DOTALL
        )
        names: dict[str, Any] = {}
        exec(code[1], names)  # noqa: S102  # the project's own page
        return names["PoolEngine"]()


class Coroutines(Memory):
    """An adapter with ``async def`` methods that need one certain event loop."""

    def engine(self) -> Any:
        """Make memory one of that kind."""

        class CoroutineEngine(MemoryEngine):
            async def submit(self, message: Any, delay: float | None) -> Any:
                return MemoryEngine.submit(self, message, delay)

            async def result(self, ticket: Any, timeout: float | None) -> Any:  # noqa: ASYNC109  # the seam's
                ended = MemoryEngine.result(self, ticket, timeout)
                if isinstance(ended, RunResult):
                    return ended
                waiting = asyncio.shield(asyncio.wrap_future(ended))
                try:
                    return await asyncio.wait_for(waiting, timeout)
                except TimeoutError:
                    return None

        return CoroutineEngine("memory://?workers=2&grace=5")


class Blocking(Memory):
    """An adapter whose plain methods wait for something, as those of clients of servers do."""

    def engine(self) -> Any:
        """Make memory one of that kind."""

        class BlockingEngine(MemoryEngine):
            blocking = True

            def result(self, ticket: Any, timeout: float | None) -> Any:
                ended = super().result(ticket, timeout)
                if isinstance(ended, RunResult):
                    return ended
                with contextlib.suppress(TimeoutError):
                    return ended.result(timeout)

        return BlockingEngine("memory://?workers=2&grace=5")


class HueyOnSqlite:
    """Huey on a SQLite file, its consumer in this process."""

    serializes = True

    def engine(self) -> Any:
        """Name a new file."""
        folder = tempfile.mkdtemp(prefix="qtasks-huey-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return f"huey+sqlite:///{folder}/runs.db"

    @contextlib.contextmanager
    def running(self, app: QueueTasks) -> Iterator[None]:
        """Start the app, and a consumer with it."""
        app.set_engine(app.engine, workers=2)
        with app:
            yield


class HueyInMemory(HueyOnSqlite):
    """Huey in memory, without a ledger."""

    def engine(self) -> Any:
        """Make a Huey."""
        from huey import MemoryHuey

        return MemoryHuey("shop")


class CeleryInMemory:
    """Celery on its in-memory broker, its worker in this process."""

    serializes = True

    def engine(self) -> Any:
        """Make a Celery app."""
        from celery import Celery

        return Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)

    @contextlib.contextmanager
    def running(self, app: QueueTasks) -> Iterator[None]:
        """Start the app, and a worker of Celery's with it."""
        from tests.engines.celery_apps import working

        with app, working(app.engine.native):
            yield


class DramatiqInMemory:
    """Dramatiq on its stub broker, its worker in this process."""

    serializes = True

    def engine(self) -> Any:
        """Make a broker."""
        from tests.engines.dramatiq_apps import stub_broker

        return stub_broker()

    @contextlib.contextmanager
    def running(self, app: QueueTasks) -> Iterator[None]:
        """Start the app, and a worker with it."""
        app.set_engine(app.engine, workers=2)
        with app:
            yield


class TaskiqInMemory(Memory):
    """Taskiq on its in-memory broker, which does the runs in the process that submits them."""

    serializes = True

    def engine(self) -> Any:
        """Make a broker."""
        from taskiq import InMemoryBroker

        return InMemoryBroker()


class CeleryOn(CeleryInMemory):
    """Celery over a server."""

    def __init__(self, broker: str, results: str) -> None:
        self.broker, self.results = broker, results

    def engine(self) -> Any:
        """Make a Celery app with a queue of its own."""
        from celery import Celery

        native = Celery("shop", broker=self.broker, backend=self.results, set_as_current=False)
        name = f"shop-{uuid4().hex}"
        # Its worker asks its like for what they know, and is to be alone.
        native.conf.task_default_queue = native.conf.control_exchange = name
        native.conf.event_exchange = name + ".events"
        native.conf.result_expires = 600
        return native


class DramatiqOn(DramatiqInMemory):
    """Dramatiq over a server."""

    def __init__(self, broker: str, results: str) -> None:
        self.broker, self.results = broker, results

    def engine(self) -> Any:
        """Make a broker with a namespace, or a queue, of its own."""
        from tests.engines.dramatiq_apps import broker_on

        return broker_on(self.broker, self.results)


class TaskiqOn(Memory):
    """Taskiq over a server, its receiver on a loop of this process."""

    serializes = True

    def __init__(self, broker: str, results: str) -> None:
        self.broker, self.results = broker, results

    def engine(self) -> Any:
        """Make a broker with a queue of its own."""
        from tests.engines.taskiq_apps import broker_on

        self.name = f"shop-{uuid4().hex}"
        return broker_on(self.broker, self.results, self.name)

    @contextlib.contextmanager
    def running(self, app: QueueTasks) -> Iterator[None]:
        """Start the app, and a receiver."""
        from tests.engines.taskiq_apps import receiving_in_thread

        with app, receiving_in_thread(app):
            yield


SERVED = {
    f"{kind.__name__[:-2].lower()} on {broker}": (kind, broker)
    for kind in (CeleryOn, DramatiqOn, TaskiqOn)
    for broker in ("redis", "rabbitmq")
}
HARNESSES = [
    pytest.param(Memory, id="memory"),
    pytest.param(Pool, id="page"),
    pytest.param(Coroutines, id="coroutines"),
    pytest.param(Blocking, id="blocking"),
    pytest.param(HueyOnSqlite, id="huey on sqlite", marks=pytest.mark.engines),
    pytest.param(HueyInMemory, id="huey in memory", marks=pytest.mark.engines),
    pytest.param(DramatiqInMemory, id="dramatiq in memory", marks=pytest.mark.engines),
    pytest.param(CeleryInMemory, id="celery in memory", marks=pytest.mark.engines),
    pytest.param(TaskiqInMemory, id="taskiq in memory", marks=pytest.mark.engines),
]
SERIALIZING = [one for one in HARNESSES if one.values[0].serializes]
