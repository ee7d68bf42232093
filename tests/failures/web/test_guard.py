"""Who may come in: hosts, tokens, visitors, other sites' forms; the headers of every answer."""

from __future__ import annotations

import base64

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch
from qtasks_pluggy.failures.web import Visitor, failures_page
from tests.failures.web.sites import SAME_SITE, TOKEN, client

PAGES = ["/", "/runs", "/plugins", "/acts", "/groups/a-group", "/runs/u", "/runs/u/attempts/1"]
ACTS = ["/groups/a-group/resolve", "/groups/a-group/replay", "/runs/u/replay/send"]


@pytest.fixture
def filled(place):
    """One failed run."""
    place.store().write(Batch([place.record(uuid="u")]))
    return place


def _basic(user, password):
    both = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {both}"}


def _state(place):
    (group,) = place.reader().groups(Filters())
    return group.state


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        *((200, "GET", path, {}) for path in [*PAGES, "/style.css", "/icon.svg"]),
        *((200, "HEAD", path, {}) for path in PAGES),
        (404, "GET", "/runs/nobody", {}),
        (404, "GET", "/groups/nobody", {}),
        (404, "GET", "/elsewhere", {}),
        (400, "GET", "/?after=rubbish", {}),
        (400, "GET", "/runs?after=inf~x", {}),
        *((405, "GET", path, {}) for path in ACTS if not path.endswith("/replay")),
        (405, "OPTIONS", "/", {}),
        (405, "BREW", "/", {}),
        (405, "DELETE", "/runs/u", {}),
        (421, "GET", "/", {"Host": "example.com"}),
        (403, "POST", ACTS[0], {"Sec-Fetch-Site": "cross-site"}),
        (303, "POST", ACTS[0], {}),
        (409, "POST", ACTS[2], {}),
    ],
)
def test_every_answer_has_the_headers_of_a_page_without_scripts(
    filled, status, method, path, headers
):
    """Whatever is answered: no script, no frame, no guess of types, no copy in a cache."""
    answer = client(filled).request(method, path, headers={**SAME_SITE, **headers})

    policy = answer.headers["content-security-policy"]
    assert status == answer.status_code
    assert "script-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert ("nosniff", "no-store", "same-origin") == tuple(
        answer.headers[name]
        for name in ("x-content-type-options", "cache-control", "referrer-policy")
    )
    assert method != "HEAD" or answer.content == b""


def test_a_method_that_an_address_does_not_take_is_told_which_it_takes(filled):
    """405 comes with Allow; a form's address takes POST alone."""
    for method in ("GET", "HEAD", "PUT"):
        assert "POST" == client(filled).request(method, ACTS[0]).headers["allow"]
    assert "open" == _state(filled)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8642", "127.0.0.1:1", "[::1]:8642"])
def test_this_machines_names_are_answered(filled, host):
    """Loopback has several names."""
    assert 200 == client(filled).get("/", headers={"Host": host}).status_code


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "127.0.0.1.example.com",
        "localhost.",
        "a@localhost",
        "192.168.1.9",
        "",
        "[::1",
    ],
)
def test_a_foreign_host_is_misdirected(filled, host):
    """A name that somebody else's DNS has for this machine is 421."""
    assert 421 == client(filled).get("/", headers={"Host": host}).status_code


def test_other_names_are_answered_where_they_are_given(filled):
    """``hosts=`` names what the page is called elsewhere; loopback stays."""
    page = client(filled, hosts=["Failures.example.com"])

    for status, host in ((200, "failures.example.com"), (200, "localhost"), (421, "example.com")):
        assert status == page.get("/", headers={"Host": host}).status_code


@pytest.mark.parametrize(
    ("status", "peer", "headers"),
    [
        *((200, (host, 50_000), {}) for host in ("127.0.0.1", "127.9.9.9", "::1")),
        (200, ("::ffff:127.0.0.1", 50_000), {}),
        (200, ("testclient", 50_000), {}),
        *((403, (host, 50_000), {}) for host in ("192.168.1.9", "::ffff:10.0.0.1", "fe80::1%lo")),
        *((403, (host, 50_000), {}) for host in ("0.0.0.0", "", "example.com")),  # noqa: S104  # a peer
        (403, None, {}),
        *(
            (403, ("127.0.0.1", 50_000), {name: "127.0.0.1"})
            for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
        ),
    ],
)
def test_without_a_token_only_this_machine_comes_in(filled, status, peer, headers):
    """Whatever it calls the page: its address counts, and a proxy's is not that of who asks."""
    page = client(filled, peer=peer)
    for method, path in (("GET", "/"), ("GET", "/runs/u?arguments=shown"), ("POST", ACTS[0])):
        answer = page.request(method, path, headers=headers)
        assert (status == 403) == (answer.status_code == 403)
        assert (status == 403) == (TOKEN in answer.text)
    assert ("open" if status == 403 else "resolved") == _state(filled)


@pytest.mark.parametrize("peer", [("192.168.1.9", 50_000), None])
def test_who_knows_the_token_comes_in_from_anywhere(filled, peer):
    """So does whom ``authorize`` knows: only where there is neither, the address counts."""
    headers = {"X-Forwarded-For": "192.168.1.9", **_basic("ada", "s3cret")}
    for options in ({"token": "s3cret"}, {"authorize": _reader}):
        page = client(filled, peer=peer, **options)
        assert 200 == page.get("/", headers=headers).status_code


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (303, {"Sec-Fetch-Site": "same-origin"}),
        (403, {"Sec-Fetch-Site": "cross-site"}),
        (403, {"Sec-Fetch-Site": "same-site"}),
        (403, {"Sec-Fetch-Site": "none"}),
        (403, {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}),
        (303, {"Origin": "http://localhost"}),
        (403, {"Origin": "http://localhost:81"}),
        (403, {"Origin": "http://example.com"}),
        (403, {"Origin": "null"}),
        (303, {}),
    ],
)
def test_a_form_of_another_site_does_nothing(filled, status, headers):
    """Sec-Fetch-Site decides, else Origin; what has neither is no browser."""
    answer = client(filled).post(ACTS[0], headers=headers)

    assert status == answer.status_code
    assert ("resolved" if status == 303 else "open") == _state(filled)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, _basic("anybody", "s3cret ü")),
        (200, _basic("", "s3cret ü")),
        (401, {}),
        (401, _basic("anybody", "s3cret")),
        (401, _basic("anybody", "s3cret ü!")),
        (401, _basic("s3cret ü", "")),
        (401, {"Authorization": "Basic !!!"}),
        (401, {"Authorization": "Basic /w=="}),
        (401, {"Authorization": "Bearer s3cret"}),
    ],
)
def test_a_token_is_asked_for_as_password(filled, monkeypatch, status, headers):
    """HTTP Basic with any user name; every address asks, the style sheet too."""
    monkeypatch.setenv(TOKEN, "s3cret ü")

    page = client(filled)
    for path in ("/", "/runs/u", "/style.css"):
        answer = page.get(path, headers=headers)
        assert status == answer.status_code
        assert (status == 401) == ("www-authenticate" in answer.headers)


def test_who_gave_the_token_is_who_acted(filled, monkeypatch):
    """The user name is listed with the act."""
    monkeypatch.setenv(TOKEN, "s3cret")
    client(filled).post(ACTS[0], headers=_basic("ada", "s3cret"))

    assert ["ada"] == [act.who for act in filled.reader().acts(10)]


def _reader(request):
    return Visitor("grace")


async def _actor(request):
    return Visitor(request.headers.get("x-user", ""), may_act=True)


def test_the_app_around_it_says_who_may_look_and_who_may_act(filled):
    """``authorize`` gives a Visitor or nobody, plainly or as a coroutine."""
    for authorize, looks, acts in (
        (lambda request: None, 403, 403),
        (_reader, 200, 403),
        (_actor, 200, 303),
    ):
        page = client(filled, "example.com", authorize=authorize)
        assert looks == page.get("/").status_code
        assert acts == page.post(ACTS[0], headers={"X-User": "ada"}).status_code
    assert ["ada"] == [act.who for act in filled.reader().acts(10)]


@pytest.mark.parametrize("wrong", [True, "ada", ("ada", True)])
def test_what_is_no_visitor_lets_nobody_in(filled, wrong):
    """A truthy answer is no answer: it is an error, and says what to return."""
    page = failures_page(f"sqlite:///{filled.path}", authorize=lambda request: wrong)

    with pytest.raises(TypeError, match="return a Visitor"):
        TestClient(page).get("/")
    with pytest.raises(TypeError):
        Visitor("ada", may_act="no")


def test_read_only_lets_nobody_act(filled):
    """No form is shown, and none is taken."""
    page = client(filled, read_only=True)

    for path in PAGES:
        assert 'method="post"' not in page.get(path).text
    for path in ACTS:
        assert 403 == page.post(path, headers=SAME_SITE).status_code
    assert "open" == _state(filled)


def test_there_are_no_websockets(filled):
    """One that is tried is closed."""
    with pytest.raises(WebSocketDisconnect), client(filled).websocket_connect("/"):
        pass
