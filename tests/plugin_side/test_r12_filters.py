"""R12: ``@when`` says which errors a hookimpl is asked about."""

from __future__ import annotations

import json
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qtasks_hookspecs import (
    Outcome,
    OutcomeStatus,
    TaskFunc,
    blocking,
    hookimpl,
    hookspec,
    when,
)
from qtasks_hookspecs._markers import WHEN_ATTRIBUTE
from qtasks_pluggy import PluginManager, TaskExecutor
from qtasks_pluggy._plugins.filters import filter_key, matches, possible_statuses, why_unmatchable
from qtasks_pluggy.exc import PluginRegistrationError, TaskPluginTriggerError
from tests.runs import both_ways, failing, run_sync

TRIGGER = "task_executor_run_task_trigger_error"


class ShopError(LookupError):
    """An error of the app's own."""


def filtered(*conditions: Any, inside: bool = True, hook: str = TRIGGER) -> Any:
    """Make a plugin that answers ``"asked"``, with these filters on one side of the mark."""

    def function() -> str:
        return "asked"

    for condition in conditions if inside else ():
        function = condition(function)
    function = hookimpl(function)
    for condition in () if inside else conditions:
        function = condition(function)
    return SimpleNamespace(name="picky", **{hook: function})


def statuses(run: Any, plugin: Any, error: BaseException, **task: Any) -> list[str]:
    """Run a failing task; return the statuses of its trail."""
    func = TaskFunc("price_tea", failing("function", error), intercept=Exception, **task)
    executor = TaskExecutor(func, plugins=[plugin])
    try:
        assert "asked" == run(executor)
    except type(error) as raised:
        assert raised is error
    return [record.status for record in executor.trail]


ASKED = [
    (when(error=LookupError), {}),
    (when(error="LookupError"), {}),
    (when(error="KeyError"), {"error": KeyError()}),
    (when(error=(ValueError, "KeyError")), {"error": KeyError()}),
    (when(error=f"{__name__}.ShopError"), {}),
    (when(error="Exception"), {}),
    (when(error=TaskPluginTriggerError), {"error": TaskPluginTriggerError()}),
    (when(error="qtasks_hookspecs.exc.TaskPluginTriggerError"), {}),
    (when(task="price_*"), {}),
    (when(tag="slow"), {"tags": ("slow", "big")}),
    (when(error=LookupError, task="price_*", tag="slow"), {"tags": ("slow",)}),
]
NOT_ASKED = [
    (when(error=ValueError), {}),
    (when(error="ValueError"), {}),
    (when(error="other.ShopError"), {}),
    (when(task="stock_*"), {}),
    (when(task="PRICE_*"), {}),
    (when(tag="slow"), {}),
    (when(error=LookupError, task="stock_*"), {}),
    (when(error=LookupError, tag="slow"), {"tags": ("big",)}),
]


@both_ways
@pytest.mark.parametrize("inside", [True, False], ids=["below", "above"])
@pytest.mark.parametrize("number", range(len(ASKED)))
def test_r12_is_asked_where_all_conditions_hold(run, inside, number):
    """Class, name, glob and tag match the error or its cause; all of one ``@when`` must hold."""
    condition, options = ASKED[number]
    error = options.get("error", ShopError())
    task = {name: value for name, value in options.items() if name != "error"}

    assert ["answered"] == statuses(run, filtered(condition, inside=inside), error, **task)


@both_ways
@pytest.mark.parametrize("number", range(len(NOT_ASKED)))
def test_r12_is_not_asked_otherwise_and_the_trail_says_so(run, number):
    """Where a condition fails, the hookimpl is not called, and recorded as filtered."""
    condition, task = NOT_ASKED[number]

    assert ["filtered"] == statuses(run, filtered(condition), ShopError(), **task)


@both_ways
def test_r12_one_of_several_is_enough(run):
    """Several ``@when`` are alternatives."""
    either = filtered(when(error=ValueError), when(task="price_*"))
    neither = filtered(when(error=ValueError), when(task="stock_*"))

    assert ["answered"] == statuses(run, either, ShopError())
    assert ["filtered"] == statuses(run, neither, ShopError())


@both_ways
def test_r12_a_trigger_errors_own_cause_counts(run):
    """The cause of an error that a task raises itself is looked at too."""
    error = TaskPluginTriggerError("no")
    error.__cause__ = ShopError()

    assert ["answered"] == statuses(run, filtered(when(error=ShopError)), error)


@both_ways
def test_r12_wrappers_are_filtered_too(run):
    """A wrapper whose filter does not hold is not there."""

    class Wrapper:
        name = "wrapper"

        @hookimpl(wrapper=True)
        @when(error=ValueError)
        def task_executor_run_task_trigger_error(self) -> Any:
            yield
            return "wrapped"

    def result(error: Exception) -> Any:
        func = TaskFunc("t", failing("function", error), intercept=Exception)
        return run(TaskExecutor(func, plugins=[filtered(), Wrapper()]))

    assert ("wrapped", "asked") == (result(ValueError()), result(KeyError()))


@both_ways
def test_r12_hooks_without_an_error_filter_by_task_and_tag(run):
    """args_replace, run_task and task_close can be limited to tasks."""
    plugin = filtered(when(tag="shout"), hook="task_executor_run_task")

    assert "asked" == run(
        TaskExecutor(TaskFunc("t", len, tags="shout"), args=("ab",), plugins=[plugin])
    )
    assert 2 == run(TaskExecutor(TaskFunc("t", len), args=("ab",), plugins=[plugin]))


class Parser:
    """A module that offers an error of another one under its own name, as many packages do."""

    Error = ShopError

    class Inner:
        Error = ShopError


def test_r12_a_name_may_be_another_than_the_class_was_made_under(monkeypatch):
    """A package's public name of an error matches, and so does its base's; nothing is imported."""

    def imports(name: str) -> Any:
        raise AssertionError(name)

    assert ["answered"] == statuses(
        run_sync, filtered(when(error="json.JSONDecodeError")), json.JSONDecodeError("", "", 0)
    )
    lazy = ModuleType("shop_parser")
    vars(lazy).update(vars(Parser) | {"__getattr__": imports})
    monkeypatch.setitem(sys.modules, "shop_parser", lazy)
    for name, status in {
        "shop_parser.Error": "answered",
        "shop_parser.Inner.Error": "answered",
        "shop_parser.Other": "filtered",
        "shop_parser.Error.other": "filtered",
        "not_loaded.Error": "filtered",
    }.items():
        assert [status] == statuses(run_sync, filtered(when(error=name)), ShopError())


def test_r12_a_name_matches_once_its_module_is_loaded(monkeypatch):
    """What was decided before is not remembered against it."""
    manager = PluginManager([filtered(when(error="shop_parser.Error"))])
    func = TaskFunc("t", failing("function", ShopError()), intercept=Exception)
    with pytest.raises(ShopError):
        TaskExecutor(func, plugins=manager).execute_sync()

    monkeypatch.setitem(sys.modules, "shop_parser", Parser)

    assert "asked" == TaskExecutor(func, plugins=manager).execute_sync()


@pytest.mark.parametrize("mark", [staticmethod, classmethod], ids=["static", "class"])
@pytest.mark.parametrize("outside", [False, True], ids=["below", "above"])
def test_r12_marks_on_methods_of_every_kind_count(mark, outside):
    """``@when`` and ``@blocking`` on either side of ``@staticmethod`` and ``@classmethod``."""
    threads = []

    if mark is classmethod:

        def function(cls: Any) -> str:
            threads.append(threading.current_thread())
            return "asked"

    else:

        def function() -> str:
            threads.append(threading.current_thread())
            return "asked"

    marks = (when(error=KeyError), blocking)
    if outside:
        method = hookimpl(mark(function))
        for one in marks:
            method = one(method)
    else:
        for one in marks:
            function = one(function)
        method = hookimpl(mark(function))
    plugin = type("Plugin", (), {"name": "p", TRIGGER: method})()

    assert ["filtered"] == statuses(run_sync, plugin, ValueError())
    assert ["answered"] == statuses(run_sync, plugin, KeyError())
    assert threading.main_thread() not in threads


CLOSE = "task_executor_task_close"
ENDED = "task_executor_attempt_ended"
COMMON = {"task_executor", "task_func", "task_broker"}
FUNC = TaskFunc("price_tea", len, tags="slow")


def key_of(status: str, error: BaseException | None = None) -> Any:
    """Return what filters look at when an attempt has ended so."""
    outcome = Outcome(status=OutcomeStatus(status), error=error)
    return filter_key({"task_func": FUNC, "task_executor": None, "outcome": outcome})


@pytest.mark.parametrize(
    ("condition", "matching"),
    [
        (when(outcome="failed"), {"failed"}),
        (when(outcome=OutcomeStatus.failed), {"failed"}),
        (when(outcome=("failed", OutcomeStatus.recovered)), {"failed", "recovered"}),
        (when(outcome=["failed"], task="price_*"), {"failed"}),
        (when(outcome="failed", task="stock_*"), set()),
        (when(error=LookupError), {*OutcomeStatus} - {"succeeded"}),
        (when(error=LookupError, outcome="retried"), {"retried"}),
        (when(error=ValueError), set()),
        (when(tag="slow"), {*OutcomeStatus}),
    ],
)
def test_r12_how_the_attempt_ended(condition, matching):
    """One of the named ends must be its own, and ``error=`` is held against the outcome's."""
    conditions = conditions_of(condition)
    keys = {one: key_of(one, None if one == "succeeded" else ShopError()) for one in OutcomeStatus}
    possible = possible_statuses(conditions)

    assert matching == {one for one, key in keys.items() if matches(conditions, key)}
    assert possible is None or matching <= possible


@pytest.mark.parametrize(
    ("conditions", "possible"),
    [
        ((), None),
        ((when(task="t"),), None),
        ((when(outcome="failed"),), {"failed"}),
        ((when(outcome="failed"), when(outcome="cancelled")), {"failed", "cancelled"}),
        ((when(outcome="failed"), when(task="t")), None),
        ((when(error=KeyError),), {*OutcomeStatus} - {"succeeded"}),
    ],
)
def test_r12_which_ends_can_match_is_known_before(conditions, possible):
    """So that an end that concerns nobody costs nothing."""
    assert possible == possible_statuses(conditions_of(*conditions))


def conditions_of(*marks: Any) -> Any:
    """Return the conditions that ``@when`` leaves on a function."""

    def function() -> None: ...

    for one in marks:
        function = one(function)
    return getattr(function, WHEN_ATTRIBUTE, ())


@pytest.mark.parametrize(
    ("condition", "hook", "more", "says"),
    [
        (when(outcome="failed"), TRIGGER, {"e"}, "on a hook without an outcome"),
        (when(outcome="failed"), "qtasks_start", set(), "not called for a task"),
        (when(outcome=()), CLOSE, {"outcome"}, "names no status"),
        (when(outcome="retried"), CLOSE, {"outcome"}, "put it on task_executor_attempt_ended"),
        (when(outcome="succeeded", error=KeyError), CLOSE, {"outcome"}, "success has no error"),
        (when(outcome=("retried", "failed")), CLOSE, {"outcome"}, None),
        (when(error=KeyError), CLOSE, {"outcome"}, None),
        (when(task="t"), "shop_closes", {"outcome", "e"}, "not called for a task"),
    ],
)
def test_r12_an_outcome_that_can_never_match(condition, hook, more, says):
    """A condition on the end of an attempt that no call of the hook has is a fault."""
    (mark,) = conditions_of(condition)
    parameters = frozenset(COMMON | more if hook != "qtasks_start" else more)
    why = why_unmatchable(mark, hook, parameters)

    assert (why is None) if says is None else (says in why)


def test_r12_a_hook_of_the_hosts_own_has_no_filters():
    """Whatever its parameters are called: they mean nothing to us."""

    @hookspec
    def shop_closes(task_executor: Any, task_func: Any, e: Any) -> None: ...

    manager = PluginManager()
    manager.add_hookspecs(SimpleNamespace(shop_closes=shop_closes))

    with pytest.raises(PluginRegistrationError, match="not called for a task"):
        manager.register(filtered(when(task="t"), hook="shop_closes"))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("faild", "failed"),
        ("RECOVERED", "recovered"),
        ("success", "succeeded"),
        ("dead", "dead_lettered"),
    ],
)
def test_r12_no_such_end(wrong, nearest):
    """A status that does not exist is an error in the plugin's own line; the nearest is named."""
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        when(outcome=("failed", wrong))


def test_r12_attempts_are_filtered_anew():
    """A retry that fails in another way is asked about by others, with the right attempt."""
    errors = iter([KeyError(), ValueError()])

    def task() -> None:
        raise next(errors)

    retries = SimpleNamespace(name="retries")

    @hookimpl
    @when(error=KeyError)
    def task_executor_run_task_trigger_error() -> Any:
        from qtasks_hookspecs import Retry

        return Retry()

    retries.task_executor_run_task_trigger_error = task_executor_run_task_trigger_error
    executor = TaskExecutor(TaskFunc("t", task, intercept=Exception), plugins=[retries])
    with pytest.raises(ValueError):  # it has no text
        executor.execute_sync()

    assert [(1, "answered"), (2, "filtered")] == [(r.attempt, r.status) for r in executor.trail]


def test_r12_what_is_remembered_of_filters_is_bounded():
    """Very many tasks made on the fly do not fill the memory."""
    manager = PluginManager([filtered(when(task="t*"))])
    for number in range(1100):
        func = TaskFunc(f"t{number}", failing("function", TaskPluginTriggerError()))
        assert "asked" == TaskExecutor(func, plugins=manager).execute_sync()

    chain = manager.hook.task_executor_run_task_trigger_error.chain
    assert chain._planned.cache_info().currsize <= 1024


@pytest.mark.parametrize(
    ("condition", "hook", "says"),
    [
        (when(error="ValeuError"), TRIGGER, "'ValueError'"),
        (when(error="not a name"), TRIGGER, "not the dotted name"),
        (when(error=()), TRIGGER, "names no class"),
        (when(task=""), TRIGGER, "matches nothing"),
        (when(tag=""), TRIGGER, "matches nothing"),
        (when(error=ValueError), "task_executor_run_task", "without an error"),
        (when(task="t"), "qtasks_start", "not called for a task"),
    ],
    ids=["misspelt", "malformed", "none", "task", "tag", "no-error", "start"],
)
def test_r12_what_can_never_match_is_refused(condition, hook, says):
    """A filter that can never hold is a fault at registration that says why."""
    with pytest.raises(PluginRegistrationError, match=says) as raised:
        PluginManager([filtered(condition, hook=hook)])

    assert "'picky'" in str(raised.value)
    assert "QTASKS_PLUGGY_DISABLE=picky" in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"error": 5},
        {"error": int},
        {"error": (ValueError, 5)},
        {"task": 5},
        {"tag": 5},
        {"outcome": 5},
    ],
)
def test_r12_wrong_arguments_are_refused_where_they_stand(wrong):
    """``@when`` with nothing or with something odd is an error in the plugin's own line."""
    with pytest.raises(TypeError, match="@when"):
        when(**wrong)
