"""How monitors, callbacks and plugins see a Celery app's own runs, by Celery's own command."""

from __future__ import annotations

import json
import sys
import threading
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from kombu import Exchange, Queue

from tests.engines.celery_apps import forget_connections
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

LONG = 60
SHOP = """
    import json, os
    from pathlib import Path
    import sentry_sdk
    from celery import Celery, Task, signals
    from kombu import Exchange, Queue
    from qtasks_pluggy.engines.celery import install

    celery = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
    conf, name = celery.conf, os.environ["QUEUE"]
    conf.control_exchange, conf.task_default_queue = name, name
    conf.event_exchange, conf.event_queue_prefix = name + "-events", name
    conf.task_acks_late = True
    dead = {"x-dead-letter-exchange": name + "-dead"}
    conf.task_queues = [Queue(name, Exchange(name), routing_key=name, queue_arguments=dead)]

    def tell(uuid, *what):
        with Path(__file__).with_name("told").open("a") as file:
            file.write(json.dumps([uuid, " ".join(what)]) + "\\n")

    class Keep(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope):
            event = envelope.get_event()
            if event is not None:
                last = event["exception"]["values"][-1]
                tell(event["tags"]["celery_task_id"], "Sentry", last["type"])

    sentry_sdk.init("http://localhost@127.0.0.1/1", transport=Keep)

    class Own(Task):
        def on_success(self, value, task_id, *_):
            tell(task_id, "on_success")

        def on_failure(self, error, task_id, *_):
            tell(task_id, "on_failure", type(error).__name__)

        def on_retry(self, error, task_id, *_):
            tell(task_id, "on_retry", type(error).__name__)

    @celery.task(name="fail", base=Own, tags=["price"], owner="me", rate_limit="100/s")
    def fail(text):
        raise OSError(text)

    @celery.task(name="errback")
    def errback(request, error, traceback):
        tell(request.id, "link_error", type(error).__name__)

    @celery.task(name="link", bind=True)
    def link(self, value):
        tell(self.request.parent_id, "link")

    @signals.task_success.connect
    def succeeded(sender, **_):
        if sender.name == "fail":
            tell(sender.request.id, "task_success")

    @signals.task_failure.connect
    def failed(task_id, exception, **_):
        tell(task_id, "task_failure", type(exception).__name__)

    @signals.task_retry.connect
    def retried(sender, request, reason, **_):
        tell(request.id, "task_retry", type(reason.exc).__name__)

    @signals.task_revoked.connect
    def revoked(sender, request, **_):
        tell(request.id, "task_revoked")

    install(celery, ["policy"], discover=False)
"""
POLICY = """
    from qtasks_hookspecs import Cancel, DeadLetter, Raise, Retry, hookimpl

    @hookimpl
    def task_executor_run_task_trigger_error(task_func, task_broker, e):
        what = e.cause.args[0]
        decisions = {
            "cancel": Cancel("sold out"),
            "raise": Raise(LookupError("clearer")),
            "dead": DeadLetter("look"),
            "kept": DeadLetter("look"),
            "none": None,
        }
        if what in decisions:
            return decisions[what]
        if what == "retry" and task_broker.attempt == 1:
            return Retry(delay=0.1)
        return [task_func.tags, dict(task_func.extra), dict(task_broker.metadata)]

    @hookimpl
    def task_executor_dead_letter(task_broker):
        return task_broker.args == ("kept",)
"""
FAILED = ["link_error", "on_failure", "task_failure", "Sentry"]
# What becomes of a run by a plugin's answer: its state, who hears of it, of which error, and the
# events. The how-to pages say the same.
TABLE = {
    "value": ("SUCCESS", ["link", "on_success", "task_success"], "", ["task-succeeded"]),
    "retry": (
        "SUCCESS",
        ["link", "on_retry OSError", "on_success", "task_retry OSError", "task_success"],
        "",
        ["task-retried", "task-succeeded"],
    ),
    "none": ("FAILURE", FAILED, "OSError", ["task-failed"]),
    "raise": ("FAILURE", FAILED, "LookupError", ["task-failed"]),
    "cancel": ("REVOKED", ["task_revoked"], "", ["task-revoked"]),
    "dead": (
        "FAILURE",
        ["link_error", "task_failure"],
        "TaskDeadLetteredError",
        ["task-failed", "task-rejected"],
    ),
    "kept": ("FAILURE", FAILED, "TaskDeadLetteredError", ["task-failed"]),
}
# Redis drops a rejected message, though its queue names an exchange for dead letters, so the plugin
# has failed, and the task's own error goes on.
REFUSED = {"dead": TABLE["none"]}


class Place:
    """A worker's project, a client of it, and the events that monitors get."""

    def __init__(self, folder, native, exchange):
        self.folder, self.native, self.events = folder, native, []
        self._exchange, self._listens, self._receiver = exchange, threading.Event(), None
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self):
        self._thread.start()
        assert self._listens.wait(LONG)
        return self

    def __exit__(self, *_):
        self._receiver.should_stop = True
        self._thread.join()
        forget_connections()

    def _listen(self):
        with self.native.connection_for_read() as connection:
            receiver = self.native.events.Receiver(connection, handlers={"*": self.events.append})
            receiver.on_consume_ready = lambda *_, **__: self._listens.set()
            self._receiver = receiver
            receiver.capture(limit=None, timeout=None, wakeup=False)

    def send(self, text, **options):
        """Send a run whose failure has this text."""
        return self.native.send_task("fail", (text,), **options)

    def heard(self, result):
        """Name the events of a run, from its first end on."""
        begin = {"task-received", "task-started"}
        types = (event["type"] for event in list(self.events) if event.get("uuid") == result.id)
        return sorted(set(types) - begin)

    def shown(self, result):
        """Name the state of a run that Flower shows, which has it from Celery's own reader."""
        reader = self.native.events.State()
        for event in list(self.events):
            reader.event(dict(event))
        return reader.tasks[result.id].state

    def told(self, result):
        """Read what callbacks, signals and Sentry took down about a run."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        every = map(json.loads, lines)
        return sorted(what for uuid, what in every if uuid == result.id)


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
    dead = {"x-dead-letter-exchange": f"{queue}-dead"}
    native.conf.task_queues = [
        Queue(queue, Exchange(queue), routing_key=queue, queue_arguments=dead)
    ]
    command = (sys.executable, "-m", "celery", "-A", "shop:celery", "worker", "-c", "1", "-E")
    name = ("-n", f"{uuid4().hex}@%h")
    worker(*command, *name, "--loglevel", "INFO", cwd=folder, env=env, ready="ready.")
    with Place(folder, native, queue) as place:
        yield place


def test_who_hears_of_what_plugins_decide(place):
    """State, callbacks, signals, events and Sentry by decision, on every version the same."""
    refused = place.native.conf.broker_url.startswith("redis")
    table = {**TABLE, **(REFUSED if refused else {})}
    link, errback = (place.native.signature(name) for name in ("link", "errback"))
    sent = {
        what: place.send(what, link=link, link_error=errback, headers={"tenant": "a"})
        for what in table
    }
    for what, (state, heard, error, events) in table.items():
        result, whole = sent[what], sorted(f"{one} {error}".strip() for one in heard)
        value = result.get(timeout=LONG, propagate=False)
        assert state == result.state, what
        wait_until(lambda: place.told(result) == whole, 10)  # noqa: B023  # within this round
        assert whole == place.told(result), what
        wait_until(lambda: place.heard(result) == events, 10)  # noqa: B023  # within this round
        assert events == place.heard(result), what
        assert state == place.shown(result), what
        if state == "SUCCESS":
            # Also after a retry; Sentry sends headers of its own along with that.
            tags, extra, metadata = value
            assert (["price"], {"owner": "me"}, "a") == (tags, extra, metadata["tenant"])
        if state == "REVOKED":
            assert ("TaskCancelError", "sold out") == (type(value).__name__, str(value))
            assert not isinstance(value, TaskRevokedError)
