"""What Taskiq's brokers can do for an app, over Redis and RabbitMQ, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid

import pytest
from redis.asyncio import Redis
from taskiq import InMemoryBroker
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType
from taskiq_redis import (
    ListQueueBroker,
    PubSubBroker,
    RedisAsyncResultBackend,
    RedisStreamBroker,
)

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks, TaskStatus
from qtasks_pluggy.engines.taskiq import at_least_once, install
from qtasks_pluggy.exc import CapabilityError, EngineError
from tests.engines.huey_apps import Keeps
from tests.engines.servers import free_port
from tests.engines.taskiq_apps import app_on, ended

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("forget")]

LONG = 30
NOWHERE = "redis://user:secret@127.0.0.1:1"


def rabbit(url="amqp://user:secret@127.0.0.1:1", name="shop", **queue):
    """A broker on RabbitMQ with names of its own."""
    return AioPikaBroker(
        url,
        exchange=Exchange(name=name),
        task_queues=[Queue(name=name, **queue)],
        dead_letter_queue=Queue(name=f"{name}.dead"),
    )


@contextlib.asynccontextmanager
async def receiving(broker):
    """Do a started broker's runs in this process, as its command would."""
    task = asyncio.create_task(run_receiver_task(broker, run_startup=True))
    try:
        yield
    finally:
        # Up to CPython 3.11 the client of Redis can forget a cancellation.
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.2)
            if not task.done() and isinstance(broker, RedisStreamBroker):
                # Taskiq ends a stream's receiver only with its next message.
                await broker.connection_pool.disconnect()


@pytest.mark.parametrize(
    ("broker", "capable"),
    [
        (InMemoryBroker, {"results"}),
        (lambda: ListQueueBroker(NOWHERE), set()),
        (lambda: RedisStreamBroker(NOWHERE), {"at_least_once"}),
        (rabbit, {"at_least_once"}),
        (lambda: rabbit(durable=False), set()),
        (lambda: rabbit(type=QueueType.STREAM), set()),
        (lambda: AioPikaBroker(delay_queue=Queue(name="later")), {"at_least_once", "delay"}),
        (lambda: AioPikaBroker(delayed_message_exchange_plugin=True), {"at_least_once", "delay"}),
    ],
    ids=[
        "memory",
        "list",
        "stream",
        "rabbit",
        "transient",
        "streaming",
        "later",
        "plugin",
    ],
)
def test_capabilities_are_those_of_the_broker(broker, capable):
    """What an engine claims is what the broker it was given can do."""
    native = broker()
    app = QueueTasks("shop", engine=native, discover=False)

    assert native is app.engine.native
    for name in ("at_least_once", "delay", "priority", "results", "cancel_queued"):
        assert (name in capable) is getattr(app.engine.capabilities, name), name
    assert app.engine.capabilities.dead_letter
    if "at_least_once" not in capable:
        with pytest.raises(CapabilityError, match="loses the runs of a killed worker"):
            at_least_once(native)


def test_results_can_come_behind_the_app():
    """A broker without results refuses ``result()``, until it is given some."""
    app = QueueTasks("shop", engine=ListQueueBroker(NOWHERE), discover=False)
    assert not app.engine.capabilities.results
    app.engine.native.with_result_backend(RedisAsyncResultBackend(NOWHERE))
    assert app.engine.capabilities.results


def test_at_least_once_is_refused_where_runs_are_lost():
    """``at_least_once`` names a broker that can when this one cannot."""
    with pytest.raises(CapabilityError, match="RedisStreamBroker"):
        at_least_once(InMemoryBroker())


SECRET = "user:secret@127.0.0.1"  # noqa: S105  # nobody's
ELSEWHERE = {
    "list": lambda port: ListQueueBroker(f"redis://{SECRET}:{port}"),
    "stream": lambda port: RedisStreamBroker(f"redis://{SECRET}:{port}"),
    "rabbit": lambda port: rabbit(f"amqp://{SECRET}:{port}"),
    "results": lambda port: InMemoryBroker().with_result_backend(
        RedisAsyncResultBackend(f"redis://{SECRET}:{port}")
    ),
}
# Without RabbitMQ's client: cut off, it leaves a coroutine that warns whenever it is found.
SILENT = ("list", "stream", "results")


@pytest.mark.parametrize(
    ("name", "silent"), [*((one, False) for one in ELSEWHERE), *((one, True) for one in SILENT)]
)
def test_a_server_that_is_not_there_is_told_in_time(name, silent):
    """A server that is down, or says nothing, is one ``EngineError`` without its password."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", free_port()))
        if silent:
            listening.listen()
        app = QueueTasks("shop", engine=ELSEWHERE[name](listening.getsockname()[1]), discover=False)
        begun = time.monotonic()
        with pytest.raises(EngineError, match="cannot be used") as caught, app:
            pass
    assert time.monotonic() - begun < 11
    assert "secret" not in str(caught.value)


def test_a_server_that_goes_is_told_to_those_who_submit_and_wait(redis_server):
    """When Redis goes, ``submit`` and ``result`` are an ``EngineError`` each; then all is well."""
    native = RedisStreamBroker(redis_server.url).with_result_backend(
        RedisAsyncResultBackend(redis_server.url)
    )
    app = app_on(native)
    work = app.task(name="work")(lambda: 1)
    with app:
        handle = work.submit()
        redis_server.kill()
        with pytest.raises(EngineError, match="cannot send task 'work'.*ConnectionError"):
            work.submit()
        with pytest.raises(EngineError, match="'work': the result backend failed"):
            handle.result(timeout=LONG)
        redis_server.start()
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.1)


def test_a_broker_that_hands_out_copies_is_refused():
    """Publish and subscribe would do a run as often as there are workers."""
    with pytest.raises(EngineError, match="to every worker"), app_on(PubSubBroker(NOWHERE)):
        pass


async def test_an_open_broker_that_hands_out_copies_is_refused(redis_url):
    """It makes no difference whether the app or the program has opened it."""
    native = PubSubBroker(redis_url)
    app = app_on(native)
    await native.startup()
    try:
        with pytest.raises(EngineError, match="to every worker"):
            async with app:
                pass
    finally:
        await native.shutdown()


def test_a_limit_that_means_twice_is_refused(redis_url):
    """A task that may take longer than a stream waits for its worker would be done twice."""
    app = app_on(RedisStreamBroker(redis_url, uuid.uuid4().hex, idle_timeout=2000))
    app.task(name="slow", max_time=2)(lambda: 1)
    with pytest.raises(EngineError, match="'slow'.*idle_timeout"), app:
        pass


@pytest.mark.parametrize("label", ["queue_name", "route"])
async def test_a_delay_is_kept(rabbitmq_url, redis_url, label):
    """A run, and a retry, wait for their time in RabbitMQ's delay queue; then are themselves."""
    name = f"late-{uuid.uuid4().hex}"
    native = AioPikaBroker(
        rabbitmq_url,
        exchange=Exchange(name=name),
        task_queues=[Queue(name=name), Queue(name=f"{name}.other")],
        dead_letter_queue=Queue(name=f"{name}.dead"),
        delay_queue=Queue(name=f"{name}.later"),
        label_for_routing=label,
    ).with_result_backend(RedisAsyncResultBackend(redis_url))
    plugin, begun = Keeps(Retry(delay=0.3), Retry()), []
    app = app_on(native, plugin, intercept=OSError)

    @app.task
    async def work():
        begun.append(time.monotonic())
        if len(begun) < 3:
            raise OSError
        return "third"

    async with app, receiving(native):
        submitted = time.monotonic()
        handle = await work.with_options(delay=0.3).submit()
        assert "third" == await asyncio.wait_for(handle, LONG)
    gaps = [after - before for before, after in zip([submitted, *begun], begun, strict=False)]
    assert gaps[0] > 0.25
    assert gaps[1] > 0.25
    assert 3 == len(gaps)
    assert [1, 2] == [message.attempt for message in plugin.messages]


async def test_at_least_once_deletes_nothing_of_a_stream(redis_url):
    """A group that is made later has all that there ever was: the stream is its owner's."""
    name = f"stream-{uuid.uuid4().hex}"
    native = RedisStreamBroker(redis_url, name, xread_block=50).with_result_backend(
        RedisAsyncResultBackend(redis_url, result_ex_time=60)
    )
    at_least_once(native)
    app = app_on(native)
    work = app.task(name="work")(lambda number: number)
    async with app, Redis.from_url(redis_url) as redis:
        handles = [await work.submit_async(n) for n in range(5)]
        async with receiving(native):
            assert list(range(5)) == await asyncio.gather(*handles)
            assert 5 == await redis.xlen(name)


async def test_what_is_sent_before_there_is_a_worker_is_done(redis_url):
    """A client that did not open the stream has not made its group; the first worker does."""
    native = RedisStreamBroker(
        redis_url, f"early-{uuid.uuid4().hex}", xread_block=50
    ).with_result_backend(RedisAsyncResultBackend(redis_url, result_ex_time=60))
    at_least_once(native)
    work = native.register_task(lambda: 1, task_name="work")
    assert 1 == install(native, discover=False)
    ticket = await work.kiq()
    async with receiving(native):
        assert 1 == (await ended(ticket)).return_value
    await native.shutdown()


async def test_native_runs_outlive_their_worker_too(redis_url):
    """``at_least_once`` holds for an own broker too, and gets what came before its workers."""
    name = f"own-{uuid.uuid4().hex}"
    native = RedisStreamBroker(
        redis_url, name, idle_timeout=400, xread_block=50
    ).with_result_backend(RedisAsyncResultBackend(redis_url, result_ex_time=60))
    acknowledged = []

    @native.task(task_name="work")
    async def work():
        acknowledged.append((await redis.xpending(name, "taskiq"))["pending"])
        return 1

    for _ in range(2):
        at_least_once(native)
    assert 1 == install(native, discover=False)
    async with Redis.from_url(redis_url) as redis:
        # Before there is a worker, or a client that has begun.
        ticket = await work.kiq()
        await redis.xgroup_create(name, "taskiq", "0", mkstream=True)
        await redis.xreadgroup("taskiq", "killed", {name: ">"})
        await asyncio.sleep(0.5)  # the broker's idle_timeout
        # After a further message Taskiq looks for what was lost.
        await work.kiq()
        async with receiving(native):
            assert 1 == (await ended(ticket)).return_value
        await native.shutdown()
    # Neither was acknowledged before its end.
    assert 2 == len(acknowledged)
    assert min(acknowledged) >= 1


async def test_the_status_of_a_run_is_that_of_its_end(redis_url):
    """Over a server plain code asks for it; on the event loop it is known once it was awaited."""
    native = RedisStreamBroker(
        redis_url, f"status-{uuid.uuid4().hex}", xread_block=50
    ).with_result_backend(RedisAsyncResultBackend(redis_url, result_ex_time=60))
    app, gate = app_on(native), asyncio.Event()

    @app.task
    async def wait():
        await gate.wait()

    async with app, receiving(native):
        handle = await wait.submit()
        assert await asyncio.to_thread(lambda: handle.status) is None
        gate.set()
        while await asyncio.to_thread(lambda: handle.status) is not TaskStatus.succeeded:
            await asyncio.sleep(0.01)
        with pytest.raises(CapabilityError, match="cannot cancel"):
            (await wait.submit()).cancel()


async def test_a_wait_that_is_given_up_loses_no_end(redis_url, monkeypatch):
    """Where reading an end deletes it, whoever is cancelled meanwhile leaves it to the others."""
    name = f"read-once-{uuid.uuid4().hex}"
    results = RedisAsyncResultBackend(redis_url, keep_results=False, prefix_str=name)
    native = RedisStreamBroker(redis_url, name, xread_block=50).with_result_backend(results)
    app = app_on(native)
    work = app.task(name="work")(lambda: 7)
    read, go = asyncio.Event(), asyncio.Event()
    async with app, receiving(native):
        handle = await work.submit_async()

        async def read_slowly(task_id, get=results.get_result):
            result = await get(task_id)
            read.set()
            await go.wait()
            return result

        monkeypatch.setattr(results, "get_result", read_slowly)
        first = asyncio.ensure_future(handle)
        await asyncio.wait_for(read.wait(), LONG)
        first.cancel()
        await asyncio.wait([first])
        go.set()

        assert first.cancelled()
        assert 7 == await asyncio.wait_for(handle, LONG)
