"""What an engine does by rules of its own, the plugins are told as it is: each end, and once."""

from __future__ import annotations

import dramatiq
import huey
import pytest
from dramatiq.middleware import SkipMessage
from dramatiq.results import ResultFailure
from huey.exceptions import CancelExecution, RateLimitExceeded
from taskiq import NoResultError, SimpleRetryMiddleware

from qtasks_hookspecs import Retry
from qtasks_pluggy.engines import celery as celery_engine
from qtasks_pluggy.engines import dramatiq as dramatiq_engine
from qtasks_pluggy.engines import huey as huey_engine
from qtasks_pluggy.engines import taskiq as taskiq_engine
from qtasks_pluggy.exc import EngineError
from tests.engines import celery_apps, dramatiq_apps, taskiq_apps
from tests.engines.huey_apps import LONG, Keeps, consuming
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

ENDS = ["failed", "close"]


def heard(plugin):
    """What the plugin heard of ends, and not of the worker."""
    return [one for one in plugin.heard if one in ENDS]


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({"throws": OSError}, 1),
        ({"retry_when": lambda retries, error: False}, 1),
        ({"retry_when": lambda retries, error: retries < 1}, 2),
        ({"max_retries": 1}, 2),
    ],
    ids=["throws", "never", "once", "count"],
)
def test_r15_an_actor_s_end_is_told_by_dramatiq_s_rules(options, attempts):
    """R15: ``throws``, ``retry_when`` and ``max_retries`` say which attempt is the last."""
    native = dramatiq_apps.stub_broker()
    seen, plugin = [], Keeps()

    def fail():
        seen.append(len(heard(plugin)))
        raise OSError("broken")

    given = {"min_backoff": 1, "max_backoff": 1, **options}
    task = dramatiq.actor(actor_name="fail", broker=native, **given)(fail)
    dramatiq_engine.install(native, [plugin], discover=False)
    with dramatiq_apps.working(native):
        task.send()
        assert wait_until(lambda: "close" in plugin.heard, LONG)
        native.join("default", timeout=LONG * 1000)
    assert [0] * attempts == seen
    assert ENDS == heard(plugin)


def test_r15_a_message_that_skips_itself_is_over():
    """R15: an actor that raises ``SkipMessage`` has ended, whatever retries it has left."""
    native = dramatiq_apps.stub_broker()
    plugin = Keeps()

    def skip():
        raise SkipMessage("nothing to do")

    task = dramatiq.actor(actor_name="skip", broker=native, max_retries=3)(skip)
    dramatiq_engine.install(native, [plugin], discover=False)
    with dramatiq_apps.working(native):
        task.send()
        native.join("default", timeout=LONG * 1000)
    assert ["close"] == heard(plugin)


@pytest.mark.parametrize(
    ("error", "retries", "attempts"),
    [
        (CancelExecution(retry=False), 2, 1),
        (CancelExecution(), 0, 1),
        (CancelExecution(), 1, 2),
        (CancelExecution(retry=True), 0, 2),
        (RateLimitExceeded("key", 0, retry=False), 0, 1),
        (RateLimitExceeded("key", 0, retry=False), 1, 2),
    ],
    ids=["final", "none left", "one left", "again", "limited", "limited, one left"],
)
def test_r15_a_task_s_end_is_told_by_huey_s_rules(tmp_path, error, retries, attempts):
    """R15: what its control exceptions say, and the retries left, say which attempt is the last."""
    native = huey.SqliteHuey("shop", filename=tmp_path / "runs.db", store_none=True)
    seen, plugin = [], Keeps()

    def stop():
        seen.append(len(heard(plugin)))
        if len(seen) == attempts and attempts > 1:
            return "done"
        raise error

    task = native.task(name="stop", retries=retries)(stop)
    huey_engine.install(native, [plugin], discover=False)
    with consuming(native):
        task()
        assert wait_until(lambda: len(seen) == attempts and heard(plugin), LONG)
    assert [0] * attempts == seen
    assert ["close"] == heard(plugin)


async def test_r15_a_run_without_result_is_over_though_taskiq_could_retry():
    """R15: ``NoResultError`` is an end that Taskiq's retries leave alone."""
    native = taskiq_apps.broker_of(await_inplace=True)
    native = native.with_middlewares(SimpleRetryMiddleware(default_retry_label=True))
    plugin = Keeps()

    async def nothing():
        raise NoResultError

    task = native.register_task(nothing, task_name="nothing")
    taskiq_engine.install(native, [plugin], discover=False)
    async with taskiq_apps.working(native):
        await task.kiq()
    assert ["close"] == heard(plugin)


def test_an_actor_that_calls_itself_calls_a_function():
    """Within its own run too a direct call of an actor asks no plugin."""
    native = dramatiq_apps.stub_broker()
    plugin = Keeps("answered")

    @dramatiq.actor(broker=native, actor_name="nested", store_results=True, max_retries=0)
    def nested(*, inner=False):
        if inner:
            raise OSError
        try:
            return nested(inner=True)
        except OSError:
            return "caught"

    dramatiq_engine.install(native, [plugin], discover=False)
    with dramatiq_apps.working(native):
        backend = native.get_results_backend()
        assert "caught" == backend.get_result(nested.send(), block=True, timeout=LONG * 1000)
    assert [] == plugin.messages


def test_a_celery_task_that_calls_itself_calls_a_function():
    """Within its own run too a direct call of a task asks no plugin."""
    native = celery_apps.celery_app()
    plugin = Keeps("answered")

    @native.task(name="nested", shared=False)
    def nested(*, inner=False):
        if inner:
            raise OSError
        try:
            return nested(inner=True)
        except OSError:
            return "caught"

    celery_engine.install(native, [plugin], discover=False)
    with celery_apps.working(native):
        assert "caught" == nested.delay().get(timeout=LONG, interval=0.01)
    assert [] == plugin.messages


def test_the_last_install_holds_for_all_tasks_of_a_celery_app():
    """Plugins that are given anew take the others' place, also for tasks covered before."""
    native = celery_apps.celery_app()
    first, last = Keeps("first"), Keeps("last", "last")

    def fail():
        raise OSError

    before = native.task(name="before", shared=False)(fail)
    assert before.name in native.tasks
    celery_engine.install(native, [first], discover=False)
    celery_engine.install(native, [last], discover=False)
    after = native.task(name="after", shared=False)(fail)
    with celery_apps.working(native):
        for task in (before, after):
            assert "last" == task.delay().get(timeout=LONG, interval=0.01)
    assert [] == first.heard
    assert ["start", "close", "close", "stop"] == last.heard


def test_a_retry_that_celery_cannot_send_ends_in_an_error_of_ours(monkeypatch):
    """A broker that takes no further message is named, with the task's own error as the cause."""
    native = celery_apps.celery_app()

    @native.task(name="fail", shared=False)
    def fail():
        monkeypatch.setattr(fail, "apply_async", full)
        raise OSError("broken")

    def full(*_, **__):
        raise ConnectionError("no room")

    plugin = Keeps(Retry())
    celery_engine.install(native, [plugin], discover=False)
    with celery_apps.working(native), pytest.raises(EngineError, match="no room"):
        fail.delay().get(timeout=LONG, interval=0.01)
    assert ENDS == heard(plugin)


def test_a_retry_that_dramatiq_cannot_send_ends_in_an_error_of_ours(monkeypatch):
    """R15: a broker that takes no further message is named, and the plugins hear of the end."""
    native = dramatiq_apps.stub_broker()
    plugin = Keeps(Retry())

    def fail():
        monkeypatch.setattr(native, "enqueue", full)
        raise OSError("broken")

    def full(*_, **__):
        raise ConnectionError("no room")

    task = dramatiq.actor(actor_name="fail", broker=native, max_retries=0, store_results=True)(fail)
    dramatiq_engine.install(native, [plugin], discover=False)
    with dramatiq_apps.working(native), pytest.raises(ResultFailure, match="no room"):
        backend = native.get_results_backend()
        backend.get_result(task.send(), block=True, timeout=LONG * 1000)
    assert ENDS == heard(plugin)


@pytest.mark.parametrize("given", [None, "shop", pytest], ids=["none", "text", "module"])
@pytest.mark.parametrize("engine", [celery_engine, dramatiq_engine, huey_engine, taskiq_engine])
def test_install_refuses_what_is_no_app_of_the_engine_s(engine, given):
    """What is no app or broker is named as that, whatever else it is."""
    with pytest.raises(
        TypeError, match=r"install\(\) expected a .*, got a .*; pass the object"
    ) as caught:
        engine.install(given, discover=False)
    assert type(given).__name__ in str(caught.value)
