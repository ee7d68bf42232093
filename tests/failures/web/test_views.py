"""What is looked at: everything escaped, found by a key, whatever is in the store."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qtasks_pluggy import TrailRecord
from qtasks_pluggy.failures.errors import tell
from qtasks_pluggy.failures.store import Batch
from qtasks_pluggy.failures.values import Arguments, Encoder
from tests.failures.web.sites import client

HOOK = "task_executor_run_task_trigger_error"
EVIL = "\"'><script>alert(1)</script>&{{ 7*7 }}<!--\x1b[2J\u202egnp.\u2066"


def _asked(plugin="last-rate", status="answered", kind="Replace", **more):
    values = {"distribution": "qtasks-last-rate", "version": "1.2", "hook": HOOK, "attempt": 1}
    return TrailRecord(plugin=plugin, status=status, kind=kind, **values | more)


def _get(page, path):
    answer = page.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def _links(text, begin):
    return re.findall(rf'<a [^>]*class="title" href="{begin}([^"]*)"', text)


def _next(text):
    found = re.search(r'class="button" href="([^"]*)">(?:Next 50|Search further back)<', text)
    return found and found[1].replace("&amp;", "&")


def _pages(page, path):
    """Follow the links from page to page."""
    while path:
        text = _get(page, path)
        yield text
        path = _next(text)


@pytest.fixture
def evil(place):
    """A run all of whose words are markup."""
    record = place.record(
        RuntimeError(EVIL),
        uuid="u/" + EVIL.replace("\x1b", ""),
        app=EVIL,
        engine=EVIL,
        group=EVIL.replace("/", ""),
        task=EVIL,
        queue=EVIL,
        reason=EVIL,
        decided_by=EVIL,
        decision=EVIL,
        status="recovered",
        args=(EVIL, {EVIL: EVIL}),
        kwargs={EVIL: EVIL},
        trail=(_asked(EVIL, kind=EVIL, distribution=EVIL, version=EVIL, won=True),),
    )
    place.store().write(Batch([record, place.record(uuid="again", replay_of=record.uuid)]))
    return place


def test_whatever_is_recorded_is_text(evil):
    """Markup, template marks, control characters and turned directions do nothing."""
    page = client(evil)
    group, run = _links(_get(page, "/"), "/groups/"), _links(_get(page, "/runs"), "/runs/")
    paths = ["/", "/runs", "/plugins", "/acts"]
    paths += [f"/?q={EVIL[:9]}", f"/runs?q={EVIL[:9]}"]
    paths += [f"/groups/{one}" for one in group]
    paths += [f"/runs/{one}" for one in run]
    paths += [f"/runs/{one}?arguments=shown" for one in run]

    seen = ""
    for path in paths:
        text = _get(page, path)
        assert "<script" not in text
        assert not re.search("[\x1b\u202e\u2066]", text)
        assert "style=" not in text
        seen += text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;{{ 7*7 }}" in seen
    assert "\\x1b[2J\\u202egnp." in seen


def test_no_page_has_a_script_or_anything_from_elsewhere(evil):
    """What pages refer to is on the page's own host, and is a page, the sheet or the icon."""
    page = client(evil)
    for path in ("/", "/runs", "/plugins", "/acts", "/elsewhere"):
        text = page.get(path).text
        assert not re.search(r"<script|javascript:|\son\w+=|https?://", text)


def test_groups_are_shown_with_what_they_are_about(place):
    """Task, error, message, counts, times, and a mark on what has come again."""
    place.store().write(
        Batch([place.record(ValueError(f"text {i}"), at=time.time() - 7_200) for i in range(3)])
    )
    saved = {"status": "recovered", "decided_by": "last-rate"}
    place.store().write(Batch([place.record(ValueError("text 9"), **saved)]))
    text = _get(client(place), "/")

    assert "ValueError" in text
    assert "text 9" in text
    assert "1 recovered" in text
    assert 'aria-label="Runs by hour in the last 24 hours: 3 failed, 1 recovered"' in text
    assert re.search(r'title="20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC">2 h ago</time>', text)


@pytest.mark.parametrize("sort", ["last", "first", "runs"])
def test_pages_of_groups_show_each_group_once(place, sort):
    """In every order the key of the last one finds the next page, also among equals."""
    now = time.time()
    records = [
        place.record(KeyError(i), group=f"group-{i:03}", at=now - i // 7)
        for i in range(120)
        for _ in range(1 + i % 3)
    ]
    place.store().write(Batch(records))

    pages = [_links(one, "/groups/") for one in _pages(client(place), f"/?sort={sort}")]

    assert [50, 50, 20] == list(map(len, pages))
    shown = [one for some in pages for one in some]
    assert {f"group-{i:03}" for i in range(120)} == set(shown)
    if sort == "runs":
        assert [2] * 40 == [int(one[-3:]) % 3 for one in shown[:40]]


def test_pages_of_runs_show_each_run_once(place):
    """Also where many have ended at the same time, on the group's page and on that of all."""
    now = time.time()
    place.store().write(
        Batch([place.record(uuid=f"run-{i:03}", at=now - i // 60) for i in range(170)])
    )

    for path in ("/runs", "/groups/a-group", "/groups/a-group?status=failed"):
        pages = [_links(one, "/runs/") for one in _pages(client(place), path)]
        shown = [one for some in pages for one in some if one]
        listed = [one for one in shown if one.startswith("run-")]
        assert sorted(listed) == [f"run-{i:03}" for i in range(170)]


def test_a_search_looks_at_so_many_runs_and_then_further_back(place, monkeypatch):
    """What no index knows is found in steps, and each says how many were looked at."""
    monkeypatch.setattr("qtasks_pluggy.failures.web.browse.LOOK", 100)
    now = time.time()
    records = [place.record(KeyError(i), uuid=f"run-{i:03}", at=now - i) for i in range(250)]
    place.store().write(Batch(records))
    page = client(place)

    pages = list(_pages(page, "/runs?q=249"))

    assert [[], [], ["run-249"]] == [_links(one, "/runs/") for one in pages]
    assert "among 100 runs searched" in pages[0]
    assert None is _next(pages[-1])
    assert ["run-007"] == _links(_get(page, "/runs?q=run-007"), "/runs/")
    assert [] == _links(_get(page, "/runs?q=un-007"), "/runs/")


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        ("q=PRI", ["keys"]),
        ("q=valueerr", ["values"]),
        ("q=100%25", ["values"]),
        ("q=_", []),
        ("state=resolved", []),
        ("state=rubbish", ["keys", "values"]),
        ("status=recovered", ["keys"]),
        ("plugin=last-rate", ["keys"]),
    ],
)
def test_groups_are_found_by_task_error_message_state_end_and_plugin(place, asked, groups):
    """The case of letters does not matter, and no letter stands for others."""
    saved = {"status": "recovered", "decided_by": "last-rate"}
    place.store().write(
        Batch(
            [
                place.record(KeyError("a"), group="keys", **saved),
                place.record(ValueError("100% wrong"), group="values", task="mail"),
            ]
        )
    )

    assert groups == sorted(_links(_get(client(place), f"/?{asked}"), "/groups/"))


def test_the_id_of_a_run_leads_to_the_run(place):
    """Searching for all of it is going there."""
    place.store().write(Batch([place.record(uuid="u/1")]))

    assert "/runs/u%2F1" == client(place).get("/?q=u/1").headers["location"]


def test_a_run_shows_who_was_asked_and_who_won(place):
    """Each attempt has its error, the app's own frames first, and its trail."""
    trail = (_asked("mute", "no_opinion", None), _asked(won=True, seconds=0.0042))
    saved = {"status": "recovered", "decided_by": "last-rate", "decision": "Replace"}
    place.store().write(Batch([place.record(uuid="u", trail=trail, reason="stale", **saved)]))

    text = _get(client(place), "/runs/u")

    for one in (
        "mute",
        "no opinion",
        "qtasks-last-rate 1.2",
        "answered Replace",
        "4.2 ms",
        "stale",
    ):
        assert one in text
    assert 'class="pill won"' in text
    assert "KeyError: &#39;EUR&#39;" in text


def test_a_run_shows_for_how_long_it_was_put_off_and_why_not_again(place):
    """The delay of the retry that won; the limit that made another one no answer."""
    again = _asked("retry", kind="Retry", won=True)
    past = _asked("retry", "no_opinion", "Retry")
    place.store().write(
        Batch(
            [
                place.record(uuid="u", status="waiting", trail=(again,), delay=1.5),
                place.record(uuid="u", attempt=2, trail=(past,)),
            ]
        )
    )

    text = _get(client(place), "/runs/u")

    assert "answered Retry, after 1.5 s" in text
    assert "no opinion: Retry did not count, limit reached after 1 retry<" in text


def test_arguments_are_shown_to_those_who_ask(place):
    """Not before; and not at all where the app's settings hide them."""
    hidden = Encoder([], 1_000, hide=True).encode(("a-secret",), {})
    dropped = Arguments(None, "they are not kept")
    place.store().write(
        Batch(
            [
                place.record(uuid="kept", args=("a-secret",)),
                place.record(uuid="hidden", arguments=hidden),
                place.record(uuid="dropped", arguments=dropped),
            ]
        )
    )
    page = client(place)

    for uuid in ("kept", "hidden", "dropped"):
        assert "a-secret" not in _get(page, f"/runs/{uuid}")
        shown = "a-secret" in _get(page, f"/runs/{uuid}?arguments=shown")
        assert shown == (uuid == "kept")


def test_ten_thousand_attempts_are_read_fifty_at_a_time(place):
    """The newest come first, in order; each page leads to the one before."""
    store = place.store()
    for begin in range(1, 10_001, 1_000):
        many = [place.record(uuid="u", attempt=i) for i in range(begin, begin + 1_000)]
        store.write(Batch(many))
    page, path, shown = client(place), "/runs/u", []
    for _ in range(3):
        text = _get(page, path)
        shown = [int(one.replace(",", "")) for one in re.findall(r"<b>Attempt ([\d,]+)<", text)]
        assert 50 == len(shown)
        path = re.search(r'href="([^"]*)#attempts">Earlier', text)[1]

    assert list(range(9_851, 9_901)) == shown
    last = _get(page, "/runs/u?before=51")
    assert "Earlier attempts" not in last
    assert "Newest attempts" in last


def test_ten_megabytes_of_text_make_no_large_page(place):
    """Begin and end are shown; all of it is there as text."""
    long = "begin" + "x" * 10_000_000 + "THE END"
    place.store().write(Batch([place.record(uuid="u", told=tell(ValueError(long), 20_000_000))]))
    page = client(place)

    for path, most in (("/", 20_000), ("/runs", 20_000), ("/groups/a-group", 90_000)):
        assert len(_get(page, path)) < most
    text = _get(page, "/runs/u")
    assert len(text) < 90_000
    assert "THE END" in text
    answer = page.get("/runs/u/attempts/1")
    assert len(answer.text) > 10_000_000
    assert answer.headers["content-type"].startswith("text/plain")
    assert 404 == page.get("/runs/u/attempts/2").status_code


def test_plugins_show_what_they_decided_and_how_they_did(place):
    """Who recovered how many; how often each failed, and was cut off."""
    saved = {"status": "recovered", "decided_by": "last-rate"}
    failed = _asked("broken", "raised", "TypeError"), _asked("slow", "timed_out", None)
    idle = (_asked("idle", "filtered", None),)
    place.store().write(
        Batch(
            [
                place.record(trail=(*failed, _asked(won=True, seconds=0.002)), **saved),
                place.record(trail=(*failed, _asked(won=True, seconds=0.004)), **saved),
                place.record(at=time.time() - 200_000, trail=idle, **saved),
            ]
        )
    )
    decided, asked = (
        {row[0].split()[0]: row[1:] for row in _rows(table)}
        for table in re.findall(r"<tbody>(.*?)</tbody>", _get(client(place), "/plugins"), re.DOTALL)
    )

    assert {"last-rate": ["3", "3", "2"]} == {"last-rate": decided["last-rate"]}
    assert ["0", "0", "0"] == decided["broken"]
    assert ["2", "0", "0", "2", "0", "0"] == asked["broken"][:6]
    assert ["2", "0", "0", "0", "2", "0"] == asked["slow"][:6]
    assert ["0", "0", "0", "0", "0", "1", "never"] == asked["idle"]
    assert ["2", "2", "0", "0", "0", "0", "3.0 ms"] == asked["last-rate"]


def _rows(table):
    """Read a table's cells."""
    for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        yield [re.sub(r"<[^>]*>", "", one).strip() for one in cells]


def test_an_empty_store_says_what_to_do_next(place):
    """Where nothing is there yet, and where nothing was recorded."""
    page = client(place)
    assert "QTASKS_PLUGGY_ENABLE=failures" in _get(page, "/")
    place.store().write(Batch([]))
    assert "QTASKS_PLUGGY_ENABLE=failures" in _get(page, "/")


def test_a_store_that_goes_away_is_told_and_comes_back(place):
    """503 while it cannot be read, with why; the next request asks again."""
    place.store().write(Batch([place.record(uuid="u")]))
    page, kept = client(place), place.path.with_name("kept")
    assert "a-group" in _get(page, "/")

    for path in place.path.parent.glob("failures.db-*"):
        path.unlink()
    place.path.rename(kept)
    assert "does not exist" in _get(page, "/")
    for path in ("/runs", "/runs/u", "/groups/a-group", "/plugins", "/acts"):
        answer = page.get(path)
        assert (503, True) == (answer.status_code, "does not exist" in answer.text)
    assert not place.path.exists()
    place.path.write_text("no database")
    answer = page.get("/runs")
    assert (503, True) == (answer.status_code, "not an SQLite database" in answer.text)
    assert "Traceback" not in answer.text
    kept.replace(place.path)
    assert "a-group" in _get(page, "/")


def test_what_is_gone_is_told(place):
    """A run or a group that retention has deleted is 404, and says so; each page says it once."""
    place.store().write(Batch([place.record()]))
    elsewhere = client(place).get("/elsewhere")
    assert (404, 1) == (elsewhere.status_code, elsewhere.text.count("There is no such page."))
    assert 1 == len(re.findall(r"<h1>Not found</h1>", elsewhere.text))
    assert "<p><bdi>Not Found" not in elsewhere.text
    for path in ("/runs/gone", "/groups/gone", "/runs/gone/attempts/1"):
        answer = client(place).get(path)
        assert (404, True) == (answer.status_code, "retention may have deleted it" in answer.text)


@pytest.mark.parametrize("number", [f"{2**63}", "9" * 5_000, "x"])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/runs/u?before=", 400), ("/acts?after=", 400), ("/runs/u/attempts/", 404)],
)
def test_a_number_that_no_row_has_is_told(place, path, number, status):
    """Also one that no store could hold, and that Python does not read."""
    place.store().write(Batch([place.record(uuid="u")]))
    answer = client(place).get(f"{path}{number}")

    assert (status, True) == (answer.status_code, "<h1>" in answer.text)


def test_a_hundred_clients_at_once_are_answered(place):
    """Each gets its page while records are written."""
    place.store().write(Batch([place.record(uuid=f"u{i}") for i in range(200)]))
    page, is_over = client(place), threading.Event()

    def write():
        store = place.store()
        while not is_over.wait(0.01):
            store.write(Batch([place.record()]))
        store.close()

    def ask(number):
        return page.get(("/", "/runs", "/runs/u1", "/plugins")[number % 4]).status_code

    writer = threading.Thread(target=write)
    writer.start()
    with ThreadPoolExecutor(100) as pool:
        try:
            assert [200] * 100 == list(pool.map(ask, range(100)))
        finally:
            is_over.set()
            writer.join()
