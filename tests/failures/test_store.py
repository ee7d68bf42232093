"""What becomes of records: groups, counts, runs, attempts; and what is kept for how long."""

from __future__ import annotations

import stat

import pytest

from qtasks_pluggy.failures import connection
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch

HOUR = 3600.0
NOW = 1_700_000_000.0


def test_failures_of_one_cause_are_one_group(any_place):
    """A group has the newest error's text, the first and the last time, and counts its runs."""
    store = any_place.store()
    store.write(Batch([any_place.record(KeyError("EUR"), at=NOW)]))
    store.write(
        Batch([any_place.record(KeyError("USD"), at=NOW + 60), any_place.record(at=NOW + 30)])
    )

    (group,) = any_place.reader().groups(Filters())

    assert ("a-group", "price", "KeyError", "'USD'") == (
        group.id,
        group.task,
        group.error,
        group.message,
    )
    assert ("2023-11-14T22:13:20+00:00", "2023-11-14T22:14:20+00:00") == (
        group.first_seen,
        group.last_seen,
    )
    assert {"failed": 3} == group.counts


def test_a_new_group_is_told_once(any_place):
    """The first record of a group is news, in the store's whole life and for all processes."""
    here, there = any_place.store(), any_place.store()

    told = [
        len(store.write(Batch([any_place.record(), any_place.record()])).new)
        for store in (here, there, here)
    ]

    assert [1, 0, 0] == told


def test_a_run_has_the_status_of_its_end_and_is_counted_once(any_place):
    """A run that was retried twice and then failed is one failed run, with three attempts."""
    store = any_place.store()
    for attempt, status in enumerate(["retried", "retried", "failed"], start=1):
        store.write(Batch([any_place.record(uuid="u", attempt=attempt, status=status)]))

    whole = any_place.reader().run("u")

    assert {"failed": 1} == any_place.counts()
    assert ("failed", 3) == (whole.run.status, whole.run.attempts)
    assert [1, 2, 3] == [one.attempt for one in whole.attempts]


def test_a_run_that_succeeded_after_retries_is_retried(any_place):
    """The end of such a run is not recorded, so it stays what its last failing attempt made it."""
    store = any_place.store()
    store.write(Batch([any_place.record(uuid="u", attempt=n, status="retried") for n in (1, 2)]))

    assert {"retried": 1} == any_place.counts()
    assert "retried" == any_place.reader().run("u").run.status


def test_a_run_is_counted_where_its_newest_attempt_failed(any_place):
    """A run whose second attempt fails of another cause moves to that group, the first goes."""
    store = any_place.store()
    store.write(Batch([any_place.record(uuid="u", status="retried", group="one")]))
    store.write(Batch([any_place.record(uuid="u", attempt=2, group="two")]))

    assert [("two", {"failed": 1})] == [
        (group.id, group.counts) for group in any_place.reader().groups(Filters())
    ]


def test_attempts_that_arrive_in_another_order_end_the_same(any_place):
    """A second attempt that is written before the first stays the run's end."""
    store = any_place.store()
    store.write(Batch([any_place.record(uuid="u", attempt=2, status="failed")]))
    store.write(Batch([any_place.record(uuid="u", attempt=1, status="retried")]))

    whole = any_place.reader().run("u")

    assert ("failed", 2) == (whole.run.status, len(whole.attempts))
    assert {"failed": 1} == any_place.counts()


def test_a_run_that_comes_twice_is_one_row(any_place):
    """The same attempt of the same run, coming twice, replaces itself; another app's does not."""
    store = any_place.store()
    store.write(
        Batch([any_place.record(uuid="u"), any_place.record(uuid="u", status="dead_lettered")])
    )
    store.write(Batch([any_place.record(uuid="u", status="recovered")]))
    store.write(Batch([any_place.record(uuid="u", app="other")]))

    assert {"failed": 1, "recovered": 1} == any_place.counts()
    assert 2 == len(any_place.reader().runs(Filters()))


def test_recovered_runs_are_all_counted_and_the_newest_few_are_kept(any_place):
    """Of each group, hour and status the newest runs are kept whole; final failures all."""
    store = any_place.store(recovered=3)
    for at in range(8):
        records = [
            any_place.record(uuid=f"{s}-{at}", status=s, at=NOW + at)
            for s in ("recovered", "retried", "failed")
        ]
        store.write(Batch(records))
    store.write(
        Batch(
            [
                any_place.record(uuid=f"later-{n}", status="recovered", at=NOW + HOUR + n)
                for n in range(5)
            ]
        )
    )

    kept = [one.uuid for one in any_place.reader().runs(Filters(status="recovered"))]

    assert {"failed": 8, "recovered": 13, "retried": 8} == any_place.counts()
    assert ["later-4", "later-3", "later-2", "recovered-7", "recovered-6", "recovered-5"] == kept
    assert 8 == len(any_place.reader().runs(Filters(status="failed")))
    assert 0 == len(any_place.reader().run("failed-1").run.reason)


def test_runs_whose_retries_are_not_kept_are_counted_once_all_the_same(any_place):
    """A hundred runs that were retried, of which ten are kept, and then fail: a hundred failed."""
    store = any_place.store()
    for attempt, status in enumerate(["retried", "retried", "failed"], start=1):
        store.write(
            Batch(
                [any_place.record(uuid=f"u{n}", attempt=attempt, status=status) for n in range(100)]
            )
        )

    assert {"failed": 100} == any_place.counts()


def test_what_is_only_counted_is_counted_in_its_group(any_place):
    """Records without a row count as those with one, and dropped ones are told apart."""
    record = any_place.record(decided_by="fallback", status="recovered")

    any_place.store().write(Batch([], {record.count: 4}, [record], 3))

    assert {"recovered": 4} == any_place.counts()
    assert [] == any_place.reader().runs(Filters())
    assert 3 == any_place.reader().dropped()


def test_old_runs_go_in_small_steps_and_their_groups_with_them(any_place, monkeypatch):
    """Retention by age deletes runs, attempts, counts and groups; newer ones stay."""
    monkeypatch.setattr("qtasks_pluggy.failures.store.MOST_DELETED", 10)
    store = any_place.store(days=1)
    store.write(Batch([any_place.record(group="old", at=NOW) for _ in range(25)]))
    store.write(Batch([any_place.record(group="new", at=NOW + 30 * HOUR)]))

    steps = 1
    while store.retain(NOW + 30 * HOUR):
        steps += 1
    store.retain(NOW + 30 * HOUR)

    assert 3 == steps
    assert ["new"] == [group.id for group in any_place.reader().groups(Filters())]
    assert ["new"] == [run.group for run in any_place.reader().runs(Filters())]
    with store._engine.connect() as link:
        rows = link.exec_driver_sql("SELECT count(*), min(group_id) FROM failures_counts").one()
        attempts = link.exec_driver_sql("SELECT count(*) FROM failures_attempts").scalar()
    assert (2, "new", 1) == (*rows, attempts)


def test_a_look_that_deletes_runs_cleans_groups_and_counts_as_well(any_place):
    """On a busy store every look finds a run that is too old, and none finds nothing."""
    store = any_place.store(days=1)
    times = {"old": [NOW], "busy": [NOW, NOW + 30 * HOUR]}
    store.write(Batch([any_place.record(group=one, at=at) for one in times for at in times[one]]))

    assert not store.retain(NOW + 30 * HOUR)

    assert ["busy"] == [group.id for group in any_place.reader().groups(Filters())]
    with store._engine.connect() as link:
        assert 2 == link.exec_driver_sql("SELECT count(*) FROM failures_counts").scalar()


def test_the_oldest_of_too_many_runs_go(any_place):
    """Retention by count keeps the newest, and what the groups counted."""
    store = any_place.store(runs=10)
    store.write(Batch([any_place.record(uuid=f"u{n}", at=NOW + n) for n in range(25)]))

    store.retain(NOW)

    kept = [run.uuid for run in any_place.reader().runs(Filters())]
    assert [f"u{n}" for n in range(24, 14, -1)] == kept
    assert {"failed": 25} == any_place.counts()


def test_a_clock_that_jumps_leaves_times_that_make_sense(any_place):
    """An error from before the last one moves no time back and replaces no text."""
    store = any_place.store()
    store.write(Batch([any_place.record(KeyError("now"), at=NOW)]))
    store.write(Batch([any_place.record(KeyError("then"), at=NOW - 10 * HOUR)]))

    (group,) = any_place.reader().groups(Filters())

    assert ("'now'", "2023-11-14T22:13:20+00:00") == (group.message, group.last_seen)


def test_only_its_owner_may_read_a_store(place):
    """File and folder are made for nobody else; what SQLite puts beside the file too."""
    store = place.store()
    store.write(Batch([place.record()]))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.path.parent.iterdir()}

    assert {0o600} == set(modes.values())
    assert {"failures.db", "failures.db-wal", "failures.db-shm"} == set(modes)
    assert 0o700 == stat.S_IMODE(place.path.parent.stat().st_mode)


@pytest.mark.parametrize("given", ["", "relative/state"])
def test_the_default_store_is_in_the_users_state_folder(monkeypatch, tmp_path, given):
    """XDG_STATE_HOME, where it is an absolute path; else the folder that stands for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    named = connection.default_url()
    monkeypatch.setenv("XDG_STATE_HOME", given)

    assert f"sqlite:///{tmp_path}/state/qtasks-pluggy/failures.db" == named
    assert (
        f"sqlite:///{tmp_path}/.local/state/qtasks-pluggy/failures.db" == connection.default_url()
    )
