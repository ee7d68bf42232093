"""Taskiq over Redis and RabbitMQ, its workers as processes of their own."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import uuid
from types import SimpleNamespace

import pytest
from taskiq.kicker import AsyncKicker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from qtasks_pluggy import TaskStatus
from qtasks_pluggy.exc import (
    EngineError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskPluginTriggerError,
)
from tests.engines.taskiq_apps import ended
from tests.engines.versions import is_older

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("forget")]

LONG = 60
WORKER = (sys.executable, "-m", "taskiq", "worker", "--workers", "1")
SPAWNED = """
import multiprocessing, sys
from taskiq.__main__ import main

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.argv[:] = ["taskiq", "worker", "--workers", "1", sys.argv[1]]
    main()
"""
APP = """
    import asyncio
    from pathlib import Path
    from taskiq.serializers import JSONSerializer
    from taskiq_aio_pika import *
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker
    from qtasks_hookspecs import Cancel, DeadLetter, Replace, Retry, hookimpl
    from qtasks_pluggy import QueueTasks

    HERE = Path(__file__).parent

    class ShopError(Exception):
        def __init__(self, code, text):
            super().__init__(text)
            self.code = code

    class Policy:
        name = "policy"
        @hookimpl
        def qtasks_start(self):
            with (HERE / "life").open("a") as file:
                file.write("start\\n")
        @hookimpl
        def qtasks_stop(self):
            with (HERE / "life").open("a") as file:
                file.write("stop\\n")
        @hookimpl
        def task_executor_run_task_trigger_error(self, task_broker, e):
            answers = {{
                "replace": Replace([1, "two"]), "cancel": Cancel("why"),
                "letter": DeadLetter("why"),
                "retry": Retry(delay=DELAY) if task_broker.attempt < 3 else task_broker.attempt,
                "set": Replace(object()),
            }}
            return answers.get(e.cause.args[0] if e.cause else None)

    broker = {broker}
    DELAY = {delay}
    broker.with_result_backend(RedisAsyncResultBackend({redis!r}, **{results}))
    app = QueueTasks("shop", engine=broker, discover=False, plugins=[Policy()], intercept=Exception)

    @app.task
    def price(amount, *, tax=0):
        return amount + tax

    @app.task
    async def fail(text):
        raise LookupError(text)

    @app.task
    def own(text):
        raise ShopError(7, text)

    @app.task(echo=True)
    def ask(self):
        self.ctx.plugin_error("a", kind="b")

    @app.task
    def leave():
        raise SystemExit("gone")

    @app.task
    def twice(amount):
        return price.submit(amount).result(timeout=30) * 2

    @app.task
    async def twice_async(amount):
        return await (await price.submit_async(amount)) * 2
"""
STREAM = "RedisStreamBroker({redis!r}, {queue!r}, xread_block=100)"
BROKERS = {
    "stream": (STREAM, None, {}),
    "json": (STREAM, None, "dict(serializer=JSONSerializer(), result_ex_time=60)"),
    "list": ("ListQueueBroker({redis!r}, queue_name={queue!r})", None, {}),
    "rabbitmq": (
        """AioPikaBroker(
        {rabbitmq!r}, exchange=Exchange(name={queue!r}), task_queues=[Queue(name={queue!r})],
        dead_letter_queue=Queue(name={queue!r} + ".dead"),
        delay_queue=Queue(name={queue!r} + ".delay"),
    )""",
        0.1,
        "dict(keep_results=False)",
    ),
}


@pytest.fixture(params=BROKERS)
def shop(request, project, worker, redis_url):
    """An app in a file, imported here, and a way to start workers of it."""
    source, delay, results = BROKERS[request.param]
    names = {"redis": redis_url, "queue": f"shop-{uuid.uuid4().hex}"}
    if request.param == "rabbitmq":
        if is_older("taskiq-aio-pika", "0.6"):
            pytest.skip("taskiq-aio-pika makes its queues itself before 0.6")
        names["rabbitmq"] = request.getfixturevalue("rabbitmq_url")
    text = APP.format(broker=source.format(**names), delay=delay, results=results, **names)
    name = f"app_{uuid.uuid4().hex}"
    folder = project({f"{name}.py": text, "spawned.py": SPAWNED})
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    def workers(*command):
        return worker(*(command or WORKER), f"{name}:broker", cwd=folder, ready="Listening started")

    yield SimpleNamespace(
        kind=request.param, name=name, app=module.app, worker=workers, folder=folder
    )
    sys.modules.pop(name)


def test_runs_end_as_the_plugins_say(shop):
    """Results, answers, ends and errors come back from another process as what they are."""
    fail = shop.app.tasks["fail"]
    with shop.app:
        process = shop.worker()
        assert 42 == shop.app.tasks["price"].submit(40, tax=2).result(timeout=LONG)
        handle = fail.submit_sync("replace")
        assert [1, "two"] == handle.result(timeout=LONG)
        assert TaskStatus.succeeded is handle.status
        for text, kind, status in (
            ("cancel", TaskCancelError, TaskStatus.cancelled),
            ("letter", TaskDeadLetteredError, TaskStatus.dead_lettered),
            ("other", LookupError, TaskStatus.failed),
            ("set", LookupError, TaskStatus.failed),
        ):
            handle = fail.submit_sync(text)
            with pytest.raises(kind) as caught:
                handle.result(timeout=LONG)
            assert status is handle.status
            assert kind is type(caught.value)
        handle = fail.submit_sync("retry")
        if shop.kind == "rabbitmq" or not shop.app.engine.capabilities.delay:
            assert 3 == handle.result(timeout=LONG)
        if shop.kind not in {"stream", "json"}:
            # On a stream Taskiq's own receiver ends with its next message only.
            process.terminate()
    # This process's, and within it the worker's.
    ends = [] if shop.kind in {"stream", "json"} else ["stop"]
    told = (shop.folder / "life").read_text().split()
    assert ["start", "start", *ends] == told[: 2 + len(ends)]


def test_errors_keep_their_class(shop):
    """An error of the app's own class arrives as one, also where its constructor is special."""
    with shop.app:
        shop.worker()
        with pytest.raises(Exception, match="broken"):
            shop.app.tasks["own"].submit("broken").result(timeout=LONG)
        with pytest.raises(TaskPluginTriggerError) as asked:
            shop.app.tasks["ask"].submit().result(timeout=LONG)
        with pytest.raises(EngineError, match="SystemExit"):
            shop.app.tasks["leave"].submit().result(timeout=LONG)
    assert ("a",) == asked.value.args
    assert {"kind": "b"} == asked.value.kwargs


def test_a_run_waits_for_another(shop):
    """Functions of either kind submit further runs from within a worker, and wait for them."""
    with shop.app:
        shop.worker()
        assert 42 == shop.app.tasks["twice"].submit(21).result(timeout=LONG)
        assert 42 == shop.app.tasks["twice_async"].submit_sync(21).result(timeout=LONG)


@pytest.mark.parametrize("shop", ["stream", "rabbitmq"], indirect=True)
def test_a_spawned_worker_has_the_plugins(shop):
    """Where the worker's children are no forks, all is as where they are."""
    with shop.app:
        shop.worker(sys.executable, "spawned.py")
        assert [1, "two"] == shop.app.tasks["fail"].submit_sync("replace").result(timeout=LONG)


@pytest.mark.parametrize("shop", ["stream", "rabbitmq"], indirect=True)
async def test_async_code_submits_and_awaits_on_its_own_loop(shop):
    """An app that async code starts has its connections on that loop; plain code can join in."""
    for _ in range(2):
        async with shop.app:
            shop.worker()
            price = shop.app.tasks["price"]
            handles = [await price.submit_async(n) for n in range(20)]
            later = await price.submit_async(1)
            with pytest.raises(RuntimeError, match="await the handle"):
                later.result(timeout=LONG)
            assert list(range(20)) == await asyncio.gather(*handles)
            assert 5 == await asyncio.to_thread(priced_here, price)


def priced_here(price):
    """Submit and wait, from plain code in another thread."""
    return price.submit(5).result(timeout=LONG)


def test_a_stopped_app_starts_again(shop):
    """An app can be started again, and its worker does not notice."""
    for number in (1, 2):
        with shop.app:
            if number == 1:
                shop.worker()
            handle = shop.app.tasks["price"].submit(number)
            assert handle.status in {None, TaskStatus.succeeded}
            assert number == handle.result(timeout=LONG)


def test_a_worker_is_refused_whose_plugins_cannot_start(project, worker, redis_url):
    """The command ends, instead of replacing its process for ever, and its log says why."""
    folder = project(
        {
            "own.py": f"""
                from taskiq_redis import ListQueueBroker
                from qtasks_pluggy.engines.taskiq import install
                broker = ListQueueBroker({redis_url!r}, queue_name="{uuid.uuid4().hex}")
                install(broker, discover=False)
            """
        }
    )
    process = worker(*WORKER, "own:broker", cwd=folder)
    process.wait(LONG)
    assert 1 == process.log().count("worker_cannot_start")
    assert "install() covers no task" in process.log()


def test_the_worker_command_asks_the_plugins_of_an_own_app(project, worker, redis_url):
    """One line in an existing module: tasks from another module too, in a worker of two."""
    queue = f"own-{uuid.uuid4().hex}"
    own, jobs = f"own_{queue[4:]}", f"jobs_{queue[4:]}"
    folder = project(
        {
            f"{own}.py": f"""
                import sys
                from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
                from qtasks_hookspecs import hookimpl
                from qtasks_pluggy.engines.taskiq import install

                broker = RedisStreamBroker({redis_url!r}, {queue!r}, consumer_id="0")
                broker.with_result_backend(RedisAsyncResultBackend({redis_url!r}))

                @hookimpl
                def task_executor_run_task_trigger_error(e):
                    return f"recovered from {{e.cause}}"

                install(broker, [sys.modules[__name__]], discover=False)
            """,
            f"{jobs}.py": f"""
                from {own} import broker

                @broker.task(task_name="fail")
                def fail(text):
                    raise OSError(text)
            """,
        }
    )
    command = (sys.executable, "-m", "taskiq", "worker", "--workers", "2")
    worker(*command, f"{own}:broker", jobs, cwd=folder)

    async def main():
        broker = RedisStreamBroker(redis_url, queue, consumer_id="0")
        broker.with_result_backend(RedisAsyncResultBackend(redis_url))
        await broker.startup()
        try:
            tickets = [await AsyncKicker("fail", broker, {}).kiq(n) for n in range(6)]
            return [(await ended(ticket)).return_value for ticket in tickets]
        finally:
            await broker.shutdown()

    assert [f"recovered from {n}" for n in range(6)] == asyncio.run(main())
