"""Every way in which people write and call Celery tasks goes on to work with plugins."""

from __future__ import annotations

import datetime as dt
import sys
import threading
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import Celery, Task, chain, chord, group
from celery.exceptions import MaxRetriesExceededError

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy.engines.celery import install
from tests.engines.celery_apps import celery_app, forget_connections, working
from tests.engines.huey_apps import LONG, Keeps
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines


class Policy:
    """Decides by the text of the error."""

    name = "policy"

    def __init__(self):
        self.asked = []

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_broker, e):
        what = str(e.cause.args[0])
        self.asked.append((what, task_broker.attempt))
        if what == "again":
            return Retry() if task_broker.attempt == 1 else Replace(0)
        decisions = {
            "zero": 0,
            "cancel": Cancel("why"),
            "clearer": Raise(LookupError("clearer")),
            "dead": DeadLetter("why"),
        }
        return decisions.get(what)

    @hookimpl
    def task_executor_dead_letter(self):
        return True


@pytest.fixture
def shop():
    """A Celery app with plugins, and its tasks; a worker runs them."""
    native = celery_app(result_chord_join_timeout=LONG)

    @native.task(name="half", shared=False)
    def half(what):
        if isinstance(what, str):
            raise OSError(what)
        return what // 2

    @native.task(name="total", shared=False)
    def total(numbers):
        return sum(numbers)

    told = []

    @native.task(name="errback", shared=False)
    def errback(request, error, traceback):
        told.append((type(error).__name__, str(error)))

    @native.task(name="link", shared=False)
    def link(value):
        told.append(value)

    policy = Policy()
    install(native, [policy], discover=False)
    native.set_current()
    with working(native):
        yield SimpleNamespace(
            native=native,
            half=half,
            total=total,
            errback=errback,
            link=link,
            told=told,
            policy=policy,
        )


def get(result):
    """Wait for a native result."""
    return result.get(timeout=LONG, interval=0.01)


def test_a_group_has_the_answers(shop):
    """Each member asks plugins by itself; recovered and retried ones are members like others."""
    assert [2, 0, 0, 3] == get(group(shop.half.s(what) for what in (4, "zero", "again", 6))())


def test_a_failed_member_fails_its_group_in_its_own_error(shop):
    """Without an answer a group fails as without plugins; the other members have their results."""
    result = group(shop.half.s(4), shop.half.s("nobody"))()
    with pytest.raises(OSError, match="nobody"):
        get(result)
    assert 2 == get(result[0])


@pytest.mark.parametrize("what", ["zero", "again"])
def test_a_chain_goes_on_with_an_answer(shop, what):
    """The next link gets what a plugin answered, after a retry too."""
    assert 0 == get(chain(shop.half.s(what), shop.half.s(), shop.half.s())())


@pytest.mark.parametrize(
    ("what", "kind"), [("nobody", OSError), ("clearer", LookupError), ("cancel", Exception)]
)
def test_a_chain_ends_where_no_value_is(shop, what, kind):
    """A failed or cancelled link ends its chain; the links after it never run."""
    result = chain(shop.half.s(what), shop.link.s())()
    with pytest.raises(kind, match="why|nobody|clearer"):
        get(result.parent)
    assert 2 == get(shop.half.delay(4))
    assert [] == shop.told


def test_a_chord_s_body_gets_the_answers(shop):
    """The body runs once, after the last attempt of every member."""
    heads = [shop.half.s(what) for what in (4, "again", "zero", 8)]
    assert 6 == get(chord(heads)(shop.total.s()))
    assert 2 == shop.policy.asked.count(("again", 1)) + shop.policy.asked.count(("again", 2))


@pytest.mark.parametrize(
    ("what", "text"),
    [("nobody", "nobody"), ("clearer", "clearer"), ("cancel", "why"), ("dead", "why")],
)
def test_a_chord_whose_member_has_no_value_fails(shop, what, text):
    """Nobody waits for the body for ever: it fails with the member's error, and its errback hears.

    As Celery has it, that error comes as itself or within a ``ChordError``.
    """
    body = shop.total.s().on_error(shop.errback.s())
    result = chord([shop.half.s(4), shop.half.s(what)])(body)
    with pytest.raises(Exception, match=text):
        get(result)
    assert wait_until(lambda: shop.told, LONG)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("zero", 0),
        ("again", 0),
        ("nobody", ("OSError", "nobody")),
        ("clearer", ("LookupError", "clearer")),
        ("dead", ("TaskDeadLetteredError", "why")),
    ],
)
def test_one_callback_of_a_run_is_called_once(shop, what, told):
    """``link`` for a recovered run, ``link_error`` for a failed one, with the stored error."""
    shop.half.apply_async((what,), link=shop.link.s(), link_error=shop.errback.s())
    assert wait_until(lambda: shop.told, LONG)
    assert 2 == get(shop.half.delay(4))
    assert [told] == shop.told


@pytest.mark.parametrize("when", ["countdown", "eta", "expires"])
def test_a_delayed_run_asks_like_any_other(shop, when):
    """What a run was sent with holds for it, and for the attempt that a plugin adds."""
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.05)
    options = {
        "countdown": {"countdown": 0.05},
        "eta": {"eta": later},
        "expires": {"expires": LONG},
    }[when]
    assert 0 == get(shop.half.apply_async(("again",), **options))
    assert [("again", 1), ("again", 2)] == shop.policy.asked


def test_a_class_of_tasks_keeps_its_own_methods():
    """``before_start``, ``on_success``, ``on_failure``, ``on_retry``, ``after_return`` as ever."""
    native, told = celery_app(), []

    class Own(Task):
        abstract = True

        def before_start(self, *_):
            told.append("before_start")

        def on_success(self, value, *_):
            told.append(("on_success", value))

        def on_failure(self, error, *_):
            told.append(("on_failure", type(error).__name__))

        def on_retry(self, error, task_id, args, kwargs, einfo):
            told.append(("on_retry", type(error).__name__, "OSError" in einfo.traceback))

        def after_return(self, status, *_):
            told.append(("after_return", status))

    @native.task(name="fail", base=Own, bind=True, shared=False)
    def fail(self, what):
        assert self.request.id
        raise OSError(what)

    install(native, [Policy()], discover=False)
    with working(native):
        assert 0 == get(fail.delay("again"))
        with pytest.raises(OSError, match="nobody"):
            get(fail.delay("nobody"))
        assert wait_until(lambda: told[-1:] == [("after_return", "FAILURE")], LONG)
    assert [
        "before_start",
        ("on_retry", "OSError", True),
        "before_start",
        ("on_success", 0),
        ("after_return", "SUCCESS"),
        "before_start",
        ("on_failure", "OSError"),
        ("after_return", "FAILURE"),
    ] == told


def test_an_on_retry_that_fails_keeps_the_retry(caplog):
    """The next attempt is sent already, so a broken ``on_retry`` is logged, and no more."""
    native = celery_app()

    class Own(Task):
        def on_retry(self, *_):
            raise RuntimeError("of on_retry")

    @native.task(name="fail", base=Own, shared=False)
    def fail(what):
        raise OSError(what)

    install(native, [Policy()], discover=False)
    with working(native):
        assert 0 == get(fail.delay("again"))
    assert "RuntimeError: of on_retry" in caplog.text


def test_self_retry_and_its_limit_stay_celery_s():
    """``self.retry`` counts as ever; plugins are asked about the error in which it ends."""
    native, seen = celery_app(), []

    @native.task(name="fetch", bind=True, shared=False, max_retries=1, default_retry_delay=0)
    def fetch(self):
        seen.append(self.request.retries)
        raise self.retry()

    plugin = Keeps("gave up")
    install(native, [plugin], discover=False)
    with working(native):
        assert "gave up" == get(fetch.delay())
    assert [0, 1] == seen
    assert [MaxRetriesExceededError] == [type(cause) for cause in plugin.causes]


@pytest.mark.parametrize("retries", [-20, -1])
def test_r9_a_message_with_negative_retries_gives_a_run_no_more_of_them(retries):
    """R9: whatever number a message brings, the limit of a retry holds."""
    native, seen = celery_app(), []

    @native.task(name="fail", shared=False)
    def fail():
        seen.append(1)
        raise OSError("broken")

    install(native, [Keeps(*[Retry(limit=2)] * 9)], discover=False)
    with working(native), pytest.raises(OSError, match="broken"):
        get(fail.apply_async(retries=retries))
    assert 3 == len(seen)


@pytest.mark.parametrize("header", [[], "x", 5, {"metadata": 5}, {"attempt": []}], ids=repr)
def test_an_odd_header_is_no_trouble_for_its_run(header):
    """Anybody may have written what stands where our header would be."""
    native = celery_app()

    @native.task(name="fail", shared=False)
    def fail():
        return {}["key"]

    install(native, [Keeps(Retry(), 0)], discover=False)
    with working(native):
        assert 0 == get(fail.apply_async(headers={"qtasks_pluggy": header}))


def test_runs_side_by_side_do_not_share_what_is_decided():
    """Threads of one worker run the same task at once, each with its own request and attempts."""
    native = celery_app()
    gate = threading.Barrier(4)

    @native.task(name="fail", bind=True, shared=False)
    def fail(self, number):
        if self.request.retries == 0:
            gate.wait(LONG)
        raise OSError(number)

    class Answers:
        name = "answers"

        @hookimpl
        def task_executor_run_task_trigger_error(self, task_broker):
            return Retry() if task_broker.attempt == 1 else task_broker.args[0] * 10

    install(native, [Answers()], discover=False)
    with working(native, concurrency=4):
        results = [fail.delay(number) for number in range(4)]
        assert [0, 10, 20, 30] == [get(result) for result in results]


PROJECT = """
    import os, time
    from celery import Celery, Task, chord, group
    from celery.exceptions import SoftTimeLimitExceeded
    from qtasks_pluggy.engines.celery import install

    celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
    celery.conf.update(task_default_queue=os.environ["QUEUE"], imports=["more"])
    celery.conf.update(control_exchange=os.environ["QUEUE"])
    if "START" in os.environ:
        celery.conf.worker_pool_start_method = os.environ["START"]

    class Own(Task):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    @celery.task(name="fail", base=Own, bind=True)
    def fail(self, what):
        raise OSError(what, self.request.retries)

    @celery.task(name="slow", soft_time_limit=1)
    def slow():
        time.sleep(30)

    install(celery, ["policy"], discover=False)
"""
MORE = """
    from celery import shared_task

    @shared_task(name="total")
    def total(numbers):
        return sum(numbers)

    @shared_task(name="late")
    def late():
        raise LookupError("late")
"""
POLICY = """
    from qtasks_hookspecs import Retry, hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error(task_broker, e):
        if task_broker.name == "fail" and task_broker.attempt == 1:
            return Retry(delay=0.1)
        return {"fail": 1, "late": "late", "slow": type(e.cause).__name__}[task_broker.name]
"""
POOLS = {
    "prefork": ("-P", "prefork"),
    "spawn": ("-P", "prefork"),
    "threads": ("-P", "threads"),
    "solo": ("-P", "solo"),
    "gevent": ("-P", "gevent"),
}


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_asks(project, worker, redis_url, pool):
    """Retries, shared tasks, classes, groups and chords, by Celery's command in each pool."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    queue = f"celery-{uuid4().hex[:8]}"
    env = {"BROKER": redis_url, "QUEUE": queue, **({"START": pool} if pool == "spawn" else {})}
    folder = project({"shop.py": PROJECT, "more.py": MORE, "policy.py": POLICY})
    command = (sys.executable, "-m", "celery", "-A", "shop:celery", "worker", "-c", "2")
    name = ("-n", f"{uuid4().hex}@%h", "-l", "INFO")
    log = worker(*command, *name, *POOLS[pool], cwd=folder, env=env, ready="ready.")
    native = Celery("client", broker=redis_url, backend=redis_url, set_as_current=False)
    native.conf.task_default_queue = queue

    def sig(name, *args, **options):
        return native.signature(name, args, app=native, **options)

    assert "late" == get(native.send_task("late"))
    assert [1, 1, 1] == get(group([sig("fail", n) for n in range(3)], app=native)())
    assert 3 == get(chord([sig("fail", n) for n in range(3)], app=native)(sig("total")))
    if pool in {"prefork", "spawn"}:
        # Celery has soft limits in no other pool.
        assert "SoftTimeLimitExceeded" == get(native.send_task("slow"))
    forget_connections()
    assert "worker_asks_plugins app='shop' plugins=['policy']" in log.log()
