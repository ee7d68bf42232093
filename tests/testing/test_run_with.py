"""One function under one plugin: what ``run_with`` tells, and what its asserts show."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace

import pytest

from qtasks_hookspecs import Cancel, DeadLetter, Raise, Replace, Retry, hookimpl, on_error
from qtasks_pluggy.exc import PluginError, PluginRegistrationError
from qtasks_pluggy.testing import assert_outcome, assert_trail, no_delays, run_with
from tests.runs import KINDS, answering, failing, function_of, plugin

ENDS = {
    "recovered": (Replace(7), None),
    "retried": (Retry(delay=60, limit=2), KeyError),
    "raised": (Raise(ValueError("clearer")), ValueError),
    "cancelled": (Cancel("no"), Exception),
    "dead_lettered": (DeadLetter("no"), Exception),
    "left": (None, KeyError),
}
STATUSES = {"retried": "failed", "raised": "failed", "left": "failed"}


class Counting:
    """A plugin that keeps state by app: it answers with how often it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked = 0

    @on_error(KeyError)
    def count(self):
        self.asked += 1
        return self.asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ENDS)
def test_each_kind_of_function_and_each_end_is_told(kind, end):
    """Plain and async, functions and generators: the status, the error, and who decided."""
    answer, error = ENDS[end]

    with no_delays():
        run = run_with(answering(answer), failing(kind, KeyError()))

    decided = None if end in {"left", "retried"} else "answering"
    attempts = 3 if end == "retried" else 1
    assert_outcome(run, STATUSES.get(end, end), error=error, decided_by=decided, attempts=attempts)
    assert run.result == (7 if end == "recovered" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_run_has_its_result_and_nobody_is_asked(kind):
    """Arguments arrive; a generator's result is the list of its items."""
    run = run_with(
        answering(1), function_of(kind, lambda a, *, b: a + b), args=(1,), kwargs={"b": 2}
    )

    assert_outcome(run, "succeeded", result=[1, 2] if "gen" in kind else 3, decided_by=None)
    assert_trail(run)


def test_each_app_has_a_plugin_of_its_own_where_a_class_or_factory_is_given():
    """So that the two styles do not share a count."""
    for given in (Counting, lambda: Counting(), f"{__name__}:Counting"):
        run = run_with(given, failing("function", KeyError()))
        assert_outcome(run, "recovered", result=1, decided_by="counting")


def test_styles_that_end_differently_are_told_with_both_trails():
    """A function that remembers its last call needs a style."""
    calls = []

    def first_fails():
        calls.append(1)
        if len(calls) == 1:
            raise KeyError

    with pytest.raises(AssertionError) as raised:
        run_with(answering(None), first_fails)

    told = str(raised.value)
    assert "the two styles ended differently" in told
    assert "first_fails (def): failed" in told
    assert "first_fails (async def): succeeded" in told


@pytest.mark.parametrize("style", ["def", "async def"])
def test_the_style_is_how_the_task_runs(style):
    """``def`` has no running loop, ``async def`` is on one."""

    def on_loop():
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return "def"
        return "async def"

    assert_outcome(run_with(answering(None), on_loop, style=style), "succeeded", result=style)


async def test_it_works_inside_of_an_async_test():
    """Where a loop is running, it has another one in a thread."""
    assert_outcome(run_with(answering(3), failing("coroutine", KeyError())), "recovered", result=3)


def test_a_failed_assert_shows_the_trail():
    """What was expected, what it was, and who was asked."""
    run = run_with(answering(1, "mine"), failing("function", KeyError()))

    with pytest.raises(AssertionError) as raised:
        assert_outcome(run, "failed", result=2, error=ValueError, decided_by=None, attempts=2)

    told = str(raised.value)
    for part in (
        "status: expected failed, got recovered",
        "result: expected 2, got 1",
        "error: expected ValueError, got none",
        "decided_by: expected None, got 'mine'",
        "attempts: expected 2, got 1",
        "plugin 'mine'  answered value",
        "won",
    ):
        assert part in told


def test_delays_can_be_asserted():
    """Of each retry, None where there is none."""
    run = run_with(answering(Retry(delay=0.001, limit=2)), failing("function", KeyError()))

    assert_outcome(run, "failed", delays=[0.001, 0.001])
    with pytest.raises(AssertionError, match="delays: expected"):
        assert_outcome(run, "failed", delays=[1])


def test_a_trail_is_asserted_in_words():
    """Who was asked about the error, and what each did; the difference is shown."""
    run = run_with(answering(Cancel("no"), "mine"), failing("function", KeyError()))

    assert_trail(run, "mine answered Cancel")
    with pytest.raises(AssertionError, match=r"expected\n  nobody\ngot\n  mine answered Cancel"):
        assert_trail(run)


def test_a_status_that_does_not_exist_is_an_error():
    """A slip in a test is no failing assert."""
    run = run_with(answering(None), len, args=("a",))

    with pytest.raises(ValueError, match="recoverd"):
        assert_outcome(run, "recoverd")


def test_a_plugin_that_fails_fails_the_test():
    """Strict is on, unless the test says otherwise."""
    broken = plugin("broken", task_executor_run_task_trigger_error=lambda e: e.no_such_thing)

    with pytest.raises(PluginError, match="'broken' failed in hook"):
        run_with(broken, failing("function", KeyError()))
    run = run_with(broken, failing("function", KeyError()), app_settings={"strict": False})
    assert_trail(run, "broken raised AttributeError")


def test_settings_are_the_plugins_own_section():
    """Its start gets them, by whatever name the plugin has."""
    heard = []

    @hookimpl
    def qtasks_start(settings):
        heard.append(settings)

    for given in (SimpleNamespace(name="mine", qtasks_start=qtasks_start), ModuleType("other")):
        given.qtasks_start = qtasks_start
        run_with(given, len, args=("a",), settings={"key": 1}, style="def")

    assert heard == [{"key": 1}, {"key": 1}]


def test_options_of_the_task_are_those_of_app_task():
    """Such as tags, a name, and no intercepting."""
    mine = answering(1)
    run = run_with(mine, failing("function", KeyError()), name="price", intercept=())

    assert run.task == "price"
    assert_outcome(run, "failed", error=KeyError)
    with pytest.raises(TypeError, match="'tags'"):
        run_with(mine, len, tagz=["a"])


def test_an_unknown_plugin_names_those_that_there_are():
    """A text is an entry point's name, or where to import it from."""
    with pytest.raises(PluginRegistrationError, match=r"'no-such' cannot be imported.*installed"):
        run_with("no-such", len)


def test_a_style_or_a_status_that_there_is_not_is_refused():
    """Before anything runs, with those that there are."""
    with pytest.raises(
        ValueError, match="expected 'def', 'async def' or None for both, got 'async'"
    ):
        run_with(answering(None), len, args=("a",), style="async")

    run = run_with(answering(None), len, args=("a",))
    with pytest.raises(ValueError, match="no status 'suceeded'; did you mean 'succeeded'?"):
        assert_outcome(run, "suceeded")
