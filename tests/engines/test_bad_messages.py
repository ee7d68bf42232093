"""Whatever stands where our header is in a message, its run has its retries, and ends (R9)."""

from __future__ import annotations

import asyncio
import json
import threading

import dramatiq
import huey
import pytest

from qtasks_hookspecs import Retry, hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import celery as celery_engine
from qtasks_pluggy.engines import dramatiq as dramatiq_engine
from qtasks_pluggy.engines import huey as huey_engine
from qtasks_pluggy.engines import rq as rq_engine
from qtasks_pluggy.engines import taskiq as taskiq_engine
from tests.engines import celery_apps, dramatiq_apps, rq_apps, taskiq_apps
from tests.engines.huey_apps import LONG, consuming

pytestmark = pytest.mark.engines

# A run that is asked about more often than this is retried without end.
MANY = 20
# What cannot be a count; one of an app has three retries, so four attempts.
COUNTS = [-1_000_000, -20, None, "x", "2", 1.5, True, {"a": 1}]
HEADERS = [
    *({"attempt": count} for count in COUNTS),
    {"attempt": 1, "metadata": 5},
    {"attempt": 1, "of a later version": {"more": [1]}},
    {},
    [],
    "x",
    5,
]


class Retries:
    """Retries each run three times, and takes down the numbers of its attempts."""

    name = "retries"

    def __init__(self):
        self.attempts = {}
        self.ended = threading.Semaphore(0)

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_broker):
        attempts = self.attempts.setdefault(task_broker.args[0], [])
        attempts.append(task_broker.attempt)
        return Retry(delay=0, limit=3) if len(attempts) < MANY else "too many"

    @hookimpl
    def task_executor_task_close(self):
        self.ended.release()

    def wait(self, runs):
        """Wait until so many runs have ended."""
        for _ in range(runs):
            assert self.ended.acquire(timeout=LONG), self.attempts


def fail(number):
    """Fail."""
    raise OSError(number)


def shop_on(native, plugin):
    """Have an engine do the runs of an app."""
    app = QueueTasks("shop", engine=native, plugins=[plugin], discover=False, intercept=OSError)
    app.task(name="fail")(fail)
    return app


def on_celery(plugin, headers, *, is_ours, **options):
    """Send messages with these headers to a worker of Celery."""
    native = celery_apps.celery_app()
    if is_ours:
        shop_on(native, plugin)
    else:
        native.task(name="fail", shared=False)(fail)
        celery_engine.install(native, [plugin], discover=False)
    with celery_apps.working(native):
        for number, header in enumerate(headers):
            headers_ = {"qtasks_pluggy": header}
            native.tasks["fail"].apply_async((number,), headers=headers_, **options)
        plugin.wait(len(headers))
    celery_apps.forget_connections()


def on_dramatiq(plugin, headers, *, is_ours):
    """Send messages with these headers to a worker of Dramatiq."""
    native = dramatiq_apps.stub_broker()
    if is_ours:
        shop_on(native, plugin)
    else:
        dramatiq.actor(actor_name="fail", broker=native, max_retries=0)(fail)
        dramatiq_engine.install(native, [plugin], discover=False)
    actor = native.get_actor("fail")
    with dramatiq_apps.working(native):
        for number, header in enumerate(headers):
            message = actor.message_with_options(args=(number,), qtasks_pluggy=header)
            native.enqueue(message)
        plugin.wait(len(headers))


def on_huey(plugin, headers, *, is_ours):
    """Send messages with these headers to a consumer of Huey."""
    native = huey.MemoryHuey("shop")
    if is_ours:
        kind = shop_on(native, plugin).engine.tasks["fail"]
    else:
        kind = native.task(name="fail")(fail).task_class
        huey_engine.install(native, [plugin], discover=False)
    with consuming(native):
        for number, header in enumerate(headers):
            native.enqueue(kind((number,), {"_qtasks_pluggy": header}))
        plugin.wait(len(headers))


def on_taskiq(plugin, headers, *, is_ours, **labels):
    """Send messages with these headers to a broker of Taskiq."""
    native = taskiq_apps.broker_of()
    if is_ours:
        shop_on(native, plugin)
    else:
        native.register_task(fail, task_name="fail")
        taskiq_engine.install(native, [plugin], discover=False)

    async def run():
        async with taskiq_apps.working(native):
            for number, header in enumerate(headers):
                label = header if header == "x" else json.dumps(header)
                kicker = native.find_task("fail").kicker()
                kicker = kicker.with_labels(qtasks_pluggy=label, **labels)
                await kicker.kiq(*([[number], {}] if is_ours else [number]))
            await asyncio.to_thread(plugin.wait, len(headers))

    asyncio.run(run())


ENGINES = {"celery": on_celery, "dramatiq": on_dramatiq, "huey": on_huey, "taskiq": on_taskiq}


@pytest.mark.parametrize("is_ours", [True, False], ids=["app", "install"])
@pytest.mark.parametrize("engine", ENGINES)
def test_r9_a_header_gives_no_more_retries(engine, is_ours):
    """R9: odd headers, and those of other versions, end no worker; each run has three retries."""
    plugin = Retries()
    ENGINES[engine](plugin, HEADERS, is_ours=is_ours)
    assert {number: [1, 2, 3, 4] for number in range(len(HEADERS))} == plugin.attempts


@pytest.mark.parametrize("is_ours", [True, False], ids=["app", "install"])
@pytest.mark.parametrize("retries", [-20, -1_000_000])
def test_r9_celery_s_own_count_gives_no_more_retries(is_ours, retries):
    """R9: the count in Celery's own part of a message is no less than none."""
    plugin = Retries()
    on_celery(plugin, [{}], is_ours=is_ours, retries=retries)
    assert {0: [1, 2, 3, 4]} == plugin.attempts


@pytest.mark.parametrize("is_ours", [True, False], ids=["app", "install"])
@pytest.mark.parametrize("label", ["qtasks_pluggy_retries", "_retries"])
@pytest.mark.parametrize("count", [-20, -1_000_000, "x", None])
def test_r9_taskiq_s_labels_give_no_more_retries(is_ours, label, count):
    """R9: the counts in labels are no less than none."""
    plugin = Retries()
    on_taskiq(plugin, [{}], is_ours=is_ours, **{label: count})
    assert {0: [1, 2, 3, 4]} == plugin.attempts


def test_r9_a_job_s_meta_gives_no_more_retries(redis_url):
    """R9: the count in a job's ``meta`` is a whole number from 1."""
    plugin = Retries()
    job_class = rq_engine.install([plugin], discover=False)
    with rq_apps.queue_on(redis_url, job_class=job_class) as queue:
        for number, count in enumerate(COUNTS):
            queue.enqueue(fail, number, meta={"qtasks_pluggy_attempt": count})
        rq_apps.work(queue, job_class)
    assert {number: [1, 2, 3, 4] for number in range(len(COUNTS))} == plugin.attempts
