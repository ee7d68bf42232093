"""A run is sent again: of an app on an engine, and of an engine's own app with ``install()``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from uuid import uuid4

import huey as native_huey
import pytest
from celery import Celery
from dramatiq import actor
from taskiq import InMemoryBroker
from taskiq.kicker import AsyncKicker

from qtasks_hookspecs import Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskMessage
from qtasks_pluggy.engines import celery, dramatiq, huey, installed_in, taskiq
from qtasks_pluggy.exc import CapabilityError, EngineError, NotRunningError, TaskNameError
from tests.engines import celery_apps, dramatiq_apps
from tests.engines.celery_apps import celery_app
from tests.engines.huey_apps import LONG, consuming
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


class Replays:
    """Sends a run again that failed with 0, with 1 instead; retries that one once; notes ends."""

    name = "replays"

    def __init__(self) -> None:
        self.ends, self.ids, self.apps = [], [], []

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_broker):
        return Retry() if task_broker.args == (1,) and task_broker.attempt == 1 else None

    @hookimpl
    def task_executor_task_close(self, task_executor, task_broker, outcome):
        self.ends.append(task_broker)
        self.apps.append(task_executor.app)
        if task_broker.args == (0,):
            self.ids.append(task_executor.app.replay(task_broker, args=(1,), metadata={"by": "me"}))


def keep_in(seen):
    """Make a function that keeps what it is given."""

    def keep(number, by=None):
        seen.append((number, by))

    return keep


def divide_of(attempts):
    """Make a function that fails by 0, and at the first attempt with anything else."""

    def divide(x):
        attempts.append(x)
        if len(attempts) < 3:
            raise ZeroDivisionError
        return 1 / x

    return divide


class OnCelery:
    """Celery with nothing but memory behind it, and a worker in this process."""

    def __init__(self, folder):
        self.native = celery_app("own")

    install = staticmethod(celery.install)

    def declare(self, name, function):
        return self.native.task(name=name, shared=False)(function).delay

    @contextlib.contextmanager
    def working(self):
        with celery_apps.working(self.native):
            yield
        celery_apps.forget_connections()


class OnHuey:
    """Huey on a file, and a consumer in this process."""

    def __init__(self, folder):
        self.native = native_huey.SqliteHuey("own", filename=folder / "runs.db")

    install = staticmethod(huey.install)

    def declare(self, name, function):
        return self.native.task(name=name)(function)

    def working(self):
        return consuming(self.native)


class OnDramatiq:
    """Dramatiq's stub broker, and a worker in this process."""

    name = "dramatiq"

    def __init__(self, folder):
        self.native = dramatiq_apps.stub_broker()

    install = staticmethod(dramatiq.install)

    def declare(self, name, function):
        return actor(actor_name=name, broker=self.native, max_retries=0)(function).send

    def working(self):
        return dramatiq_apps.working(self.native)


@pytest.fixture(params=[OnCelery, OnHuey, OnDramatiq], ids=["celery", "huey", "dramatiq"])
def place(request, tmp_path):
    """An engine's own app."""
    return request.param(tmp_path)


def check_replayed(plugin):
    """Check what a plugin's replay came to."""
    assert wait_until(lambda: len(plugin.ends) == 2, LONG)
    first, second = plugin.ends
    assert [second.uuid] == [str(one) for one in plugin.ids]
    assert ((1,), {}, 2) == (second.args, dict(second.kwargs), second.attempt)
    assert {} == dict(first.metadata)
    assert {"replay_of": first.uuid, "by": "me"} == dict(second.metadata)


def test_a_plugin_sends_a_native_run_again(place):
    """Under install() the app has name, tasks, engine and replay; the new run has its lineage."""
    plugin, attempts = Replays(), []
    send = place.declare("divide", divide_of(attempts))
    place.install(place.native, [plugin], discover=False)
    with place.working():
        send(0)
        check_replayed(plugin)
    assert [0, 1, 1] == attempts
    app = plugin.apps[0]
    name = getattr(place, "name", "own")
    assert (name, ["divide"], place.native) == (app.name, list(app.tasks), app.engine.native)


def test_a_plugin_sends_a_run_of_our_app_again(place):
    """The same of an app whose engine it is."""
    plugin, attempts = Replays(), []
    app = QueueTasks("shop", engine=place.native, plugins=[plugin], discover=False)
    app.task(name="divide", intercept=ZeroDivisionError)(divide_of(attempts))
    with app, place.working():
        app.tasks["divide"].submit(0)
        check_replayed(plugin)
    assert [0, 1, 1] == attempts


def test_a_client_sends_a_native_run_again(place):
    """A process that runs nothing needs no start; arguments stay unless others are given."""
    seen = []
    place.declare("keep", keep_in(seen))
    place.install(place.native, discover=False)
    app = installed_in(place.native)
    message = TaskMessage("keep", (1,), {"by": "me"}, uuid="the-first")
    ids = [app.replay(message), app.replay(message, args=[2], kwargs={}, delay=0.01)]
    assert 2 == len({*ids})
    with place.working():
        assert wait_until(lambda: len(seen) == 2, LONG)
    assert {(1, "me"), (2, None)} == {*seen}  # the worker may begin both at once


def test_what_cannot_be_sent_again_is_refused(place):
    """Another app's task, arguments that do not travel or fit, after the stop; nothing is sent."""
    seen = []
    place.declare("keep", keep_in(seen))
    place.install(place.native, discover=False)
    app = installed_in(place.native)
    with pytest.raises(TaskNameError, match="no task 'kepe'; did you mean 'keep'"):
        app.replay(TaskMessage("kepe"))
    with pytest.raises(EngineError, match="'keep'.*argument 1, a lock,"):
        app.replay(TaskMessage("keep", ("x",)), args=(threading.Lock(),))
    with pytest.raises(TypeError, match="expected a TaskMessage"):
        app.replay("keep")
    with app:
        app.replay(TaskMessage("keep", (1,)))
    with pytest.raises(NotRunningError):
        app.replay(TaskMessage("keep", (2,)))
    with place.working():
        assert wait_until(lambda: seen, LONG)
    assert [(1, None)] == seen


def test_celery_refuses_arguments_that_the_task_does_not_take():
    """Celery checks them when it sends, and the error says which task."""
    native = celery_app("own")
    native.task(name="keep", shared=False)(keep_in([]))
    celery.install(native, discover=False)
    with pytest.raises(EngineError, match="'keep': the call was refused .*TypeError"):
        installed_in(native).replay(TaskMessage("keep", (1, 2, 3)))


def test_celery_finds_tasks_that_only_a_worker_imports(project, monkeypatch):
    """A client that has the app alone sends runs of the tasks that its settings import."""
    folder = project({"more_tasks.py": MORE})
    monkeypatch.syspath_prepend(folder)
    native = Celery("own", broker="memory://", set_as_current=False)
    native.conf.imports = ["more_tasks"]
    celery.install(native, discover=False)
    assert ["late"] == list(installed_in(native).tasks)


def test_huey_does_not_guess_which_task_is_meant():
    """Huey names a run by its function alone, which two modules can have."""
    native = native_huey.MemoryHuey("own")
    for module in ("first", "second"):

        def keep():
            pass

        keep.__module__ = module
        native.task()(keep)
    huey.install(native, discover=False)
    with pytest.raises(TaskNameError, match="first and second both have a task 'keep'"):
        installed_in(native).replay(TaskMessage("keep"))


def test_taskiq_says_that_its_own_loop_cannot_wait():
    """A hookimpl on the broker's loop gets one clear error; a thread of its own may send."""
    app = QueueTasks("shop", engine=InMemoryBroker(), discover=False)
    app.task(name="keep")(keep_in(seen := []))
    message = TaskMessage("keep", (1,))

    async def main():
        async with app:
            with pytest.raises(CapabilityError, match="task 'keep'.*in a thread"):
                app.replay(message)
            await asyncio.to_thread(app.replay, message)

    asyncio.run(main())
    assert [(1, None)] == seen


def test_a_plugin_sends_a_taskiq_run_again():
    """From a plain task and an async one, whose loop is the broker's; with tags and labels."""
    ends = []

    class Again:
        name = "again"

        @hookimpl
        def task_executor_task_close(self, task_executor, task_func, task_broker, outcome):
            ends.append((task_broker, task_func.tags, dict(task_func.extra), outcome.status))
            if outcome.status == "failed":
                task_executor.app.replay(task_broker, args=(4,), metadata={"by": ["me"]})

    native = InMemoryBroker()

    @native.task(task_name="plain", tags=["price"], owner="me")
    def plain(x):
        return 1 / x

    @native.task(task_name="async", tags=["price"], owner="me")
    async def divide_async(x):
        return 1 / x

    taskiq.install(native, [Again()], discover=False)

    async def main(task):
        await native.startup()
        # Before 0.12 the task's own kicker gives its labels to the task.
        await AsyncKicker(task.task_name, native, {**task.labels, "tenant": "blue"}).kiq(0)
        while len(ends) < 2:
            await asyncio.sleep(0.01)

    for task in (plain, divide_async):
        ends.clear()
        asyncio.run(main(task))
        (first, tags, extra, failed), (second, _, _, succeeded) = ends
        assert (("price",), {"owner": "me"}) == (tags, extra)
        assert ("failed", "succeeded", (4,)) == (failed, succeeded, second.args)
        assert {"tenant": "blue"} == dict(first.metadata)
        lineage = {"tenant": "blue", "by": ["me"], "replay_of": first.uuid}
        assert lineage == dict(second.metadata)


def test_a_replay_that_outlives_its_run_on_taskiq_is_sent():
    """What an async run leaves behind on the loop may send a run again, at any time."""
    native, seen, left = InMemoryBroker(), [], []
    native.register_task(keep_in(seen), task_name="keep")

    async def replay_later(ended):
        await ended.wait()
        installed_in(native).replay(TaskMessage("keep", (7,)))

    async def leave():
        ended = asyncio.Event()
        left.extend([ended, asyncio.create_task(replay_later(ended))])

    task = native.register_task(leave, task_name="leave")
    taskiq.install(native, discover=False)

    async def main():
        await native.startup()
        await (await task.kiq()).wait_result(timeout=LONG)
        ended, late = left
        ended.set()
        await late
        while not seen:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), LONG))
    assert [(7, None)] == seen


def test_a_client_of_taskiq_needs_no_open_broker(redis_url):
    """Plain code that has not opened the broker sends runs, one after another, by the metadata."""
    from taskiq_redis import ListQueueBroker

    native, heard = ListQueueBroker(redis_url, queue_name=f"replay-{uuid4().hex}"), []
    native.task(task_name="keep", owner="me")(keep_in([]))
    taskiq.install(native, discover=False)
    app = installed_in(native)
    for number in (1, 2):
        app.replay(TaskMessage("keep", (number,), uuid="the-first"))
    with pytest.raises(CapabilityError):
        app.replay(TaskMessage("keep", (3,)), delay=5)

    async def main():
        async for data in native.listen():
            heard.append(native.formatter.loads(data))
            if len(heard) == 2:
                return

    asyncio.run(asyncio.wait_for(main(), LONG))
    assert [[1], [2]] == [one.args for one in heard]
    assert {("me", "the-first")} == {(m.labels["owner"], m.labels["replay_of"]) for m in heard}


MORE = """
    from celery import shared_task

    @shared_task(name="late")
    def late():
        pass
"""
CELERY = """
    import os
    from celery import Celery
    from qtasks_pluggy.engines.celery import install

    celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
    celery.conf.task_default_queue = celery.conf.control_exchange = os.environ["QUEUE"]

    @celery.task(name="divide")
    def divide(x):
        return 1 / x

    install(celery, ["again"], discover=False)
"""
HUEY = """
    from pathlib import Path
    from huey import SqliteHuey
    from qtasks_pluggy.engines.huey import install
    import again

    huey = SqliteHuey("shop", filename=str(Path(__file__).with_name("runs.db")))

    @huey.task(name="divide")
    def divide(x):
        return 1 / x

    install(huey, [again], discover=False)
"""
AGAIN = """
    from pathlib import Path
    from qtasks_hookspecs import hookimpl

    @hookimpl
    def task_executor_task_close(task_executor, task_broker, outcome):
        lineage = task_broker.metadata.get("replay_of", "-")
        new = "-"
        if outcome.status == "failed":
            new = task_executor.app.replay(task_broker, args=[4])
        with Path(__file__).with_name("ends").open("a") as file:
            file.write(f"{task_broker.uuid} {lineage} {outcome.status} {new}\\n")
"""


def ends_in(folder):
    """Read what the plugin of a worker has written down."""
    path = folder / "ends"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def check_lineage(ends):
    """Check that the failed run was sent again, and succeeded."""
    (first, none, failed, new), (second, lineage, succeeded, _) = ends
    assert (none, failed, succeeded) == ("-", "failed", "succeeded")
    assert (second, lineage) == (new, first)


def test_a_celery_worker_on_redis_sends_a_failed_run_again(project, worker, redis_url):
    """By Celery's own command on Redis, in a child of the worker."""
    folder = project({"shop.py": CELERY, "again.py": AGAIN})
    env = {"BROKER": redis_url, "QUEUE": f"replay-{uuid4().hex[:8]}"}
    command = (sys.executable, "-m", "celery", "-A", "shop:celery", "worker", "-c", "1")
    worker(*command, "--loglevel", "INFO", cwd=folder, env=env, ready="ready.")
    native = Celery("shop", broker=redis_url, set_as_current=False)
    native.send_task("divide", (0,), queue=env["QUEUE"])
    celery_apps.forget_connections()
    assert wait_until(lambda: len(ends_in(folder)) == 2, LONG)
    check_lineage(ends_in(folder))


def test_a_huey_consumer_sends_a_failed_run_again(project, worker):
    """By Huey's own command."""
    folder = project({"shop.py": HUEY, "again.py": AGAIN})
    command = (sys.executable, "-m", "huey.bin.huey_consumer", "shop.huey", "-d", "0.01")
    worker(*command, "-m", "0.05", cwd=folder, ready="Huey consumer started")
    client = (sys.executable, "-c", "import shop; shop.divide(0)")
    worker(*client, cwd=folder)
    assert wait_until(lambda: len(ends_in(folder)) == 2, LONG)
    check_lineage(ends_in(folder))
