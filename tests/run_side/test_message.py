"""``TaskMessage``: the message of one run, whose id and time are made when they are needed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import uuid

import attrs
import pytest

from qtasks_hookspecs import Retry, TaskMessage
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy import TaskMessage as AppsTaskMessage
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import both_ways, failing, plugin

TRAVELS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {number}": lambda message, number=number: pickle.loads(
            pickle.dumps(message, number)
        )
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}
every_travel = pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
FIELDS = [
    "name",
    "args",
    "kwargs",
    "uuid",
    "priority",
    "created_at",
    "attempt",
    "queue",
    "engine",
    "redelivered",
    "metadata",
]


def at_once(function, threads=16):
    """Call a function from many threads at once; return what each got."""
    together, got = threading.Barrier(threads), []

    def call():
        together.wait(10)
        got.append(function())

    running = [threading.Thread(target=call) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(10)
    return got


def test_defaults():
    """A message needs no more than a name."""
    message = TaskMessage("task")

    assert (message.name, message.args, message.kwargs, message.metadata) == ("task", (), {}, {})
    assert (message.priority, message.attempt) == (0, 1)
    assert (message.queue, message.engine, message.redelivered) == (None, None, None)


def test_what_an_engine_does_not_know_is_none():
    """Adapters say so with None."""
    message = TaskMessage("task", priority=None, attempt=None, redelivered=None)

    assert (message.priority, message.attempt, message.redelivered) == (None, None, None)


def test_there_is_one_class():
    """Plugins and apps name the same class."""
    assert AppsTaskMessage is TaskMessage


def test_it_is_frozen():
    """A hookimpl cannot write it, and what it was made of is not shared."""
    args, kwargs, metadata = [1], {"a": 1}, {"m": 1}
    message = TaskMessage("task", args, kwargs, metadata=metadata)
    for given in (args, kwargs, metadata):
        given.clear()

    assert (message.args, message.kwargs, message.metadata) == ((1,), {"a": 1}, {"m": 1})
    for name in FIELDS:
        with pytest.raises((AttributeError, attrs.exceptions.FrozenInstanceError)):
            setattr(message, name, None)


def test_uuid_and_time_are_made_once():
    """Each reading gives the same; two messages have two ids."""
    before = time.time()
    message, other = TaskMessage("task"), TaskMessage("task")

    assert isinstance(message.uuid, uuid.UUID)
    assert message.uuid is message.uuid
    assert message.uuid != other.uuid
    assert before <= message.created_at <= time.time()
    assert message.created_at == message.created_at


@pytest.mark.parametrize("given", [uuid.uuid4(), "celery-id-7"], ids=["uuid", "text"])
def test_uuid_and_time_that_are_given_stay(given):
    """An engine's own id and time are the message's, whatever they look like."""
    message = TaskMessage("task", uuid=given, created_at=12.5)

    assert message.uuid is given
    assert message.created_at == 12.5


@pytest.mark.parametrize("what", ["uuid", "created_at"])
def test_threads_that_read_at_once_read_one_value(what, monkeypatch):
    """However many ask first, one id and one time are made."""
    make_id, look_at_clock = uuid.uuid4, time.time

    def slowly(make):
        def made():
            time.sleep(0.002)  # long enough for the other threads to come in between
            return make()

        return made

    message = TaskMessage("task")
    monkeypatch.setattr(uuid, "uuid4", slowly(make_id))
    monkeypatch.setattr(time, "time", slowly(look_at_clock))

    assert len(set(at_once(lambda: getattr(message, what)))) == 1


def test_threads_that_pickle_at_once_send_one_id():
    """Making the id by a copy is no other way of making it."""
    message = TaskMessage("task")
    ways = iter([*TRAVELS.values()] * 4)

    got = at_once(lambda: next(ways)(message))

    assert {(one.uuid, one.created_at) for one in got} == {(message.uuid, message.created_at)}


@every_travel
def test_it_travels_whole(travel):
    """A copy is the same message, field by field, id and time included, read before or not."""
    message = TaskMessage(
        "task",
        (1, "a"),
        {"b": [2]},
        priority=3,
        attempt=4,
        queue="q",
        engine="memory",
        redelivered=True,
        metadata={"m": 5},
    )

    other = travel(message)

    assert type(other) is TaskMessage
    assert [getattr(message, name) for name in FIELDS] == [getattr(other, name) for name in FIELDS]


@every_travel
def test_equality_is_of_run_and_attempt(travel):
    """A copy is equal, and so is its hash; another run or another attempt is not."""
    message = TaskMessage("task", uuid="one")

    assert travel(message) == message
    assert hash(travel(message)) == hash(message)
    assert message != TaskMessage("task", uuid="two")
    assert message != TaskMessage("task", uuid="one", attempt=2)
    assert message != "one"


def test_repr_shows_no_values():
    """Arguments and metadata may hold secrets."""
    message = TaskMessage("task", ("secret-1",), {"a": "secret-2"}, metadata={"m": "secret-3"})

    assert "task" in repr(message)
    assert "secret" not in repr(message)


@both_ways
def test_a_run_has_one_message(run):
    """Made when it is first read, it is the same for all hooks and readers of the attempt."""
    seen = []
    keeps = plugin(
        "keeps",
        task_executor_run_task_trigger_error=lambda task_broker: seen.append(task_broker),
        task_executor_task_failed=lambda task_broker: seen.append(task_broker),
        task_executor_task_close=lambda task_broker: seen.append(task_broker),
    )
    app = QueueTasks("shop", discover=False, plugins=[keeps])
    task = app.task(name="task", priority=7)(failing("function", TaskPluginTriggerError()))
    executor = TaskExecutor(task, args=(1,), kwargs={"a": 2})

    with pytest.raises(TaskPluginTriggerError):
        run(executor)

    assert len(seen) == 3
    assert {id(one) for one in seen} == {id(executor.task_broker)}
    assert (seen[0].name, seen[0].args, seen[0].kwargs) == ("task", (1,), {"a": 2})
    assert (seen[0].priority, seen[0].attempt) == (7, 1)


@both_ways
@pytest.mark.parametrize("given", [True, False], ids=["given", "made"])
def test_a_retry_is_the_same_run(given, run):
    """Each attempt has the run's id in its message, and its own number."""
    seen = []

    def decide(task_broker):
        seen.append((task_broker.uuid, task_broker.attempt))
        return Retry(limit=2)

    message = TaskMessage("task") if given else None
    retries = plugin("retries", task_executor_run_task_trigger_error=decide)
    executor = TaskExecutor(
        failing("function", TaskPluginTriggerError()), message, plugins=[retries]
    )

    with pytest.raises(TaskPluginTriggerError):
        run(executor)

    assert seen == [(executor.ctx.uuid, n) for n in (1, 2, 3)]
    assert not given or message.attempt == 1


@both_ways
def test_a_retried_run_was_made_once(run, monkeypatch):
    """The messages of all attempts agree on when, even where nobody asked until the end."""
    kept = []

    def decide(task_broker):
        kept.append(task_broker)
        return Retry(limit=2)

    retries = plugin("retries", task_executor_run_task_trigger_error=decide)

    with pytest.raises(TaskPluginTriggerError):
        run(TaskExecutor(failing("function", TaskPluginTriggerError()), plugins=[retries]))

    clock = iter(range(100))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert len({message.created_at for message in kept}) == 1


@both_ways
def test_a_run_that_nobody_looks_at_makes_no_id(run, monkeypatch):
    """Neither a good run nor a failing one pays for an id or a time that nobody reads."""

    def fail():
        raise AssertionError("made for nobody")

    asks = plugin("asks", task_executor_run_task_trigger_error=lambda task_broker: "saved")
    monkeypatch.setattr(uuid, "uuid4", fail)

    assert run(TaskExecutor(lambda: 1)) == 1
    failed = TaskExecutor(failing("function", TaskPluginTriggerError()), plugins=[asks])
    assert run(failed) == "saved"
    with pytest.raises(AssertionError, match="made for nobody"):
        _ = failed.task_broker.uuid


def test_a_forked_process_can_make_an_id_whatever_other_threads_did():
    """Even if one of them was just making another message's."""
    code = """
        import os, signal, threading, time
        from qtasks_hookspecs import TaskMessage

        reading, forked, now = threading.Event(), threading.Event(), time.time

        def slowly():
            reading.set()
            forked.wait(30)
            return now()

        time.time = slowly
        thread = threading.Thread(target=lambda: TaskMessage("t").created_at)
        thread.start()
        reading.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(15)  # were it to hang, its own end
            os._exit(7 if TaskMessage("t").uuid else 1)
        forked.set()
        thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )

    assert "7\n" == done.stdout
