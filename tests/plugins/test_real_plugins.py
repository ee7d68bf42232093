"""The contract, tried as authors of plugins would: a counter, a keeper and a breaker.

The plugins are in ``tests/plugins/real``, written against ``qtasks_hookspecs`` alone.
"""

from __future__ import annotations

import ast
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

import qtasks_hookspecs
from qtasks_hookspecs import Cancel, DeadLetter, Replace, Retry, TaskMessage
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import (
    PluginRegistrationError,
    TaskCancelError,
    TaskDeadLetteredError,
    TaskNameError,
)
from tests.plugins.real.circuit_breaker import CircuitBreaker, CircuitOpenError

REAL = "tests.plugins.real"
TARGETS = {
    "outcome-counter": f"{REAL}.outcome_counter:OutcomeCounter",
    "dead-letter-files": f"{REAL}.dead_letter_files:DeadLetterFiles",
    "circuit-breaker": f"{REAL}.circuit_breaker:CircuitBreaker",
}
ENGINES = [None, "memory://"]


@pytest.fixture
def install(distributions):
    """Install some of the plugins, found by their entry points; return a maker of apps."""

    def installed(*names: str) -> Any:
        for name in names:
            distributions.add(f"qtasks-{name}", {name: TARGETS[name]})

        def make(engine: str | None = None, **sections: Any) -> QueueTasks:
            settings = {
                "allow": names,
                "plugin": {name.replace("_", "-"): section for name, section in sections.items()},
            }
            return QueueTasks("shop", engine=engine, settings=settings)

        return make

    return installed


def come_to(app: QueueTasks, task: Any, *args: Any) -> Any:
    """Run a task in place, or by the app's engine; return its result or its error."""
    try:
        if app.engine is None:
            return TaskExecutor(task, args=args).execute_sync()
        return task.submit_sync(*args).result(timeout=30)
    except Exception as error:
        return error


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "real").glob("*.py")))
def test_they_import_the_contract_and_nothing_else_of_the_project(path):
    """As a published plugin would: every name is one that is promised."""
    imports = [
        (node.module, {name.name for name in node.names})
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("qtasks", "tests"))
    ]

    assert ["qtasks_hookspecs"] == [module for module, _ in imports]
    assert all(names <= set(qtasks_hookspecs.__all__) for _, names in imports)


# A counter.


@pytest.mark.parametrize("engine", ENGINES)
def test_a_counter_counts_every_end_by_who_decided(engine, install, tmp_path):
    """Each attempt once, retried ones too; an app writes its own counts when it stops."""
    app = install("outcome-counter")(engine, outcome_counter={"file": str(tmp_path / "counts")})
    answers: dict[str, Any] = {
        "replace": Replace(0),
        "retry": Retry(limit=2),
        "cancel": Cancel(),
        "letter": DeadLetter(),
    }

    @app.task
    def parse(what):
        if what in answers:
            raise IndexError
        return int(what)

    @app.on_error(IndexError)
    def policy(run):
        return answers[run.args[0]]

    with app:
        for what in ("7", *answers, "nothing"):
            come_to(app, parse, what)
        counter = app.plugins.get_plugin("outcome-counter")

    wanted = {
        ("succeeded", ""): 1,
        ("recovered", "policy"): 1,
        ("retried", "policy"): 2,
        ("failed", ""): 2,  # the spent retries, and what was asked about of nobody
        ("cancelled", "policy"): 1,
        ("dead_lettered", "policy"): 1,
    }
    assert wanted == {(status, by): n for (_, status, by), n in counter.counts.items()}
    lines = (tmp_path / "counts").read_text("utf-8").splitlines()
    assert 'task_attempts_total{task="parse",outcome="retried",by="policy"} 2' in lines
    assert len(wanted) == len(lines)


def test_two_apps_count_apart(install):
    """An entry point that names a class makes a plugin for each app."""
    make = install("outcome-counter")
    apps = [make(), make()]
    for app in apps:
        app.task(name="t")(lambda: 1)
    apps[0].tasks["t"]()
    apps[1].tasks["t"]()
    apps[1].tasks["t"]()

    counters = [app.plugins.get_plugin("outcome-counter").counts for app in apps]
    assert [1, 2] == [counts["t", "succeeded", ""] for counts in counters]


# A keeper of dead letters.


def broken_shop(app: QueueTasks, prices: dict[str, float]) -> Any:
    """Give an app a task that fails where a price is missing, and is set aside then."""

    @app.task
    def price(item, *, times=1):
        return prices[item] * times

    @app.on_error(KeyError)
    def set_aside():
        return DeadLetter("no price yet")

    return price


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dead_letter_is_kept_and_replayed(engine, install, tmp_path):
    """What failed for want of a price runs again when there is one, under a new id."""
    app = install("dead-letter-files", "outcome-counter")(
        engine, dead_letter_files={"folder": str(tmp_path / "letters")}
    )
    prices: dict[str, float] = {}
    price = broken_shop(app, prices)
    messages: list[TaskMessage] = []
    app.task(name="other")(messages.append)

    with app, structlog.testing.capture_logs() as events:
        keeper = app.plugins.get_plugin("dead-letter-files")
        counts = app.plugins.get_plugin("outcome-counter").counts
        if engine is None:
            ended: Any = come_to(app, price, "tea")
        else:
            ended = price.submit_sync("tea", times=2)
            with pytest.raises(TaskDeadLetteredError, match="no price yet"):
                ended.result(timeout=30)
            assert "dead_lettered" == ended.status
            ended = TaskDeadLetteredError("no price yet")
        assert isinstance(ended, TaskDeadLetteredError)

        (letter,) = keeper.letters()
        assert ("price", "KeyError: 'tea'", "no price yet") == tuple(
            letter[name] for name in ("task", "error", "reason")
        )

        # Still no price: it is set aside again, as a run of its own.
        again = keeper.replay(letter["uuid"])
        wait_for(lambda: counts["price", "dead_lettered", "set_aside"] == 2)
        assert [str(again)] == [one["uuid"] for one in keeper.letters()] != [letter["uuid"]]

        prices["tea"] = 3.5
        last = keeper.replay(str(again))
        wait_for(lambda: counts["price", "succeeded", ""] == 1)
        assert [] == [*keeper.letters()]
        assert 3 == len({letter["uuid"], str(again), str(last)})

    # A run that a plugin has kept is nobody's to look for in the log.
    assert "task_dead_lettered" not in {event["event"] for event in events}


def wait_for(condition: Any) -> None:
    """Wait until something is so that another thread does."""
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to it in 30 seconds")


def test_a_run_that_comes_twice_is_one_letter(install, tmp_path):
    """A message that a worker got again, say after a kill, is kept under its one id."""
    app = install("dead-letter-files")(dead_letter_files={"folder": str(tmp_path)})
    price = broken_shop(app, {})
    message = TaskMessage("price", ("tea",))

    with app:
        for attempt in (1, 2):
            again = TaskMessage("price", ("tea",), uuid=message.uuid, attempt=attempt)
            with pytest.raises(TaskDeadLetteredError):
                TaskExecutor(price, again).execute_sync()
        (letter,) = app.plugins.get_plugin("dead-letter-files").letters()

    assert (str(message.uuid), 2) == (letter["uuid"], letter["attempt"])
    assert [f"{message.uuid}.json"] == [path.name for path in tmp_path.glob("*-*.*")]


def test_what_cannot_be_kept_is_not_lost(install, tmp_path):
    """R7: the keeper's failure is told, and the run is set aside as if it were not there."""
    app = install("dead-letter-files")(dead_letter_files={"folder": str(tmp_path)})
    price = broken_shop(app, {})

    with app, structlog.testing.capture_logs() as events:
        assert isinstance(come_to(app, price, frozenset()), TaskDeadLetteredError)

    told = {event["event"]: event for event in events}
    assert "dead-letter-files" == told["plugin_failed"]["plugin"]
    assert "TypeError" == told["plugin_failed"]["error"]
    assert "no price yet" == told["task_dead_lettered"]["reason"]
    assert not [*tmp_path.glob("*.json")]


def test_a_letter_of_a_task_that_is_gone_stays(install, tmp_path):
    """The app says which task it lacks, and the letter waits for it."""
    section = {"folder": str(tmp_path)}
    make = install("dead-letter-files")
    app = make(dead_letter_files=section)
    price = broken_shop(app, {})
    with app:
        come_to(app, price, "tea")

    renamed = make(dead_letter_files=section)
    renamed.task(name="prices")(lambda item: 1)
    with renamed:
        keeper = renamed.plugins.get_plugin("dead-letter-files")
        (letter,) = keeper.letters()
        with pytest.raises(TaskNameError, match="'prices'"):
            keeper.replay(letter["uuid"])
        assert [letter] == [*keeper.letters()]


def test_a_keeper_without_its_folder_does_not_start(install):
    """A setting that has no default is asked for before any run."""
    with (
        pytest.raises(PluginRegistrationError, match="'folder' is missing"),
        install("dead-letter-files")(),
    ):
        pass


# A circuit breaker.


class Clock:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def flaky_shop(after: int = 3) -> tuple[QueueTasks, Any, Clock, list[int]]:
    """Make an app whose tasks are retried, with a breaker."""
    clock, calls = Clock(), list[int]()
    breaker = CircuitBreaker(clock)
    settings = {"plugin": {"CircuitBreaker": {"after": after, "seconds": 30}}}
    app = QueueTasks("shop", plugins=[breaker], discover=False, settings=settings)

    @app.task
    def fetch(works):
        calls.append(1)
        if not works:
            raise ConnectionError
        return "fetched"

    @app.on_error(ConnectionError)
    def try_again():
        return Retry(limit=10)

    return app, fetch, clock, calls


def test_an_open_breaker_stops_retries_and_rests():
    """Three failures in a row open it, half a minute later one run is retried again."""
    app, fetch, clock, calls = flaky_shop()
    with app:
        with pytest.raises(CircuitOpenError, match=re.escape("'fetch' failed too often")) as caught:
            fetch(False)
        # The third failure opened it, so the fourth attempt was the last.
        assert (4, ConnectionError) == (len(calls), type(caught.value.__cause__))

        with pytest.raises(CircuitOpenError):
            fetch(False)
        assert 5 == len(calls)

        clock.now += 31
        with pytest.raises(CircuitOpenError):
            fetch(False)
        assert 7 == len(calls)  # one more try, and it was open again

        assert "fetched" == fetch(True)
        with pytest.raises(CircuitOpenError):
            fetch(False)
        assert 8 + 4 == len(calls)


def test_a_breaker_is_of_one_task():
    """What keeps failing does not stop the retries of others."""
    app, fetch, _, _ = flaky_shop()
    attempts: list[int] = []

    @app.task
    def store():
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return "stored"

    with app:
        with pytest.raises(CircuitOpenError):
            fetch(False)
        assert "stored" == store()


def test_a_cancelled_run_says_nothing_of_its_task():
    """``@when(outcome=...)`` leaves out the ends that are nobody's failure."""
    app, fetch, _, _ = flaky_shop(after=1)
    ask = app.task(name="fetch_once", echo=True)(lambda self: self.ctx.cancel("enough"))
    with app:
        with pytest.raises(TaskCancelError):
            ask()
        breaker = app.plugins.get_plugin("CircuitBreaker")
        assert {} == breaker._breakers
        assert "fetched" == fetch(True)


def test_an_operator_can_take_the_last_word_from_the_breaker(monkeypatch):
    """``order`` comes before a plugin's own ``trylast``: retries go on to their bound."""
    monkeypatch.setenv("QTASKS_PLUGGY_ORDER", "CircuitBreaker,try_again")
    app, fetch, _, calls = flaky_shop()
    with app, pytest.raises(CircuitOpenError):
        fetch(False)

    assert 11 == len(calls)
