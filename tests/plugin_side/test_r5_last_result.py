"""R5: the last answer that is not None is the result."""

from __future__ import annotations

import pytest

from qtasks_hookspecs import Replace
from qtasks_pluggy import TaskExecutor
from qtasks_pluggy.exc import TaskPluginTriggerError
from tests.runs import answering, both_ways, every_kind, failing


class Awkward:
    """A value that cannot be shown, compared or asked for its truth."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]  # as awkward as can be


def result_of(run, *answers, kind="function"):
    """Run a failing task with plugins that answer so, one after another."""
    plugins = [answering(answer, f"p{number}") for number, answer in enumerate(answers)]
    return run(TaskExecutor(failing(kind, TaskPluginTriggerError("no")), plugins=plugins))


@both_ways
@every_kind
@pytest.mark.parametrize("value", [0, False, "", [], {}, 0.0, (), 123, "text", {"result": 1}])
def test_r5_any_value_but_none_is_an_answer(run, kind, value):
    """Falsy values count, and a dict is a dict."""
    result = result_of(run, value, kind=kind)

    assert (value, type(value)) == (result, type(result))


@both_ways
def test_r5_the_last_answer_wins(run):
    """Of several answers the last one is the result."""
    assert "third" == result_of(run, "first", "second", "third")


@both_ways
def test_r5_none_is_no_opinion(run):
    """A None neither wins nor takes back an earlier answer."""
    assert "first" == result_of(run, None, "first", None)


@both_ways
def test_r5_replace_says_the_same_and_can_say_none(run):
    """``Replace(value)`` is that value; ``Replace(None)`` is the way to recover to None."""
    assert 5 == result_of(run, Replace(5))
    assert result_of(run, "first", Replace(None)) is None
    assert "last" == result_of(run, Replace(None), "last")


@both_ways
def test_r5_an_awkward_value_is_handed_over_untouched(run):
    """An answer is not shown, compared or asked for its truth on its way."""
    value = Awkward()

    assert result_of(run, value) is value
