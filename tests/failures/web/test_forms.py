"""What is done: once, after a look, by those who may."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch
from tests.failures.web.sites import SAME_SITE, Forms, client


def _acts(place):
    return [(act.act, act.number) for act in reversed(place.reader().acts(50))]


def _state(place):
    (group,) = place.reader().groups(Filters())
    return group.state


@pytest.fixture
def one(place):
    """One failed run, and no app."""
    place.store().write(Batch([place.record(uuid="u")]))
    return place


def test_a_group_is_resolved_ignored_and_reopened(one):
    """Each form gives its state; sent twice it acts once."""
    page = client(one)
    for act, state in (("resolve", "resolved"), ("ignore", "ignored"), ("reopen", "open")):
        for done in (act, "none"):
            answer = page.post(f"/groups/a-group/{act}", headers=SAME_SITE)
            assert (303, f"/groups/a-group?done={done}") == (
                answer.status_code,
                answer.headers["location"],
            )
            assert 'role="status"' in page.get(answer.headers["location"]).text
        assert state == _state(one)
    assert [("resolve", 1), ("ignore", 1), ("reopen", 1)] == _acts(one)


def test_a_form_that_is_sent_by_many_at_once_acts_once(one):
    """One of them has done it; the others are told that it is done."""
    page = client(one)

    def send(_):
        return page.post("/groups/a-group/resolve", headers=SAME_SITE).headers["location"]

    with ThreadPoolExecutor(10) as pool:
        places = sorted(pool.map(send, range(10)))
    assert ["/groups/a-group?done=none"] * 9 + ["/groups/a-group?done=resolve"] == places
    assert [("resolve", 1)] == _acts(one)


def test_a_group_or_an_act_that_is_not_there_is_told(one):
    """404, and nothing is done."""
    for path in ("/groups/nobody/resolve", "/groups/a-group/delete"):
        assert 404 == client(one).post(path, headers=SAME_SITE).status_code
    assert [] == _acts(one)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (413, b"args=" + b"x" * 1_048_576, "application/x-www-form-urlencoded"),
        (415, b"{}", "application/json"),
        (415, b"args=1", "text/plain"),
        (400, "args=\u00fc".encode(), "application/x-www-form-urlencoded"),
        (400, b"&".join(b"a=1" for _ in range(30)), "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_no_form_is_refused(shop, status, body, kind):
    """Too large, of another type, not readable: nothing is replayed."""
    uuid = shop.fail("EUR")
    headers = {**SAME_SITE, "Content-Type": kind}

    for path in (f"/runs/{uuid}/replay", f"/runs/{uuid}/replay/send"):
        assert status == shop.client.post(path, content=body, headers=headers).status_code
    assert [("EUR", 100)] == shop.asked


def test_without_an_app_nothing_is_replayed(one):
    """The page says so, shows no way to it, and refuses it."""
    page = client(one)

    assert "--app APP" in page.get("/").text
    for path in ("/runs/u", "/groups/a-group"):
        assert "/replay" not in page.get(path).text
    for path in ("/runs/u/replay", "/groups/a-group/replay"):
        assert 409 == page.get(path).status_code
        assert 409 == page.post(path, headers=SAME_SITE).status_code


def test_a_replay_is_edited_compared_and_sent(shop):
    """Old and new stand side by side; nothing is sent before; what it came to is told."""
    uuid = shop.fail("EUR", amount=5)
    shop.rates["USD"] = 2.0
    editor = shop.get(f"/runs/{uuid}/replay")
    assert "&#34;EUR&#34;" in editor

    edited = {"args": '["USD"]', "kwargs": '{"amount": 7}'}
    review = shop.post(f"/runs/{uuid}/replay", **edited)
    assert 200 == review.status_code
    for value in ("&#34;EUR&#34;", "&#34;USD&#34;", '<pre dir="auto">5</pre>', ">7</pre>"):
        assert value in review.text
    assert [("EUR", 5)] == shop.asked

    ((action, fields),) = _sending(review.text)
    answer = shop.post(action, **fields)
    assert f"/runs/{uuid}?done=succeeded" == answer.headers["location"]
    assert "The replay was sent, and succeeded." in shop.get(answer.headers["location"])
    assert [("EUR", 5), ("USD", 7)] == shop.asked
    # With other arguments the cause is not known to be mended.
    assert "open" == _state(shop.place)
    (act,) = shop.place.reader().acts(5)
    assert ("replay", 1, f"run {uuid}, arguments edited") == (act.act, act.number, act.scope)


def _form(shop, uuid, **edited):
    ((action, fields),) = _sending(shop.post(f"/runs/{uuid}/replay", **edited).text)
    return action, fields


def _sending(text):
    return [one for one in Forms(text).found.items() if one[0].endswith("/send")]


def test_a_replay_that_is_sent_twice_runs_once(shop):
    """By the same form, and by two people who looked at the same moment."""
    uuid = shop.fail("EUR")
    action, fields = _form(shop, uuid)

    with ThreadPoolExecutor(8) as pool:
        places = [pool.submit(shop.post, action, **fields).result for _ in range(8)]
        answers = [place() for place in places]
    assert 2 == len(shop.asked)
    sent = [one for one in answers if one.headers.get("location", "").endswith("done=failed")]
    assert 1 == len(sent)
    again = shop.post(action, **fields)
    assert f"/runs/{uuid}?done=none" == again.headers["location"]

    action, fields = _form(shop, uuid)
    assert "This replays it again" in shop.post(f"/runs/{uuid}/replay").text
    once_more = shop.post(action, **fields)
    assert f"/runs/{uuid}?done=failed" == once_more.headers.get("location"), once_more.text
    assert 3 == len(shop.asked)


def test_a_replay_that_fails_is_shown_with_its_run(shop):
    """What the replays of a run came to is on its page; lists and the next form tell them."""
    uuid = shop.fail("EUR")
    action, fields = _form(shop, uuid)
    shop.post(action, **fields)
    shop.app.plugins.get_plugin("failures")._recorder.close()

    (again,) = [run for run in shop.place.reader().runs(Filters()) if run.replay_of == uuid]
    assert f'href="/runs/{again.uuid}"' in shop.get(f"/runs/{uuid}")
    assert f'href="/runs/{uuid}"' in shop.get(f"/runs/{again.uuid}")
    runs = shop.get("/runs")
    assert [1, 1] == [runs.count(mark) for mark in ("· a replay<", "· replayed<")]
    assert "of which 1 is a replay itself" in shop.get(f"/groups/{again.group}/replay")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"args": "[1,"}, "this is not JSON"),
        ({"args": "{}"}, "expected an array"),
        ({"kwargs": "[]"}, "expected an object"),
        ({"args": '[{"$date": "yesterday"}]'}, "cannot be read here"),
        ({"args": '[{"$hidden": true}]'}, "is redacted"),
        ({"args": "[" * 100_000}, "cannot be read"),
        ({"args": f"[{'9' * 5_000}]"}, "cannot be read"),
    ],
)
def test_what_cannot_be_read_stays_to_be_mended(shop, form, told):
    """The editor comes again with what was written, and says what is wrong with it."""
    uuid = shop.fail("EUR")
    for path in (f"/runs/{uuid}/replay", f"/runs/{uuid}/replay/send"):
        answer = shop.post(path, **form, seen="")
        assert (422, True) == (answer.status_code, told in answer.text)
        assert 'aria-invalid="true"' in answer.text
    assert [("EUR", 100)] == shop.asked


def test_a_redacted_run_is_replayed_with_arguments_of_ones_own(shop):
    """As it was it cannot be; the page says why, and takes both."""
    uuid = shop.fail("EUR", password="hush")  # noqa: S106  # it is to be redacted
    shop.rates["EUR"] = 1.0
    refused = shop.post(f"/runs/{uuid}/replay", args="", kwargs="")
    assert (422, True) == (refused.status_code, "is redacted" in refused.text)

    action, fields = _form(shop, uuid, args='["EUR"]', kwargs='{"password": "x"}')
    assert shop.post(action, **fields).headers["location"].endswith("done=succeeded")


def test_a_run_of_another_app_is_not_replayed(shop):
    """Its page says why; a form that is sent all the same is refused."""
    shop.place.store().write(Batch([shop.place.record(uuid="other", app="till")]))

    assert "was recorded by app &#39;till&#39;" in shop.get("/runs/other")
    assert 422 == shop.post("/runs/other/replay").status_code
    answer = shop.post("/runs/other/replay/send", seen="")
    assert (422, True) == (answer.status_code, "till" in answer.text)
    assert [] == shop.asked


def _group(shop):
    (group,) = shop.place.reader().groups(Filters())
    return group.id


def _wait(shop, group, text):
    return _wait_for(shop, f"/groups/{group}", text)


def _wait_for(shop, path, text):
    until = time.monotonic() + 20
    while text not in (page := shop.get(path)):
        assert time.monotonic() < until, page
        time.sleep(0.05)
    return page


def test_all_that_match_are_replayed(shop):
    """The page says how many first; each runs once, and the act says how many."""
    for amount in range(5):
        shop.fail("EUR", amount)
    shop.rates["EUR"] = 1.0
    group = _group(shop)
    assert "<b>5</b> failed" in shop.get(f"/groups/{group}/replay")

    shop.post(f"/groups/{group}/replay", status="failed", limit="4", rate="", stop_after="")
    _wait(shop, group, "The last replay sent 4 of 4 runs")
    assert "<b>1</b> failed" in shop.get(f"/groups/{group}/replay")
    shop.post(f"/groups/{group}/replay", status="failed")
    _wait(shop, group, "The last replay sent 1 of 1 runs")

    assert sorted(range(5)) == sorted(amount for _, amount in shop.asked[5:])
    # No failure of the group is left then.
    assert [("replay", 4), ("replay", 1), ("resolve", 1)] == _acts(shop.place)
    assert "resolved" == _state(shop.place)
    nothing = shop.post(f"/groups/{group}/replay", status="failed")
    assert nothing.headers["location"].endswith("done=none")
    assert "There are no runs left" in shop.get(f"/groups/{group}/replay")


def test_a_replay_stops_by_itself_and_by_hand(shop):
    """After so many that fail alike; and at once, when somebody says so."""
    for amount in range(6):
        shop.fail("EUR", amount)
    group = _group(shop)
    shop.post(f"/groups/{group}/replay", status="failed", stop_after="2")
    assert "failed like the runs that they repeat" in _wait(
        shop, group, "The last replay sent 2 of 6"
    )

    shop.post(f"/groups/{group}/replay", status="failed", rate="0.5")
    _wait(shop, group, "A replay is in progress: 1 of ")
    busy = shop.post(f"/groups/{group}/replay", status="failed")
    assert busy.headers["location"].endswith("done=none")
    shop.post(f"/groups/{group}/stop")
    _wait(shop, group, "The last replay sent 1 of ")


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"status": "all"},
        {"status": "failed", "limit": "0"},
        {"status": "failed", "limit": "10001"},
        {"status": "failed", "rate": "nan"},
        {"status": "failed", "rate": "inf"},
        {"status": "failed", "rate": "-1"},
        {"status": "failed", "stop_after": "<b>"},
    ],
)
def test_a_wrong_number_replays_nothing(shop, form):
    """The form comes again, and says which."""
    shop.fail("EUR")
    answer = shop.post(f"/groups/{_group(shop)}/replay", **form)

    assert (422, True) == (answer.status_code, 'role="alert"' in answer.text)
    assert [] == _acts(shop.place)
    assert 1 == len(shop.asked)


def test_a_replay_that_takes_long_does_not_keep_its_answer(shop, monkeypatch):
    """After a while the page says that it has begun."""
    monkeypatch.setattr("qtasks_pluggy.failures.web.forms.WAIT_SECONDS", 0.05)
    uuid, goes_on = shop.fail("EUR"), threading.Event()

    class Rates(dict):
        def __getitem__(self, key):
            assert goes_on.wait(30)
            return 1.0

    shop.rates = Rates()
    action, fields = _form(shop, uuid)
    try:
        assert shop.post(action, **fields).headers["location"].endswith("done=begun")
        _wait_for(shop, f"/runs/{uuid}", "and not sent")
    finally:
        goes_on.set()


@pytest.mark.parametrize(
    "text",
    [
        "EUR",
        "".join(map(chr, range(0x700))),
        "\u200e\u200f\u2028\u2029\u202e\u2066\ufeff\ufffe\U0001f600\U000e0001",
        "\udfff \ud800",
        """ </textarea>&amp;"'<!-- {{ 7*7 }} \\u0085 \\x85 \r\n\n\r """,
    ],
    ids=["word", "many", "unseen", "surrogates", "markup"],
)
def test_what_is_shown_to_be_edited_reads_back_the_same(shop, text):
    """The editor's text, sent as it is, changes nothing; the task gets what it got before."""
    uuid = shop.fail(text, amount={text: [text, None, True, 0.1, 2**70, {}]})

    path = f"/runs/{uuid}/replay"
    shown = Forms(shop.get(path)).found[path]
    review = shop.post(path, **shown).text
    assert "The same arguments as before" in review
    kept = Forms(review).found
    assert shown == Forms(shop.post(path, **kept[path]).text).found[path]
    answer = shop.post(f"{path}/send", **kept[f"{path}/send"])

    assert f"{path[:-7]}?done=failed" == answer.headers.get("location"), answer.text
    assert shop.asked[0] == shop.asked[1]


def test_what_is_edited_stays_as_it_was_written(shop):
    """Also a character that nobody sees, and that JSON takes; what stands around is not of it."""
    uuid = shop.fail("EUR")
    action, fields = _form(shop, uuid, args='\x85\u2028[\n"\x85\u202e"\n]\n\u2028')

    assert f"/runs/{uuid}?done=failed" == shop.post(action, **fields).headers.get("location")
    assert ("\x85\u202e", 100) == shop.asked[1]


def test_after_a_replay_the_page_says_one_thing(shop):
    """How it ended, if that is known, also before the store has it; else that it is not known."""
    uuid = shop.fail("EUR")
    shop.rates["EUR"] = 1.05
    answer = shop.post(f"/runs/{uuid}/replay/send", seen="")
    sent = shop.get(answer.headers["location"])

    assert "The replay was sent, and succeeded." in sent
    assert "its end is not known yet" not in sent
    (as_sent,) = re.findall("(?s)<h2 id=.replays.*?</ul>", sent)
    assert "succeeded" in as_sent
    shop.app.plugins.get_plugin("failures")._recorder.close()
    with closing(sqlite3.connect(shop.place.path)) as store, store:
        store.execute("delete from failures_runs where replay_of = ?", [uuid])
    assert "its end is not known yet" in shop.get(f"/runs/{uuid}")


def test_a_run_that_waits_is_shown_as_such_and_its_replay_is_a_second_one(shop):
    """Since when it waits, on its page; what a replay would do, on both pages of the replay."""
    shop.fail("EUR")
    waiting = shop.place.record(uuid="waits", status="waiting", task="price", args=("EUR",))
    shop.place.store().write(Batch([waiting, shop.place.record(uuid="failed", args=("EUR",))]))
    twice = "a replay makes the task run twice"

    assert "waits for its next attempt since" in shop.get("/runs/waits")
    assert "waits for its next attempt" not in shop.get("/runs/failed")
    assert twice in shop.get("/runs/waits/replay")
    assert twice in shop.post("/runs/waits/replay", args="", kwargs="").text
    assert twice not in shop.get("/runs/failed/replay")
    group = shop.get("/groups/a-group/replay")
    assert 'value="waiting"' in group
    assert "still in their queue then run twice" in group
