"""Plugins for a Celery app's own tasks, by one line."""

from __future__ import annotations

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import structlog
from celery import Celery, exceptions, states
from celery.worker.components import Pool

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines.celery import Plugins, at_least_once, install
from qtasks_pluggy.exc import CapabilityError, EngineError, PluginRegistrationError
from tests.engines.celery_apps import celery_app, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until
from tests.engines.versions import since

pytestmark = pytest.mark.engines


@pytest.fixture
def native():
    """A Celery app of somebody's own."""
    return celery_app()


def failing(native, **options):
    """A native task that fails with what it is given, and takes its attempts down."""
    seen = []

    def fail(text):
        seen.append(text)
        raise OSError(text)

    return native.task(name="fail", shared=False, **options)(fail), seen


def lookup():
    """Fail in another way."""
    return {}["key"]


def get(result):
    """Wait for a native result."""
    return result.get(timeout=LONG, interval=0.01)


def test_plugins_answer_for_native_tasks(native):
    """An answer is the native result; tasks declared before and after are covered, and counted."""
    before, _ = failing(native)
    plugin = Keeps(Replace(None), 0)

    assert 1 == install(native, [plugin], discover=False)
    after = native.task(name="after", shared=False)(lookup)
    assert 2 == install(native, [plugin], discover=False)
    with working(native):
        first = before.delay("broken")
        assert get(first) is None
        assert 0 == get(after.delay())
    (one, two) = plugin.messages
    assert [("fail", ("broken",), 1), ("after", (), 1)] == [
        (message.name, message.args, message.attempt) for message in (one, two)
    ]
    assert ["start", "close", "close", "stop"] == plugin.heard
    assert first.id == str(one.uuid)
    assert ("celery", "celery", False) == (one.engine, one.queue, one.redelivered)


def test_a_task_that_is_made_early_is_counted_once(native):
    """A task may be in use before Celery makes all the others."""
    task, _ = failing(native)
    task.apply  # noqa: B018  # makes it
    native.task(name="later", shared=False)(lookup)
    assert 2 == install(native, discover=False)
    assert 2 == len(installed_in(native).tasks)
    assert 2 == install(native, discover=False)


@pytest.mark.parametrize("base", [True, False])
def test_tasks_of_every_kind_are_covered(native, base):
    """Bound tasks, classes of the app's own, and tasks with a call of their own are covered."""
    from celery import Task

    called = []

    class Own(Task):
        def __call__(self, *args, **kwargs):
            called.append(args)
            return super().__call__(*args, **kwargs)

    options = {"base": Own} if base else {}

    @native.task(name="bound", bind=True, shared=False, **options)
    def bound(self, number, *, other=0):
        raise OSError(self.request.id, number, other)

    bound.apply  # noqa: B018  # bound before it is covered
    plugin = Keeps("taken")
    install(native, [plugin], discover=False)
    with working(native):
        assert "taken" == get(bound.delay(1, other=2))
    assert ((1,), {"other": 2}) == (plugin.messages[0].args, dict(plugin.messages[0].kwargs))
    assert ([(1,)] if base else []) == called


@pytest.mark.parametrize(
    ("decision", "kind", "text", "state"),
    [
        (None, OSError, "broken", states.FAILURE),
        (Raise(LookupError("clearer")), LookupError, "clearer", states.FAILURE),
        (Cancel("why"), Exception, "why", states.REVOKED),
        (DeadLetter("why"), OSError, "broken", states.FAILURE),
    ],
    ids=["none", "raise", "cancel", "dead_letter"],
)
def test_ends_are_celery_s_own(native, decision, kind, text, state):
    """What plugins decide ends as Celery's own errors do; a dead letter, without a place, is R7."""
    task, seen = failing(native)
    install(native, [Keeps(decision)], discover=False)
    with structlog.testing.capture_logs() as logs, working(native):
        result = task.delay("broken")
        with pytest.raises(kind, match=text):
            get(result)
        assert state == result.state
    assert ["broken"] == seen
    assert isinstance(decision, DeadLetter) is ("CapabilityError" in str(logs))


@pytest.mark.parametrize("by", ["autoretry_for", "self.retry"])
def test_celery_s_own_retry_ends_an_attempt_in_the_tasks_own_error(native, by):
    """An attempt that Celery repeats is ``retried``; nobody decided; the error is the task's."""
    seen = []
    native.conf.task_always_eager = True

    def ended(outcome):
        seen.append((outcome.status, type(outcome.error), outcome.decided_by, outcome.attempt))

    hears = SimpleNamespace(name="hears", task_executor_attempt_ended=hookimpl(ended))
    install(native, [hears], discover=False)
    options = {"autoretry_for": (KeyError,)} if by == "autoretry_for" else {}

    @native.task(bind=True, shared=False, max_retries=1, default_retry_delay=0, **options)
    def fetch(self):
        try:
            return lookup()
        except KeyError as error:
            if by == "autoretry_for":
                raise
            raise self.retry(exc=error) from error

    assert "FAILURE" == fetch.delay().state
    assert [("retried", KeyError, None, 1), ("failed", KeyError, None, 2)] == seen


def test_a_direct_call_stays_native(native):
    """Calling the task as a function asks no plugin."""
    task, _ = failing(native)
    plugin = Keeps(0)
    install(native, [plugin], discover=False)
    with pytest.raises(OSError, match="broken"):
        task("broken")
    assert [] == plugin.messages


def test_an_eager_task_asks_the_plugins(native):
    """``task_always_eager`` is a worker in place."""
    native.conf.task_always_eager = True
    task, seen = failing(native)
    plugin = Keeps(Retry(), "second", Cancel("why"))
    install(native, [plugin], discover=False)
    assert "second" == task.delay("broken").get()
    assert ["broken"] * 2 == seen
    with pytest.raises(Exception, match="why"):
        task.delay("broken").get()
    assert [1, 2, 1] == [message.attempt for message in plugin.messages]


def test_plugins_retry_native_tasks(native):
    """A retry is another attempt of the same task, counted on, whatever Celery's own limit is."""
    task, seen = failing(native, max_retries=0)
    plugin = Keeps(Retry(), Retry(delay=0.01), "third")
    install(native, [plugin], discover=False)
    with working(native):
        assert "third" == get(task.delay("broken"))
    assert ["broken"] * 3 == seen
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert ["start", "close", "stop"] == plugin.heard
    assert not hasattr(task, "override_max_retries") or task.override_max_retries is None


def test_retries_end_in_the_task_s_own_error(native):
    """Past the plugin's limit the caller gets the original error, not Celery's."""
    task, seen = failing(native)
    install(native, [Keeps(*[Retry(limit=2)] * 9)], discover=False)
    with working(native), pytest.raises(OSError, match="broken"):
        get(task.delay("broken"))
    assert ["broken"] * 3 == seen


def test_native_retries_come_first(native):
    """``autoretry_for`` uses up Celery's own attempts before a plugin is asked."""
    task, seen = failing(
        native, autoretry_for=(OSError,), max_retries=2, retry_backoff=False, default_retry_delay=0
    )
    plugin = Keeps("taken")
    install(native, [plugin], discover=False)
    with working(native):
        assert "taken" == get(task.delay("broken"))
    assert ["broken"] * 3 == seen
    assert [3] == [message.attempt for message in plugin.messages]


@pytest.mark.parametrize(
    "control",
    [
        "Ignore",
        pytest.param("Reject", marks=since("celery", "5.7", "a rejected run has no state")),
        "Retry",
    ],
)
def test_celery_s_control_exceptions_pass(native, control):
    """By its own exceptions a task talks to Celery, and no plugin is asked."""
    raised = []

    @native.task(name="talk", bind=True, shared=False)
    def talk(self):
        if not raised:
            raised.append(1)
            if control == "Retry":
                raise self.retry(countdown=0)
            raise getattr(exceptions, control)("why")
        return "again"

    plugin = Keeps("never")
    install(native, [plugin], discover=False)
    with working(native):
        if control == "Retry":
            assert "again" == get(talk.delay())
        else:
            first = talk.delay()
            assert "again" == get(talk.delay())
            end = states.FAILURE if control == "Reject" else states.PENDING
            assert wait_until(lambda: first.state == end, LONG)
    assert [] == plugin.messages


def test_what_is_intercepted_can_be_narrowed(native):
    """``intercept`` names the errors that plugins are asked about; the rest stay Celery's."""
    task, _ = failing(native)
    plugin = Keeps("never")
    install(native, [plugin], discover=False, intercept=LookupError)
    with working(native), pytest.raises(OSError, match="broken"):
        get(task.delay("broken"))
    assert [] == plugin.messages


def test_other_annotations_still_hold():
    """Annotations that the app has besides ours are applied too."""
    native = celery_app(task_annotations={"fail": {"rate_limit": "100/s"}})
    task, _ = failing(native)
    install(native, [Keeps("taken")], discover=False)
    with working(native):
        assert "taken" == get(task.delay("broken"))
    assert "100/s" == task.rate_limit


def test_the_setting_alone_is_enough(native):
    """``task_annotations`` with our name gives the installed plugins to every task."""
    plugins = Plugins([f"{__name__}:recover"], discover=False)
    native = celery_app(task_annotations=plugins)
    task, _ = failing(native)
    with working(native):
        assert "recovered" == get(task.delay("broken"))


def test_the_name_in_the_setting_is_enough():
    """``task_annotations`` may hold the name of ``Plugins``, which gives the installed ones."""
    native = celery_app(task_annotations=["qtasks_pluggy.engines.celery:Plugins"])
    failing(native)
    assert installed_in(native) is not None
    assert installed_in(native).plugins is not None


def test_a_plugin_that_cannot_be_pickled_is_named(native):
    """Spawned children get plugins pickled; one that cannot be is told of, and what to do."""

    class Local(Keeps):
        pass

    install(native, [recover, Local()], discover=False)
    with pytest.raises(EngineError, match="plugin .*Local .*cannot be pickled.*'module:attribute'"):
        pickle.dumps(native)
    install(native, [recover], discover=False)
    (ours,) = pickle.loads(pickle.dumps(native)).conf.task_annotations
    assert isinstance(ours, Plugins)


@pytest.mark.parametrize("copy", [copy.copy, copy.deepcopy])
def test_a_setting_with_a_plugin_that_cannot_be_pickled_can_be_copied(native, copy):
    """Only a spawned child needs plugins that can be pickled."""

    class Local(Keeps):
        pass

    install(native, [Local()], discover=False)
    (ours,) = native.conf.task_annotations
    assert ours is copy(ours)


class Recover:
    """A plugin that can be imported by name."""

    name = "recover"

    @hookimpl
    def task_executor_run_task_trigger_error(self):
        return "recovered"


recover = Recover()


def test_plugins_can_be_named(native):
    """A plugin may be a name; one that cannot be imported is refused at once."""
    task, _ = failing(native)
    sys.modules.setdefault(__name__, sys.modules[recover.__module__])
    install(native, [f"{__name__}:recover"], discover=False)
    with working(native):
        assert "recovered" == get(task.delay("broken"))
    with pytest.raises(PluginRegistrationError, match="no_such_module"):
        install(native, ["no_such_module:plugin"])


@since("celery", "5.7", "Celery's testing worker keeps to itself why a worker is refused")
def test_a_worker_without_tasks_is_refused(native):
    """A worker in which ``install`` covers nothing takes no run, and says why."""
    install(native, discover=False)
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(SystemExit, match="no task"),
        working(native),
    ):
        pass
    assert "worker_cannot_start" in {one["event"] for one in logs}


def test_a_worker_is_refused_before_it_makes_its_pool(native, monkeypatch):
    """The order in which Celery includes a worker's steps does not matter."""
    made = []
    monkeypatch.setattr(Pool, "include", made.append)
    install(native, discover=False)
    (step,) = native.steps["worker"]
    # Celery includes ours last.
    step.requires = (Pool,)
    with pytest.raises(SystemExit, match="no task"):
        native.WorkController(app=native, pool="solo")
    assert [] == made


@since("celery", "5.7", "Celery's testing worker keeps to itself why a worker is refused")
def test_settings_replaced_behind_install_are_refused(native):
    """A configuration that comes later, and takes the plugins away, is not silent."""
    failing(native)
    install(native, discover=False)
    native.config_from_object({"broker_url": "memory://"}, force=True)
    with pytest.raises(SystemExit, match="config_from_object"), working(native):
        pass


@pytest.mark.parametrize("pool", ["threads", "solo"])
@since("celery", "5.7", "Celery's testing worker keeps to itself why a worker is refused")
def test_a_broken_plugin_refuses_the_worker(native, pool):
    """A plugin that does not start is told of before a run is taken."""
    failing(native)
    install(native, [Keeps()], discover=False)

    class Failing(Keeps):
        @hookimpl
        def qtasks_start(self):
            raise LookupError("no configuration")

    install(native, [Failing()], discover=False)
    with pytest.raises(SystemExit, match="no configuration"), working(native, pool=pool):
        pass


def test_plugins_that_come_later_are_started(native):
    """Another ``install``, between runs, stops the plugins that were and starts its own."""
    native.conf.task_always_eager = True
    task, _ = failing(native)
    first, second = Keeps("first"), Keeps("second")
    for plugin in (first, second):
        install(native, [plugin], discover=False)
        (answer,) = plugin.answers
        assert answer == task.delay("broken").get()
    assert ["start", "close", "stop"] == first.heard
    assert ["start", "close"] == second.heard


def test_presets_for_a_native_app():
    """``at_least_once`` sets what keeps runs, and refuses a broker that loses them."""
    with pytest.raises(CapabilityError, match="memory"):
        at_least_once(celery_app())
    for broker in ("redis://127.0.0.1:1", "amqp://127.0.0.1:1"):
        native = Celery("own", broker=broker, set_as_current=False)
        at_least_once(native)
        assert native.conf.task_acks_late
        assert native.conf.task_reject_on_worker_lost
        assert 1 == native.conf.worker_prefetch_multiplier
        restores = "unacked_restore_interval" in native.conf.broker_transport_options
        assert restores is broker.startswith("redis")


def test_a_call_of_the_app_s_own_leaves_nothing_behind(native):
    """Every run of a task with a ``__call__`` of its own is of one definition, not of a new one."""
    from celery import Task

    class Own(Task):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    seen = []

    class Keeping:
        name = "keeping"

        @hookimpl
        def task_executor_run_task_trigger_error(self, task_func):
            seen.append(task_func)
            return 0

    task, _ = failing(native, base=Own)
    native.conf.task_always_eager = True
    install(native, [Keeping()], discover=False)
    for _ in range(3):
        assert 0 == get(task.delay("broken"))
    assert [id(seen[0])] * 3 == [id(one) for one in seen]
