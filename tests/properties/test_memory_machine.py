"""``memory://`` against a plain sorted list: no run lost, none done twice, priority kept."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, precondition, rule

from qtasks_hookspecs import Retry, hookimpl
from qtasks_pluggy import QueueTasks, TaskHandle, TaskStatus
from qtasks_pluggy.exc import TaskCancelError, TaskPluginTriggerError

LONG = 30.0
# What each attempt comes to; the last one is the run's end.
SCRIPTS = st.sampled_from(["g", "f", "rg", "rrg", "rf", "dg", "drf"])


class Retrying:
    """Retries where the run's script says so, at once (r) or a little later (d)."""

    name = "retrying"

    @hookimpl
    def task_executor_run_task_trigger_error(self, e):
        return {"r": Retry(), "d": Retry(delay=0.002)}.get(e.args[0])


def shop(workers: int) -> tuple[QueueTasks, list[tuple[int, int]]]:
    """Make an app whose task follows a script, and the list of its attempts."""
    app = QueueTasks(
        "shop", engine=f"memory://?workers={workers}&grace=20", plugins=[Retrying()], discover=False
    )
    attempts: list[tuple[int, int]] = []

    @app.task(echo=True)
    def follow(self, number, script):
        attempts.append((number, self.ctx.attempt))
        step = script[self.ctx.attempt - 1]
        return number if step == "g" else self.ctx.plugin_error(step)

    @app.task(echo=True)
    async def follow_async(self, number, script):
        attempts.append((number, self.ctx.attempt))
        step = script[self.ctx.attempt - 1]
        return number if step == "g" else self.ctx.plugin_error(step)

    return app, attempts


def end_of(handle: TaskHandle[int]) -> str:
    """Say in a word how a run ended."""
    try:
        handle.result(timeout=LONG)
    except TaskCancelError:
        return "cancelled"
    except TaskPluginTriggerError:
        return "f"
    return "g"


@attrs.define(eq=False)
class Run:
    """A run in the model."""

    number: int
    priority: int
    script: str
    delayed: bool
    handle: TaskHandle[int]
    attempt: int = 1
    cancelled: bool = False


class Shop(RuleBasedStateMachine):
    """One worker that a gate keeps busy, so that the model knows what is queued."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.app, self.attempts = shop(workers=1)
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self.queue: list[Run] = []
        self.all: list[Run] = []

        @self.app.task(priority=100)
        def hold():
            self.entered.release()
            assert self.gate.wait(LONG)

        self.hold = hold
        self.start()

    def start(self) -> None:
        """Start the app, its worker busy."""
        self.app.__enter__()
        self.close_the_gate()

    def close_the_gate(self) -> None:
        """Keep the worker busy."""
        self.gate.clear()
        self.hold.submit()
        assert self.entered.acquire(timeout=LONG)

    @rule(
        target=runs,
        thread=st.integers(0, 2),
        calls=st.lists(st.tuples(st.integers(-1, 1), SCRIPTS, st.booleans()), max_size=5),
    )
    def submit(self, thread, calls):
        """Some thread submits a few runs."""
        task = self.app.tasks["follow"]
        submitted = []
        for priority, script, delayed in calls:
            options = {"priority": priority, "delay": 0.002 if delayed else None}
            number = len(self.all)
            handle = (
                self.threads[thread]
                .submit(task.with_options(**options).submit, number, script)
                .result(LONG)
            )
            run = Run(number, priority, script, delayed, handle)
            self.queue.append(run)
            self.all.append(run)
            submitted.append(run)
        return multiple(*submitted)

    @rule(run=runs, thread=st.integers(0, 2))
    def cancel(self, run, thread):
        """Some thread cancels a run: it can, as long as the run is queued."""
        done = self.threads[thread].submit(run.handle.cancel, "model").result(LONG)

        assert (run in self.queue) is done
        if done:
            run.cancelled = True
            self.queue.remove(run)

    @precondition(lambda self: self.queue)
    @rule()
    def let_them_run(self):
        """The worker is let go until nothing is queued: order and ends are the model's."""
        begin = len(self.attempts)
        self.gate.set()
        ends = [end_of(run.handle) for run in self.queue]
        expected = [run.script[-1] for run in self.queue]
        timed = {run.number for run in self.queue if run.delayed or "d" in run.script}
        order = [one for one in self.attempts[begin:] if one[0] not in timed]

        assert expected == ends
        assert [one for one in self.simulate() if one[0] not in timed] == order
        for run in self.queue:
            assert run.handle.status in {TaskStatus.succeeded, TaskStatus.failed}
        self.queue.clear()
        self.close_the_gate()

    def simulate(self) -> list[tuple[int, int]]:
        """Say in which order one worker makes the attempts; delays are left out of it."""
        line = [(-run.priority, place, run) for place, run in enumerate(self.queue)]
        places, made = len(line), []
        while line:
            best = min(line, key=lambda one: one[:2])
            line.remove(best)
            run = best[2]
            made.append((run.number, run.attempt))
            if run.script[run.attempt - 1] in "rd":
                run.attempt += 1
                line.append((best[0], places, run))
                places += 1
        return made

    @rule()
    def stop_and_start(self):
        """A stop finishes what is queued."""
        self.gate.set()
        self.app.__exit__(None, None, None)
        for run in self.queue:
            assert run.handle.status in {TaskStatus.succeeded, TaskStatus.failed}
        self.queue.clear()
        self.start()

    def teardown(self):
        """Every run has ended, and made each of its attempts once."""
        self.gate.set()
        self.app.__exit__(None, None, None)
        made = Counter(self.attempts)
        for run in self.all:
            times = 0 if run.cancelled else len(run.script)
            for attempt in range(1, len(run.script) + 1):
                assert (attempt <= times) == made[run.number, attempt]
            assert ("cancelled" if run.cancelled else run.script[-1]) == end_of(run.handle)
        for thread in self.threads:
            thread.shutdown()


TestShop = Shop.TestCase
TestShop.settings = settings(stateful_step_count=20, deadline=None)


@settings(deadline=None, max_examples=25)
@given(
    scripts=st.lists(
        st.lists(st.tuples(SCRIPTS, st.sampled_from(["", "", "cancel"])), max_size=12),
        min_size=2,
        max_size=4,
    ),
    workers=st.integers(1, 4),
    task=st.sampled_from(["follow", "follow_async"]),
)
def test_no_run_is_lost_and_none_done_twice(scripts, workers, task):
    """Threads that submit and cancel at the same time: each run ends once, as its script says."""
    app, attempts = shop(workers)
    taken: list[tuple[int, str, bool, TaskHandle[int]]] = []
    together = threading.Barrier(len(scripts))

    def play(thread: int) -> None:
        together.wait(LONG)
        for place, (script, then) in enumerate(scripts[thread]):
            number = 100 * thread + place
            handle = app.tasks[task].submit_sync(number, script)
            asked = then == "cancel" and handle.cancel()
            taken.append((number, script, asked, handle))

    with app:
        threads = [threading.Thread(target=play, args=(n,)) for n in range(len(scripts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    made = Counter(attempts)
    for number, script, asked, handle in taken:
        end = end_of(handle)
        most = len(script)
        assert end == script[-1] or (asked and end == "cancelled")
        counts = [made[number, attempt] for attempt in range(1, most + 1)]
        assert counts == sorted(counts, reverse=True)
        assert set(counts) <= {0, 1}
        assert end == "cancelled" or counts == [1] * most
    assert sum(map(len, scripts)) == len(taken)
