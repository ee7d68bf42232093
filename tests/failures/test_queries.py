"""Reading: filters, and that every query goes by a key, however many runs there are."""

from __future__ import annotations

import contextlib
import time

import pytest
from sqlalchemy import Engine, event

from qtasks_pluggy.failures.acts import change_groups
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch

NOW = 1_700_000_000.0


def _fill(place):
    """Write two tasks, three groups, and runs that ended in different ways."""
    saved = {"status": "recovered", "decided_by": "last-rate", "decision": "Replace"}
    records = [
        place.record(KeyError("EUR"), uuid="a", group="price-key", at=NOW),
        place.record(KeyError("USD"), uuid="b", group="price-key", at=NOW + 1, **saved),
        place.record(ConnectionError("100% down"), uuid="c", group="price-net", at=NOW + 2),
        place.record(ValueError("N_A"), uuid="d", group="mail-value", task="mail", at=NOW + 3),
    ]
    place.store().write(Batch(records))
    return place


@pytest.fixture
def shop(any_place):
    """Give a store with these runs."""
    return _fill(any_place)


@pytest.mark.parametrize(
    ("filters", "groups", "runs"),
    [
        ({}, ["mail-value", "price-net", "price-key"], "dcba"),
        ({"limit": 2}, ["mail-value", "price-net"], "dc"),
        ({"group": "price-key"}, ["price-key"], "ba"),
        ({"task": "pri*"}, ["price-net", "price-key"], "cba"),
        ({"task": "PRI*"}, [], ""),
        ({"error": "KeyError"}, ["price-key"], "ba"),
        ({"error": "Key_rror"}, [], ""),
        ({"plugin": "last-rate"}, ["price-key"], "b"),
        ({"status": "failed"}, ["mail-value", "price-net", "price-key"], "dca"),
        ({"status": "recovered", "plugin": "last-rate"}, ["price-key"], "b"),
        ({"since": NOW + 2}, ["mail-value", "price-net"], "dc"),
        ({"text": "n_a"}, ["mail-value"], "d"),
        ({"text": "0% D"}, ["price-net"], "c"),
        ({"text": "%"}, ["price-net"], "c"),
        ({"states": ("resolved",)}, [], None),
    ],
)
def test_filters_find_what_they_say(shop, filters, groups, runs):
    """Each filter narrows groups and runs; the newest come first."""
    reader, wanted = shop.reader(), Filters(**filters)

    assert groups == [group.id for group in reader.groups(wanted)]
    if runs is not None:
        assert list(runs) == [run.uuid for run in reader.runs(wanted)]


def test_a_runs_text_is_its_own_whatever_else_is_filtered(shop):
    """An error's class, or an ignored group elsewhere, leaves out no run with an older text."""
    reader = shop.reader()
    found = [reader.runs(Filters(text="EUR", error=error)) for error in (None, "KeyError")]
    change_groups(shop.url, "ignore", ["mail-value"], who="ann", scope="")
    found.append(reader.runs(Filters(text="EUR", states=("open", "regressed", "resolved"))))
    asked = Filters(text="EUR", error="KeyError")

    assert [["a"]] * 3 == [[run.uuid for run in runs] for runs in found]
    assert ["a"] == reader.to_replay(asked, is_claimed=False)


def test_a_class_of_error_is_found_without_its_module(any_place):
    """``--error NoPrice`` finds shop.errors.NoPrice, and not shop.errors.SomeNoPrice."""

    class NoPriceError(Exception):
        __module__ = "shop.errors"
        __qualname__ = "NoPriceError"

    any_place.store().write(Batch([any_place.record(NoPriceError())]))
    found = [
        len(any_place.reader().groups(Filters(error=name)))
        for name in ("NoPriceError", "shop.errors.NoPriceError", "PriceError")
    ]

    assert [1, 1, 0] == found


def test_a_run_has_all_that_is_kept_of_it(any_place):
    """Arguments as stored, attempts with traceback and trail, and the runs that repeat it."""
    any_place.store().write(
        Batch(
            [
                any_place.record(
                    uuid="u", args=(1, b"x"), kwargs={"to": "EUR"}, queue="q", engine="celery"
                ),
                any_place.record(uuid="v", replay_of="u"),
            ]
        )
    )

    whole = any_place.reader().run("u")

    assert ([1, {"$bytes": "eA=="}], {"to": "EUR"}) == (whole.args, whole.kwargs)
    assert ["v"] == [one.uuid for one in whole.replays]
    assert ("shop", "celery", "q", True) == (
        whole.run.app,
        whole.run.engine,
        whole.run.queue,
        whole.run.replayable,
    )
    assert any_place.reader().run("nobody") is None


@contextlib.contextmanager
def _asked():
    """Collect what SQLite is asked, and how it goes about that."""
    found = []

    def collect(_, cursor, statement, parameters, ___, many):
        if statement.startswith(("SELECT", "UPDATE", "DELETE")) and "sqlite_" not in statement:
            given = parameters[0] if many else parameters
            plan = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", given)
            found.append((statement, [row[3] for row in plan]))

    event.listen(Engine, "before_cursor_execute", collect)
    yield found
    event.remove(Engine, "before_cursor_execute", collect)


def _scanning(found):
    return [one for one in found if any(step.startswith("SCAN") for step in one[1])]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"group": "price-key"},
        {"task": "pri*"},
        {"error": "KeyError"},
        {"plugin": "last-rate"},
        {"status": "failed"},
        {"status": "recovered", "plugin": "last-rate", "text": "x"},
        {"since": NOW, "text": "x"},
        {"states": ("open", "regressed", "resolved")},
        {"states": ("ignored",)},
        {"limit": None},
    ],
)
def test_no_question_reads_a_whole_table(place, filters):
    """SQLite searches by an index for groups, runs and one run, and sorts no runs."""
    reader, wanted = _fill(place).reader(), Filters(**filters)
    change_groups(place.url, "ignore", ["price-net"], who="ann", scope="")
    with _asked() as found:
        reader.groups(wanted)
        reader.runs(wanted)
        reader.run("a")
        reader.groups_of(["a", "b"])
        reader.acts(10)
        reader.acts(10, before=7)

    assert len(found) >= 8
    assert [] == _scanning(found)
    for statement, steps in found:
        if "failures_runs" in statement and "uuid" not in statement.partition("WHERE")[2]:
            assert not any("TEMP B-TREE" in step for step in steps), steps


def test_no_change_reads_a_whole_table(place):
    """Batches, acts, regressions and retention go by a key as well."""
    store = _fill(place).store(days=1, runs=3)
    store.write(Batch([]))
    with _asked() as found:
        change_groups(place.url, "resolve", ["price-net", "price-key"], who="ann", scope="")
        news = store.write(
            Batch([place.record(group="price-net"), place.record(status="recovered")])
        )
        while store.retain(time.time()):
            pass
        store.retain(time.time())

    assert 1 == len(news.regressed)
    assert {"SELECT", "UPDATE", "DELETE"} == {one[0].split()[0] for one in found}
    assert [] == _scanning(found)
