"""How a Celery app's own tasks are called once plugins see to them."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
from celery import Task
from celery.app import trace
from kombu import Exchange, Queue

from qtasks_hookspecs import Retry, hookimpl
from qtasks_pluggy.engines.celery import Plugins, install
from qtasks_pluggy.engines.celery.settings import has_dead_letters
from tests.engines.celery_apps import celery_app, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


@pytest.fixture
def native():
    """A Celery app of somebody's own."""
    return celery_app()


@pytest.fixture
def as_command(native):
    """Give a call that does, behind ``install``, what Celery's command does before it works."""

    def begin():
        native.finalize()
        trace._install_stack_protection()

    yield begin
    trace.reset_worker_optimizations(native)


def get(result):
    """Wait for a native result."""
    return result.get(timeout=LONG, interval=0.01)


@hookimpl
def _answer():
    return "taken"


taken = SimpleNamespace(name="taken", task_executor_run_task_trigger_error=_answer)


class Own(Task):
    """A task class with a call of its own, as Flask's guide has it."""

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


@pytest.mark.parametrize("base", [Task, Own])
@pytest.mark.parametrize("auto", [True, False])
def test_plugins_are_asked_after_native_retries(native, as_command, base, auto):
    """Under Celery's command too, plugins are asked about a run that Celery has retried."""
    options = {"autoretry_for": (OSError,), "retry_backoff": False} if auto else {}

    @native.task(
        name="fail",
        bind=True,
        shared=False,
        base=base,
        max_retries=2,
        default_retry_delay=0,
        **options,
    )
    def fail(self):
        if auto:
            raise OSError(self.request.retries)
        raise self.retry(exc=OSError(self.request.retries))

    plugin = Keeps(Retry(limit=3), "taken")
    install(native, [plugin], discover=False)
    as_command()
    with working(native):
        assert "taken" == get(fail.delay())
    assert [3, 4] == [message.attempt for message in plugin.messages]
    assert ["start", "close", "stop"] == plugin.heard


def test_a_run_sees_the_request_that_celery_made(native, as_command):
    """In a worker of Celery's command, what a task's own request takes down is not lost."""

    @native.task(name="child", shared=False)
    def child():
        return "child"

    @native.task(name="parent", bind=True, shared=False)
    def parent(self):
        child.delay()
        return self.request.called_directly

    install(native, [Keeps()], discover=False)
    as_command()
    with working(native):
        result = parent.delay()
        assert get(result) is False
        (one,) = result.children
        assert "child" == get(one)


@pytest.mark.parametrize("base", [Task, Own])
def test_nothing_is_kept_of_a_run(native, as_command, base):
    """A task is made known to the plugins once, however often it runs."""

    class Sees(Keeps):
        @hookimpl
        def task_executor_task_close(self, task_func):
            self.heard.append(task_func)

    @native.task(name="fine", shared=False, base=base)
    def fine(number):
        return number

    plugin = Sees()
    install(native, [plugin], discover=False)
    as_command()
    with working(native):
        for number in range(3):
            assert number == get(fine.delay(number))
    start, first, *others, stop = plugin.heard
    assert ("start", "stop") == (start, stop)
    assert [True] * 2 == [other is first for other in others]


@pytest.mark.parametrize("whose", ["fail", "*"])
def test_a_wrapper_of_one_s_own_is_inside_of_ours(whose):
    """Another ``@__call__`` among the annotations holds as before, and takes no plugin away."""
    called = []

    def around(call):
        def wrapped(self, *args):
            called.append(args)
            return call(self, *args)

        return wrapped

    native = celery_app(task_annotations={whose: {"@__call__": around, "rate_limit": "100/s"}})

    @native.task(name="fail", shared=False)
    def fail(text):
        raise OSError(text)

    fail.apply  # noqa: B018  # bound, and wrapped, before plugins see to it
    plugin = Keeps("taken")
    install(native, [plugin], discover=False)
    with working(native):
        assert "taken" == get(fail.delay("broken"))
    assert [("broken",)] == called
    assert "100/s" == fail.rate_limit


def test_plugins_go_before_other_annotations():
    """Celery stops at the first annotation that answers; ours goes first, and does not answer."""
    given = [{"fail": {"rate_limit": "100/s"}}, Plugins([f"{__name__}:taken"], discover=False)]
    native = celery_app(task_annotations=given)

    @native.task(name="fail", shared=False)
    def fail():
        return {}["key"]

    @native.task(name="bound", shared=False)
    def bound():
        return {}["key"]

    bound.apply  # noqa: B018  # bound before any other
    with working(native):
        ours, *others = native.conf.task_annotations
        assert (Plugins, given[:1]) == (type(ours), others)
        for task in (fail, bound):
            assert "taken" == get(task.delay())
    assert "100/s" == fail.rate_limit


@pytest.mark.parametrize(
    ("broker", "kind", "key", "all_have", "allowed"),
    [
        ("amqp", "topic", "order.new", True, False),
        ("amqp", "direct", "order.#", True, True),
        ("amqp", "direct", "order.#", False, True),
        ("amqp", "direct", "order.new", True, False),
        ("redis", "direct", "order.#", True, False),
        ("memory", "direct", "order.#", True, False),
    ],
)
def test_dead_letters_are_looked_for_in_the_queue_that_a_message_came_by(
    broker, kind, key, all_have, allowed
):
    """By its name or the key that it is bound by, on RabbitMQ; otherwise it has none."""
    native = celery_app(broker_url=f"{broker}://")
    shop = Exchange("shop", type=kind)
    dead = {"x-dead-letter-exchange": "dead"}
    native.conf.task_queues = [
        Queue("orders", shop, routing_key="order.#", queue_arguments=dead),
        Queue("all", shop, routing_key="#", queue_arguments=dead if all_have else {}),
    ]

    @native.task(name="fail", bind=True, shared=False, acks_late=True)
    def fail(self):
        raise OSError

    fail.push_request(delivery_info={"exchange": "shop", "routing_key": key})
    assert allowed is has_dead_letters(fail)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", ["decorated", "fail", "*"])
def test_what_is_around_a_call_already_stays_there(native, which, when):
    """Neither what others put around a task's call is lost, nor are the plugins."""
    called = []

    def around(call):
        @functools.wraps(call)
        def outer(*args, **kwargs):
            called.append(which)
            return call(*args, **kwargs)

        return outer

    class Own(Task):
        @around
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    options = {"base": Own} if which == "decorated" else {}
    if not options:
        native.conf.task_annotations = {which: {"@__call__": around}}
    native.conf.task_always_eager = True

    @native.task(name="fail", shared=False, **options)
    def task(text):
        raise OSError(text)

    if when == "after":
        native.finalize()
    install(native, [Keeps("taken")], discover=False)
    assert "taken" == get(task.delay("broken"))
    assert [which] == called


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("whose", ["fail", "*"])
def test_a_call_that_an_annotation_sets_is_covered(native, whose, when):
    """An annotation may replace the ``__call__`` of a task; plugins are asked all the same."""
    called = []

    def call(self, *args):
        called.append(args)
        return self.run(*args)

    native.conf.task_annotations = {whose: {"__call__": call}}
    native.conf.task_always_eager = True

    @native.task(name="fail", shared=False)
    def fail(text):
        raise OSError(text)

    if when == "after":
        native.finalize()
    install(native, [Keeps("taken")], discover=False)
    assert "taken" == get(fail.delay("broken"))
    assert [("broken",)] == called


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_class_without_a_name_is_covered(native, when):
    """Celery names the object of a task class that has no name, and only that object."""
    bound = []

    class Fail(Task):
        @classmethod
        def on_bound(cls, app):
            bound.append(app)

        def run(self):
            raise OSError

    native.conf.task_always_eager = True
    task = native.register_task(Fail()) if when == "after" else None
    plugin = Keeps("taken")
    install(native, [plugin], discover=False)
    task = task or native.register_task(Fail())
    assert "taken" == get(task.delay())
    assert [task.name] == [message.name for message in plugin.messages]
    assert {native} == set(bound)


def test_a_task_of_a_class_that_another_app_registers_too_keeps_its_plugins(native):
    """Celery binds such a class to its latest app; the task is still that of the first."""

    class Fail(Task):
        name = "fail"

        def run(self):
            raise OSError

    plugin = Keeps("taken")
    install(native, [plugin], discover=False)
    native.register_task(Fail())
    celery_app("other").register_task(Fail())
    with working(native):
        native.send_task("fail")
        assert wait_until(lambda: plugin.messages, LONG)


@pytest.mark.parametrize("whose", ["the first", "its own"])
@pytest.mark.parametrize("base", [Task, Own])
def test_a_base_class_may_have_tasks_in_several_apps(native, base, whose):
    """A task is answered by the plugins of its own app alone, whichever app used its base."""

    class Base(base):
        pass

    other = celery_app("other", task_always_eager=True)
    first, second = Keeps("first"), Keeps("second")
    install(native, [first], discover=False)
    native.conf.task_always_eager = True
    native.set_current()
    assert Base.app == native
    if whose == "its own":
        install(other, [second], discover=False)

    def fail(self):
        raise OSError(self.request.called_directly)

    tasks = [app.task(bind=True, shared=False, base=Base)(fail) for app in (native, other)]
    assert "first" == tasks[0].delay().get()
    if whose == "its own":
        assert "second" == tasks[1].delay().get()
    else:
        with pytest.raises(OSError, match="False"):
            tasks[1].delay().get()
    assert 1 == len(first.messages)
