"""Apps on Taskiq, for the tests of its adapter."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib

import taskiq_aio_pika
from taskiq import InMemoryBroker
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from qtasks_pluggy import QueueTasks

LONG = 30


def broker_of(**options):
    """Make a broker with no server behind it."""
    return InMemoryBroker(**{"max_stored_results": -1} | options)


def app_on(engine, *plugins, **options):
    """An app with no plugins but these."""
    return QueueTasks("shop", engine=engine, plugins=plugins, discover=False, **options)


def broker_on(url, results, name):
    """Make a broker over a server, with a queue of its own."""
    if url.startswith("redis"):
        broker = RedisStreamBroker(url, name, xread_block=50)
    else:
        broker = AioPikaBroker(url, **rabbitmq_options(name))
    kept = RedisAsyncResultBackend(results, prefix_str=name, result_ex_time=600)
    return broker.with_result_backend(kept)


def rabbitmq_options(name):
    """Name a broker's exchange and queues; before 0.6 taskiq-aio-pika makes the queues itself."""
    if not hasattr(taskiq_aio_pika, "Queue"):
        durable = {"durable": True}
        return {"exchange_name": name, "queue_name": name, "declare_queues_kwargs": durable}
    return {
        "exchange": taskiq_aio_pika.Exchange(name=name),
        "task_queues": [taskiq_aio_pika.Queue(name=name)],
        "delay_queue": taskiq_aio_pika.Queue(name=f"{name}.delay"),
    }


@contextlib.contextmanager
def receiving_in_thread(app):
    """Do a started app's runs on the loop that it is on, as the broker's command would."""
    loop, native = app.engine.loop, app.engine.native
    # A second start-up makes another connection in its place.
    first = getattr(native, "write_conn", None)
    running = asyncio.run_coroutine_threadsafe(run_receiver_task(native, run_startup=True), loop)
    try:
        yield
    finally:
        running.cancel()
        concurrent.futures.wait([running], LONG)
        if first is not None:
            asyncio.run_coroutine_threadsafe(first.close(), loop).result(LONG)


@contextlib.asynccontextmanager
async def working(native):
    """Run a broker of somebody's own in this process."""
    await native.startup()
    try:
        yield
    finally:
        await native.wait_all()
        await native.shutdown()


async def ended(ticket):
    """Wait for a native run's result."""
    return await ticket.wait_result(check_interval=0.002, timeout=LONG)
