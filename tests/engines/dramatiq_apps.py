"""Brokers of Dramatiq's, for the tests of its adapter."""

from __future__ import annotations

import contextlib
from uuid import uuid4

from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend, StubBackend

from qtasks_pluggy.engines.dramatiq import DramatiqEngine


def stub_broker():
    """Make a broker with no server behind it, which keeps results."""
    broker = StubBroker()
    broker.fail_fast_default = False
    broker.add_middleware(Results(backend=StubBackend()))
    return broker


def broker_on(url, results):
    """Make an adapter over a server, with a namespace and a queue of its own."""
    name = f"shop-{uuid4().hex}"
    if url.startswith("redis"):
        broker = RedisBroker(url=url, namespace=name)
    else:
        broker = RabbitmqBroker(url=url.removesuffix("//"))
    broker.add_middleware(Results(backend=RedisBackend(url=results, namespace=name)))
    return DramatiqEngine(broker, queue_name=name)


@contextlib.contextmanager
def working(broker, threads=2):
    """Run a worker of a broker in this process, as its command would."""
    worker = Worker(broker, worker_threads=threads, worker_timeout=50)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
