"""Plugins for a Procrastinate app's tasks, on a real PostgreSQL: here, and in its own worker."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import time
import traceback
import weakref
from contextvars import ContextVar
from uuid import uuid4

import pytest
import structlog
from procrastinate import App, BaseRetryStrategy, PsycopgConnector, RetryDecision
from procrastinate.exceptions import AlreadyEnqueued, JobAborted

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines.procrastinate import install
from qtasks_pluggy.exc import EngineError, TaskNameError
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.queries import Filters, Reader
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.pages import module_of
from tests.engines.plugins import Ends
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

bound = ContextVar("bound", default="nothing")


@pytest.fixture(scope="module")
def database():
    """One PostgreSQL for this file, with Procrastinate's tables."""
    from tests.failures.servers import running_for_jobs

    with running_for_jobs() as url:
        yield url


class Shop:
    """An app with tasks, a queue of the test's own, and a worker that ends when all is done."""

    def __init__(self, url):
        self.app = App(connector=PsycopgConnector(conninfo=url))
        self.queue, self.seen = f"q-{uuid4()}", []

    def declare(self, function, **options):
        return self.app.task(queue=self.queue, name=function.__name__, **options)(function)

    def failing(self, kind, **options):
        """Declare a task that fails with what it is given."""

        def fail(text):
            self.seen.append(text)
            raise OSError(text)

        async def fail_async(text):
            fail(text)

        return self.declare(fail if kind == "sync" else fail_async, **options)

    async def run(self, task, **arguments):
        """Defer a job, do what is queued, and return the job as it is then."""
        async with self.app.open_async():
            number = await task.defer_async(**arguments)
            await self.work()
            return await self.job(number)

    async def work(self, **options):
        options = {"queues": [self.queue], "wait": False, "listen_notify": False} | options
        await self.app.run_worker_async(install_signal_handlers=False, **options)

    async def job(self, number):
        (job,) = await self.app.job_manager.list_jobs_async(id=number)
        return job


@pytest.fixture
def shop(database):
    """An app of the test's own."""
    return Shop(database)


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
@pytest.mark.parametrize("answer", [7, 0, Replace(None), object()])
async def test_an_answer_is_the_job_s_success(shop, kind, answer):
    """A job for which a plugin has an answer has succeeded; Procrastinate keeps no results."""
    plugin, ends, task = Keeps(answer), Ends(), shop.failing(kind)
    assert 1 == install(shop.app, [plugin, ends], discover=False)
    job = await shop.run(task, text="broken")
    assert "succeeded" == job.status
    assert ["recovered"] == ends.runs
    (message,) = plugin.messages
    known = (message.name, message.args, dict(message.kwargs), message.uuid, message.queue)
    assert (task.name, (), {"text": "broken"}, str(job.id), shop.queue) == known
    assert ["start", "close", "stop"] == plugin.heard


@pytest.mark.parametrize("decision", [None, Retry(limit=1)])
async def test_a_plain_task_that_lets_stopiteration_out_ends(shop, decision):
    """Procrastinate awaits a plain task in a future, which would refuse the error."""
    ends = Ends()
    task = shop.declare(lambda: next(iter([])), retry=False)
    install(shop.app, [Keeps(decision), ends], discover=False)
    async with asyncio.timeout(LONG):
        job = await shop.run(task)
    assert ("failed", 1 if decision is None else 2) == (job.status, job.attempts)
    assert ["failed"] == ends.runs


@KINDS
@pytest.mark.parametrize(
    ("decision", "status", "outcome"),
    [
        (None, "failed", "failed"),
        (Raise(LookupError("clearer")), "failed", "failed"),
        (Cancel("why"), "aborted", "cancelled"),
        (DeadLetter("why"), "failed", "dead_lettered"),
    ],
)
async def test_ends_are_procrastinate_s_own(shop, kind, decision, status, outcome):
    """What is decided is a status that its tables have, and the job was run once."""
    ends, task = Ends(), shop.failing(kind)
    install(shop.app, [Keeps(decision), ends], discover=False)
    assert status == (await shop.run(task, text="broken")).status
    assert ["broken"] == shop.seen
    assert [outcome] == ends.runs


@pytest.mark.parametrize("decision", [Cancel("why"), DeadLetter("why")])
async def test_cancel_and_dead_letter_ask_no_strategy(shop, decision):
    """A job that is cancelled or set aside is over, whatever ``retry=`` its task has."""
    task = shop.failing("async", retry=True)
    install(shop.app, [Keeps(decision)], discover=False)
    assert (await shop.run(task, text="broken")).status in {"aborted", "failed"}
    assert ["broken"] == shop.seen
    assert {} == installed_in(shop.app).engine._decisions


async def test_a_cancelled_job_is_over_though_its_worker_shuts_down(shop):
    """A worker that shuts down asks the strategy about aborted jobs, too."""

    def wait(context):
        shop.seen.append("waits")
        while not context.should_abort():
            time.sleep(0.01)
        raise OSError("no time")

    task = shop.declare(wait, retry=True, pass_context=True)
    install(shop.app, [Keeps(Cancel("why"))], discover=False)
    async with shop.app.open_async():
        number = await task.defer_async()
        worker = asyncio.create_task(shop.work(wait=True, shutdown_graceful_timeout=0.1))
        while not shop.seen:
            await asyncio.sleep(0.01)
        worker.cancel()
        await asyncio.wait([worker])
        assert "aborted" == (await shop.job(number)).status


@KINDS
async def test_plugins_retry_jobs(shop, kind):
    """A retry is the same job again, with its attempts counted as Procrastinate does."""
    plugin, ends, task = Keeps(Retry(), Retry(delay=0), "third"), Ends(), shop.failing(kind)
    install(shop.app, [plugin, ends], discover=False)
    job = await shop.run(task, text="broken")
    assert ("succeeded", 3) == (job.status, job.attempts)
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert ["retried", "retried", "recovered"] == [status for status, _, _ in ends.attempts]
    assert ["recovered"] == ends.runs


async def test_spent_retries_end_in_the_job_s_own_error(shop, caplog):
    """``Retry(limit=2)`` is two retries, and the log has the task's own error each time."""
    plugin, task = Keeps(*[Retry(limit=2)] * 3), shop.failing("async")
    install(shop.app, [plugin], discover=False)
    with caplog.at_level("INFO", "procrastinate"):
        assert "failed" == (await shop.run(task, text="broken")).status
    assert ["broken"] * 3 == shop.seen
    ended = [one for one in caplog.records if "ended with status" in one.message]
    assert [OSError] * 3 == [one.exc_info[0] for one in ended]
    # R6: the last frame is the task's, and at most two are ours.
    frames = traceback.extract_tb(ended[-1].exc_info[2])
    assert "fail" == frames[-1].name
    assert len([one for one in frames if "/qtasks_pluggy/" in one.filename]) <= 2


async def test_native_retries_come_on_top(shop):
    """Plugins are asked at every attempt; only after the last of the strategy's is it a failure."""
    plugin, ends, task = Keeps(None, Retry()), Ends(), shop.failing("async", retry=3)
    install(shop.app, [plugin, ends], discover=False)
    # Each wait of ``retry=3`` is a second: the strategy's exponent of nothing.
    async with shop.app.open_async():
        number = await task.defer_async(text="broken")
        for _ in range(100):
            await shop.work()
            if (await shop.job(number)).status == "failed":
                break
            await asyncio.sleep(0.1)
        job = await shop.job(number)
    assert ("failed", 4) == (job.status, job.attempts)
    decided = [("retried", 1, None), ("retried", 2, "keeps"), ("retried", 3, None)]
    assert [*decided, ("failed", 4, None)] == ends.attempts


class Thrice(BaseRetryStrategy):
    """A project's own: a connection's error is retried, up to three attempts."""

    def __init__(self):
        self.asked = []

    def get_retry_decision(self, *, exception, job):
        self.asked.append((type(exception), job.attempts))
        is_wanted = isinstance(exception, ConnectionError) and job.attempts < 2
        return RetryDecision(retry_in={"seconds": 0}) if is_wanted else None


@KINDS
async def test_a_project_s_own_strategy_decides_where_no_plugin_does(shop, kind):
    """It is asked after plugins, about the error that the job would have, and not of a retry."""
    strategy, ends = Thrice(), Ends()
    task = shop.failing(kind, retry=strategy)
    plugin = Keeps(Retry(), Raise(ConnectionError("again")), Raise(ConnectionError("again")))
    install(shop.app, [plugin, ends], discover=False)
    job = await shop.run(task, text="broken")
    assert ("failed", 3) == (job.status, job.attempts)
    assert ["retried", "retried", "failed"] == [status for status, _, _ in ends.attempts]
    assert {(ConnectionError, 1), (ConnectionError, 2)} == set(strategy.asked)


@KINDS
async def test_a_queueing_lock_is_kept(shop, kind):
    """One job waits for each queueing lock, also where a plugin has it run again."""
    task = shop.failing(kind, queueing_lock=f"lock-{uuid4()}")
    plugin = Keeps(Retry(delay=60))
    install(shop.app, [plugin], discover=False)
    job = await shop.run(task, text="broken")
    assert "todo" == job.status
    async with shop.app.open_async():
        with pytest.raises(AlreadyEnqueued):
            await task.defer_async(text="second")
    assert ["broken"] == shop.seen


async def test_a_delay_is_the_job_s_schedule(shop):
    """``Retry(delay=60)`` puts the job off, to the fraction of a second."""
    task = shop.failing("async")
    install(shop.app, [Keeps(Retry(delay=60.5))], discover=False)
    job = await shop.run(task, text="broken")
    assert "todo" == job.status
    assert 55 < job.scheduled_at.timestamp() - time.time() < 61


@KINDS
async def test_its_control_exception_passes(shop, kind):
    """No plugin is asked about ``JobAborted``."""
    plugin, ends = Keeps("never"), Ends()

    def stop():
        raise JobAborted

    async def stop_async():
        raise JobAborted

    task = shop.declare(stop if kind == "sync" else stop_async)
    install(shop.app, [plugin, ends], discover=False)
    assert "aborted" == (await shop.run(task)).status
    assert [] == plugin.messages
    assert ["cancelled"] == ends.runs


@KINDS
async def test_a_context_is_the_task_s_alone(shop, kind):
    """A task with ``pass_context`` gets it; plugins see and replace the other arguments."""
    seen = []

    class Replaces:
        @hookimpl
        def task_executor_args_replace(self, args, kwargs):
            return args, {"text": kwargs["text"].upper()}

    def look(context, text):
        seen.append((context.job.id, text))
        raise LookupError

    async def look_async(context, text):
        look(context, text)

    plugin = Keeps(1)
    task = shop.declare(look if kind == "sync" else look_async, pass_context=True)
    install(shop.app, [plugin, Replaces()], discover=False)
    job = await shop.run(task, text="tea")
    assert [(job.id, "TEA")] == seen
    assert {"text": "tea"} == dict(plugin.messages[0].kwargs)


async def test_a_partial_with_a_context_keeps_its_own_arguments(shop):
    """A task's function may be a ``partial``; the context is its next argument."""

    def look(first, context, text, last):
        shop.seen += [first, context.job.id, text, last]

    declare = shop.app.task(name="look", queue=shop.queue, pass_context=True)
    task = declare(functools.partial(look, 1, last=3))
    install(shop.app, discover=False)
    job = await shop.run(task, text="tea")
    assert [1, job.id, "tea", 3] == shop.seen


@KINDS
async def test_a_context_is_no_parameter_of_the_function(shop, kind):
    """What plugins know of the function fits the arguments they see, and names its own module."""
    functions = []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_func):
            functions.append((task_func.func, task_func.is_async))

    def look(context, text):
        """Do nothing."""

    async def look_async(context, text):
        """Do nothing."""

    task = shop.declare(look if kind == "sync" else look_async, pass_context=True)
    install(shop.app, [Looks()], discover=False)
    await shop.run(task, text="tea")
    ((function, is_async),) = functions
    assert is_async is (kind == "async")
    assert ["text"] == list(inspect.signature(function).parameters)
    # Failures of an installed task are grouped by frames of this module's package.
    assert __name__ == function.__module__


@KINDS
@pytest.mark.parametrize("takes_context", [True, False])
async def test_jobs_share_what_plugins_know_of_their_task(shop, kind, takes_context):
    """All jobs of a task have one ``task_func``, and nothing holds a job's run that is over."""
    known, over = [], []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_func, task_broker):
            known.append(task_func)
            over.append(weakref.ref(task_broker))

    def look(*contexts, text):
        over.extend(weakref.ref(context) for context in contexts)

    async def look_async(*contexts, text):
        look(*contexts, text=text)

    task = shop.declare(look if kind == "sync" else look_async, pass_context=takes_context)
    install(shop.app, [Looks()], discover=False)
    for _ in range(2):
        await shop.run(task, text="tea")
    gc.collect()
    assert known[0] is known[1]
    assert {None} == {one() for one in over}


async def test_a_direct_call_is_a_function_s(shop):
    """Before a worker, and within a job of its own, ``task()`` asks no plugin."""
    plugin, caught = Keeps("never"), []

    def nested(inner=None):
        if inner:
            raise OSError(inner)
        try:
            task("inner")
        except OSError as error:
            caught.append(str(error))

    task = shop.declare(nested)
    install(shop.app, [plugin], discover=False)
    await shop.run(task)
    with pytest.raises(OSError, match="inner"):
        task("inner")
    assert ["inner"] == caught
    assert [] == plugin.messages


@KINDS
async def test_r19_no_job_sees_what_another_has_bound(shop, kind):
    """R19: each job begins in a copy of the worker's context."""
    seen = []

    def binds():
        seen.append(bound.get())
        bound.set("something")

    async def binds_async():
        binds()

    task = shop.declare(binds if kind == "sync" else binds_async)
    install(shop.app, discover=False)
    async with shop.app.open_async():
        for _ in range(3):
            await task.defer_async()
        await shop.work()
    assert ["nothing"] * 3 == seen


async def test_the_last_install_holds(shop):
    """Installed again the app has the other plugins, also in a worker that comes again."""
    task, first, last = shop.failing("async"), Keeps("first"), Keeps("last", "last")
    install(shop.app, [first], discover=False)
    await shop.run(task, text="one")
    install(shop.app, [last], discover=False)
    for _ in range(2):
        await shop.run(task, text="two")
    assert (1, 2) == (len(first.messages), len(last.messages))


class Replays:
    """Sends each run that failed again, with another argument."""

    def __init__(self):
        self.ids, self.errors, self.ended = [], [], []

    @hookimpl
    def task_executor_task_failed(self, task_executor, task_broker):
        app = task_executor.app
        try:
            app.replay(task_broker, args=(1,))
        except EngineError as error:
            self.errors.append(str(error))
        self.ids.append(app.replay(task_broker, kwargs={"divisor": 2}))

    @hookimpl
    def task_executor_task_close(self, task_executor, task_broker):
        self.ended.append((task_broker.uuid, task_executor.result))


@KINDS
async def test_a_plugin_sends_a_job_again(shop, kind):
    """``app.replay`` defers another job, from a thread with the id that the database gives it."""

    def divide(divisor):
        return 1 / divisor

    async def divide_async(divisor):
        return 1 / divisor

    plugin = Replays()
    task = shop.declare(divide if kind == "sync" else divide_async)
    install(shop.app, [plugin], discover=False)
    await shop.run(task, divisor=0)
    (new, result) = plugin.ended[1]
    assert 0.5 == result
    # On the worker's own loop the database gives it one afterwards.
    assert [None if kind == "async" else new] == plugin.ids
    assert ["takes keyword arguments only" in error for error in plugin.errors] == [True]


async def test_a_client_sends_a_job_again(shop):
    """``installed_in`` finds the app, whose ``replay`` needs no open connection."""
    assert installed_in(shop.app) is None
    plugin, task = Keeps("answer"), shop.failing("async")
    install(shop.app, [plugin], discover=False)
    app = installed_in(shop.app)
    assert ["keeps"] == [one.name for one in app.plugins.list_plugin_info()]
    failed = TaskMessage(task.name, kwargs={"text": "broken"}, queue=shop.queue)
    new = await asyncio.to_thread(app.replay, failed, delay=0.01)
    async with shop.app.open_async():
        await asyncio.sleep(0.1)
        await shop.work()
    assert [new] == [message.uuid for message in plugin.messages]
    with pytest.raises(TaskNameError, match=r"nowhere\.price"):
        app.replay(TaskMessage("nowhere.price"))


def test_install_keeps_no_app_alive(database):
    """What nobody has any more goes, plugins and all; the last one Procrastinate keeps itself."""

    def dropped():
        shop = Shop(database)
        shop.failing("async")
        install(shop.app, [Keeps()], discover=False)
        return weakref.ref(shop.app)

    gone = [dropped() for _ in range(4)]
    gc.collect()
    assert [None] * 3 == [one() for one in gone[:-1]]


@pytest.mark.parametrize("given", [None, "shop", pytest])
def test_install_refuses_what_is_no_app(given):
    """What is no app is named as that."""
    with pytest.raises(TypeError, match=r"install\(\) expected a procrastinate\.App, got a"):
        install(given, discover=False)


async def test_a_worker_without_tasks_is_refused(shop):
    """A worker in which ``install`` covers nothing takes no job, and says why."""
    install(shop.app, discover=False)
    with structlog.testing.capture_logs() as logs, pytest.raises(SystemExit):
        async with shop.app.open_async():
            await shop.work()
    assert "covers no task" in str(logs)


SHOP = """
    import os, sys, time
    from pathlib import Path
    from procrastinate import App, PsycopgConnector
    from qtasks_hookspecs import hookimpl, on_error
    from qtasks_pluggy.engines.procrastinate import install

    HERE = Path(__file__).parent
    app = App(connector=PsycopgConnector(conninfo=os.environ["SHOP_URL"]))

    def note(what):
        with (HERE / "notes.txt").open("a") as notes:
            print(what, file=notes)

    @app.task(name="parse")
    def parse(text):
        return note(f"parse {int(text)}")

    @app.task(name="parse_async")
    async def parse_async(text):
        return note(f"parse {int(text)}")

    @on_error(ValueError)
    def use_zero(error):
        return 0 if "zero" in str(error) else None

    @hookimpl
    def qtasks_start():
        note("start")
        if "NO_LICENCE" in os.environ:
            raise LookupError("no licence")

    @hookimpl
    def qtasks_stop():
        note("stop")

    install(app, [sys.modules[__name__]], discover=False)
"""


class Project:
    """A project whose jobs are done by Procrastinate's own command."""

    def __init__(self, folder, url, worker):
        self.folder, self._worker = folder, worker
        self.queue, self.env = f"q-{uuid4()}", {"SHOP_URL": url}
        self.app = App(connector=PsycopgConnector(conninfo=url))

    def work(self, *options, **env):
        command = (sys.executable, "-m", "procrastinate", "-v", "--app", "shop.app", "worker")
        where = {"cwd": self.folder, "env": self.env | env}
        return self._worker(*command, "-q", self.queue, *options, **where)

    def send(self, name, **arguments):
        return self.app.configure_task(name, queue=self.queue).defer(**arguments)

    def ended(self, number, *statuses):
        def is_over():
            (job,) = self.app.job_manager.list_jobs(id=number)
            return job.status in (statuses or {"succeeded", "failed", "aborted"})

        assert wait_until(is_over, LONG)
        (job,) = self.app.job_manager.list_jobs(id=number)
        return job.status

    def notes(self):
        path = self.folder / "notes.txt"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stall(project, database, worker):
    """A project with its own worker."""
    made = Project(project({"shop.py": SHOP}), database, worker)
    with made.app.open():
        yield made


def test_the_worker_command_asks_plugins(stall, tmp_path):
    """``procrastinate worker`` starts and stops plugins, and what fails is recorded."""
    url = f"sqlite:///{tmp_path / 'failures.db'}"
    env = {"QTASKS_PLUGGY_ENABLE": "failures", "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": url}
    worker = stall.work(**env)
    sent = [("parse", "1"), ("parse", "zero"), ("parse_async", "zero"), ("parse_async", "many")]
    ids = [stall.send(name, text=text) for name, text in sent]
    assert ["succeeded"] * 3 + ["failed"] == [stall.ended(one) for one in ids]
    assert 0 == worker.terminate()
    assert ["start", "stop"] == [one for one in stall.notes() if not one.startswith("parse")]
    assert "worker_asks_plugins" in worker.log()
    found = {run.uuid: run.status for run in Reader(read_url(url)).runs(Filters())}
    assert ["recovered", "recovered", "failed"] == [found[str(one)] for one in ids[1:]]
    assert 3 == len(found)


def test_the_page_s_project_works_as_it_says(stall, project, database):
    """How-to: a job that would have failed has succeeded."""
    project({"shop.py": module_of("use-procrastinate.md", {"dbname=shop": database})})
    stall.work()
    assert "succeeded" == stall.ended(stall.send("shop.parse", text="many"))


DJANGO = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        execute_from_command_line(sys.argv)
    """,
    "settings.py": """
        import os
        from psycopg.conninfo import conninfo_to_dict
        SECRET_KEY = "of nothing"
        USE_TZ = True
        INSTALLED_APPS = ["procrastinate.contrib.django", "shop"]
        server = conninfo_to_dict(os.environ["SHOP_URL"])
        DATABASES = {"default": {
            "ENGINE": "django.db.backends.postgresql",
            **{key.upper(): server.get(key, "") for key in ("host", "port", "user", "password")},
            "NAME": server["dbname"],
        }}
        PROCRASTINATE_ON_APP_READY = "shop.plugins.install_in"
    """,
    "shop/__init__.py": "",
    "shop/tasks.py": """
        from procrastinate.contrib.django import app

        @app.task(name="parse")
        def parse(text):
            return int(text)
    """,
    "shop/plugins.py": """
        from qtasks_hookspecs import on_error
        from qtasks_pluggy.engines.procrastinate import install

        @on_error(ValueError)
        def use_zero():
            return 0

        def install_in(app):
            install(app, ["shop.plugins"], discover=False)
    """,
}


def test_a_django_project_installs_when_its_app_is_ready(stall, project, worker):
    """How-to: ``manage.py procrastinate worker`` asks the plugins that the setting installs."""
    pytest.importorskip("django")
    project(DJANGO)
    command = (sys.executable, "manage.py", "procrastinate", "worker", "-q", stall.queue)
    worker(*command, cwd=stall.folder, env=stall.env)
    assert "succeeded" == stall.ended(stall.send("parse", text="many"))


def test_the_worker_command_ends_where_a_plugin_cannot_start(stall):
    """It ends with an error code, its log says why, and no job was taken."""
    number = stall.send("parse", text="1")
    worker = stall.work(NO_LICENCE="1")
    assert 1 == worker.wait(LONG)
    assert "LookupError: no licence" in worker.log()
    assert "worker_cannot_start" in worker.log()
    stall.work()
    assert "succeeded" == stall.ended(number)
