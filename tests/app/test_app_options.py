"""What an app is made with: retries, dead letters, settings, and what it refuses."""

from __future__ import annotations

import uuid

import pytest

from qtasks_hookspecs import DeadLetter, Retry
from qtasks_pluggy import QueueTasks, TaskExecutor
from qtasks_pluggy.exc import (
    PluginRegistrationError,
    SettingsError,
    TaskDeadLetteredError,
    TaskNameError,
    TaskPluginTriggerError,
)
from tests.runs import answering, both_ways, failing, plugin


def shop(*plugins, **options):
    """Make an app with nothing but these plugins."""
    return QueueTasks("shop", discover=False, plugins=plugins, **options)


# --- dead letters ------------------------------------------------------------------------------


@both_ways
def test_dead_letter_by_default_is_one_log_event(run, caplog):
    """It names the task and the run's id, so that the run can be found."""
    executor = TaskExecutor(
        failing("function", TaskPluginTriggerError()), plugins=[answering(DeadLetter("look at it"))]
    )

    with pytest.raises(TaskDeadLetteredError):
        run(executor)

    (record,) = [one for one in caplog.records if "task_dead_lettered" in one.getMessage()]
    assert record.levelname == "WARNING"
    for part in ("'function'", str(executor.task_broker.uuid), "look at it"):
        assert part in record.getMessage()


# --- retries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "task", "attempts"),
    [
        ({}, {}, 11),
        ({"max_retries": 2}, {}, 3),
        ({"max_retries": 2}, {"max_retries": 1}, 2),
        ({"max_retries": 2}, {"max_retries": 5}, 3),
        ({"max_retries": 0}, {}, 1),
        ({"max_retries": None}, {"max_retries": 3}, 4),
        ({"max_retries": None}, {}, 21),
    ],
)
def test_max_retries(app, task, attempts):
    """The smaller of the app's, 10 by default, and the task's; None for no bound."""
    tried = []

    def body():
        tried.append(1)
        raise TaskPluginTriggerError

    with pytest.raises(TaskPluginTriggerError):
        shop(answering(Retry(limit=20)), **app).task(**task)(body)()

    assert len(tried) == attempts


@pytest.mark.parametrize(
    ("app", "task", "most"), [(10, None, 11), (10, 3, 4), (3, 10, 4), (None, None, None)]
)
def test_max_attempts_is_for_plugins_to_read(app, task, most):
    """``task_executor.max_attempts`` says how often a run may be tried; None for no bound."""
    seen = []
    looks = plugin("p", task_executor_task_close=lambda task_executor: seen.append(task_executor))

    shop(looks, max_retries=app).task(max_retries=task)(len)("")

    assert seen[0].max_attempts == most


# --- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"name": 3}, TypeError, "QueueTasks(name): expected a string, got 3"),
        ({"max_retries": -1}, ValueError, "max_retries=: expected 0 or more, got -1"),
        ({"max_retries": "2"}, TypeError, "max_retries=: expected a whole number, got '2'"),
        ({"max_retries": True}, TypeError, "max_retries=: expected a whole number"),
        ({"intercept": "ValueError"}, TypeError, "intercept=: expected an exception class"),
        ({"settings": {"strikt": True}}, SettingsError, "did you mean 'strict'?"),
        ({"plugins": [object()]}, PluginRegistrationError, "object"),
    ],
)
def test_an_app_checks_what_it_is_made_with(arguments, error, says):
    """A wrong argument is refused when the app is built, with the value."""
    with pytest.raises(error) as caught:
        QueueTasks(**{"name": "shop", "discover": False, **arguments})

    assert says in str(caught.value)


def test_two_tasks_under_one_name():
    """The second is refused; the error names the app, the name, both functions, the remedy."""
    app = shop()

    @app.task
    def price():
        return 1

    def other():
        return 2

    with pytest.raises(TaskNameError) as caught:
        app.task(name="price")(other)

    for part in ("app 'shop'", "'price'", "locals>.price", "locals>.other", "another name="):
        assert part in str(caught.value)
    assert price() == 1
    assert app.task(name="other price")(other)() == 2


def test_tasks_are_for_reading():
    """``app.tasks`` has the tasks by name, in order of definition, and cannot be written."""
    app = shop()
    one, two = app.task(name="one")(len), app.task(name="two")(len)

    assert dict(app.tasks) == {"one": one, "two": two}
    with pytest.raises(TypeError):
        app.tasks["three"] = one


def test_an_app_reads_nothing_when_it_is_built(monkeypatch):
    """Neither environment nor entry points: the app object can be made anywhere."""
    monkeypatch.setenv("QTASKS_PLUGGY_NONSENSE", "1")

    app = QueueTasks("shop")

    with pytest.raises(SettingsError, match="QTASKS_PLUGGY_NONSENSE"):
        app.__enter__()


@both_ways
def test_an_id_of_any_kind(run):
    """The id of a run is a fresh UUID for each run of a task."""
    ids = []
    looks = plugin("p", task_executor_task_close=lambda task_broker: ids.append(task_broker.uuid))
    task = shop(looks).task(len)

    for _ in range(2):
        run(TaskExecutor(task, args=("",)))

    assert len(set(ids)) == 2
    assert all(isinstance(one, uuid.UUID) for one in ids)
