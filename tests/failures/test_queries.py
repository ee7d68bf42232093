"""Reading: filters, and that every query goes by a key, however many runs there are."""

from __future__ import annotations

import pytest
from sqlalchemy import event

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
    assert ["v"] == whole.replays
    assert ("shop", "celery", "q", True) == (
        whole.run.app,
        whole.run.engine,
        whole.run.queue,
        whole.run.replayable,
    )
    assert any_place.reader().run("nobody") is None


def _asked(reader, ask):
    """Collect the statements of a question, with their parameters."""
    found = []

    def collect(_, __, statement, parameters, ___, ____):
        found.append((statement, parameters))

    event.listen(reader._engine, "before_cursor_execute", collect)
    ask(reader)
    event.remove(reader._engine, "before_cursor_execute", collect)
    return [one for one in found if one[0].startswith("SELECT")]


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
    ],
)
def test_no_question_reads_a_whole_table(place, filters):
    """SQLite searches by an index for groups, runs and one run, and sorts no runs."""
    reader, wanted = _fill(place).reader(), Filters(**filters)
    for ask in (
        lambda one: one.groups(wanted),
        lambda one: one.runs(wanted),
        lambda one: one.run("a"),
    ):
        asked = _asked(reader, ask)
        assert asked
        with reader._engine.connect() as link:
            for statement, parameters in asked:
                plan = link.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                steps = [row[3] for row in plan]
                assert [] == [step for step in steps if step.startswith("SCAN")], steps
                if "failures_runs" in statement and "uuid" not in statement.partition("WHERE")[2]:
                    assert not any("TEMP B-TREE" in step for step in steps), steps
