"""Replays: claimed by one, sent, marked; arguments, bounds, and what goes wrong on the way."""

from __future__ import annotations

import threading
from datetime import date
from itertools import pairwise
from typing import Any

import pytest

from qtasks_hookspecs import Cancel, Replace, Retry, TaskMessage
from qtasks_pluggy import QueueTasks
from qtasks_pluggy.exc import EngineError, TaskPluginTriggerError
from qtasks_pluggy.failures import replay as replay_module
from qtasks_pluggy.failures.claims import Claims
from qtasks_pluggy.failures.connection import shown
from qtasks_pluggy.failures.queries import Reader
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.replay import OtherArguments, Replay, left_out
from qtasks_pluggy.failures.store import Batch


class Shop:
    """An app in place whose task fails as it is told, and the runs that it saw."""

    def __init__(self, place: Any, *, records: bool = False) -> None:
        self.seen: list[Any] = []
        self.fails: list[Exception] = []
        section = {"plugin": {"failures": {"url": shown(place.url)}}, "enable": ["failures"]}
        self.app = QueueTasks("shop", discover=False, settings=section if records else {})

        @self.app.task
        def price(*args: Any, **kwargs: Any) -> int:
            self.seen.append((args, kwargs))
            if self.fails:
                raise self.fails.pop(0)
            return 1


@pytest.fixture
def shop(place):
    """Give an app that records nothing itself."""
    return Shop(place)


def recorded(place, number=1, **values):
    """Record failed runs; return their ids."""
    records = [place.record(args=(one,), **values) for one in range(number)]
    place.store().write(Batch(records))
    return [one.uuid for one in records]


def replayed(place, app, uuids, **options):
    """Replay runs in a started app."""
    claims = Claims(place.url)
    act = Replay(app, claims, **options)
    with app:
        ends = list(act.run(claims.find(uuids)))
    return act, ends


def test_a_run_is_claimed_sent_and_marked(place, shop):
    """The task gets the recorded arguments; the record says when, and as which run."""
    (uuid,) = recorded(place)

    act, (one,) = replayed(place, shop.app, [uuid])
    (run,) = Claims(place.url).find([uuid])

    assert [((0,), {})] == shop.seen
    assert (one.uuid, uuid, "succeeded") == (run.sent_as, one.replay_of, act.results()[0].status)
    assert run.claimed_at <= run.sent_at
    assert Reader(place.url).run(uuid).replays[0].uuid == one.uuid


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (OtherArguments(), ((date(2022, 3, 2), (1, {2})), {"to": b"EUR"})),
        (OtherArguments(args=[7]), ((7,), {"to": b"EUR"})),
        (OtherArguments(kwargs={}), ((date(2022, 3, 2), (1, {2})), {})),
        (OtherArguments(args=(), kwargs={"x": 1}), ((), {"x": 1})),
    ],
    ids=["recorded", "args", "kwargs", "both"],
)
def test_what_is_left_out_stays_as_recorded(place, shop, given, expected):
    """Arguments come back with their types; others replace them whole, each half alone."""
    place.store().write(
        Batch([place.record(uuid="a", args=(date(2022, 3, 2), (1, {2})), kwargs={"to": b"EUR"})])
    )

    replayed(place, shop.app, ["a"], arguments=given)

    assert [expected] == shop.seen


def test_a_redacted_run_needs_the_half_that_was_redacted(place, shop):
    """Other keywords are enough where a keyword was redacted; else nothing runs."""
    place.store().write(Batch([place.record(uuid="a", args=(1,), kwargs={"password": "x"})]))
    (run,) = Claims(place.url).find(["a"])

    assert "kwargs['password'] is redacted" in left_out(run, shop.app, OtherArguments()).why
    assert "redacted" in left_out(run, shop.app, OtherArguments(args=[2])).why
    assert left_out(run, shop.app, OtherArguments(kwargs={"password": "y"})) is None

    _, (one,) = replayed(place, shop.app, ["a"])
    assert ([], None) == (shop.seen, one.uuid)
    assert "kwargs['password'] is redacted" == one.why_not
    replayed(place, shop.app, ["a"], arguments=OtherArguments(kwargs={"password": "y"}))
    assert [((1,), {"password": "y"})] == shop.seen


@pytest.mark.parametrize(
    ("values", "kind", "why"),
    [
        ({"app": "other"}, "of app 'other'", "was recorded by app 'other', and this is app 'shop'"),
        ({"task": "gone"}, "of task 'gone'", "its tasks are price"),
        ({"args": (object(),)}, "not replayable", "args[0] is an object"),
    ],
)
def test_a_run_that_cannot_be_replayed_says_why(place, shop, values, kind, why):
    """Another app's, a task that is gone, arguments that text does not hold."""
    place.store().write(Batch([place.record(uuid="a", **values)]))
    (run,) = Claims(place.url).find(["a"])

    found = left_out(run, shop.app, OtherArguments())

    assert found.kind.startswith(kind)
    assert why in found.why


def test_eight_people_at_the_same_moment_send_a_run_once(any_place):
    """One conditional update decides, in a file and in PostgreSQL; also of those who say again."""
    (uuid,) = recorded(any_place)
    for again in (False, True):
        found = [next(Claims(any_place.url).find([uuid])) for _ in range(8)]
        ready, won = threading.Barrier(8), []

        def claim(run, ready=ready, won=won, again=again):
            claims = Claims(any_place.url)
            ready.wait(60)
            if claims.claim(run, again=again):
                won.append(run)
                claims.mark_sent(run, "new")

        people = [threading.Thread(target=claim, args=(run,)) for run in found]
        for one in people:
            one.start()
        for one in people:
            one.join(60)

        assert 1 == len(won)


def test_who_comes_second_sends_nothing(place, shop):
    """A run that somebody claims between look and act is left to them, and named."""
    (uuid,) = recorded(place)
    claims = Claims(place.url)
    (run,) = claims.find([uuid])
    claims.claim(run)

    for found in (run, *claims.find([uuid])):
        act = Replay(shop.app, claims)
        with shop.app:
            (one,) = act.run([found])

        assert ([], None) == (shop.seen, one.uuid)
        assert "another replay took it" in one.why_not


def test_a_run_is_replayed_twice_only_if_somebody_says_so(place, shop):
    """What was replayed, and what was claimed and not sent, says so; again takes both."""
    sent, lost = recorded(place, 2)
    claims = Claims(place.url)
    replayed(place, shop.app, [sent])
    claims.claim(next(claims.find([lost])))
    first, second = claims.find([sent, lost])

    assert "replayed already" == left_out(first, shop.app, OtherArguments()).kind
    assert f"as run {first.sent_as}; use --again" in left_out(first, shop.app, OtherArguments()).why
    assert "but not sent" in left_out(second, shop.app, OtherArguments()).why
    assert left_out(first, shop.app, OtherArguments(), again=True) is None
    replayed(place, shop.app, [sent, lost])
    assert 1 == len(shop.seen)
    replayed(place, shop.app, [sent, lost], again=True)
    assert 3 == len(shop.seen)


def test_a_run_that_the_app_refuses_is_free_again(place, shop, monkeypatch):
    """Nothing was sent, so nothing is marked, and the reason is told."""
    (uuid,) = recorded(place)

    def refuse(message):
        raise TaskPluginTriggerError("not today")

    monkeypatch.setattr(shop.app, "replay", refuse)
    _, (one,) = replayed(place, shop.app, [uuid])
    (run,) = Claims(place.url).find([uuid])

    assert ("not today", None) == (one.why_not, run.claimed_at)


def test_a_run_of_which_nobody_knows_whether_it_was_sent_stays_claimed(place, shop, monkeypatch):
    """An engine's own error is told, with no traceback, and --again is needed for a second try."""
    (uuid,) = recorded(place)

    def fail(message):
        raise RuntimeError("closed")

    monkeypatch.setattr(shop.app, "replay", fail)
    _, (one,) = replayed(place, shop.app, [uuid])
    (run,) = Claims(place.url).find([uuid])

    assert "RuntimeError: closed; it may have been sent nevertheless" == one.why_not
    assert "but not sent" in left_out(run, shop.app, OtherArguments()).why


def test_an_engine_that_takes_nothing_is_left_alone(place, shop, monkeypatch):
    """After three runs in a row the replay stops; all are free, and none after them was tried."""
    uuids = recorded(place, 10)
    tried = []

    def fail(message):
        tried.append(message.uuid)
        raise EngineError("broker gone")

    monkeypatch.setattr(shop.app, "replay", fail)
    act, ends = replayed(place, shop.app, uuids)

    assert uuids[:3] == tried
    assert 3 == len(ends)
    assert "3 runs in a row could not be sent: broker gone" == act.stopped
    assert not any(one.claimed_at for one in Claims(place.url).find(uuids))


def test_one_refused_run_in_between_stops_nothing(place, shop, monkeypatch):
    """Only refusals in a row are the engine's own trouble."""
    uuids = recorded(place, 7)
    real = shop.app.replay

    def replay(message):
        if message.args[0] % 2:
            raise EngineError("this one does not travel")
        return real(message)

    monkeypatch.setattr(shop.app, "replay", replay)
    act, ends = replayed(place, shop.app, uuids)

    assert ("", 4) == (act.stopped, sum(one.uuid is not None for one in ends))


def test_a_rate_is_kept(place, shop, monkeypatch):
    """So many runs a second, from the first on; time that a run takes counts."""
    clock = [0.0]
    monkeypatch.setattr(replay_module.time, "monotonic", lambda: clock[0])

    def wait(seconds):
        clock[0] += seconds

    act = Replay(shop.app, Claims(place_with(place, 5)), rate=2, wait=wait)
    sent_at = []
    with shop.app:
        for _ in act.run(Claims(place.url).find(IDS)):
            sent_at.append(clock[0])
            clock[0] += 0.7 if len(sent_at) == 2 else 0.1

    # The second one took longer than its share, and the third came at once.
    assert pytest.approx([0.0, 0.5, 1.2, 1.7, 2.2]) == sent_at


IDS = [f"rate-{number}" for number in range(5)]


def place_with(place, number):
    """Record so many runs; return the store's URL."""
    place.store().write(Batch([place.record(uuid=IDS[one]) for one in range(number)]))
    return place.url


def test_it_stops_once_so_many_fail_as_before(place):
    """A run that fails of another cause, or ends well, does not count; the rest stays free."""
    shop = Shop(place, records=True)
    with shop.app:
        for number in range(8):
            shop.fails = [TaskPluginTriggerError("first")]
            with pytest.raises(TaskPluginTriggerError):
                shop.app.tasks["price"](number)
    uuids = Reader(place.url).to_replay(Filters(limit=None), is_claimed=False)[::-1]
    shop.seen.clear()
    same = [TaskPluginTriggerError("again") for _ in range(3)]
    shop.fails = [same[0], KeyError("another"), same[1], same[2]]

    act, ends = replayed(place, shop.app, uuids, stop_after=3)

    assert "3 of the new runs failed like the runs that they repeat" == act.stopped
    assert (4, 4) == (len(ends), len(shop.seen))
    assert 4 == sum(one.claimed_at is None for one in Claims(place.url).find(uuids))


@pytest.mark.parametrize(
    ("answer", "status"),
    [(Replace(2), "recovered"), (Retry(), "succeeded"), (Cancel(), "cancelled"), (None, "failed")],
    ids=str,
)
def test_what_a_replay_in_place_came_to_is_known_and_recorded(place, answer, status):
    """Its plugins are asked, and the store says how it ended, once the app has stopped."""
    (uuid,) = recorded(place)
    shop = Shop(place, records=True)
    shop.fails = [TaskPluginTriggerError("again")]
    shop.app.on_error()(lambda: answer)

    act, (one,) = replayed(place, shop.app, [uuid])

    assert status == act.results()[0].status
    assert [(one.uuid, status)] == [
        (found.uuid, found.status) for found in Reader(place.url).run(uuid).replays
    ]


def test_a_good_replay_is_counted_with_what_it_repeats(any_place):
    """A run that succeeds is recorded only as a replay, in the first run's group."""
    (uuid,) = recorded(any_place)
    shop = Shop(any_place, records=True)

    with shop.app:
        shop.app.tasks["price"](1)
    replayed(any_place, shop.app, [uuid])

    assert {"failed": 1, "succeeded": 1} == any_place.counts()
    (good,) = any_place.reader().runs(Filters(status="succeeded"))
    assert (uuid, "a-group", "") == (good.replay_of, good.group, good.error)
    assert [uuid] == [one.uuid for one in any_place.reader().runs(Filters())]


def test_a_good_replay_of_what_is_not_there_is_not_kept(place):
    """A run of another store, or one that was deleted: nothing refers to it."""
    recorded(place)
    shop = Shop(place, records=True)

    with shop.app:
        shop.app.replay(TaskMessage("price", uuid="unknown"))

    assert 1 == len(shop.seen)
    assert {"failed": 1} == place.counts()


def test_lineage_is_shown_in_both_directions(place):
    """Of a replay of a replay each names the one before, and all are found."""
    (first,) = recorded(place)
    shop = Shop(place, records=True)
    ids = [first]
    for _ in range(3):
        shop.fails = [TaskPluginTriggerError("again")]
        _, (one,) = replayed(place, shop.app, [ids[-1]])
        ids.append(one.uuid)
    reader = Reader(place.url)

    last = reader.run(ids[-1])
    assert ids[-2::-1] == reader.originals(last.run.replay_of)
    for before, after in pairwise(ids):
        (one,) = reader.run(before).replays
        assert (after, "failed") == (one.uuid, one.status)


def test_a_store_that_goes_away_ends_the_replay(place, shop, monkeypatch):
    """What was sent is told, what comes after is not sent, and the reason is named."""
    uuids = recorded(place, 5)
    claims = Claims(place.url)
    act = Replay(shop.app, claims)
    real = shop.app.replay

    def replay(message):
        if len(shop.seen) == 2:
            place.path.unlink()
            for beside in place.path.parent.iterdir():
                beside.unlink()
            place.path.parent.chmod(0o500)
            place.path.mkdir()  # root writes where it likes, and no database is a folder
        return real(message)

    monkeypatch.setattr(shop.app, "replay", replay)
    with shop.app:
        ends = list(act.run(list(claims.find(uuids))))

    assert (2, 3) == (len(ends), len(shop.seen))
    assert f"the failures store {place.text} cannot be used: " in act.stopped
    assert 3 == sum(one.uuid is not None for one in act.results())


def test_groups_without_a_failure_left_are_mended(place):
    """All failed runs were replayed, and these ended well: of each group that is said alone."""
    done = recorded(place, 2, group="done")
    half = recorded(place, 2, group="half")
    bad = recorded(place, 1, group="bad")
    shop = Shop(place)
    shop.fails = [TaskPluginTriggerError("again")]

    act, _ = replayed(place, shop.app, [*bad, *done, half[0]])

    assert ["done"] == act.mended()
