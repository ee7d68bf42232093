"""``memory://``: cancellation, stops, forks, wrong URLs, and what is left when all is over."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from qtasks_hookspecs import Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskStatus
from qtasks_pluggy.engines import Elsewhere, memory
from qtasks_pluggy.exc import EngineError, NotRunningError, TaskCancelError, TaskPluginTriggerError
from tests.engines.shops import LONG, Closing, Gate, app_of


@pytest.fixture
def log_output():
    """The events that are logged."""
    with capture_logs() as entries:
        yield entries


def test_a_running_async_run_is_cancelled():
    """A run on the event loop is cut by ``cancel``, and its plugins are told of its end."""
    closing = Closing()
    app = app_of("?workers=1", plugins=[closing])
    entered = threading.Event()

    @app.task
    async def wait():
        entered.set()
        await asyncio.Event().wait()

    with app:
        handle = wait.submit_sync()
        assert entered.wait(LONG)
        assert handle.cancel("enough")
        with pytest.raises(TaskCancelError, match="enough"):
            handle.result(timeout=LONG)
    assert ["wait"] == closing.closed


def test_a_run_in_a_thread_cannot_be_cut():
    """``cancel`` says that it did not: a thread cannot be stopped from outside."""
    app = app_of()
    gate = Gate(app)
    with app:
        handle = gate.occupy()
        assert not handle.cancel()
        gate.open.set()
        assert handle.result(timeout=LONG) is None
        assert not handle.cancel()


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_run_that_waits_for_its_retry_is_cancelled(kind):
    """R16: a run that is cancelled between two attempts is over, and closed once."""
    closing = Closing(Retry(delay=60))
    app = app_of(plugins=[closing])

    @app.task(echo=True)
    def plain(self):
        self.ctx.plugin_error()

    @app.task(echo=True, name="async")
    async def on_loop(self):
        self.ctx.plugin_error()

    with app:
        handle = app.tasks[kind].submit_sync()
        assert closing.asked.acquire(timeout=LONG)
        while handle.status is not TaskStatus.queued:
            threading.Event().wait(0.001)
        assert handle.cancel("enough")
        with pytest.raises(TaskCancelError, match="enough"):
            handle.result(timeout=LONG)
    assert [kind] == closing.closed


async def test_a_run_that_is_cancelled_as_its_retry_is_decided_ends_at_once():
    """R16: it does not wait for the retry's delay, and its plugins hear of its end."""
    closing = Closing(Retry(delay=3600))
    app = app_of(plugins=[closing])
    handles = []
    cancels = SimpleNamespace(
        name="cancels",
        task_executor_attempt_ended=hookimpl(lambda: handles[0].cancel("enough") and None),
    )
    app.add_plugin(cancels)

    @app.task(echo=True)
    async def fail(self):
        self.ctx.plugin_error()

    async with app:
        handles.append(await fail.submit())
        with pytest.raises(TaskCancelError, match="enough"):
            await asyncio.wait_for(handles[0], LONG)
    assert ["fail"] == closing.closed


def test_a_stop_finishes_what_was_submitted():
    """``with app:`` ends when every run has, queued ones and retries too."""
    app = app_of("?workers=1", plugins=[Closing(Retry(delay=0.05, limit=2))])
    gate = Gate(app)
    attempts = []

    @app.task(echo=True)
    def fail(self):
        attempts.append(self.ctx.attempt)
        self.ctx.plugin_error()

    with app:
        for what in range(50):
            gate.mark.submit(what)
        handle = fail.submit()
    assert list(range(50)) == gate.done
    assert [1, 2, 3] == attempts
    assert handle.status is TaskStatus.failed
    with pytest.raises(TaskPluginTriggerError):
        handle.result()


def test_a_stop_lists_what_it_gives_up(log_output, monkeypatch):
    """Past its deadline a stop names each run that it gives up, and each of them ends."""
    monkeypatch.setattr(memory, "_CLEANUP_SECONDS", 0.1)
    app = app_of("?workers=2&grace=0.01")
    gate = Gate(app)
    entered = threading.Event()

    @app.task
    async def wait():
        entered.set()
        await asyncio.Event().wait()

    with app:
        running = [gate.occupy(), wait.submit_sync()]
        assert entered.wait(LONG)
        queued = gate.mark.submit("never")
        far = gate.mark.with_options(delay=3600).submit("never")
    for handle in (*running, queued, far):
        with pytest.raises(TaskCancelError, match="the app stopped"):
            handle.result(timeout=LONG)
    gate.open.set()
    for thread in threading.enumerate():
        if thread.name == "qtasks-pluggy-memory":
            thread.join(LONG)
    assert running[0].status is TaskStatus.cancelled
    given_up = [entry for entry in log_output if entry["event"] == "memory_engine_gave_up"]
    told = " ".join(run for entry in given_up for run in entry["runs"])
    assert all(str(handle.uuid) in told for handle in (*running, queued, far))
    assert [] == gate.done


def test_a_stop_does_not_wait_for_what_is_due_after_its_deadline():
    """A run whose time comes after the deadline is given up at once."""
    app = app_of("?grace=1000")
    gate = Gate(app)
    with app:
        handle = gate.mark.with_options(delay=3600).submit("never")
    with pytest.raises(TaskCancelError, match="the app stopped"):
        handle.result(timeout=LONG)


def test_a_stop_lists_the_first_of_many_runs(log_output):
    """One warning names 20 of the runs that were given up, and says how many there are."""
    app = app_of("?grace=0")
    gate = Gate(app)
    with app:
        list(app.submit_many(gate.mark.with_options(delay=3600), range(30)))
    (entry,) = [one for one in log_output if one["event"] == "memory_engine_gave_up"]
    assert (30, 20) == (entry["count"], len(entry["runs"]))


async def test_a_stop_without_grace_cancels_at_once():
    """``?grace=0`` waits for no run, and its plugins hear of its end all the same."""
    closing = Closing()
    app = app_of("?grace=0", plugins=[closing])
    entered = asyncio.Event()

    @app.task
    async def wait():
        entered.set()
        await asyncio.Event().wait()

    async with app:
        handle = await wait.submit()
        await entered.wait()
    with pytest.raises(TaskCancelError, match="the app stopped"):
        await handle
    assert ["wait"] == closing.closed


@pytest.mark.parametrize("answer", [Retry(), "instead"])
def test_a_run_that_turns_its_cancellation_into_an_error_ends_in_it(answer):
    """R16: no plugin is asked about a cancelled run: it ends in the error of its clean-up."""
    closing = Closing(answer)
    app = app_of(plugins=[closing])
    entered = threading.Semaphore(0)

    @app.task(echo=True)
    async def wait(self):
        entered.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ctx.plugin_error()

    with app:
        handle = wait.submit_sync()
        assert entered.acquire(timeout=LONG)
        assert handle.cancel("enough")
        with pytest.raises(TaskPluginTriggerError):
            handle.result(timeout=LONG)
        assert not entered.acquire(blocking=False)
    assert ["wait"] == closing.closed


async def test_a_stop_leaves_behind_what_swallows_its_cancellation(monkeypatch):
    """A run that cannot be cancelled does not hold up the stop."""
    monkeypatch.setattr(memory, "_CLEANUP_SECONDS", 0.1)
    app = app_of("?grace=0")
    release = asyncio.Event()

    @app.task
    async def stubborn():
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with app:
        handle = await stubborn.submit()
        await asyncio.sleep(0)
    with pytest.raises(TaskCancelError, match="the app stopped"):
        await handle
    release.set()


async def test_a_stop_that_is_cancelled_gives_up_the_rest_at_once(log_output):
    """Whoever stops waiting for the stop does not leave runs going on for the rest of the grace."""
    closing = Closing()
    app = app_of("?workers=1&grace=1000", plugins=[closing])
    entered = asyncio.Event()

    @app.task
    async def wait():
        entered.set()
        await asyncio.Event().wait()

    await app.__aenter__()
    running, queued = await wait.submit(), await wait.submit()
    await entered.wait()
    stopping = asyncio.create_task(app.__aexit__(None, None, None))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    for handle in (running, queued):
        with pytest.raises(TaskCancelError, match="the app stopped"):
            await asyncio.wait_for(handle, LONG)
    (given_up,) = [entry for entry in log_output if entry["event"] == "memory_engine_gave_up"]
    assert 2 == len(given_up["runs"])
    assert ["wait"] == closing.closed


async def test_whoever_waits_for_room_hears_of_the_stop():
    """A submission that waits for room when the app stops fails, instead of waiting for ever."""
    app = app_of("?workers=1&size=1")
    start = asyncio.Event()

    @app.task
    async def one():
        await start.wait()

    async with app:
        for _ in range(2):
            await one.submit()
        waiting = asyncio.create_task(one.submit())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, start.set)
    with pytest.raises(NotRunningError, match="stopping"):
        await waiting


def test_each_start_says_once_that_work_dies_with_the_process(log_output):
    """The engine says at each of its starts, and once, that it keeps nothing."""
    app = app_of()
    for start in (1, 2):
        with app:
            told = [one for one in log_output if one["event"] == "memory_engine_keeps_nothing"]
            assert start == len(told)
    assert [("info", "shop")] * 2 == [(one["log_level"], one["app"]) for one in told]


@pytest.mark.parametrize(
    ("error", "in_thread", "on_event_loop"),
    [
        (SystemExit(3), EngineError, EngineError),
        (asyncio.CancelledError(), TaskCancelError, TaskCancelError),
        (GeneratorExit(), EngineError, TaskCancelError),
    ],
    ids=repr,
)
def test_a_task_that_ends_itself_ends_alone(error, in_thread, on_event_loop):
    """``sys.exit()`` in a run, or a cancellation of its own, leaves the workers alive.

    The plugins hear of the same end as the caller.
    """
    heard = []
    listener = SimpleNamespace(
        name="listener",
        task_executor_task_close=hookimpl(lambda outcome: heard.append(outcome.status)),
    )
    app = app_of("?workers=1", plugins=[listener])
    gate = Gate(app)

    @app.task
    def plain():
        raise error

    @app.task
    async def on_loop():
        raise error

    with app:
        for task, expected in ((plain, in_thread), (on_loop, on_event_loop)):
            handle = task.submit_sync()
            with pytest.raises(expected):
                handle.result(timeout=LONG)
            assert str(handle.status) == str(heard[-1])
        assert 1 == gate.mark.submit(1).result(timeout=LONG)
    assert 3 == len(heard)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://?sise=1", "did you mean 'size'"),
        ("memory://?workers=0", "a whole number from 1"),
        ("memory://?workers=2.5", "a whole number from 1"),
        ("memory://?grace=soon", "a number from 0"),
        ("memory://?grace=-1", "a number from 0"),
        ("memory://?grace=inf", "a number from 0"),
        ("memory://workers=3", "nothing can stand between"),
        ("memory://localhost/?workers=3", "no host"),
        ("memroy://", "did you mean 'memory://'"),
        ("memory", "did you mean 'memory://'"),
        ("redis://", "this scheme; memory:// and huey"),
        ("dramatiq", "this scheme; memory:// and huey"),
        ("sqlite:///runs.db", r"did you mean 'huey\+sqlite://'"),
        ("", "no engine has this scheme"),
    ],
)
def test_a_wrong_url_is_refused(url, text):
    """A URL that no engine takes, or an option that it does not have, is one clear error."""
    with pytest.raises(EngineError, match=text):
        QueueTasks("shop", engine=url)


@pytest.mark.parametrize("scheme", ["redis", "memory"])
def test_a_password_is_not_shown(scheme):
    """What is behind a scheme, which may hold a password, is not told."""
    with pytest.raises(EngineError) as caught:
        QueueTasks("shop", engine=f"{scheme}://user:secret@127.0.0.1/0?wrkers=1")
    assert "secret" not in str(caught.value)


def test_a_started_app_keeps_its_engine():
    """``set_engine`` is for apps that are not started."""
    app = app_of()
    with app, pytest.raises(RuntimeError, match="started already"):
        app.set_engine("memory://")


@pytest.mark.parametrize(
    ("workers", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("3", TypeError)]
)
def test_a_number_of_workers_that_none_can_have_is_refused(workers, error):
    """An app whose engine would do no run at all is not made."""
    app = app_of()
    before = app.engine
    with pytest.raises(error, match=r"app 'shop'.*workers=.*(a whole number|1 or more)"):
        app.set_engine("memory://", workers=workers)
    assert before is app.engine


def test_an_app_without_an_engine_cannot_submit():
    """The error names the app and the task, and what to do."""
    app = QueueTasks("shop", discover=False)
    gate = Gate(app)
    with app, pytest.raises(EngineError, match=r"app 'shop' has no engine.*'mark'.*memory://"):
        gate.mark.submit(1)


class Stopping:
    """An app with a run that never ends by itself, and what is heard of its end, in order."""

    def __init__(self):
        self.heard, self.begun = [], threading.Event()
        hears = SimpleNamespace(
            name="hears",
            task_executor_task_close=hookimpl(lambda: self.heard.append("close")),
            qtasks_stop=hookimpl(lambda: self.heard.append("stop")),
        )
        self.app = app_of("?grace=1000", plugins=[hears])
        self.wait = self.app.task(name="wait")(self.run)

    async def run(self):
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.heard.append("finally")

    def check(self, handle):
        assert ["finally", "close", "stop"] == self.heard
        assert handle.status is TaskStatus.cancelled


def test_ctrl_c_in_a_stop_shortens_it_and_skips_nothing(monkeypatch, log_output):
    """The runs are cancelled at once, and the plugins stop after them."""
    one = Stopping()

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Elsewhere, "result", interrupted)
    with pytest.raises(KeyboardInterrupt), one.app:
        handle = one.wait.submit_sync()
        assert one.begun.wait(LONG)
    one.check(handle)
    assert "memory_engine_gave_up" in [entry["event"] for entry in log_output]


async def test_a_stop_that_is_cancelled_is_shortened_and_skips_nothing():
    """So too on an event loop, where Ctrl-C is a cancellation."""
    one = Stopping()
    await one.app.__aenter__()
    handle = await one.wait.submit()
    stopping = asyncio.create_task(one.app.__aexit__(None, None, None))
    while one.app.engine._is_open or not one.begun.is_set():
        await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    one.check(handle)


def test_pending_runs_stay_within_their_memory():
    """A queued run costs less than 1 kB, handle and message included."""
    app, pending = app_of("?workers=1&size=2000"), 2000
    gate = Gate(app)
    with app:
        gate.occupy()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            handles = list(app.submit_many(gate.mark, range(pending)))
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert used < 1000 * pending
        for handle in handles:
            assert handle.cancel()
        gate.open.set()


def test_threads_come_and_go():
    """No thread is left once an app has stopped."""
    app = app_of("?workers=4")
    gate = Gate(app)
    with app:
        for handle in [gate.mark.submit(n) for n in range(100)]:
            handle.result(timeout=LONG)
    left = [one for one in threading.enumerate() if one.name == "qtasks-pluggy-memory"]
    for thread in left:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in left)


def test_handles_show_no_values():
    """R14: neither the arguments nor the result are in a handle's text."""
    app = app_of()
    gate = Gate(app)
    with app:
        handle = gate.mark.submit("secret")
        handle.result(timeout=LONG)
    assert "secret" not in repr(handle)
    assert str(handle.uuid) in repr(handle)
    assert "mark" == handle.task_name


def test_an_interrupt_on_the_event_loop_goes_on():
    """Ctrl-C in an async run ends the program, and the run with it."""
    app = app_of()
    handles = []

    @app.task
    async def interrupted():
        raise KeyboardInterrupt

    async def main():
        async with app:
            handles.append(await interrupted.submit())
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    with pytest.raises(EngineError, match="KeyboardInterrupt"):
        handles[0].result(timeout=LONG)
