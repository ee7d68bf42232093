"""How monitors, callbacks and plugins see a Celery app's own runs, by Celery's own command."""

from __future__ import annotations

import json
import sys
import threading
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from tests.engines.celery_apps import forget_connections
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

LONG = 60
SHOP = """
    import json, os
    from pathlib import Path
    from celery import Celery, Task, signals
    from kombu import Exchange, Queue
    from qtasks_pluggy.engines.celery import install

    celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
    conf, name = celery.conf, os.environ["QUEUE"]
    conf.control_exchange, conf.task_default_queue = name, name
    conf.event_exchange, conf.event_queue_prefix = name + "-events", name
    conf.task_acks_late = True
    dead = {"x-dead-letter-exchange": name + "-dead"}
    if os.environ["BROKER"].startswith("amqp"):
        conf.task_queues = [Queue(name, Exchange(name), routing_key=name, queue_arguments=dead)]

    def tell(*what):
        with Path(__file__).with_name("told").open("a") as file:
            file.write(json.dumps(what) + "\\n")

    class Own(Task):
        def on_failure(self, exc, *_):
            tell("on_failure", type(exc).__name__, str(exc))

        def on_retry(self, exc, *_):
            tell("on_retry", type(exc).__name__, str(exc))

    @celery.task(name="fail", base=Own, tags=["price"], owner="me", rate_limit="100/s")
    def fail(text):
        raise OSError(text)

    @celery.task(name="errback")
    def errback(request, exc, traceback):
        tell("errback", type(exc).__name__, str(exc))

    @signals.task_revoked.connect
    def revoked(sender, request, **_):
        tell("revoked", request.id)

    install(celery, ["policy"], discover=False)
"""
POLICY = """
    import json
    from pathlib import Path
    from qtasks_hookspecs import Cancel, DeadLetter, Retry, hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error(task_func, task_broker, e):
        what = e.cause.args[0]
        if what == "cancel":
            return Cancel("sold out")
        if what == "dead":
            return DeadLetter("look")
        if what == "retry" and task_broker.attempt == 1:
            return Retry(delay=0.1)
        return [task_func.tags, dict(task_func.extra), dict(task_broker.metadata)]
"""


class Place:
    """A worker's project, a client of it, and the events that monitors get."""

    def __init__(self, folder, native, exchange):
        self.folder, self.native, self.events = folder, native, []
        self._exchange, self._over = exchange, threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self):
        self._thread.start()
        assert wait_until(lambda: self.events == [], LONG)
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        forget_connections()

    def _listen(self):
        with self.native.connection_for_read() as connection:
            receiver = self.native.events.Receiver(connection, handlers={"*": self.events.append})
            while not self._over.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.2, wakeup=False)
                except TimeoutError:
                    continue

    def send(self, text, **options):
        """Send a run whose failure has this text."""
        return self.native.send_task("fail", (text,), **options)

    def heard(self, result):
        """Name the events of a run."""
        return [event["type"] for event in list(self.events) if event.get("uuid") == result.id]

    def told(self):
        """Read what callbacks took down."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture(params=["redis", "rabbitmq"])
def place(request, project, worker):
    """A worker with ``-E`` on each server."""
    results = request.getfixturevalue("redis_url")
    broker = request.getfixturevalue(f"{request.param}_url")
    queue = f"celery-{uuid4().hex[:8]}"
    env = {"BROKER": broker, "RESULTS": results, "QUEUE": queue}
    folder = project({"shop.py": SHOP, "policy.py": POLICY})
    native = Celery("client", broker=broker, backend=results, set_as_current=False)
    native.conf.task_default_queue = queue
    native.conf.event_exchange, native.conf.event_queue_prefix = f"{queue}-events", queue
    # Its queue is the worker's, with whatever arguments that gives it.
    native.conf.task_create_missing_queues = True
    command = (sys.executable, "-m", "celery", "-A", "shop:celery", "worker", "-c", "1", "-E")
    name = ("-n", f"{uuid4().hex}@%h")
    worker(*command, *name, "--loglevel", "INFO", cwd=folder, env=env, ready="ready.")
    if broker.startswith("amqp"):
        native.conf.task_queues = [_queue(queue)]
    with Place(folder, native, queue) as place:
        yield place


def _queue(name):
    from kombu import Exchange, Queue

    dead = {"x-dead-letter-exchange": f"{name}-dead"}
    return Queue(name, Exchange(name), routing_key=name, queue_arguments=dead)


def test_cancel_ends_a_run_for_monitors_too(place):
    """``Cancel`` stores REVOKED, sends task-revoked and the signal; no callback for failures."""
    result = place.send("cancel", link_error=place.native.signature("errback"))
    with pytest.raises(Exception, match="sold out") as caught:
        result.get(timeout=LONG)
    assert "TaskCancelError" == type(caught.value).__name__
    assert "REVOKED" == result.state
    assert wait_until(lambda: "task-revoked" in place.heard(result), LONG)
    assert "task-failed" not in place.heard(result)
    assert wait_until(place.told, LONG)
    assert [["revoked", result.id]] == place.told()
    assert not isinstance(caught.value, TaskRevokedError)


def test_a_dead_letter_ends_a_run_once_in_its_own_error(place):
    """Where its queue has a place for it; where not, the plugin has failed (R7)."""
    result = place.send("dead", link_error=place.native.signature("errback"))
    refused = place.native.conf.broker_url.startswith("redis")
    text = "dead" if refused else "look"
    with pytest.raises(Exception, match=text) as caught:
        result.get(timeout=LONG)
    kind = "OSError" if refused else "TaskDeadLetteredError"
    assert kind == type(caught.value).__name__
    end = "task-failed" if refused else "task-rejected"
    assert wait_until(lambda: end in place.heard(result), LONG)
    told = [["errback", kind, text], ["on_failure", kind, text]]
    assert (told if refused else told[:1]) == place.told()
    assert kind == type(result.result).__name__


def test_a_retry_is_told_as_celery_tells_its_own(place):
    """``Retry`` sends task-retried, and the run ends in what comes of the next attempt."""
    result = place.send("retry")
    assert ["price"] == result.get(timeout=LONG)[0]
    assert wait_until(lambda: "task-succeeded" in place.heard(result), LONG)
    assert 1 == place.heard(result).count("task-retried")


def test_tags_options_and_headers_reach_plugins(place):
    """What a task was declared with, and what was sent along, also with a retried run."""
    result = place.send("retry", headers={"tenant": "a"})
    assert [["price"], {"owner": "me"}, {"tenant": "a"}] == result.get(timeout=LONG)
