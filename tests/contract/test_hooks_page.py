"""The page of hooks has what plugins rely on in tables, and each cell is what happens."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from qtasks_hookspecs import (
    Cancel,
    DeadLetter,
    Outcome,
    OutcomeStatus,
    Raise,
    Replace,
    Retry,
    RunningApp,
    RunningTask,
    TaskFunc,
    TaskMessage,
    _hooks,
    when,
)
from qtasks_pluggy import PluginManager, QueueTasks, TaskExecutor, TaskStatus
from qtasks_pluggy.exc import PluginRegistrationError
from tests.runs import plugin

PAGE = (Path(__file__).parents[2] / "docs/reference/hooks.md").read_text("utf-8")
HOOKS = {name: hook for name, hook in vars(_hooks).items() if hasattr(hook, "qtasks_pluggy_spec")}
CONDITIONS = {
    "error": KeyError,
    "outcome": "failed",
    "task": "price_*",
    "tag": "slow",
    "replay": True,
    "retry": True,
}
RUN = ["task_executor", "task_func", "task_broker"]


def table(head: str) -> list[list[str]]:
    """Return the rows of the table whose first cell is this."""
    lines = PAGE.partition(f"\n| {head} |")[2].splitlines()[2:]
    rows = [line.strip("|").split(" | ") for line in lines[: lines.index("")]]
    return [[cell.strip() for cell in row] for row in rows]


def words(cell: str) -> list[str]:
    """Return what a cell has as code."""
    return re.findall(r"`(?:outcome\.)?(\w+)`", cell)


def test_the_table_has_every_hook_in_its_order():
    """All hooks, as they are declared."""
    assert [*HOOKS] == [words(row[0])[0] for row in table("hook")]


@pytest.mark.parametrize("row", table("hook"), ids=lambda row: row[0].strip("`"))
def test_a_row_names_what_the_hook_is_given(row):
    """The run is three parameters, which come first."""
    given = [*(RUN if "the run" in row[2] else []), *words(row[2])]

    assert [*inspect.signature(HOOKS[words(row[0])[0]]).parameters] == given


@pytest.mark.parametrize("row", table("hook"), ids=lambda row: row[0].strip("`"))
def test_a_row_names_the_conditions_that_when_takes_there(row):
    """Each condition that is named can be registered, and no other."""
    taken = []
    for name, value in CONDITIONS.items():
        picky = plugin("picky", **{words(row[0])[0]: when(**{name: value})(lambda: None)})
        try:
            PluginManager([picky])
        except PluginRegistrationError:
            continue
        taken.append(name)

    assert taken == words(row[4])


ARGUMENTS = {
    "args": (1,),
    "kwargs": {},
    "result": 1,
    "e": KeyError(),
    "reason": "",
    "settings": {},
    "app": None,
    "task_executor": TaskExecutor(len),
    "task_func": TaskFunc("t", len),
    "task_broker": TaskMessage("t"),
    "outcome": Outcome(status=OutcomeStatus.failed),
}


@pytest.mark.parametrize("row", table("hook"), ids=lambda row: row[0].strip("`"))
def test_a_row_says_what_becomes_of_answers(row):
    """What is ignored comes to nothing; a pipeline, the last answer and ``True`` come through."""
    name, says = words(row[0])[0], row[3]
    answers = {"a pair": ((2,), {}), "a pipeline": 2, "the last one": 2, "one `True`": True}
    answer = next((one for start, one in answers.items() if says.startswith(start)), 2)
    plugins = [plugin("first", **{name: lambda: answer}), plugin("silent", **{name: lambda: None})]
    manager = PluginManager(plugins)

    came_to = getattr(manager.hook, name)(
        **{one: ARGUMENTS[one] for one in inspect.signature(HOOKS[name]).parameters}
    )

    assert came_to == (None if says == "ignored" else answer)


STATUSES = {
    "succeeded": None,
    "recovered": Replace(1),
    "retried": Retry(delay=60),
    "failed": Raise(LookupError("other")),
    "cancelled": Cancel(),
    "dead_lettered": DeadLetter(),
}


@pytest.mark.parametrize("row", table("`outcome.status`"), ids=lambda row: row[0].strip("`"))
def test_a_row_says_which_status_the_run_has_then(row):
    """As ``handle.status`` tells it, once plugins have heard of the attempt's end."""
    status, task_status = OutcomeStatus(words(row[0])[0]), TaskStatus(words(row[2])[0])
    heard: list[Any] = []
    app = QueueTasks(
        "shop",
        engine="memory://",
        discover=False,
        plugins=[
            plugin("hears", task_executor_attempt_ended=lambda outcome: heard.append(outcome))
        ],
    )
    answer = STATUSES[status]

    @app.task
    def price():
        if answer is not None:
            raise KeyError

    app.on_error(KeyError)(lambda: answer)

    with app:
        handle = price.submit()
        if status == "retried":
            wait_for(lambda: heard and handle.status != "running")
        else:
            try:
                handle.result(timeout=30)
            except Exception:
                assert status not in {"succeeded", "recovered"}
        assert (status, task_status) == (heard[0].status, handle.status)
        handle.cancel()


def test_the_table_has_every_status():
    """Of attempts all, and of runs those that an end has."""
    rows = table("`outcome.status`")

    assert [*OutcomeStatus] == [words(row[0])[0] for row in rows]
    assert {*TaskStatus} - {"running"} == {words(row[2])[0] for row in rows}


@pytest.mark.parametrize("kind", [RunningTask, RunningApp, TaskFunc, TaskMessage, Outcome])
def test_all_that_a_hookimpl_may_read_is_listed(kind):
    """Of each thing that hooks are given, every public attribute."""
    part = PAGE.partition("## What a hookimpl reads\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `(\w+)", part, re.MULTILINE)) | set(words(part))
    names = {name for name in dir(kind) if not name.startswith("_")}

    assert set() == names - listed


def wait_for(condition: Any) -> None:
    """Wait until something is so that another thread does."""
    import threading

    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to it in 30 seconds")
