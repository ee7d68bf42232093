"""Plugins for Django's tasks: in this process, and in a database worker's."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from importlib.util import find_spec
from threading import Event
from types import SimpleNamespace

import pytest
import structlog
from django.utils import timezone

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import TaskMessage
from qtasks_pluggy.engines import executor_for, installed_in
from qtasks_pluggy.engines.django import task_started
from qtasks_pluggy.exc import TaskNameError
from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.queries import Filters, Reader
from tests.engines import django_apps
from tests.engines.django_apps import Immediate, fail, fail_async, seen
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.pages import files_of
from tests.engines.plugins import Ends

pytestmark = pytest.mark.engines


@pytest.fixture
def plugged():
    """Give the backend the plugins of a test, and none afterwards."""
    native = Immediate.qtasks_pluggy_app

    def take(*plugins, intercept=Exception):
        native.take(plugins, discover=False, intercept=intercept)

    seen.clear()
    yield take
    take()


def ended(result):
    """Return how Django has a task ended: its value, or its error's class."""
    if result.errors:
        assert "FAILED" == result.status
        return result.errors[0].exception_class_path.rpartition(".")[2]
    assert result.is_finished
    return result.return_value


@pytest.mark.parametrize("task", [fail, fail_async])
@pytest.mark.parametrize("answer", [7, 0, Replace(None), Replace([])])
def test_an_answer_is_the_task_s_result(plugged, task, answer):
    """A plugin's answer is the return value, of plain and of async tasks."""
    plugin, ends = Keeps(answer), Ends()
    plugged(plugin, ends)
    result = task.enqueue("broken", kind=1)
    assert getattr(answer, "value", answer) == ended(result)
    (message,) = plugin.messages
    known = (message.name, message.args, dict(message.kwargs), message.uuid, message.attempt)
    assert (f"tests.engines.django_apps.{task.name}", ("broken",), {"kind": 1}) == known[:3]
    assert (str(result.id), 1) == known[3:]
    assert ("default", 0, "django") == (message.queue, message.priority, message.engine)
    assert [("recovered", 1, "keeps")] == ends.attempts
    assert ["recovered"] == ends.runs


@pytest.mark.parametrize("task", [fail, fail_async])
@pytest.mark.parametrize(
    ("decision", "error", "status"),
    [
        (None, "OSError", "failed"),
        (Raise(LookupError("clearer")), "LookupError", "failed"),
        (Cancel("why"), "TaskCancelError", "cancelled"),
        # The immediate backend keeps no results, so it has no place for one.
        (DeadLetter("why"), "OSError", "failed"),
    ],
)
def test_ends_are_django_s_own(plugged, task, decision, error, status):
    """What is decided is the error that Django stores with the failed result."""
    ends = Ends()
    plugged(Keeps(decision), ends)
    result = task.enqueue()
    assert error == ended(result)
    assert ["broken"] == seen
    assert [status] == ends.runs
    # R6: as without plugins, but for two frames.
    if decision is None:
        assert result.errors[0].traceback.count("qtasks_pluggy/") <= 2


def test_a_plugin_keeps_a_dead_letter(plugged):
    """Where a plugin keeps it, the backend needs no place."""

    class Keeper:
        @hookimpl
        def task_executor_dead_letter(self):
            return True

    plugged(Keeps(DeadLetter("why")), Keeper())
    assert "TaskDeadLetteredError" == ended(fail.enqueue())


@pytest.mark.parametrize("task", [fail, fail_async])
def test_plugins_retry_tasks(plugged, task):
    """A retry is another attempt in place, counted; afterwards the next run begins with 1."""
    plugin, ends = Keeps(Retry(), Retry(delay=0.01), "third", "next"), Ends()
    plugged(plugin, ends)
    assert ["third", "next"] == [ended(task.enqueue()) for _ in range(2)]
    assert [1, 2, 3, 1] == [message.attempt for message in plugin.messages]
    assert ["retried", "retried", "recovered"] == [status for status, _, _ in ends.attempts[:3]]
    assert ["recovered"] * 2 == ends.runs


def test_spent_retries_end_in_the_task_s_own_error(plugged):
    """``Retry(limit=2)`` is two retries."""
    plugin = Keeps(*[Retry(limit=2)] * 3)
    plugged(plugin)
    assert "OSError" == ended(fail.enqueue())
    assert ["broken"] * 3 == seen
    assert ["start", "failed", "close"] == plugin.heard


def test_r7_an_answer_that_is_no_json_is_void(plugged):
    """R7: the plugin has failed, and the last other answer wins."""
    wrong = Keeps(object())
    wrong.name = "wrong"
    plugged(Keeps("other"), wrong)
    with structlog.testing.capture_logs() as logs:
        assert "other" == ended(fail.enqueue())
    assert "cannot be stored" in str(logs)


def test_what_is_intercepted_can_be_narrowed(plugged):
    """``intercept`` names the errors that plugins are asked about."""
    plugin = Keeps("never")
    plugged(plugin, intercept=LookupError)
    assert "OSError" == ended(fail.enqueue())
    assert [] == plugin.messages


def test_a_context_is_the_task_s_alone(plugged):
    """A task that takes Django's context gets it, and plugins see the other arguments."""
    plugin = Keeps("answer")
    plugged(plugin)
    result = django_apps.fail_with_context.enqueue("broken")
    assert "answer" == ended(result)
    (message,) = plugin.messages
    assert (("broken",), "low", 7) == (message.args, message.queue, message.priority)
    assert f"broken {result.id}" == str(plugin.causes[0])


def test_a_generator_takes_a_context(plugged):
    """Its result is the list of its items, as without a context."""
    plugged()
    assert [1, 2] == ended(django_apps.yields_with_context.enqueue(1, 2))


def test_a_context_is_no_parameter_of_the_function(plugged):
    """What plugins know of the function fits the arguments that they see."""
    functions = []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_func):
            functions.append(task_func.func)

    plugged(Looks())
    for task in (django_apps.fail_with_context, fail_async):
        task.enqueue("broken")
    parameters = [list(inspect.signature(function).parameters) for function in functions]
    assert [["text"], ["text", "more"]] == parameters
    assert {django_apps.__name__} == {function.__module__ for function in functions}


@pytest.mark.parametrize("task", [fail, fail_async, django_apps.fail_with_context])
def test_runs_share_what_plugins_know_of_their_task(plugged, task):
    """All runs of a task have one ``task_func``."""
    known = []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_func):
            known.append(task_func)

    plugged(Looks())
    for _ in range(2):
        task.enqueue("broken")
    assert known[0] is known[1]


def test_calls_are_a_function_s(plugged):
    """``task.call()`` and ``task.func()`` ask no plugin, within a run too; another run does."""
    plugin = Keeps("answer", "answer")
    plugged(plugin)
    good = str(fail.enqueue("first").status)
    with pytest.raises(OSError, match="outside"):
        fail.call("outside")
    assert ["inner", "inner", good] == ended(django_apps.calls_others.enqueue())
    assert [("first",), ("own run",)] == [message.args for message in plugin.messages]


@pytest.mark.parametrize("task", [django_apps.binds, django_apps.binds_async])
def test_r19_no_run_sees_what_another_has_bound(plugged, task):
    """R19: each run begins in a copy of the process's context."""
    plugged()
    assert ["nothing"] * 2 == [ended(task.enqueue()) for _ in range(2)]


async def test_a_task_is_enqueued_from_async_code(plugged):
    """``aenqueue`` asks plugins as ``enqueue`` does."""
    plugged(Keeps("one", "two"))
    assert "one" == ended(await fail.aenqueue())
    assert "two" == ended(await fail_async.aenqueue())
    with pytest.raises(OSError, match="outside"):
        await fail_async.acall("outside")


async def called(task, *args, name="run"):
    """Call a task as an async worker does."""
    announced = SimpleNamespace(task=task, id=name, enqueued_at=timezone.now(), status="")
    task_started.send(Immediate, task_result=announced)
    return await task.acall(*args)


async def test_an_async_task_does_not_wait_for_plain_ones(plugged):
    """It ends while a plain task of the process is still at work."""
    plugged()
    event = Event()
    plain = asyncio.create_task(called(django_apps.waits, event))
    try:
        while not seen:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(called(django_apps.gives_its_loop), LONG)
        assert not plain.done()
    finally:
        event.set()
        await plain


async def test_an_async_worker_does_runs_side_by_side(plugged):
    """An async worker may await several runs by ``acall``, and plugins are asked about each."""
    plugin = Keeps("one", "two")
    plugged(plugin)
    barrier = asyncio.Barrier(2)
    runs = [
        called(django_apps.meets, "context", barrier, name=name) for name in ("first", "second")
    ]
    ran = asyncio.gather(*runs)
    assert ["one", "two"] == sorted(await asyncio.wait_for(ran, LONG))
    assert {"first", "second"} == {message.uuid for message in plugin.messages}
    assert [(barrier,)] * 2 == [message.args for message in plugin.messages]


async def test_r16_a_cancelled_task_is_not_tried_again(plugged):
    """R16: after the client has gone, no plugin decides about the clean-up's own error."""
    plugin, ends = Keeps(Retry(limit=2)), Ends()
    plugged(plugin, ends)
    caller = asyncio.create_task(django_apps.stops_badly.aenqueue())
    while not seen:
        await asyncio.sleep(0.01)
    caller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await caller
    assert ["began"] == seen
    assert [] == plugin.messages
    assert ["failed"] == ends.runs


def test_async_plugins_share_the_loop_of_an_async_task(plugged):
    """What a task holds on its event loop, an async hook can use."""
    loops = []

    class Looks:
        @hookimpl
        async def task_executor_task_close(self, task_func):
            loops.append(asyncio.get_running_loop())
            assert task_func.is_async

    plugged(Looks())
    result = django_apps.gives_its_loop.enqueue()
    assert [id(loop) for loop in loops] == [ended(result)]


class Replays:
    """Sends each run that failed again, with other arguments, to a task that succeeds."""

    def __init__(self):
        self.ids, self.errors = [], []

    @hookimpl
    def task_executor_task_failed(self, task_executor, task_broker):
        import attrs

        app = task_executor.app
        for name, kept in (("nowhere.price", self.errors), (django_apps.fine.module_path, [])):
            message = attrs.evolve(task_broker, name=name, uuid=task_broker.uuid)
            try:
                self.ids.append(app.replay(message, args=(1,), kwargs={"priority": 2}))
            except TaskNameError as error:
                kept.append(str(error))


def test_a_plugin_sends_a_run_again(plugged):
    """``app.replay`` enqueues the task, and returns the id that Django gives the new run."""
    plugin, ran = Replays(), []

    class Looks:
        @hookimpl
        def task_executor_task_close(self, task_executor, task_broker):
            ran.append((str(task_broker.uuid), task_executor.result))

    plugged(plugin, Looks())
    result = fail.enqueue()
    assert [[1, {"priority": 2}]] == [value for uuid, value in ran if uuid in plugin.ids]
    assert {str(result.id), *plugin.ids} == {uuid for uuid, _ in ran}
    assert "nowhere.price" in plugin.errors[0]


def test_plugins_are_asked_about_a_past_run(plugged):
    """What ``replay --dry-run`` of recorded failures does: the task is not called."""
    plugged(Keeps("answer"))
    message = TaskMessage(fail.module_path, ("broken",))
    outcome = executor_for(installed_in(Immediate), message).ask_about_sync(OSError("broken"))
    assert ("recovered", "keeps") == (outcome.status, outcome.decided_by)
    assert [] == seen


def test_a_client_finds_the_app_of_a_backend(plugged):
    """``installed_in`` knows the class, and the backend that Django made of it."""
    plugged(Keeps())
    for native in (Immediate, django_apps.backends["default"]):
        assert ["keeps"] == [one.name for one in installed_in(native).plugins.list_plugin_info()]
    assert installed_in(django_apps.backends["bare"]) is None


def test_faults_of_plugins_are_faults_of_the_project(monkeypatch):
    """Django's system check names what is wrong with plugins, and commands refuse to begin."""
    backend = django_apps.install(django_apps.IMMEDIATE, discover=False)("own", {})
    assert [] == list(backend.check())
    monkeypatch.setenv("QTASKS_PLUGGY_ENABEL", "failures")
    (error,) = backend.check()
    assert "QTASKS_PLUGGY_ENABEL" in error.msg
    assert "qtasks_pluggy.E001" == error.id


@pytest.mark.parametrize("given", [None, object, "django.utils.timezone.now"])
def test_install_refuses_what_is_no_backend(given):
    """The error names what is not a task backend class."""
    with pytest.raises(TypeError, match="expected a task backend class, got"):
        django_apps.install(given, discover=False)


DATABASE = "django_tasks_db"
if find_spec(DATABASE) is None:
    DATABASE = "django_tasks.backends.database"  # before django-tasks 0.12
FILES = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        execute_from_command_line(sys.argv)
    """,
    "settings.py": f"""
        SECRET_KEY = "of nothing"
        USE_TZ = True
        INSTALLED_APPS = [{"" if django_apps.HAS_OWN else '"django_tasks", '}"{DATABASE}"]
        DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}}}
        TASKS = {{"default": {{"BACKEND": "shop.backend.Backend"}}}}
    """,
    "shop/__init__.py": "",
    "shop/backend.py": f"""
        from qtasks_pluggy.engines.django import install
        Backend = install("{DATABASE}.DatabaseBackend", ["shop.plugin"], discover=False)
    """,
    "shop/plugin.py": """
        from pathlib import Path
        from qtasks_hookspecs import DeadLetter, hookimpl, on_error

        def note(what):
            with Path("notes.txt").open("a") as notes:
                print(what, file=notes)

        @on_error(ValueError)
        def use_zero():
            return 0

        @on_error(LookupError)
        def set_aside():
            return DeadLetter("no such thing")

        @hookimpl
        def qtasks_start():
            note("start")

        @hookimpl
        def qtasks_stop():
            note("stop")
    """,
    "shop/tasks.py": f"""
        from {django_apps.PACKAGE} import task

        @task
        def parse(text):
            return int(text)

        @task
        async def parse_async(text):
            return int(text)

        @task
        def find(name):
            raise LookupError(name)
    """,
    "enqueue.py": """
        import os, django
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        django.setup()
        from shop.tasks import find, parse, parse_async
        for task, text in ((parse, "1"), (parse, "many"), (parse_async, "many"), (find, "tea")):
            print(task.enqueue(text).id)
    """,
    "results.py": f"""
        import os, sys, django
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        django.setup()
        from {django_apps.PACKAGE} import task_backends
        for line in sys.argv[1:]:
            result = task_backends["default"].get_result(line)
            print(result.errors[0].exception_class_path if result.errors else result.return_value)
    """,
}
WORK = ("manage.py", "db_worker", "--batch", "--no-startup-delay", "--no-reload")


@pytest.fixture
def shop(project, worker):
    """A project with a database, in which scripts are run."""
    folder = project(FILES)

    def run(*command, code=0, env=None):
        ended = worker(sys.executable, *command, cwd=folder, env=env)
        assert code == ended.wait(2 * LONG), ended.log()
        return ended.log()

    run("manage.py", "migrate", "-v", "0")
    run.folder = folder
    return run


def test_a_database_worker_asks_plugins(shop, tmp_path):
    """``db_worker`` starts and stops them once, stores answers, and failures are recorded."""
    ids = shop("enqueue.py").split()
    url = f"sqlite:///{tmp_path / 'failures.db'}"
    env = {"QTASKS_PLUGGY_ENABLE": "failures", "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": url}
    shop(*WORK, env=env)
    ends = shop("results.py", *ids).split()
    assert ["1", "0", "0", "qtasks_hookspecs.exc.TaskDeadLetteredError"] == ends
    assert ["start", "stop"] == (shop.folder / "notes.txt").read_text().split()
    found = {run.uuid: run for run in Reader(read_url(url)).runs(Filters())}
    statuses = [found[one].status for one in ids[1:]]
    assert ["recovered", "recovered", "dead_lettered"] == statuses


def test_a_worker_whose_plugins_have_faults_does_not_begin(shop):
    """``db_worker`` ends with an error that says why, and takes no task."""
    ids = shop("enqueue.py").split()
    log = shop(*WORK, code=1, env={"QTASKS_PLUGGY_ENABEL": "failures"})
    assert "qtasks_pluggy.E001" in log
    assert "QTASKS_PLUGGY_ENABEL" in log
    shop(*WORK)
    assert "1" == shop("results.py", ids[0]).strip()


@pytest.mark.skipif(find_spec("django_tasks_db") is None, reason="the page has this backend")
def test_the_page_s_project_works_as_it_says(shop, project):
    """How-to: a task that fails is successful, with the plugin's value."""
    files = files_of("use-django.md")
    assert {"settings.py", "shop/backend.py", "shop/plugin.py", "shop/tasks.py"} == set(files)
    if not django_apps.HAS_OWN:
        files["shop/tasks.py"] = files["shop/tasks.py"].replace(
            "from django.tasks", "from django_tasks"
        )
        files["settings.py"] += 'INSTALLED_APPS += ["django_tasks"]\n'
    enqueue = "from shop.tasks import parse; print(parse.enqueue('many').id)"
    project(files | {"enqueue.py": FILES["enqueue.py"].partition("from shop")[0] + enqueue})
    shop("manage.py", "migrate", "-v", "0")
    (one,) = shop("enqueue.py").split()
    shop(*WORK)
    assert "0" == shop("results.py", one).strip()
