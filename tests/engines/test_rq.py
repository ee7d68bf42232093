"""Plugins for RQ's jobs: what a worker makes of each decision, in this process and over Redis."""

from __future__ import annotations

import signal
import threading
import traceback

import pytest
import structlog
from rq import Retry as NativeRetry
from rq.job import Job

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.engines import installed_in
from qtasks_pluggy.engines.rq import PluggyJob, install
from qtasks_pluggy.exc import CapabilityError, EngineError, PluginError, TaskNameError
from tests.engines import rq_apps
from tests.engines.huey_apps import Keeps
from tests.engines.plugins import Ends
from tests.engines.rq_apps import fail, fail_async, run, seen
from tests.engines.versions import since

pytestmark = [
    pytest.mark.engines,
    pytest.mark.usefixtures("forget"),
    # RQ before 2 warns of itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rq.connections"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rq.worker"),
]


@pytest.fixture
def queue(redis_url):
    """A queue of the test's own."""
    seen.clear()
    with rq_apps.queue_on(redis_url) as one:
        yield one


def last_line(job):
    """Return the last line of the error that RQ has stored, without the notes of ours."""
    lines = job.latest_result().exc_string.strip().splitlines()
    return [line for line in lines if not line.startswith("qtasks_pluggy: ")][-1]


def is_set_aside(job, queue):
    """Say whether a job failed, and lies where RQ keeps those."""
    return job.is_failed and queue.failed_job_registry.get_job_ids() == [job.id]


@pytest.mark.parametrize("function", [fail, fail_async])
@pytest.mark.parametrize("answer", [7, 0, Replace(None), Replace([])])
def test_an_answer_is_the_job_s_result(queue, function, answer):
    """A plugin's answer is what RQ stores, of plain and of async jobs."""
    plugin, ends = Keeps(answer), Ends()
    job = run(queue, install([plugin, ends], discover=False), function, "broken")
    assert job.is_finished
    assert getattr(answer, "value", answer) == job.latest_result().return_value
    (message,) = plugin.messages
    known = (message.name, message.args, message.uuid, message.attempt, message.queue)
    name = f"{rq_apps.HERE}.{function.__name__}"
    assert (name, ("broken",), job.id, 1, queue.name) == known
    assert [("recovered", 1, "keeps")] == ends.attempts
    assert ["recovered"] == ends.runs


@pytest.mark.parametrize("function", [fail, fail_async])
@pytest.mark.parametrize(
    ("decision", "line", "status"),
    [
        (None, "OSError: broken", "failed"),
        (Raise(LookupError("clearer")), "LookupError: clearer", "failed"),
        (Cancel("why"), "qtasks_hookspecs.exc.TaskCancelError: why", "cancelled"),
        (DeadLetter("why"), "qtasks_hookspecs.exc.TaskDeadLetteredError: why", "dead_lettered"),
    ],
)
def test_ends_are_rq_s_own(queue, function, decision, line, status):
    """What is decided is stored as the job's error, and the job is in ``FailedJobRegistry``."""
    ends = Ends()
    job = run(queue, install([Keeps(decision), ends], discover=False), function)
    assert is_set_aside(job, queue)
    assert line == last_line(job)
    assert ["broken"] == seen
    assert [status] == ends.runs


@pytest.mark.parametrize("decision", [Cancel("why"), DeadLetter("why")])
def test_cancel_and_dead_letter_use_up_native_retries(queue, decision):
    """A job that is cancelled or set aside is over, whatever ``Retry`` it was enqueued with."""
    plugin = Keeps(decision)
    job_class = install([plugin], discover=False)
    job = run(queue, job_class, fail, retry=NativeRetry(max=3))
    assert is_set_aside(job, queue)
    assert ["broken"] == seen
    assert "close" == plugin.heard[-1]


@pytest.mark.parametrize(
    ("answer", "seen_by"), [("answer", ["broken", "answer"]), (Cancel("why"), ["broken"])]
)
def test_a_job_that_depends_on_another_runs_after_its_success(queue, answer, seen_by):
    """A dependent job runs where a plugin has answered, and reads the answer; else it waits."""
    job_class = install([Keeps(answer)], discover=False)
    first = queue.enqueue(fail)
    second = queue.enqueue(rq_apps.reads, args=[first.id], depends_on=first)
    rq_apps.work(queue, job_class)
    assert seen_by == seen
    status = queue.fetch_job(second.id).get_status()
    assert ("finished" if len(seen_by) == 2 else "deferred") == status


def test_a_dead_letter_that_a_plugin_keeps_is_a_failed_job_too(queue):
    """RQ knows no other end for a job that has no result."""
    kept = []

    class Keeper:
        @hookimpl
        def task_executor_dead_letter(self, e, reason):
            kept.append((e, reason))
            return True

    job = run(queue, install([Keeps(DeadLetter("why")), Keeper()], discover=False), fail)
    assert is_set_aside(job, queue)
    assert [("broken", "why")] == [(str(error), reason) for error, reason in kept]


@pytest.mark.parametrize("function", [fail, fail_async])
def test_plugins_retry_jobs(queue, function):
    """A retry is another attempt of the same job, counted on; no trace is left in its meta."""
    plugin, ends = Keeps(Retry(), Retry(delay=0), "third"), Ends()
    job = run(queue, install([plugin, ends], discover=False), function, meta={"of": "mine"})
    assert "third" == job.latest_result().return_value
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert [{"of": "mine"}] * 3 == [message.metadata for message in plugin.messages]
    assert {"of": "mine"} == job.meta
    assert ["retried", "retried", "recovered"] == [status for status, _, _ in ends.attempts]
    assert ["recovered"] == ends.runs


def test_spent_retries_end_in_the_job_s_own_error(queue):
    """``Retry(limit=2)`` is two retries; requeued by an operator the job has them again."""
    plugin = Keeps(*[Retry(limit=2)] * 6)
    job_class = install([plugin], discover=False)
    job = run(queue, job_class, fail)
    assert "OSError: broken" == last_line(job)
    assert ["broken"] * 3 == seen
    job.requeue()
    rq_apps.work(queue, job_class)
    assert ["broken"] * 6 == seen
    assert [1, 2, 3] * 2 == [message.attempt for message in plugin.messages]


def test_retries_are_spent_although_plugins_do_not_stop(redis_url, monkeypatch):
    """Under ``strict``, a plugin whose stop fails ends a work horse's attempt, which counts."""
    monkeypatch.setenv("QTASKS_PLUGGY_STRICT", "true")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    class Breaks(Keeps):
        @hookimpl
        def qtasks_stop(self):
            raise RuntimeError("broken")

    plugin = Breaks(*[Retry(limit=2)] * 4)
    job_class = install([plugin], discover=False)
    with rq_apps.queue_on(redis_url) as queue:
        job = job_class.create(fail, connection=queue.connection, origin=queue.name)
    job.worker_name = "horse"
    for _ in range(3):
        with pytest.raises(PluginError, match="broken"):
            job.perform()
        job.retries_left = 0  # RQ's worker has used it up
    assert [1, 2, 3] == [message.attempt for message in plugin.messages]
    assert "failed" in plugin.heard


def test_native_retries_come_on_top(queue):
    """Plugins are asked at every attempt; only after the last of RQ's own has a run failed."""
    plugin, ends = Keeps(None, Retry()), Ends()
    job_class = install([plugin, ends], discover=False)
    job = run(queue, job_class, fail, retry=NativeRetry(max=2))
    assert is_set_aside(job, queue)
    assert [1, 2, 3, 4] == [message.attempt for message in plugin.messages]
    assert ["failed", "close"] == plugin.heard[1:]
    decided = [("retried", 1, None), ("retried", 2, "keeps"), ("retried", 3, None)]
    assert [*decided, ("failed", 4, None)] == ends.attempts


@pytest.mark.parametrize(
    ("native", "delay", "intervals"),
    [
        (None, 1.2, [2]),
        (NativeRetry(max=2), 0.5, [1, 0, 0]),
        (NativeRetry(max=3, interval=[10, 20, 30]), 5, [5, 10, 20, 30]),
        (NativeRetry(max=3, interval=[10, 20]), 5, [5, 10, 10, 20]),
    ],
)
def test_a_delay_leaves_native_intervals_alone(queue, native, delay, intervals):
    """A retry waits in ``ScheduledJobRegistry``, whole seconds, before those that RQ has left."""
    job = run(queue, install([Keeps(Retry(delay=delay))], discover=False), fail, retry=native)
    assert [job.id] == queue.scheduled_job_registry.get_job_ids()
    assert intervals == job.retry_intervals
    job.retries_left = len(intervals)
    said = []
    while job.retries_left:
        said.append(job.get_retry_interval())
        job.retries_left -= 1
    assert intervals == said


@since("rq", "2.1", "a Retry that a job returns is a result as any other")
def test_a_retry_that_a_job_returns_is_an_attempt_s_end(queue):
    """By ``return Retry(max=2)`` a job talks to RQ: plugins hear of retries, and of one end."""
    plugin, ends, texts = Keeps("never"), Ends(), []

    class Looks:
        @hookimpl
        def task_executor_attempt_ended(self, outcome):
            texts.append(str(outcome.error))

    job = run(queue, install([plugin, ends, Looks()], discover=False), rq_apps.again_twice)
    assert "done" == job.latest_result().return_value
    assert [] == plugin.messages
    assert [("retried", 1, None), ("retried", 2, None), ("succeeded", 3, None)] == ends.attempts
    assert ["succeeded"] == ends.runs
    # The same each time, so that failures have it as one group.
    assert ["the job returned a Retry"] * 2 == texts[:2]


def test_rq_s_time_limit_passes(queue):
    """No plugin is asked about ``JobTimeoutException``."""
    plugin = Keeps("never")
    job = run(queue, install([plugin], discover=False), rq_apps.late)
    assert "rq.timeouts.JobTimeoutException: late" == last_line(job)
    assert [] == plugin.messages


def test_what_is_intercepted_can_be_narrowed(queue):
    """``intercept`` names the errors that plugins are asked about."""
    plugin = Keeps("never")
    job = run(queue, install([plugin], discover=False, intercept=LookupError), fail)
    assert is_set_aside(job, queue)
    assert [] == plugin.messages


def test_r7_an_answer_that_does_not_pickle_is_void(queue):
    """R7: the plugin has failed, the last other answer wins, and the job was run once."""
    locks = Keeps(threading.Lock())
    locks.name = "locks"
    with structlog.testing.capture_logs() as logs:
        job = run(queue, install([Keeps("other"), locks], discover=False), fail)
    assert "other" == job.latest_result().return_value
    assert ["broken"] == seen
    assert "cannot be stored" in str(logs)


def test_r6_the_error_is_stored_with_at_most_two_frames_of_ours(queue):
    """R6: RQ's log and registry show the error as without plugins, its own frame last."""
    errors = []

    def handle(job, kind, error, trace):
        errors.append(traceback.extract_tb(trace))

    job_class = install([Keeps(None)], discover=False)
    job = queue.enqueue(fail)
    rq_apps.work(queue, job_class, exception_handlers=[handle])
    (frames,) = errors
    assert "fail" == frames[-1].name
    assert len([one for one in frames if "/qtasks_pluggy/" in one.filename]) <= 2
    assert "OSError: broken" == last_line(queue.fetch_job(job.id))


def test_r19_no_job_sees_what_another_has_bound(queue):
    """R19: in a ``SimpleWorker`` too each job begins in a copy of the worker's context."""
    job_class = install(discover=False)
    assert ["nothing"] * 2 == [
        run(queue, job_class, rq_apps.binds).latest_result().return_value for _ in range(2)
    ]


def test_a_call_within_a_job_is_a_function_s(queue):
    """A job that calls its own function asks no plugin about what that raises."""
    plugin = Keeps("never")
    job = run(queue, install([plugin], discover=False), rq_apps.calls_itself)
    assert "caught inner" == job.latest_result().return_value
    assert [] == plugin.messages


def test_a_method_of_an_object_is_a_job(queue):
    """RQ pickles the object, and plugins are asked about the method, under its name."""
    plugin = Keeps("one", "two")
    job_class = install([plugin], discover=False)
    for answer in ("one", "two"):
        job = run(queue, job_class, rq_apps.Shop("tea shop").price, "coffee")
        assert answer == job.latest_result().return_value
    assert [("price", ("coffee",))] * 2 == [(one.name, one.args) for one in plugin.messages]
    assert ["tea shop has no coffee"] * 2 == [str(cause) for cause in plugin.causes]


def test_plugins_are_asked_where_rq_runs_jobs_at_once(redis_url):
    """With ``is_async=False`` an answer is the result, and a retry is refused."""
    seen.clear()
    plugin = Keeps("answer", Retry(delay=5), Retry())
    job_class = install([plugin], discover=False)
    with rq_apps.queue_on(redis_url, is_async=False, job_class=job_class) as queue:
        assert "answer" == queue.enqueue(fail).latest_result().return_value
        with structlog.testing.capture_logs() as logs:
            assert "OSError: broken" == last_line(queue.enqueue(fail))
        assert CapabilityError.__name__ in str(logs)
        assert "is_async=False runs each job once" in last_line(queue.enqueue(fail))
    assert ["broken"] * 3 == seen


def test_a_job_within_a_job_leaves_the_plugins_started(redis_url):
    """Plugins are stopped after the job that they were started for."""
    # A worker in another test has left its handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    plugin = Keeps("inner")
    job_class = install([plugin], discover=False)
    with rq_apps.queue_on(redis_url, is_async=False, job_class=job_class) as queue:
        job = queue.enqueue(rq_apps.runs_another)
        assert "inner" == job.latest_result().return_value
    assert ["start", "close", "close", "stop"] == plugin.heard


class Replays:
    """Sends each job that failed again, with other arguments."""

    def __init__(self):
        self.ids = []

    @hookimpl
    def task_executor_task_failed(self, task_executor, task_broker):
        self.ids.append(
            task_executor.app.replay(
                attrs_evolved(task_broker), args=(1,), kwargs={"timeout": 2}, metadata={"by": "me"}
            )
        )


def attrs_evolved(message):
    """Return a message of the same run whose task is one that succeeds."""
    import attrs

    return attrs.evolve(message, name=f"{rq_apps.HERE}.fine", uuid=message.uuid)


def test_a_plugin_sends_a_job_again(queue):
    """``app.replay`` enqueues another job on the same queue, with its lineage in ``meta``."""
    plugin = Replays()
    job = run(queue, install([plugin], discover=False), fail)
    (new,) = [queue.fetch_job(str(one)) for one in plugin.ids]
    assert [1, {"timeout": 2}] == new.latest_result().return_value
    assert {"replay_of": job.id, "by": "me"} == new.meta


def test_a_client_finds_the_app_of_a_job_class(queue, redis_url):
    """``installed_in`` accepts a job class, and a queue, which it uses to send jobs again."""
    assert installed_in(Job) is None
    assert installed_in(queue) is None
    assert [] == installed_in(PluggyJob).plugins.list_plugin_info()
    plugin = Keeps()
    job_class = install([plugin], discover=False)
    message = attrs_evolved(run_failing(queue, job_class, plugin))
    assert ["keeps"] == [one.name for one in installed_in(job_class).plugins.list_plugin_info()]
    with rq_apps.queue_on(redis_url, job_class=job_class) as other:
        app = installed_in(other)
        job = other.fetch_job(str(app.replay(message, args=("late",), delay=0.1)))
        assert [job.id] == other.scheduled_job_registry.get_job_ids()
        with pytest.raises(TaskNameError, match=r"nowhere\.price"):
            app.replay(attrs_named(message, "nowhere.price"))


def run_failing(queue, job_class, plugin):
    """Run a job that fails, and return its message."""
    run(queue, job_class, fail)
    return plugin.messages[0]


def attrs_named(message, name):
    """Return a message of another task."""
    import attrs

    return attrs.evolve(message, name=name, uuid=message.uuid)


def test_rq_is_no_engine_of_ours(queue):
    """``QueueTasks(engine=queue)`` is told what to do instead."""
    with pytest.raises(EngineError, match=r"call install\(\) of qtasks_pluggy\.engines\.rq"):
        QueueTasks("shop", engine=queue)


@pytest.mark.parametrize("given", [None, "shop.Job", object])
def test_install_refuses_what_is_no_class_of_jobs(given):
    """The error names what is not a job class."""
    with pytest.raises(TypeError, match=r"expected a subclass of rq\.job\.Job"):
        install(job_class=given, discover=False)


def test_a_project_keeps_its_own_class_of_jobs(queue):
    """``install(job_class=...)`` puts plugins around that one."""

    class Own(Job):
        @property
        def func_name(self):
            return f"{rq_apps.HERE}.fine"

    job = run(queue, install(job_class=Own, discover=False), fail, "one")
    assert ["one", {}] == job.latest_result().return_value
