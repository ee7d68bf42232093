"""Times, tracebacks and charts, as people read them."""

from __future__ import annotations

import pytest

from qtasks_pluggy.failures.errors import tell
from qtasks_pluggy.failures.web import show

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("passed", "told"),
    [
        (-5, "just now"),
        (0, "just now"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3_599, "59 min ago"),
        (3_600, "1 h ago"),
        (86_399, "23 h ago"),
        (86_400, "1 day ago"),
        (900_000, "10 days ago"),
    ],
)
def test_times_are_told_from_now(passed, told):
    """In the largest unit that is whole; the exact time is told beside it."""
    assert told == show.ago(NOW - passed, NOW)
    assert "2023-11-14 22:13:20 UTC" == show.exact(NOW)
    assert "2023-11-14T22:13:20.000+00:00" == show.iso(NOW)


def test_a_traceback_is_read_back_error_by_error():
    """The chain, each error's frames, lines and text; the app's own frames are known."""
    from tests.failures.web.sites import Forms

    try:
        try:
            Forms(None)  # a frame of the standard library
        except TypeError as error:
            msg = 'first line\n  File "x", line 1, in y\n'
            raise ValueError(msg) from error
    except ValueError as error:
        first, last = show.links(tell(error, 65_536).traceback)

    assert ("", "The above exception was") == (first.then, last.then[:23])
    assert first.text.startswith("TypeError: ")
    assert 'ValueError: first line\n  File "x", line 1, in y' == last.text
    assert ["test_a_traceback_is_read_back_error_by_error"] == [one.name for one in last.own]
    assert "raise ValueError(msg) from error" == last.frames[0].code
    assert first.frames[-1].file.endswith("html/parser.py")
    assert "__init__" == first.own[-1].name


@pytest.mark.parametrize("text", ["", "KeyError", "Traceback (most recent call last):", "  File"])
def test_what_is_no_traceback_is_read_all_the_same(text):
    """Anything else is the error's text, or nothing."""
    (link,) = show.links(text)
    assert [] == list(link.frames)


def test_a_chart_is_as_high_as_its_fullest_hour():
    """Bars of one hour stand on each other, within the chart; what happened at all is seen."""
    last = int(NOW // 3600)
    counts = {(last, "failed"): 1_000_000, (last, "retried"): 1, (last - 23, "recovered"): 1}
    counts |= {(last - 24, "failed"): 7, (last - 1, "failed"): -1}
    chart = show.chart(counts, NOW)

    assert 1_000_001 == chart.most
    assert {"failed": 1_000_000, "retried": 1, "recovered": 1} == chart.totals
    assert [("recovered", 0), ("failed", 230), ("retried", 230)] == [
        (one.status, one.x) for one in chart.bars
    ]
    for one in chart.bars:
        assert one.height > 0
        assert 0 <= one.y <= one.y + one.height <= show.HIGH + 0.01
    assert show.chart({}, NOW).bars == []


def test_arguments_stand_side_by_side():
    """What is new, gone, changed and the same."""
    found = show.changes(([1, "a"], {"to": "EUR"}), ([1, "b", None], {}))

    assert [
        ("args[0]", "1", "1", False),
        ("args[1]", '"a"', '"b"', True),
        ("to", '"EUR"', None, True),
        ("args[2]", None, "null", True),
    ] == [(one.name, one.before, one.after, one.is_change) for one in found]
