"""A hookimpl that a decorator has wrapped is called as its wrapper can be called."""

from __future__ import annotations

import asyncio
import functools

import pytest

from qtasks_pluggy import PluginManager
from tests.runs import plugin, registration_error

TRIGGER = "task_executor_run_task_trigger_error"
VALUES = {"task_executor": 0, "task_func": 1, "task_broker": 2, "e": 3}


def all_of_it(function):
    """Hand on whatever comes, however it comes."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ["*", *function(*args, **kwargs)]

    return wrapper


def by_keyword(function):
    """Take everything by name."""

    @functools.wraps(function)
    def wrapper(**kwargs):
        return ["**", *function(**kwargs)]

    return wrapper


def in_another_order(function):
    """Take the two in an order of its own."""

    @functools.wraps(function)
    def wrapper(task_func, e):
        return ["swapped", *function(e=e, task_func=task_func)]

    return wrapper


def one_by_name(function):
    """Take one as it comes and the others by name."""

    @functools.wraps(function)
    def wrapper(task_func, **kwargs):
        return ["one", *function(task_func=task_func, **kwargs)]

    return wrapper


def under_other_names(function):
    """Take what comes by position, whatever it is called."""

    @functools.wraps(function)
    def wrapper(first, /, *rest):
        return ["others", *function(first, *rest)]

    return wrapper


def plain(e, task_func):
    """Answer what came."""
    return [e, task_func]


def keyword_only(e, *, task_func):
    """Answer what came, one of it by name."""
    return [e, task_func]


@pytest.mark.parametrize(
    ("wrap", "function", "answer"),
    [
        (all_of_it, plain, ["*", 3, 1]),
        (all_of_it, keyword_only, ["*", 3, 1]),
        (by_keyword, plain, ["**", 3, 1]),
        (by_keyword, keyword_only, ["**", 3, 1]),
        (in_another_order, plain, ["swapped", 3, 1]),
        (one_by_name, plain, ["one", 3, 1]),
        (under_other_names, plain, ["others", 3, 1]),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_wrapped_hookimpl_gets_what_it_names(wrap, function, answer):
    """By position or by name, whichever its wrapper takes, each value under its own name."""
    hook = getattr(PluginManager([plugin("p", **{TRIGGER: wrap(function)})]).hook, TRIGGER)

    assert answer == hook(**VALUES)
    assert answer == asyncio.run(hook.call_async(**VALUES))


def test_a_wrapped_hookimpl_whose_parameters_are_called_like_its_wrappers():
    """The parameters ``args`` and ``kwargs`` of a hook are no stars."""
    seen = []

    @all_of_it
    def replace(args, kwargs):
        seen.append((args, kwargs))
        return ()

    manager = PluginManager([plugin("p", task_executor_args_replace=replace)])
    manager.hook.task_executor_args_replace(
        task_executor=0, task_func=None, task_broker=None, args=(1,), kwargs={"b": 2}
    )

    assert [((1,), {"b": 2})] == seen


@pytest.mark.parametrize(
    ("function", "names"),
    [(keyword_only, "e, task_func"), (lambda e, task_func, task_broker: 1, "e, task_func, task")],
    ids=["keyword", "three"],
)
def test_a_wrapper_that_cannot_take_what_is_named_is_a_fault(function, names):
    """At registration it says what is named and what is taken."""

    @functools.wraps(function)
    def wrapper(e, task_func, /):
        return function(e, task_func)

    message = str(registration_error(PluginManager, [plugin("p", **{TRIGGER: wrapper})]))

    for part in ("plugin 'p'", TRIGGER, f"it names {names}", "'(e, task_func, /)'"):
        assert part in message


def test_a_wrapper_that_takes_more_than_nothing_is_a_fault():
    """A hookimpl that names nothing can be called with nothing."""

    @functools.wraps(lambda: 1)
    def wrapper(clock):
        return clock

    message = str(registration_error(PluginManager, [plugin("p", **{TRIGGER: wrapper})]))

    assert "it names nothing, but what is wrapped around it takes '(clock)'" in message
