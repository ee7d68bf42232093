"""A run that is to be retried waits until its end is known: it is kept, shown and replayable."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from qtasks_hookspecs import Retry
from qtasks_pluggy import QueueTasks, TaskExecutor, TaskMessage
from qtasks_pluggy.failures.claims import Claims
from qtasks_pluggy.failures.recorder import Recorder
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch

MANY = 15
RETRY = {"plugin": "retry", "distribution": None, "version": None, "handler": "h", "seconds": 0.0}
RETRY |= {"hook": "task_executor_run_task_trigger_error", "observed": False, "kind": "Retry"}


@pytest.fixture
def shop(place):
    """Make an app that retries what fails, after a time, and records it."""

    def make(delay, engine="memory://"):
        section = {"url": f"sqlite:///{place.path}"}
        settings = {"enable": ["failures"], "plugin": {"failures": section}}
        app = QueueTasks("shop", engine=engine, discover=False, settings=settings)
        app.failing = set()

        @app.on_error(ConnectionError)
        def again():
            return Retry(delay=delay, limit=3)

        @app.task
        async def mail(number):
            if number not in app.failing:
                app.failing.add(number)
                raise ConnectionError

        return app

    return make


def _write(app):
    """Write what is recorded so far, as at a stop."""
    app.plugins.get_plugin("failures")._recorder.close()


def _end(place, uuid, status="retried", **values):
    return place.record(uuid=uuid, status=status, told=None, group="", **values)


async def test_what_the_engine_cancels_at_its_stop_is_cancelled_and_kept(place, shop):
    """Fifteen wait for their next attempt when the app stops: none is lost, none is retried."""
    app = shop(600)
    async with app:
        for number in range(MANY):
            await app.tasks["mail"].submit(number)
        while len(app.failing) < MANY:
            await asyncio.sleep(0.01)

    runs = place.reader().runs(Filters(status="cancelled"))
    assert {"cancelled": MANY} == place.counts(runs[0].group)
    whole = [place.reader().run(one.uuid) for one in runs]
    assert set(range(MANY)) == {one.args[0] for one in whole}
    assert {(None, None, "the app stopped before the run ended", "ConnectionError")} == {
        (one.decided_by, one.decision, one.reason, one.error) for one in runs
    }


async def test_a_retried_run_waits_until_it_succeeds(place, shop):
    """All are kept as waiting; of those that succeeded after a retry, the newest ten."""
    app = shop(0.5)
    async with app:
        handles = [await app.tasks["mail"].submit(number) for number in range(MANY)]
        while len(app.failing) < MANY:
            await asyncio.sleep(0.01)
        _write(app)
        waiting = place.reader().runs(Filters())
        for one in handles:
            await one

    assert {"waiting": MANY} == {one.status: len(waiting) for one in waiting}
    runs = place.reader().runs(Filters())
    assert {"retried": 10} == {one.status: len(runs) for one in runs}
    assert {"retried": MANY} == place.counts(runs[0].group)
    assert {("again", "Retry", "ConnectionError")} == {
        (one.decided_by, one.decision, one.error) for one in runs
    }


async def test_a_run_in_place_that_is_interrupted_while_it_waits_is_cancelled(place, shop):
    """A cancellation ends the pause before its next attempt."""
    app = shop(600, None)
    async with app:
        run = asyncio.create_task(app.tasks["mail"](1))
        while not app.failing:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run

    (run,) = place.reader().runs(Filters())
    assert ("cancelled", 1) == (run.status, run.attempts)


def test_a_run_that_another_process_succeeds_in_is_retried(place, shop):
    """As with Celery: each attempt has a message of its own; the second process writes first."""
    app = shop(0)
    with app:
        app.failing.add(1)  # the first attempt, in another process
        message = TaskMessage("mail", (1,), attempt=2, engine="memory")
        TaskExecutor(app.tasks["mail"], message).execute_sync()
        place.store().write(
            Batch([place.record(uuid=str(message.uuid), status="waiting", engine="memory")])
        )

    assert {"retried": 1} == place.counts()


def test_an_end_that_comes_first_waits_for_its_run(place):
    """The recorder takes it again until the other process has written the run."""
    recorder = Recorder(place.store, "it")
    recorder.add(_end(place, "u", attempt=2))
    time.sleep(0.5)  # more than a batch waits
    place.store().write(Batch([place.record(uuid="u", status="waiting")]))
    until = time.monotonic() + 20
    while place.counts() != {"retried": 1} and time.monotonic() < until:
        time.sleep(0.05)
    recorder.close()

    assert {"retried": 1} == place.counts()


def test_an_end_changes_only_a_run_that_waits(any_place):
    """One that failed meanwhile stays failed, and one that is not there is not made."""
    store = any_place.store()
    store.write(Batch([any_place.record(uuid="failed"), _end(any_place, "failed", "cancelled")]))
    news = store.write(Batch([_end(any_place, "unknown")]))

    assert ["unknown"] == [one.uuid for one in news.early]
    assert {"failed": 1} == any_place.counts()
    assert ["failed"] == [one.uuid for one in any_place.reader().runs(Filters())]


@pytest.mark.parametrize("batches", [1, 3])
def test_ends_are_counted_by_the_hour_and_by_who_decided(any_place, batches):
    """Whether a run, its end and its next attempt are written at once or one by one."""
    store = any_place.store()
    records = [
        any_place.record(uuid="u", status="waiting", decided_by="again"),
        _end(any_place, "u", "cancelled", reason="stopped"),
        any_place.record(uuid="u", status="recovered", decided_by="last", attempt=2),
    ]
    for begin in range(0, 3, 3 // batches):
        store.write(Batch(records[begin : begin + 3 // batches]))

    assert {"recovered": 1} == any_place.counts()
    assert "last" == any_place.reader().run("u").run.decided_by


def test_a_replay_that_waits_has_no_end_yet(place):
    """Neither the command that waits for it, nor what is shown with its original, has one."""
    place.store().write(
        Batch(
            [
                place.record(uuid="first"),
                place.record(uuid="again", status="waiting", replay_of="first"),
            ]
        )
    )

    assert {} == Claims(place.url).ends(["again"])
    (replay,) = place.reader().run("first").replays
    assert ("again", None) == (replay.uuid, replay.status)


def test_show_says_that_a_run_waits_and_for_how_long_it_was_put_off(run, place):
    """Since when it waits; the delay of a retry, and why one did not count."""
    trail = [RETRY | {"status": "answered", "won": True, "delay": 15.0}]
    past = [RETRY | {"status": "no_opinion", "won": False}]
    place.store().write(
        Batch(
            [
                place.record(uuid="waits", status="waiting", trail=_trail(trail), delay=15.0),
                place.record(uuid="over", attempt=4, trail=_trail(past)),
            ]
        )
    )

    waits, over = run("show", "waits").output, run("show", "over").output
    assert "price waits for its next attempt, run waits\nsince:" in waits
    assert "answered Retry, after 15 s" in waits
    assert "no opinion Retry, limit reached after 3 retries" in over
    (found,) = json.loads(run("list", "--status", "waiting", "--json").output)
    assert ("waits", "waiting") == (found["uuid"], found["status"])


def _trail(lines):
    return tuple(SimpleNamespace(**one) for one in lines)
