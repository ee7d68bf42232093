"""Every page goes by a key, however many runs there are, on SQLite and on PostgreSQL."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import event

from qtasks_pluggy.failures.records import STATES
from qtasks_pluggy.failures.store import Batch
from qtasks_pluggy.failures.web.browse import (
    Browser,
    GroupsWanted,
    KeyFaultError,
    RunsWanted,
    key_text,
    read_key,
)

NOW = time.time()
ASKED = {
    "groups": lambda one: one.list_groups(GroupsWanted(states=STATES)),
    "groups by runs": lambda one: one.list_groups(
        GroupsWanted(states=STATES, sort="runs", after=(3.0, "x"), text="x", status="failed")
    ),
    "one group": lambda one: one.group("a-group"),
    "counts": lambda one: one.counts(["a-group"]),
    "hours": lambda one: one.hours(["a-group"], NOW),
    "all hours": lambda one: one.all_hours(NOW),
    "deciders": lambda one: one.deciders("a-group"),
    "runs": lambda one: one.list_runs(RunsWanted(after=(NOW + 9, "x"))),
    "runs of a group": lambda one: one.list_runs(RunsWanted(group="a-group", status="failed")),
    "searched runs": lambda one: one.list_runs(
        RunsWanted(text="e", status="failed", plugin="p", after=(NOW + 9, "x"))
    ),
    "one run": lambda one: one.one_run("u"),
    "attempts": lambda one: one.attempts(one.one_run("u"), before=9),
    "one attempt": lambda one: one.attempt(one.one_run("u"), 1),
    "replays": lambda one: one.replays("u"),
    "plugins": lambda one: one.deciding(),
    "plugins lately": lambda one: one.deciding(int(NOW // 3600) - 24),
    "trails": lambda one: list(one.trails()),
    "waiting": lambda one: one.waiting_by_status("a-group", "shop", 9),
    "waiting runs": lambda one: one.waiting("a-group", "shop", "failed", 9),
}


@pytest.fixture
def filled(any_place):
    """A few runs of one group."""
    any_place.store().write(Batch([any_place.record(uuid="u"), any_place.record(replay_of="u")]))
    return any_place


@pytest.mark.parametrize("name", ASKED)
def test_both_kinds_of_store_answer(filled, name):
    """Each question is understood by both, and what is there is found."""
    assert ASKED[name](Browser(filled.url)) is not None


@pytest.mark.parametrize("name", [one for one in ASKED if not one.startswith("groups")])
def test_no_page_reads_a_whole_table_of_runs(place, name):
    """SQLite searches counts, runs and attempts by an index."""
    place.store().write(Batch([place.record(uuid="u")]))
    browser, asked = Browser(place.url), []

    def collect(_, __, statement, parameters, ___, ____):
        asked.append((statement, parameters))

    event.listen(browser._engine, "before_cursor_execute", collect)
    ASKED[name](browser)
    event.remove(browser._engine, "before_cursor_execute", collect)
    with browser._engine.connect() as link:
        for statement, parameters in [one for one in asked if one[0].startswith("SELECT")]:
            plan = link.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            scans = [row[3] for row in plan if row[3].startswith("SCAN")]
            # What is read whole is a window of so many rows, groups, or an index from its begin.
            allowed = ("SCAN anon_1", "SCAN failures_groups", "SCAN (")
            by_index = "USING INDEX failures_runs_by_time", "USING COVERING INDEX failures_runs"
            assert [] == [
                one
                for one in scans
                if not one.startswith(allowed) and not any(index in one for index in by_index)
            ], scans


@pytest.mark.parametrize("value", [0.0, 1_700_000_000.123456, 1e-9, 3])
@pytest.mark.parametrize("name", ["", "u", "a~b", "\u202e"])
def test_a_key_reads_back_the_same(value, name):
    """The last row of a page is found again exactly."""
    assert (float(value), name) == read_key(key_text(value, name))


@pytest.mark.parametrize("text", ["x", "1.5", "~", "x~u", "nan~u", "inf~u"])
def test_what_is_no_key_is_refused(text):
    """Only what was written here is read."""
    with pytest.raises(KeyFaultError):
        read_key(text)
