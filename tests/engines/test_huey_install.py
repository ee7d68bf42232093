"""Plugins for a Huey app's own tasks, by one line."""

from __future__ import annotations

import contextlib
import sys
import threading

import huey
import pytest
import structlog
from huey.exceptions import TaskException

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines._installed import INSTALLED
from qtasks_pluggy.engines.huey import at_least_once, install
from qtasks_pluggy.exc import CapabilityError
from tests.engines.huey_apps import LONG, Keeps, consuming
from tests.engines.processes import wait_until
from tests.engines.versions import since

pytestmark = pytest.mark.engines


@pytest.fixture
def native(tmp_path):
    """A Huey app of somebody's own."""
    return huey.SqliteHuey("shop", filename=tmp_path / "runs.db", store_none=True)


def failing(native, **options):
    """A native task that fails with what it is given, and takes its attempts down."""
    seen = []

    def fail(text, task=None):
        seen.append(text)
        raise OSError(text)

    return native.task(name="fail", **options)(fail), seen


def test_plugins_answer_for_native_tasks(native):
    """An answer is the native result; tasks declared before and after are covered, and counted."""
    before, _ = failing(native)
    plugin = Keeps(Replace(None), 0)

    assert 1 == install(native, [plugin], discover=False)
    after = native.task(name="after")(lambda: {}["key"])
    assert 2 == install(native, [plugin], discover=False)
    with consuming(native):
        first = before("broken")
        assert first.get(blocking=True, timeout=LONG) is None
        assert 0 == after().get(blocking=True, timeout=LONG)
    (one, two) = plugin.messages
    assert [("fail", ("broken",), 1), ("after", (), 1)] == [
        (message.name, message.args, message.attempt) for message in (one, two)
    ]
    assert ["start", "close", "close", "stop"] == plugin.heard
    assert first.id == str(one.uuid)


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (None, "OSError('broken')"),
        (Raise(LookupError("clearer")), "LookupError('clearer')"),
        (Cancel("why"), "CancelExecution('why')"),
        (DeadLetter("why"), "OSError('broken')"),
    ],
)
def test_ends_are_huey_s_own(native, decision, text):
    """What plugins decide ends as Huey's own errors do; a dead letter, without a place, is R7."""
    task, seen = failing(native)
    install(native, [Keeps(decision)], discover=False)
    with (
        structlog.testing.capture_logs() as logs,
        consuming(native),
        pytest.raises(TaskException) as caught,
    ):
        task("broken").get(blocking=True, timeout=LONG)
    assert text == caught.value.metadata["error"]
    assert ["broken"] == seen
    assert isinstance(decision, DeadLetter) is ("CapabilityError" in str(logs))


def test_a_direct_call_stays_native(native):
    """``call_local`` asks no plugin."""
    task, _ = failing(native)
    plugin = Keeps(0)
    install(native, [plugin], discover=False)
    with pytest.raises(OSError, match="broken"):
        task.call_local("broken")
    assert [] == plugin.messages


def again(native):
    """A task that is registered, unregistered and registered again."""
    task, seen = failing(native)
    assert task.unregister()
    native._registry.register(task.task_class)
    return task.task_class, seen


def inherits(native):
    """A task of a class that inherits ``execute`` from another task's class."""
    task, seen = failing(native)
    kind = type("B", (task.task_class,), {})
    native._registry.register(kind)
    return kind, seen


def extends(native):
    """A task of a class whose ``execute`` calls the one of another task's class."""
    task, seen = failing(native)

    class B(task.task_class):
        def execute(self):
            return super().execute()

    native._registry.register(B)
    return B, seen


@pytest.mark.parametrize("declare", [again, inherits, extends])
@since("huey", "3.5", "Huey stores a retry as an error until the next attempt")
def test_plugins_are_asked_once_in_an_attempt(native, declare):
    """A class that is covered twice, also by its base, asks plugins once."""
    plugin = Keeps(*[Retry(limit=2)] * 9)
    install(native, [plugin], discover=False)
    kind, seen = declare(native)
    with consuming(native), pytest.raises(TaskException, match="broken"):
        native.enqueue(kind(("broken",))).get(blocking=True, timeout=LONG)
    assert ["broken"] * 3 == seen
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert ["start", "failed", "close", "stop"] == plugin.heard


def test_in_immediate_mode_a_run_starts_the_plugins():
    """The first one, once; inside ``with installed_in(...)`` that does."""
    plugin = Keeps(0, 0, 0)
    native = huey.MemoryHuey(immediate=True)
    install(native, [plugin], discover=False)
    fail, _ = failing(native)

    with installed_in(native):
        assert 0 == fail("in a with")()
    assert ["start", "close", "stop"] == plugin.heard
    plugin.heard.clear()

    install(native, [plugin], discover=False)
    assert [0, 0] == [fail("first")(), fail("second")()]
    assert ["start", "close", "close"] == plugin.heard
    vars(native)[INSTALLED].end()
    assert ["stop"] == plugin.heard[3:]


@since("huey", "3.5", "the end of the inner run is an error of Huey's in the outer one")
def test_a_task_that_enqueues_itself_in_immediate_mode_asks_for_both_runs():
    """The inner run is of the same object, and still a run of its own."""
    native = huey.MemoryHuey(immediate=True)

    @native.task(context=True)
    def work(again, task=None):
        if again:
            task.args = (False,)
            native.enqueue(task)
        raise OSError

    plugin = Keeps("inner", "outer")
    install(native, [plugin], discover=False)
    assert "outer" == work(True).get()
    assert [(False,), (True,)] == [message.args for message in plugin.messages]


@since("huey", "3.5", "Huey stores a retry as an error until the next attempt")
def test_plugins_retry_native_tasks(native):
    """A retry is another attempt of the same task, with its own arguments, counted on."""
    task, seen = failing(native, context=True)
    plugin = Keeps(Retry(), Retry(delay=0.01), "third")
    install(native, [plugin], discover=False)
    with consuming(native):
        assert "third" == task("broken").get(blocking=True, timeout=LONG)
    assert ["broken"] * 3 == seen
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert [{}] * 3 == [dict(message.kwargs) for message in plugin.messages]


def test_native_retries_come_on_top(native):
    """Plugins are asked at every attempt; only after the last of Huey's own has a run failed."""
    task, seen = failing(native, retries=2)
    plugin = Keeps(None, Retry())
    install(native, [plugin], discover=False)
    with consuming(native):
        task("broken")
        assert wait_until(lambda: "close" in plugin.heard, LONG)
    assert ["broken"] * 4 == seen
    assert [1, 2, 3, 4] == [message.attempt for message in plugin.messages]
    assert ["start", "failed", "close", "stop"] == plugin.heard


def test_a_cancelled_run_is_over_though_huey_has_retries_left(native):
    """``Cancel`` ends a run with native retries left, and the plugins hear of its end."""
    task, seen = failing(native, retries=2)
    plugin = Keeps(Cancel("why"))
    install(native, [plugin], discover=False)
    with consuming(native), pytest.raises(TaskException, match="why"):
        task("broken").get(blocking=True, timeout=LONG)
    assert ["broken"] == seen
    assert ["start", "close", "stop"] == plugin.heard


@pytest.mark.parametrize(
    "control", [huey.RetryTask, huey.CancelExecution, huey.exceptions.TaskLockedException]
)
def test_huey_s_control_exceptions_pass(native, control):
    """By its own exceptions a task talks to Huey, and no plugin is asked."""
    raised = []

    @native.task(name="talk")
    def talk():
        if not raised:
            raised.append(1)
            raise control
        return "again"

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    with consuming(native):
        if control is huey.RetryTask:
            assert "again" == talk().get(blocking=True, timeout=LONG)
        else:
            with pytest.raises(TaskException):
                talk().get(blocking=True, timeout=LONG)
    assert [] == plugin.messages


def test_what_is_intercepted_can_be_narrowed(native):
    """``intercept`` names the errors that plugins are asked about; the rest stay Huey's."""
    task, _ = failing(native)
    plugin = Keeps("never")
    install(native, [plugin], discover=False, intercept=LookupError)
    with consuming(native), pytest.raises(TaskException, match="broken"):
        task("broken").get(blocking=True, timeout=LONG)
    assert [] == plugin.messages


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_without_tasks_is_refused(native):
    """A worker in which ``install`` covers nothing takes no run, and says why."""
    install(native, discover=False)
    with structlog.testing.capture_logs() as logs, consuming(native) as consumer:
        for _, thread in consumer.worker_threads:
            thread.join(LONG)
    assert "covers no task" in str(logs)


def test_plugins_live_as_long_as_the_last_worker_thread(native):
    """A worker thread that ends, and is replaced, takes nobody's plugins along."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    @native.task(name="wait")
    def wait():
        begun.release()
        assert gate.wait(LONG)
        raise OSError

    plugin = Keeps("one", "two")
    install(native, [plugin], discover=False)
    with consuming(native, workers=2, max_tasks=1) as consumer:
        first, second = wait(), wait()
        assert begun.acquire(timeout=LONG)
        assert begun.acquire(timeout=LONG)
        consumer.check_worker_health()
        gate.set()
        ends = {one.get(blocking=True, timeout=LONG) for one in (first, second)}
        for _, thread in consumer.worker_threads:
            thread.join(LONG)
        assert {"one", "two"} == ends
        assert ["start", "close", "close", "stop"] == plugin.heard
        consumer.check_worker_health()
        gate.set()
        with pytest.raises(TaskException):
            wait().get(blocking=True, timeout=LONG)


def test_an_app_and_an_installed_huey_are_one_huey(native):
    """``install`` leaves the tasks of an app on the same Huey to that app's plugins."""
    task, _ = failing(native)
    ours, theirs = Keeps("ours"), Keeps("theirs")
    app = QueueTasks("shop", engine=native, plugins=[ours], discover=False, intercept=Exception)
    app.task(name="divide")(lambda: 1 / 0)
    assert 1 == install(native, [theirs], discover=False)
    with app, consuming(native):
        assert "ours" == app.tasks["divide"].submit().result(timeout=LONG)
        assert "theirs" == task("broken").get(blocking=True, timeout=LONG)


def test_the_ledger_is_one_call_away(native):
    """``at_least_once`` gives native tasks the ledger, twice is once; elsewhere it is refused."""
    task = native.task(name="work")(lambda number: number)
    for _ in range(2):
        at_least_once(native)
    result = task(1)
    # What a worker that is killed does: it takes the message, and is never heard of again.
    assert native.storage.dequeue()
    assert 0 == native.pending_count()
    with structlog.testing.capture_logs() as logs, consuming(native):
        assert 1 == result.get(blocking=True, timeout=LONG)
    assert {} == native.all_results()
    assert [1] == [one["count"] for one in logs if one["event"] == "huey_runs_recovered"]
    with pytest.raises(CapabilityError, match="MemoryStorage"):
        at_least_once(huey.MemoryHuey())


def test_an_answer_that_huey_would_drop_is_told(tmp_path):
    """A plugin's None is stored, also where Huey stores none; what does not pickle is void."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db")
    at_least_once(native)
    task, seen = failing(native)
    plugin = Keeps(Replace(None), threading.Lock())

    class Looks:
        @hookimpl
        def task_executor_run_task(self, result):
            return None

    install(native, [plugin, Looks()], discover=False)
    with consuming(native):
        native.task()(lambda: None)()
        assert task("none").get(blocking=True, timeout=LONG) is None
        with pytest.raises(TaskException, match="lock"):
            task("lock").get(blocking=True, timeout=LONG)
    assert ["none", "lock"] == seen
    # Of the run that no plugin answered for nothing is stored, as before.
    assert {} == native.all_results()
    assert ["start", "close", "close", "failed", "close", "stop"] == plugin.heard


@pytest.mark.parametrize(("immediate", "answer"), [(False, Retry(delay=0)), (True, Retry())])
@since("huey", "3.5", "Huey stores a retry as an error until the next attempt")
def test_a_retry_at_once_is_at_once(immediate, answer):
    """``Retry(delay=0)`` waits for no ``retry_delay`` of the task; in immediate mode none does."""
    native = huey.MemoryHuey("shop", immediate=immediate)
    task, seen = failing(native, retry_delay=1_000)
    install(native, [Keeps(answer, "answer")], discover=False)
    with contextlib.nullcontext() if immediate else consuming(native):
        assert "answer" == task("broken").get(blocking=True, timeout=LONG)
    assert ["broken"] * 2 == seen


def test_a_delay_in_immediate_mode_is_refused():
    """R7: ``Retry(delay=5)`` in immediate mode, whose schedule nobody reads, ends the run now."""
    native = huey.MemoryHuey("shop")
    task, seen = failing(native)
    plugin = Keeps(Retry(delay=5), Retry(), "answer")
    install(native, [plugin], discover=False)
    native.immediate = True
    with pytest.raises(TaskException, match="broken"):
        task("broken").get()
    assert 0 == native.scheduled_count()
    assert "answer" == task("again").get()
    assert ["broken", "again", "again"] == seen


def test_the_ledger_knows_native_ends(native):
    """Revoked, expired, cancelled, failed and retried native tasks leave nothing in the ledger."""
    at_least_once(native)
    task, seen = failing(native, retries=1)

    @native.task(name="fine")
    def fine(*args):
        return 1

    @native.pre_execute(name="zz-last")
    def refuse(task):
        if task.args == ("refused",):
            raise huey.CancelExecution

    with consuming(native):
        for result in (fine("refused"), fine.schedule((), eta=None, delay=0, expires=-1)):
            assert wait_until(lambda: native.pending_count() == 0, LONG)
            assert not result.is_ready()
        revoked = fine.schedule((), delay=1)
        revoked.revoke()
        chain = native.enqueue(fine.s().then(fine))
        assert [1, 1] == chain.get(blocking=True, timeout=LONG)
        task("broken")
        assert wait_until(lambda: len(seen) == 2, LONG)
        assert wait_until(lambda: not native.scheduled_count(), LONG)
        look = native.storage.sql
        assert wait_until(lambda: not look("select * from task", results=True), LONG)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_worker_command_runs_them(project, worker, kind):
    """``huey_consumer`` asks the plugins in its threads and in its processes."""
    folder = project(
        {
            "own.py": """
                import sys
                from pathlib import Path
                from huey import SqliteHuey
                from qtasks_hookspecs import hookimpl
                from qtasks_pluggy.engines.huey import install

                huey = SqliteHuey("own", filename=Path(__file__).parent / "own.db")

                @huey.task(name="fail")
                def fail(text):
                    raise OSError(text)

                @hookimpl
                def task_executor_run_task_trigger_error(e):
                    return f"recovered from {e.cause}"

                install(huey, [sys.modules[__name__]], discover=False)
            """
        }
    )
    native = huey.SqliteHuey("own", filename=folder / "own.db")

    def fail(text):
        """Stand in for the worker's function, under its name."""

    fail.__module__ = "own"
    fail = native.task(name="fail")(fail)
    command = (sys.executable, "-m", "huey.bin.huey_consumer", "own.huey", "-k", kind, "-w", "2")
    worker(*command, "-d", "0.01", cwd=folder)
    for text in ("one", "two", "three"):
        assert f"recovered from {text}" == fail(text).get(blocking=True, timeout=LONG)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_worker_command_ends_where_a_plugin_cannot_start(project, worker, kind):
    """The command ends, instead of replacing its workers for ever, and its log says why."""
    folder = project(
        {
            "own.py": """
                import sys
                from huey import SqliteHuey
                from qtasks_hookspecs import hookimpl
                from qtasks_pluggy.engines.huey import install

                huey = SqliteHuey("own", filename="own.db")
                huey.task(name="work")(lambda: 1)

                @hookimpl
                def qtasks_start():
                    raise LookupError("no licence")

                install(huey, [sys.modules[__name__]], discover=False)
            """
        }
    )
    command = (sys.executable, "-m", "huey.bin.huey_consumer", "own.huey", "-k", kind)
    process = worker(*command, cwd=folder)
    assert 0 == process.wait(LONG)
    assert 1 == process.log().count("worker_cannot_start")
    assert "LookupError: no licence; the app was not started" in process.log()


def test_what_a_task_is_declared_with_reaches_plugins(native):
    """Its tags are tags, and the rest of what Huey does not know is extra."""

    class Looks:
        @hookimpl
        def task_executor_run_task_trigger_error(self, task_func):
            return [task_func.tags, dict(task_func.extra)]

    task, _ = failing(native, tags=["price"], owner="me", priority=3)
    install(native, [Looks()], discover=False)
    with consuming(native):
        assert [("price",), {"owner": "me"}] == task("broken").get(blocking=True, timeout=LONG)
