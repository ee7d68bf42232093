"""Celery behind an app: what is its own, besides what every engine does."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import pytest
from celery import Celery, Task, exceptions
from celery.local import Proxy

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks, TaskStatus
from qtasks_pluggy.engines.celery import CeleryEngine, install
from qtasks_pluggy.exc import CapabilityError, EngineError, TaskCancelError
from tests.engines.celery_apps import celery_app, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


def app_on(native, *plugins, **options):
    """An app with no plugins but these."""
    return QueueTasks("shop", engine=native, plugins=plugins, discover=False, **options)


def test_tasks_are_celery_s_own():
    """A task is known to Celery under its own name, and the message says what the engine knows."""
    native = celery_app()
    keeps = Keeps("taken")
    app = app_on(native, keeps)

    @app.task(echo=True)
    def ask(self, text, *, other):
        self.ctx.plugin_error(text)

    with app, working(native):
        assert isinstance(native.tasks["ask"], Task)
        handle = ask.submit("one", other=2)
        assert "taken" == handle.result(timeout=LONG)
        assert handle.ticket.id == str(handle.uuid)
        assert "taken" == handle.ticket.get(timeout=LONG)
    (message,) = keeps.messages
    assert ("ask", ("one",), {"other": 2}, 1) == (
        message.name,
        message.args,
        dict(message.kwargs),
        message.attempt,
    )
    assert ("celery", "celery", False) == (message.engine, message.queue, message.redelivered)
    assert abs(time.time() - message.created_at) < LONG


def test_a_quick_next_attempt_keeps_the_end_that_it_stores(monkeypatch):
    """An end stored while the attempt before is not over is not overwritten by its retry."""
    native = celery_app()
    app = app_on(native, Keeps(Retry(), None))

    @app.task(intercept=LookupError)
    def fail():
        raise LookupError("broken")

    task = native.tasks["fail"]
    send = task.apply_async

    def send_and_dawdle(*args, **options):
        sent = send(*args, **options)
        if options.get("retries"):
            assert wait_until(lambda: native.AsyncResult(task.request.id).state == "FAILURE", LONG)
        return sent

    monkeypatch.setattr(task, "apply_async", send_and_dawdle)
    with app, working(native):
        handle = fail.submit()
        with pytest.raises(LookupError, match="broken"):
            handle.result(timeout=LONG)
        # The worker has ended what it was at.
    assert "FAILURE" == native.AsyncResult(handle.ticket.id).state
    assert handle.status is TaskStatus.failed


@pytest.mark.parametrize(
    ("broker", "backend", "can"),
    [
        ("memory://", "cache+memory://", {"delay", "results", "cancel_queued"}),
        ("memory://", "rpc://", {"delay", "cancel_queued"}),
        ("memory://", None, {"delay", "cancel_queued"}),
        # A message that a worker has just taken is nowhere for a moment.
        ("redis://h", "redis://h", {"delay", "results", "cancel_queued"}),
        ("amqp://h", "redis://h", {"delay", "results", "cancel_queued", "at_least_once"}),
    ],
)
def test_capabilities_are_the_broker_s(broker, backend, can):
    """What an app on Celery can do is what its broker and its results can."""
    native = Celery("shop", broker=broker, backend=backend, set_as_current=False)
    capabilities = CeleryEngine(native).capabilities
    for name in ("delay", "results", "cancel_queued", "at_least_once"):
        assert (name in can) is getattr(capabilities, name), name
    assert not capabilities.priority
    assert capabilities.metadata
    assert capabilities.dead_letter


def test_results_that_celery_keeps_from_others_are_refused():
    """Without a backend that anybody can ask, the handle says which setting is missing."""
    native = Celery("shop", broker="memory://", set_as_current=False)
    app = app_on(native)
    task = app.task(name="one")(lambda: 1)
    with app:
        handle = task.submit()
        assert handle.status is None
        with pytest.raises(CapabilityError, match="result backend"):
            handle.result()


def test_a_wait_does_not_look_at_the_broker(monkeypatch):
    """What concerns the broker would take longer than a result, for each of many handles."""
    native = celery_app()
    task = app_on(native).task(name="one")(lambda: 1)
    with task.app:
        handle = task.submit()
        native.backend.store_result(handle.ticket.id, 1, "SUCCESS")
        monkeypatch.setattr(native, "connection_for_write", None)
        assert handle.status is TaskStatus.succeeded
        assert 1 == handle.result(timeout=LONG)


@pytest.mark.parametrize("is_made", [True, False])
def test_a_name_that_celery_has_is_refused(is_made):
    """Celery would give back its own task under the name, and ours would never run."""
    native = celery_app()
    native.task(name="price", shared=False)(_missing)
    if is_made:
        native.finalize()
    app = app_on(native)
    # Older ones say nothing.
    warning = getattr(exceptions, "DuplicateTaskNameWarning", None)
    with contextlib.nullcontext() if warning is None else pytest.warns(warning):
        app.task(name="price")(len)
        with pytest.raises(EngineError, match="'price' of its own"), app:
            pass


def test_an_adapter_is_behind_one_app():
    """A second app on the same adapter is refused, as its runs would be the first's."""
    app = app_on(celery_app())
    app.task(name="one")(len)
    with pytest.raises(EngineError, match="the runs of app 'shop'"):
        QueueTasks("other", engine=app.engine).task(name="two")(len)


def test_runs_in_this_process_are_refused():
    """The runs are done by Celery's command, which the text names."""
    app = app_on(celery_app())
    app.set_engine(app.engine, workers=2)
    with pytest.raises(EngineError, match="celery -A"), app:
        pass


def test_an_unknown_task_ends_in_an_error():
    """A worker that lacks the task says so to whoever waits."""
    native, other = celery_app(), celery_app()
    app = app_on(native)
    task = app.task(name="one")(lambda: 1)
    with app, working(other), pytest.raises(EngineError, match="no such task"):
        task.submit().result(timeout=LONG)


def test_a_task_that_exits_ends_itself_alone():
    """``sys.exit()`` in a task fails its run, and the worker goes on."""
    native = celery_app()
    app = app_on(native)

    @app.task
    def leave(number):
        raise SystemExit(number)

    one = app.task(name="one")(lambda: 1)
    with app, working(native):
        with pytest.raises(EngineError, match="SystemExit: 3"):
            leave.submit(3).result(timeout=LONG)
        assert 1 == one.submit().result(timeout=LONG)


def test_a_waiting_run_can_be_cancelled():
    """A worker that has not taken it yet drops it; one that is done is not cancelled any more."""
    native = celery_app(worker_prefetch_multiplier=1, task_track_started=True)
    app = app_on(native)
    begun, gate = threading.Semaphore(0), threading.Event()
    seen = []

    @app.task
    def hold(number):
        seen.append(number)
        begun.release()
        assert gate.wait(LONG)

    with app:
        first = hold.submit(1)
        assert not first.cancel("nobody is there to be asked")
        with working(native, concurrency=1):
            assert begun.acquire(timeout=LONG)
            assert first.status is TaskStatus.running
            waits = hold.submit(2)
            assert wait_until(lambda: waits.cancel("sold out"), LONG)
            gate.set()
            with pytest.raises(TaskCancelError, match="sold out"):
                waits.result(timeout=LONG)
            assert waits.status is TaskStatus.cancelled
            assert first.result(timeout=LONG) is None
            assert not first.cancel("too late")
    assert [1] == seen


def test_eager_runs_are_done_in_place():
    """``task_always_eager``, for tests: plugins are asked, and the handle has the end at once."""
    native = celery_app(task_always_eager=True)
    app = app_on(native, Keeps("taken"), intercept=LookupError)
    ask = app.task(name="ask")(_missing)
    with app:
        first = ask.submit()
        assert "taken" == first.result()
        assert not first.cancel()
        assert first.status is TaskStatus.succeeded


def _missing():
    raise LookupError


def test_a_number_with_too_many_digits_is_refused():
    """What Celery cannot even describe in its message is an argument that cannot be serialized."""
    app = app_on(celery_app())
    app.task(name="length")(len)
    with app, pytest.raises(EngineError, match="task 'length': argument 1, a int"):
        app.tasks["length"].submit(10**5000)


@pytest.mark.parametrize(
    ("broker", "backend", "what"),
    [
        ("amqp://me:secret@127.0.0.1:1//", "cache+memory://", "broker amqp://me"),
        ("redis://me:secret@127.0.0.1:1/0", "cache+memory://", "broker redis://me"),
        ("memory://", "redis://:secret@127.0.0.1:1/0", "result backend .* 127.0.0.1:1"),
        ("nonsense://127.0.0.1", "cache+memory://", "broker .*nonsense"),
        ("memory://", "nonsense://me:secret@host", "result backend .*nonsense"),
        ("amqp://me:secret@127.0.0.1:1;amqp://me:secret@h", "cache+memory://", "broker amqp://me"),
    ],
)
def test_a_server_that_is_not_there_is_told_of(broker, backend, what):
    """Within ten seconds, with its address, and without the password."""
    begin = time.monotonic()
    app = app_on(Celery("shop", broker=broker, backend=backend, set_as_current=False))
    with pytest.raises(EngineError, match=what) as caught, app:
        pass
    assert "secret" not in str(caught.value)
    assert time.monotonic() - begin < 10


def test_attempts_are_counted():
    """Each retry of a plugin is one more attempt of the same run."""
    native = celery_app()
    keeps = Keeps(Retry(), Retry(delay=0.01), "third")
    app = app_on(native, keeps)

    @app.task(echo=True)
    def ask(self):
        self.ctx.plugin_error()

    with app, working(native):
        assert "third" == ask.submit().result(timeout=LONG)
    assert [1, 2, 3] == [message.attempt for message in keeps.messages]
    assert ["start", "close", "stop"] == keeps.heard


def test_the_current_app_is_the_one_that_it_stands_for():
    """Celery's ``current_app`` is as good as the app, for an app of ours and for ``install``."""
    native = celery_app(task_always_eager=True)
    stands = Proxy(lambda: native)
    own = native.task(name="own", shared=False)(_missing)
    assert 1 == install(stands, [Keeps("taken")], discover=False)
    app = app_on(stands)
    # The proxy can stand for another app later.
    assert type(app.engine.native) is Celery
    ours = app.task(name="ours")(len)
    assert "taken" == own.delay().get()
    with app:
        assert 3 == ours.submit("tea").result(timeout=LONG)


def test_nothing_else_of_the_celery_app_changes():
    """An app behind Celery adds its own tasks, and no setting."""
    native = Celery("shop", broker="redis://h", backend="redis://h", set_as_current=False)
    before = {name: native.conf[name] for name in sorted(native.conf.table(with_defaults=True))}
    app = app_on(native)
    app.task(name="one")(len)
    assert before == {
        name: native.conf[name] for name in sorted(native.conf.table(with_defaults=True))
    }


@pytest.mark.parametrize("name", ["self", "task", "args", "kwargs", "run", "task_id", "countdown"])
def test_a_parameter_may_have_any_name(name):
    """What Celery and we call our own parameters is free for those of a task."""
    app = app_on(celery_app())
    scope = {}
    exec(f"def show(*, {name}):\n    return {name}", scope)  # noqa: S102  # a name from above
    show = app.task(name="show")(scope["show"])
    with app, working(app.engine.native):
        assert 5 == show.submit(**{name: 5}).result(timeout=LONG)


class OddError(Exception):
    """An error whose arguments do not make it again."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_group():
    """Fail with a group."""
    raise ExceptionGroup("several", [OSError("one")])


@pytest.mark.parametrize(
    ("function", "kind", "text"),
    [
        (lambda: json.loads("{"), EngineError, "json.decoder.JSONDecodeError: Expecting"),
        (
            lambda: Path("/no/such/file").read_text(),
            FileNotFoundError,
            "No such file or directory: '/no/such/file'",
        ),
        (raise_group, EngineError, "ExceptionGroup: several"),
        (lambda: _raise(OddError(1, 2)), EngineError, "OddError: 1 and 2"),
        (lambda: _raise(LookupError("key", 2)), LookupError, "'key', 2"),
        (lambda: _raise(LookupError(Path("x"))), LookupError, "^x$"),
    ],
    ids=["json", "file", "group", "odd", "plain", "object"],
)
def test_an_error_that_cannot_be_made_again_keeps_its_class_and_text(function, kind, text):
    """Whoever waits gets the error itself, or one that says task, class and text."""
    app = app_on(celery_app())
    fail = app.task(name="fail")(function)
    with app, working(app.engine.native), pytest.raises(Exception, match=text) as caught:
        fail.submit().result(timeout=LONG)
    assert kind is type(caught.value)
    assert kind is not EngineError or "task 'fail'" in str(caught.value)


def _raise(error):
    raise error


def test_r19_a_run_sees_no_context_of_another():
    """R19: what a run binds is gone in the next run of the same thread."""
    app, variable = app_on(celery_app()), ContextVar("tenant", default="clean")
    first = app.task(name="first")(lambda: variable.set("one") and None)
    second = app.task(name="second")(lambda: variable.get())
    with app, working(app.engine.native, concurrency=1):
        first.submit().result(timeout=LONG)
        assert "clean" == second.submit().result(timeout=LONG)
