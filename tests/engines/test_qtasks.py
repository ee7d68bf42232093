"""Plugins for a QTasks app's tasks: its own worker command over Redis, plain and async alike."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import re
import sys
import traceback
import weakref
from pathlib import Path
from uuid import uuid4

import pytest
import qtasks
from qtasks.asyncio import QueueTasks as NativeApp
from qtasks.exc import TaskCancelError as NativeCancelError
from qtasks.exc import TaskPluginTriggerError as NativeTriggerError
from qtasks.plugins.base import BasePlugin
from qtasks.schemas.task_exec import TaskPrioritySchema
from redis import Redis

from qtasks_hookspecs import Cancel, Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskMessage
from qtasks_pluggy._plugins.adapter import QTASKS_TRIGGERS
from qtasks_pluggy.cli.hooks import HOOKS
from qtasks_pluggy.engines import executor_for, installed_in
from qtasks_pluggy.engines.qtasks import install
from qtasks_pluggy.exc import PluginRegistrationError
from qtasks_pluggy.failures.connection import StoreError, read_url
from qtasks_pluggy.failures.queries import Filters, Reader
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.pages import module_of
from tests.engines.plugins import Ends
from tests.engines.processes import wait_until
from tests.engines.versions import is_older

pytestmark = pytest.mark.engines

# The page of QTasks that this project comes from, with what it leaves out: imports, and where the
# plugin goes. Its sync twin has the same lines without ``async``.
PAGE = """
    import os
    from qtasks{asyncio} import QueueTasks
    from qtasks.plugins.base import BasePlugin
    from qtasks.registries import {kind}
    from qtasks.exc import TaskPluginTriggerError

    app = QueueTasks(name=os.environ["SHOP"], broker_url=os.environ["SHOP_URL"])
    {turns}

    @app.task(echo=True)
    {async_}def test_task(self: {kind}):
        self.ctx.plugin_error(message="Non-standard situation")

    @app.task
    {async_}def direct():
        raise TaskPluginTriggerError("Direct error")

    @app.task
    {async_}def bug():
        raise ValueError("a bug")

    class TestPlugin(BasePlugin):
        def __init__(self, name=None):
            super().__init__(name)
            self.handlers = {{"task_executor_run_task_trigger_error": self.task_trigger_error}}

        {async_}def start(self, *args, **kwargs):
            return super().start(*args, **kwargs)

        {async_}def stop(self, *args, **kwargs):
            return super().stop(*args, **kwargs)

        {async_}def trigger(self, name, **kwargs):
            handler = self.handlers.get(name)
            if handler:
                return handler(**kwargs)
            return None

        def task_trigger_error(self, **kwargs):
            print(kwargs)
            return 123

    from qtasks_pluggy.engines.qtasks import install
    install(app, plugins=[TestPlugin()])
"""
SHOP = """
    import os, sys
    from qtasks{asyncio} import QueueTasks
    from qtasks.exc import TaskPluginTriggerError
    from qtasks.executors import {kind}Executor
    from qtasks.registries import {kind}
    from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl, on_error
    from qtasks_pluggy.engines.qtasks import install

    app = QueueTasks(name=os.environ["SHOP"], broker_url=os.environ["SHOP_URL"])
    attempts = []

    @app.task
    {async_}def fine(number, extra=1):
        return number + extra

    @app.task(tags=["prices"], shelf=7)
    {async_}def fail(name):
        attempts.append(name)
        raise LookupError(name)

    @app.task(executor={kind}Executor)
    {async_}def has_its_own_executor():
        raise LookupError("zero")

    @app.task(echo=True)
    {async_}def asks(self, **kwargs):
        self.ctx.plugin_error(message="nobody knows", **kwargs)

    @app.task(echo=True)
    {async_}def cancels(self):
        self.ctx.cancel("by the task")

    @app.task(echo=True)
    {async_}def gives(self: {kind}, first, second=2):
        return [type(self).__name__, first, second]

    @app.task
    {async_}def yields(number):
        yield number
        raise TaskPluginTriggerError("late", code="zero")

    @on_error(LookupError)
    def decide(error, task_broker, task_func):
        name = str(error.args[0])
        answers = {{
            "zero": 0, "none": Replace(None), "raise": Raise(OSError("clearer")),
            "cancel": Cancel("why"), "dead": DeadLetter("why"), "object": object(),
            "tags": [*task_func.tags, task_func.extra, task_broker.attempt, task_broker.priority],
        }}
        if name == "third" and task_broker.attempt == 3:
            return task_broker.attempt
        if name in {{"third", "spent"}}:
            return Retry(delay=0.01, limit=2)
        return answers.get(name)

    @hookimpl
    def task_executor_run_task_trigger_error(e):
        return {{"zero": 0, "kind": e.message}}.get(e.kwargs.get("code"))

    @hookimpl
    def task_executor_args_replace(task_func, args, kwargs):
        return ((10,), kwargs) if task_func.name == "fine" and args == (9,) else None

    @hookimpl
    def task_executor_task_close(task_executor, task_broker, outcome):
        if task_broker.args == ("again",):
            print("replayed as", task_executor.app.replay(task_broker, args=("zero",)))
        print("close", task_broker.name, *task_broker.args, outcome.status, outcome.attempt)
        print("ended", task_broker.uuid)

    @hookimpl
    def qtasks_start():
        print("start")
        if "NO_LICENCE" in os.environ:
            raise LookupError("no licence")

    @hookimpl
    def qtasks_stop():
        print("stop")

    install(app, [sys.modules[__name__]], discover=False)
"""
# The threads of QTasks' plain worker sleep with the lock that a new run needs, and take it again at
# once: on a busy machine a run waits for a minute. Here each waits for its turn, and sleeps less.
TURNS = """
    import time
    from threading import Lock
    from qtasks.workers import sync_worker

    class Turns:
        def __init__(self):
            self.next, self.held = Lock(), Lock()

        def __enter__(self):
            with self.next:
                self.held.acquire()

        def __exit__(self, *_):
            self.held.release()

    def take(app):
        app.worker.lock = Turns()
        sync_worker.sleep = lambda seconds: time.sleep(seconds / 10)
"""
KINDS = {
    "async": {"asyncio": ".asyncio", "async_": "async ", "kind": "AsyncTask", "turns": ""},
    "sync": {
        "asyncio": "",
        "async_": "",
        "kind": "SyncTask",
        "turns": "import turns; turns.take(app)",
    },
}


class Project:
    """A project whose tasks are run by QTasks' own command."""

    def __init__(self, folder, url, worker):
        self.folder, self._worker = folder, worker
        self.name = f"q{uuid4().hex}"
        self.env = {"SHOP": self.name, "SHOP_URL": url, "PYTHONUNBUFFERED": "1"}
        self.redis = Redis.from_url(url, decode_responses=True)

    def work(self, module="shop", **env):
        command = (sys.executable, "-m", "qtasks", "-A", f"{module}:app", "run")
        self.worker = self._worker(*command, cwd=self.folder, env=self.env | env)
        return self.worker

    def send(self, name, *args, **kwargs):
        """Add a task, as QTasks does from anywhere; return its id."""
        uuid = str(uuid4())
        new = {"task_name": name, "status": "new", "priority": 0, "created_at": 1.0}
        new |= {"updated_at": 1.0, "args": json.dumps(args), "kwargs": json.dumps(kwargs)}
        self.redis.hset(f"{self.name}:{uuid}", mapping=new)
        self.redis.rpush(f"{self.name}:task_queue", f"{name}:{uuid}:0")
        return uuid

    def run(self, name, *args, **kwargs):
        """Have a task run; return its status, and its result or what says why it has none.

        The plain worker of QTasks now and then forgets to store an end; then it is asked again.
        """

        def is_over():
            return self.redis.hget(key, "status") in {"success", "error", "cancel"}

        for _ in range(1 if self.kind == "AsyncTask" else 4):
            key = f"{self.name}:{self.send(name, *args, **kwargs)}"
            if wait_until(is_over, LONG / 2):
                break
        else:
            pytest.fail(f"{self.redis.hgetall(key)}\n{self.worker.log()}")
        found = self.redis.hgetall(key)
        if found["status"] == "success":
            return "success", json.loads(found["returning"])
        said = found.get("cancel_reason") or found["traceback"].strip().splitlines()
        return found["status"], said if isinstance(said, str) else said[-1]


@pytest.fixture(params=KINDS)
def shop(request, project, redis_url, worker):
    """A project on QTasks, async and its plain twin."""
    files = {"shop.py": SHOP.format(**KINDS[request.param]), "turns.py": TURNS}
    files["page.py"] = PAGE.format(**KINDS[request.param])
    made = Project(project(files), redis_url, worker)
    made.kind = KINDS[request.param]["kind"]
    yield made
    made.redis.close()


def test_the_page_s_example(shop):
    """What the page says: the plugin's value is the task's result; here for every error."""
    worker = shop.work("page")
    for name in ("test_task", "direct", "bug"):
        assert ("success", 123) == shop.run(name)
    assert "handler='trigger'" in worker.log()


NATIVE = 'app.add_plugin(TestPlugin(), component="worker")\ninstall(app, discover=False)'
MIXED = """
from qtasks_hookspecs import on_error

class Bugs:
    name = "bugs"

    @on_error(ValueError)
    def fix(self):
        return "fixed"

install(app, plugins=[Bugs(), TestPlugin()], discover=False, intercept={intercept})
"""
FAILED = ("error", "ValueError: a bug")


@pytest.mark.parametrize(
    ("lines", "returned", "result", "bug"),
    [
        (NATIVE, {"result": 123}, 123, FAILED),
        (MIXED.format(intercept="()"), 123, 123, FAILED),
        (MIXED.format(intercept="TaskPluginTriggerError"), 123, 123, ("success", "fixed")),
        ("install(app, plugins=['page:plugin'])", {"result": 1}, {"result": 1}, None),
    ],
    ids=["left", "intercept-nothing", "intercept-own", "a-dict"],
)
def test_a_plugin_of_qtasks(shop, project, lines, returned, result, bug):
    """Left in QTasks it works as before; given to ``install``, ``intercept=`` narrows it."""
    head = shop.folder.joinpath("page.py").read_text().partition("install(app")[0]
    head = head.replace("return 123", f"return {returned}") + "plugin = TestPlugin()\n"
    project({"page.py": head + lines})
    shop.work("page")
    assert ("success", result) == shop.run("test_task")
    assert (bug or ("success", result)) == shop.run("bug")


class Plugin(BasePlugin):
    """A plugin of QTasks that waits for the worker's start."""

    def __init__(self, trigger="worker_start"):
        super().__init__()
        self.handlers = {trigger: None}

    def start(self, *_, **__):
        """Do nothing."""

    stop = trigger = start


@pytest.mark.parametrize("trigger", ["worker_start", "task_executor_run_task_gen"])
def test_a_trigger_that_only_qtasks_calls(trigger):
    """``install`` refuses a plugin that has one, and says where to leave the plugin."""
    app = NativeApp(name="shop", broker_url="redis://localhost:1/0")
    with pytest.raises(PluginRegistrationError) as caught:
        install(app, [Plugin(trigger)], discover=False)
    assert f"QTasks calls the trigger {trigger!r} itself" in str(caught.value)
    assert "leave the plugin in QTasks' add_plugin()" in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_the_list_of_qtasks_triggers():
    """It has those that the installed release calls, and no name that QTasks never had."""
    called = {
        name
        for source in Path(qtasks.__file__).parent.rglob("*.py")
        for name in re.findall(r"_plugin_trigger\(\s*\"(\w+)\"", source.read_text("utf-8"))
    }
    assert called - QTASKS_TRIGGERS <= HOOKS.keys()
    assert not QTASKS_TRIGGERS & HOOKS.keys()
    # QTasks 1.6 does not have it.
    assert QTASKS_TRIGGERS - called <= {"stats_inspect"}


def test_a_plugin_of_qtasks_in_an_app_of_this_project():
    """The error says which ``BasePlugin`` it takes."""
    with pytest.raises(PluginRegistrationError, match="import BasePlugin from qtasks_pluggy"):
        QueueTasks("shop", plugins=[Plugin()], discover=False)


def test_plugins_are_asked_about_a_past_run():
    """What ``replay --dry-run`` of recorded failures does: the task is not called."""
    app = NativeApp(name="shop", broker_url="redis://localhost:1/0")
    app.task(name="parse")(lambda text: text)
    install(app, [Keeps("answer")], discover=False)
    executor = executor_for(installed_in(app), TaskMessage("parse", ("many",)))
    outcome = executor.ask_about_sync(ValueError("many"))
    assert ("recovered", "keeps") == (outcome.status, outcome.decided_by)


def called(app, name):
    """Call a task as QTasks' worker does, but without its storage."""
    sent = TaskPrioritySchema(priority=0, uuid=uuid4(), name=name)
    return app.worker.task_executor(task_func=app.tasks[name], task_broker=sent).run_task()


def executed(app, name, *args):
    """Execute a task as QTasks' worker does; return the error that it ends with, if any."""
    sent = TaskPrioritySchema(priority=0, uuid=uuid4(), name=name, args=list(args))
    executor = app.worker.task_executor(task_func=app.tasks[name], task_broker=sent)
    try:
        ended = executor.execute()
        if inspect.iscoroutine(ended):
            asyncio.run(ended)
    except Exception as error:
        return error


BOTH = pytest.mark.parametrize("kind", [qtasks.QueueTasks, NativeApp], ids=["plain", "async"])


@BOTH
def test_the_view_of_an_echo_task_is_no_parameter_of_the_function(kind):
    """What plugins know of the function fits the arguments they see, for any parameter names."""
    app, seen = kind(name="shop", broker_url="redis://localhost:1/0"), []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_executor, task_func):
            known = inspect.signature(task_func.func)
            seen.append((dict(known.bind(*task_executor.args).arguments), task_func.is_async))

    def login(this, user, password):
        assert this.ctx

    async def login_async(this, user, password):
        assert this.ctx

    is_async = kind is NativeApp
    app.task(name="login", echo=True)(login_async if is_async else login)
    install(app, [Looks()], discover=False)
    assert executed(app, "login", "ann", "secret") is None
    assert [({"user": "ann", "password": "secret"}, is_async)] == seen


@BOTH
@pytest.mark.parametrize("echo", [True, False])
def test_runs_share_what_plugins_know_of_their_task(kind, echo):
    """All runs of a task have one ``task_func``, and nothing holds a run that is over."""
    app, known, over = kind(name="shop", broker_url="redis://localhost:1/0"), [], []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_func, task_broker):
            known.append(task_func)
            over.extend([weakref.ref(task_broker), weakref.ref(task_broker.args[0])])

    def look(*args):
        """Do nothing."""

    async def look_async(*args):
        """Do nothing."""

    app.task(name="look", echo=echo)(look_async if kind is NativeApp else look)
    install(app, [Looks()], discover=False)
    for _ in range(2):
        assert executed(app, "look", Argument()) is None
    gc.collect()
    assert known[0] is known[1]
    assert [None] * 4 == [one() for one in over]


class Argument:
    """An argument of a run, which is gone after it."""


@BOTH
def test_qtasks_knows_the_plugin_that_follows_its_worker_by_our_name(kind):
    """What QTasks logs about it names this project."""
    app = kind(name="shop", broker_url="redis://localhost:1/0")
    install(app, [], discover=False)
    plugins = {plugin.name for of in app.worker.plugins.values() for plugin in of}
    assert "qtasks_pluggy" in plugins
    assert "qtasks" not in plugins


@BOTH
def test_a_trigger_error_has_the_frames_of_its_task(kind):
    """Failures of one task from two places are two groups, also where QTasks' error is replaced."""
    app, outcomes = kind(name="shop", broker_url="redis://localhost:1/0"), []

    class Looks:
        @hookimpl
        def task_executor_attempt_ended(self, outcome):
            outcomes.append(outcome)

    def sold_out():
        raise NativeTriggerError("sold out")

    def unknown():
        raise NativeTriggerError("unknown")

    def find(name):
        (sold_out if name == "tea" else unknown)()

    async def find_async(name):
        find(name)

    app.task(name="find")(find_async if kind is NativeApp else find)
    install(app, [Looks()], discover=False)
    errors = [executed(app, "find", name) for name in ("tea", "tea", "milk")]
    assert [NativeTriggerError] * 3 == [type(error) for error in errors]
    tea, again, milk = [outcome.fingerprint for outcome in outcomes]
    assert tea == again != milk
    frames = [one.name for one in traceback.extract_tb(outcomes[0].error.__traceback__)]
    assert ["find", "sold_out"] == frames[-2:]


@BOTH
def test_a_run_that_calls_another_is_retried_itself(kind):
    """A task may execute another one in its own context; a retry calls the outer one again."""
    app, calls = kind(name="shop", broker_url="redis://localhost:1/0"), []

    def outer():
        calls.append("outer")
        called(app, "inner")
        return ends()

    async def outer_async():
        calls.append("outer")
        await called(app, "inner")
        return ends()

    def ends():
        if len(calls) < 4:
            raise OSError("again")
        return "outer"

    def inner():
        calls.append("inner")

    async def inner_async():
        calls.append("inner")

    is_async = kind is NativeApp
    app.task(name="outer")(outer_async if is_async else outer)
    app.task(name="inner")(inner_async if is_async else inner)
    install(app, [Keeps(Retry())], discover=False)

    async def run():
        return await called(app, "outer")

    assert "outer" == (asyncio.run(run()) if is_async else called(app, "outer"))
    assert ["outer", "inner"] * 2 == calls


@pytest.fixture
def failing():
    """Make an async app with a task that fails, and these plugins."""

    def make(*plugins):
        app = NativeApp(name="shop", broker_url="redis://localhost:1/0")

        async def fail():
            raise OSError("own")

        app.task(name="fail")(fail)
        install(app, plugins, discover=False)
        return app

    return make


async def test_r16_a_run_that_is_cancelled_between_attempts_has_an_end(failing):
    """R16: plugins that saw an attempt see the end, and the caller is cancelled."""
    ends = Ends()
    app = failing(Keeps(Retry(delay=LONG)), ends)
    caller = asyncio.ensure_future(called(app, "fail"))
    while not ends.attempts:
        await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert [("retried", 1, "keeps")] == ends.attempts
    assert ["cancelled"] == ends.runs


async def test_a_cancelled_run_names_the_task_s_own_error(failing):
    """QTasks' own error leads to it, for QTasks' plugins and logs."""
    with pytest.raises(NativeCancelError, match="why") as caught:
        await called(failing(Keeps(Cancel("why"))), "fail")
    assert "own" == str(caught.value.__cause__.__cause__)


def test_a_plugin_that_cannot_be_imported():
    """``install`` refuses its name at once."""
    app = NativeApp(name="shop", broker_url="redis://localhost:1/0")
    with pytest.raises(PluginRegistrationError, match="'no_such_module:plugin' cannot be imported"):
        install(app, ["no_such_module:plugin"], discover=False)


def test_the_page_s_project_works_as_it_says(shop, project, redis_url):
    """How-to: two lines, and both kinds of error have the plugin's result."""
    servers = {'"shop"': repr(shop.name), "redis://localhost:6379/0": redis_url}
    project({"shop.py": module_of("use-qtasks.md", servers)})
    shop.kind = "AsyncTask"
    shop.work()
    assert ("success", "call us (no price for tea)") == shop.run("price", "tea")
    assert ("success", 0) == shop.run("parse", "many")


def test_what_plugins_decide(shop):
    """Each decision, in the words of QTasks' own storage; a worker's log says who asked."""
    ends = {
        "zero": ("success", 0),
        "none": ("success", None),
        "third": ("success", 3),
        "tags": ("success", ["prices", {"shelf": 7}, 1, 0]),
        "spent": ("error", "LookupError: spent"),
        "raise": ("error", "OSError: clearer"),
        "cancel": ("cancel", "why"),
        # QTasks has no place for it.
        "dead": ("error", "LookupError: dead"),
        # R7: it is no JSON.
        "object": ("error", "LookupError: object"),
        "other": ("error", "LookupError: other"),
    }
    worker = shop.work()
    found = {name: shop.run("fail", name) for name in ends}
    notes = {name: end for name, end in found.items() if end[1:] != ends[name][1:]}
    assert set(notes) <= {"dead", "object"}, found
    for name in notes:
        assert "error" == found[name][0]
    log = worker.log()
    for name, status, attempt in (
        ("zero", "recovered", 1),
        ("third", "recovered", 3),
        ("spent", "failed", 3),
        ("cancel", "cancelled", 1),
        ("dead", "failed", 1),
    ):
        assert f"close fail {name} {status} {attempt}" in log
    assert ("success", 0) == shop.run("has_its_own_executor")
    for event in ("worker_asks_plugins app=", "task_error_decided task='fail'"):
        assert f"(qtasks_pluggy) {event}" in worker.log()


def test_what_is_qtasks_own_stays_so(shop):
    """Results, echo, its errors with keywords, generators, cancellation, and arguments of ours."""
    shop.work()
    if shop.kind == "AsyncTask" or not is_older("qtasks", "1.7"):
        # There a plain one drops positional arguments that are sent with keywords.
        assert ("success", 3) == shop.run("fine", 1, extra=2)
        assert ("success", 12) == shop.run("fine", 9, extra=2)
        assert ("success", [shop.kind, 1, 3]) == shop.run("gives", 1, second=3)
        assert ("success", 0) == shop.run("asks", code="zero")
        assert ("success", "nobody knows") == shop.run("asks", code="kind")
    assert ("success", 0) == shop.run("yields", 1)
    status, said = shop.run("asks")
    assert "error" == status
    assert said.startswith("qtasks.exc.plugins.TaskPluginTriggerError")
    assert ("cancel", "by the task") == shop.run("cancels")


def test_a_plugin_sends_a_run_again(shop):
    """``app.replay`` adds the task anew; plain code gets the id that QTasks gives it."""
    worker = shop.work()
    shop.run("fail", "again")
    assert wait_until(lambda: "close fail zero recovered" in worker.log(), LONG)
    (new,) = re.findall(r"replayed as (\S+)", worker.log())
    if shop.kind == "AsyncTask":
        # It is added on this very loop, after the attempt.
        assert "None" == new
    else:
        assert wait_until(lambda: f"ended {new}" in worker.log(), LONG)


def test_a_worker_whose_plugin_cannot_start_ends(shop):
    """The command ends with an error code, and its log says why."""
    worker = shop.work(NO_LICENCE="1")
    assert 1 == worker.wait(LONG)
    assert "worker_cannot_start" in worker.log()
    assert "LookupError: no licence" in worker.log()


def test_a_worker_without_tasks_is_refused(shop, project):
    """A worker in which ``install`` covers nothing takes no run, and says why."""
    sources = shop.folder.joinpath("shop.py").read_text()
    begin, end = sources.index("@app.task\n"), sources.index("@on_error")
    project({"shop.py": sources[:begin] + sources[end:]})
    worker = shop.work()
    assert 1 == worker.wait(LONG)
    assert "covers no task" in worker.log()


def test_what_fails_is_recorded(shop, tmp_path):
    """``enable=["failures"]`` in the worker's environment records each failing task."""
    url = f"sqlite:///{tmp_path / 'failures.db'}"
    enabled = {"QTASKS_PLUGGY_ENABLE": "failures", "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": url}
    shop.work(**enabled)
    names = ("zero", "other", "cancel")
    ids = [shop.send("fail", name) for name in names]

    def statuses():
        try:
            found = {run.uuid: run.status for run in Reader(read_url(url)).runs(Filters())}
        except StoreError:  # nothing yet
            return []
        return [found.get(one) for one in ids]

    assert wait_until(lambda: ["recovered", "failed", "cancelled"] == statuses(), LONG)
