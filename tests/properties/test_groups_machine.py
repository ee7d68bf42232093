"""The groups of a store against a plain model: records, what people do, time, retention."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from qtasks_pluggy.failures import acts
from qtasks_pluggy.failures.records import STATUSES, Filters
from qtasks_pluggy.failures.store import Batch
from tests.failures.places import Place

GROUPS = ["one", "two"]
DAY = 86_400.0
MOVES = {
    ("resolve", "open"): "resolved",
    ("resolve", "regressed"): "resolved",
    ("resolve", "ignored"): "resolved",
    ("ignore", "open"): "ignored",
    ("ignore", "regressed"): "ignored",
    ("ignore", "resolved"): "ignored",
    ("reopen", "resolved"): "open",
    ("reopen", "ignored"): "open",
}
A_RECORD = st.tuples(
    st.sampled_from(GROUPS),
    st.sampled_from(["failed", "failed", *STATUSES]),
    # How late it comes: a record may wait while somebody acts.
    st.sampled_from([0.0, 0.0, 0.0, 90.0]),
)


@attrs.define
class Model:
    """A group as it should be."""

    seen: float
    state: str = "open"
    since: float = 0.0
    counts: Counter[str] = attrs.field(factory=Counter)


class GroupsMachine(RuleBasedStateMachine):
    """Does to a store and to a dict what processes and people may do."""

    clock: SimpleNamespace

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.place = Place(Path(self._folder.name))
        self.stores = [self.place.store(days=1), self.place.store(days=1)]
        self.model: dict[str, Model] = {}
        self.acts: list[tuple[float, str, int]] = []
        self.stores[0].write(Batch([]))
        self.reader = self.place.reader()

    def teardown(self) -> None:
        """Leave no file."""
        for store in self.stores:
            store.close()
        self._folder.cleanup()

    @rule(given=st.lists(A_RECORD, min_size=1, max_size=4), writer=st.sampled_from([0, 1]))
    def record(self, given: list[tuple[str, str, float]], writer: int) -> None:
        """Write a batch, by one of two processes."""
        records = [
            self.place.record(group=group, status=status, at=self._later() - late)
            for group, status, late in given
        ]

        news = self.stores[writer].write(Batch(records))

        new = [self._model_of(one) for one in records]
        regressed = [self._fails(one) for one in records]
        assert {one for one in new if one} == {one.group for one in news.new}
        assert {one for one in regressed if one} == {one.group for one in news.regressed}
        assert len(news.new) == len({one.group for one in news.new})

    def _model_of(self, record: Any) -> str | None:
        """Count a record; return the group where it is new."""
        is_new = record.group not in self.model
        group = self.model.setdefault(record.group, Model(record.at))
        group.seen = max(group.seen, record.at)
        group.counts[record.status] += 1
        return record.group if is_new else None

    def _fails(self, record: Any) -> str | None:
        """Return the group that a record makes regressed."""
        group = self.model[record.group]
        is_failure = record.status in {"failed", "dead_lettered"}
        if is_failure and group.state == "resolved" and record.at > group.since:
            group.state = "regressed"
            return str(record.group)
        return None

    @rule(
        act=st.sampled_from(["resolve", "resolve", "ignore", "reopen"]),
        groups=st.sets(st.sampled_from(GROUPS), min_size=1),
    )
    def act(self, act: str, groups: set[str]) -> None:
        """Do what people do, also with groups that are not there."""
        now = self._later()

        changed = acts.change_groups(self.place.url, act, groups, who="ann", scope="")

        expected = []
        for name in sorted(groups & self.model.keys()):
            group = self.model[name]
            if (act, group.state) in MOVES:
                group.state, group.since = MOVES[act, group.state], now
                expected.append(name)
        assert expected == changed
        if expected:
            self.acts.append((now, act, len(expected)))

    @rule(seconds=st.sampled_from([3600.0, 0.6 * DAY]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds

    @rule()
    def retain(self) -> None:
        """Delete what is older than a day: acts, and groups in whatever state."""
        self.stores[0].retain(self.clock.now)
        self.stores[0].retain(self.clock.now)

        first = self.clock.now - DAY
        self.model = {name: one for name, one in self.model.items() if one.seen >= first}
        self.acts = [one for one in self.acts if one[0] >= first]

    def _later(self) -> float:
        self.clock.now += 1.0
        return float(self.clock.now)

    @invariant()
    def is_as_modelled(self) -> None:
        """Every group has the state and the counts of the model, and acts are listed."""
        found = {one.id: (one.state, one.counts) for one in self.reader.groups(Filters())}

        assert {name: (one.state, dict(one.counts)) for name, one in self.model.items()} == found
        assert [one[1:] for one in self.acts[::-1]] == [
            (one.act, one.number) for one in self.reader.acts(1_000)
        ]


def test_groups_are_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every order of records, acts and retention a group has one state, told once."""
    clock = SimpleNamespace(now=1_700_000_000.0)
    monkeypatch.setattr(acts, "time", SimpleNamespace(time=lambda: clock.now))
    GroupsMachine.clock = clock

    # Each step is a dozen transactions.
    few = settings(max_examples=settings().max_examples // 2, stateful_step_count=20)
    run_state_machine_as_test(GroupsMachine, settings=few)
