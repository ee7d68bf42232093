"""What people do with groups, and what failures do with them: states, regressions, acts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qtasks_pluggy.failures.acts import CHANGES, change_groups
from qtasks_pluggy.failures.records import STATES, Filters
from qtasks_pluggy.failures.store import Batch

WRITERS = 6


def _state(place, group="a-group"):
    (found,) = place.reader().groups(Filters(group=group))
    return found.state


def _do(place, act, *groups):
    return change_groups(place.url, act, groups or ("a-group",), who="ann", scope="a test")


def _told(news):
    return [one.group for one in news.new], [one.group for one in news.regressed]


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Give a machine that is busy with other things the time that it takes."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.LOCK_SECONDS", 30.0)


@pytest.fixture
def resolved(any_place):
    """Give a store whose one group is resolved."""
    any_place.store().write(Batch([any_place.record()]))
    _do(any_place, "resolve")
    return any_place


def test_each_act_gives_a_group_its_state(any_place):
    """Resolve, ignore and reopen change the states that they are for, and no others."""
    store = any_place.store()
    store.write(Batch([any_place.record(group=group) for group in ("one", "other")]))

    states = [
        (_do(any_place, act, "one"), _state(any_place, "one")) for act in CHANGES for _ in "12"
    ]

    assert [
        (["one"], "resolved"),
        ([], "resolved"),
        (["one"], "ignored"),
        ([], "ignored"),
        (["one"], "open"),
        ([], "open"),
    ] == states
    assert "open" == _state(any_place, "other")


def test_an_act_that_changes_something_is_one_row(any_place):
    """It says who did what to how many, of what scope, and when; one that changes none is none."""
    any_place.store().write(Batch([any_place.record(group=group) for group in ("one", "two")]))

    _do(any_place, "ignore", "one", "two", "three")
    _do(any_place, "ignore", "one")
    _do(any_place, "reopen", "one")

    last, first = any_place.reader().acts(10)
    assert ("ann", "ignore", "a test", 2) == (first.who, first.act, first.scope, first.number)
    assert ("reopen", 1) == (last.act, last.number)
    assert first.at <= last.at
    assert [first] == any_place.reader().acts(10, before=last.id)
    assert [last] == any_place.reader().acts(1)


def test_a_resolved_group_that_fails_again_is_regressed_and_told_once(resolved):
    """The first failure is news; the ones after it are not."""
    store = resolved.store()

    told = [_told(store.write(Batch([resolved.record(), resolved.record()]))) for _ in range(3)]

    assert [([], ["a-group"]), ([], []), ([], [])] == told
    assert "regressed" == _state(resolved)


def test_the_news_is_of_the_failure_that_came_last(resolved):
    """What is told of a batch names the newest failed run, whatever order they came in."""
    now = time.time()
    records = [
        resolved.record(uuid="middle", at=now + 5),
        resolved.record(uuid="last", at=now + 9),
        resolved.record(uuid="saved", at=now + 10, status="recovered"),
        resolved.record(uuid="first", at=now + 1),
    ]

    news = resolved.store().write(Batch(records))

    assert ["last"] == [one.uuid for one in news.regressed]


@pytest.mark.parametrize("status", ["recovered", "retried", "cancelled"])
def test_what_a_plugin_saves_is_no_regression(resolved, status):
    """A resolved group whose runs are saved is mended still; they are counted."""
    news = resolved.store().write(Batch([resolved.record(status=status)]))

    assert (([], []), "resolved") == (_told(news), _state(resolved))
    assert {"failed": 1, status: 1} == resolved.counts()


def test_a_failure_from_before_the_act_is_no_regression(resolved):
    """A record that waited while the group was resolved is counted, and tells nothing."""
    news = resolved.store().write(Batch([resolved.record(at=time.time() - 60)]))

    assert (([], []), "resolved") == (_told(news), _state(resolved))
    assert {"failed": 2} == resolved.counts()


def test_failures_that_are_only_counted_regress_a_group(resolved):
    """In a storm, when there is no room for a row, the group is told all the same."""
    record = resolved.record()
    saved = resolved.record(status="recovered")

    quiet = resolved.store().write(Batch([], {saved.count: 4}, [saved]))
    loud = resolved.store().write(Batch([], {record.count: 4}, [record], 4))

    assert [([], []), ([], ["a-group"])] == [_told(quiet), _told(loud)]


def test_an_ignored_group_tells_nothing_and_counts(any_place):
    """It stays ignored, whatever comes."""
    store = any_place.store()
    store.write(Batch([any_place.record()]))
    _do(any_place, "ignore")

    news = store.write(Batch([any_place.record(), any_place.record(status="dead_lettered")]))

    assert (([], []), "ignored") == (_told(news), _state(any_place))
    assert {"dead_lettered": 1, "failed": 2} == any_place.counts()


def test_of_many_writers_one_tells_of_a_regression(resolved):
    """Processes that write a resolved group's first failures at the same moment tell it once."""
    ready = threading.Barrier(WRITERS)

    def write(_):
        store = resolved.store()
        store.write(Batch([]))  # connects
        ready.wait()
        news = store.write(Batch([resolved.record(group=one) for one in ("a-group", "b-group")]))
        store.close()
        return [group for some in _told(news) for group in some]

    with ThreadPoolExecutor(WRITERS) as pool:
        told = sorted(group for groups in pool.map(write, range(WRITERS)) for group in groups)

    assert ["a-group", "b-group"] == told


def test_acts_and_writers_do_not_lock_each_other_out(any_place):
    """Acts on many groups between many batches all come to their end, and nothing is lost."""
    groups = [f"group-{number}" for number in range(20)]
    any_place.store().write(Batch([any_place.record(group=one) for one in groups]))
    ready = threading.Barrier(4)

    def write(order):
        store = any_place.store()
        ready.wait()
        for _ in range(10):
            store.write(Batch([any_place.record(group=one) for one in groups[::order]]))
        store.close()

    def act(order):
        ready.wait()
        for _ in range(5):
            _do(any_place, "resolve", *groups[::order])
            _do(any_place, "ignore", *groups[::-order])

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(what, order) for what in (write, act) for order in (1, -1)]
        for one in done:
            one.result(60)

    found = any_place.reader().groups(Filters())
    assert {"ignored"} == {group.state for group in found}
    assert {21} == {group.counts["failed"] for group in found}


def test_every_state_can_be_left():
    """No state is a dead end for people."""
    assert set(STATES) == {state for change in CHANGES.values() for state in change.of} | {"open"}
