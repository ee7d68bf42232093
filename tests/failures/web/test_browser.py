"""The page in a real browser: clicked through without a script, looked at, and attacked.

Chromium is Debian's; ``PAGE_PICTURES`` names the folder that pictures stay in.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import uvicorn

from qtasks_pluggy import Retry
from qtasks_pluggy.failures.errors import tell
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.store import Batch
from qtasks_pluggy.failures.web import failures_page
from tests.failures.web.sites import Shop

pytestmark = pytest.mark.page

WIDTHS = {"phone": 380, "wide": 1600}
SCHEMES = ("light", "dark")
STICKS_OUT = """
    document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll("main *")]
        .filter(one => one.getBoundingClientRect().right > innerWidth)
        .map(one => one.outerHTML.slice(0, 100))
"""


@pytest.fixture(scope="module")
def chromium():
    """Start Debian's browser once."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("needs Debian's chromium: apt install chromium")
    # Root's browser has no sandbox.
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=words)
        yield browser
        browser.close()


@pytest.fixture
def pictures(tmp_path):
    """Give the folder that pictures go to."""
    folder = Path(os.environ.get("PAGE_PICTURES") or tmp_path)
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _served(app):
    """Serve an ASGI app from a thread; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


class Rates(dict):
    """Rates of which the rouble's is no number."""

    def __getitem__(self, key):
        if key == "RUB":
            msg = "could not convert 'N/A' to a number"
            raise ValueError(msg)
        return super().__getitem__(key)


@pytest.fixture
def served(place):
    """Give a shop some of whose runs have failed, and the address of its page."""
    with Shop(place) as shop:
        shop.rates = Rates()

        @shop.app.on_error(ValueError)
        def last_published_rate(run):
            return 0.0098 if run.args[1:] != (7,) else None

        @shop.app.on_error(KeyError)
        def try_once_more(run):
            return Retry(delay=0, limit=1)

        for number in range(6):
            shop.fail("RUB", number)
        shop.fail("RUB", 7)
        shop.fail("EUR", 5)
        with _served(failures_page(f"sqlite:///{place.path}", app=shop.app)) as address:
            yield shop, address


def _group(shop, error):
    (found,) = shop.place.reader().groups(Filters(error=error))
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_a_failure_is_found_understood_mended_and_resolved(chromium, served, pictures, width):
    """From the list to a replay that succeeds, resolved, regressed; by clicks alone, no script."""
    shop, address = served
    size = {"width": WIDTHS[width], "height": 900}
    context = chromium.new_context(viewport=size, java_script_enabled=False)
    page = context.new_page()

    def picture(name):
        page.screenshot(path=pictures / f"{name}-{width}.png", full_page=True)

    page.goto(address)
    picture("groups")
    page.get_by_role("link", name="ValueError").click()
    page.get_by_role("row", name="last_published_rate").get_by_text("recovered").wait_for()
    picture("group")
    page.get_by_role("navigation", name="Runs by how").get_by_role("link", name="recovered").click()
    page.locator(".runs a.title").first.click()
    won = page.locator("tr.won")
    assert "last_published_rate" in won.inner_text()
    assert "answered value" in won.inner_text()
    picture("run-recovered")

    page.get_by_label("Search task, error, message or run id").fill("EUR")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="KeyError").click()
    page.locator(".runs a.title").click()
    page.get_by_role("link", name="Show arguments").click()
    assert '"EUR"' in page.locator("dl.values").inner_text()
    assert 2 == page.locator("details.attempt").count()
    picture("run")
    page.get_by_role("link", name="Edit and replay").click()
    picture("edit")
    page.get_by_label("Positional arguments").fill('[\n  "USD",\n  5\n]')
    page.get_by_role("button", name="Compare").click()
    row = page.get_by_role("row", name=re.compile(r"args\[0\]"))
    assert ['"EUR"', '"USD"'] == [one.strip() for one in row.locator("td").all_inner_texts()]
    picture("review")
    shop.rates["USD"] = 2.0
    page.get_by_role("button", name="Replay it now").click()
    assert "The replay was sent, and succeeded." == page.get_by_role("status").inner_text()
    assert ("USD", 5) == shop.asked[-1]
    picture("run-replayed")

    _resolve_and_regress(page, picture, served)
    context.close()


def _resolve_and_regress(page, picture, served):
    """Go on from the replayed run."""
    shop, address = served
    page.get_by_role("navigation", name="Where you are").locator("a.id").click()
    page.get_by_role("button", name="Resolve").click()
    assert "is resolved" in page.get_by_role("status").inner_text()
    shop.fail("EUR", 6)
    page.goto(address)
    assert 1 == page.locator("li.regressed").count()
    picture("groups-regressed")
    for name in ("runs", "plugins", "acts"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        picture(name)
    assert "resolve" in page.locator("table").inner_text()
    page.goto(f"{address}groups/{_group(shop, 'KeyError').id}/replay")
    picture("replay-group")


def _paths(shop):
    key, value = _group(shop, "KeyError"), _group(shop, "ValueError")
    runs = shop.place.reader().runs(Filters(group=key.id))
    uuid = runs[0].uuid
    yield from ("", "?q=nothing-like-it", "runs", "plugins", "acts", "runs/gone")
    yield from (f"groups/{key.id}", f"groups/{value.id}", f"groups/{key.id}/replay")
    yield from (f"runs/{uuid}?arguments=shown", f"runs/{uuid}/replay")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_everybody_can_use_it(chromium, served, pictures, width, scheme):
    """axe-core finds nothing on any page: contrast, labels, landmarks, order of headings."""
    from axe_playwright_python.sync_playwright import Axe

    shop, address = served
    size = {"width": WIDTHS[width], "height": 900}
    context = chromium.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    told = []
    page.on("console", lambda message: told.append(message.text))
    shop.client.post(f"/groups/{_group(shop, 'ValueError').id}/ignore")
    for path in _paths(shop):
        page.goto(address + path)
        found = Axe().run(page).response["violations"]
        assert [] == [(one["id"], [node["html"] for node in one["nodes"]]) for one in found], path
        assert [] == page.evaluate(STICKS_OUT), path
        name = re.sub(r"\W.*", "", path) or "groups"
        page.screenshot(path=pictures / f"{name}-{width}-{scheme}.png", full_page=True)
    assert [] == [one for one in told if "404" not in one]
    context.close()


def test_the_keyboard_is_enough(chromium, served):
    """The first stop skips to the content; each stop is seen; Enter follows and opens."""
    _, address = served
    page = chromium.new_page()
    page.goto(address)
    page.keyboard.press("Tab")
    assert "Skip to the content" == page.locator(":focus").inner_text()
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        box = focused.bounding_box()
        assert box["width"] > 0
        if "title" in (focused.get_attribute("class") or ""):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/groups/*")
    page.close()


@contextmanager
def _other_site(body):
    """Serve one page from another site."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_another_site_can_neither_act_nor_frame_it(chromium, served):
    """Its form is refused by the page, its frame by the browser."""
    shop, address = served
    group = _group(shop, "KeyError")
    page, told = chromium.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    body = f"""<form method="post" action="{address}groups/{group.id}/resolve"><button>Win</button>
        </form><iframe src="{address}"></iframe>"""
    with _other_site(body) as other:
        page.goto(other)
        assert any("frame-ancestors" in one for one in told)
        with page.expect_navigation() as answer:
            page.get_by_role("button", name="Win").click()
        assert 403 == answer.value.status
    assert "open" == _group(shop, "KeyError").state
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_whatever_is_recorded_keeps_its_place(chromium, place, pictures, width):
    """Long names, 300 groups, ten megabytes and right-to-left texts: nothing sticks out."""
    long = "x" * 300
    records = [
        place.record(KeyError(i), task=f"shop.tasks.number_{i}", group=f"group-{i:03}")
        for i in range(300)
    ]
    texts = ["שלום עולם: המחיר לא נמצא", "السعر غير موجود", long * 40_000, "a\nb\n" * 50]
    for number, text in enumerate(texts):
        told = tell(RuntimeError(text), 20_000_000)
        values = {"uuid": f"u{number}", "task": f"{long}.{number}", "queue": long, "engine": long}
        records.append(
            place.record(**values, told=told, group=f"odd-{number}", args=(text[:9_000],), app=long)
        )
    place.store().write(Batch(records))
    with _served(failures_page(f"sqlite:///{place.path}")) as address:
        page = chromium.new_page(viewport={"width": WIDTHS[width], "height": 900})
        paths = ["", "runs", *(f"groups/odd-{one}" for one in range(4))]
        paths += [f"runs/u{one}?arguments=shown" for one in range(4)]
        for path in paths:
            page.goto(address + path)
            name = re.sub(r"\W", "-", path.partition("?")[0]) or "groups"
            page.screenshot(path=pictures / f"odd-{name}-{width}.png")
            assert [] == page.evaluate(STICKS_OUT), path
        page.close()


def test_it_is_mounted_beside_routes_of_an_app(chromium, served):
    """FastAPI keeps its own; the page's links, forms and sheet stay below its place."""
    from fastapi import FastAPI

    shop, _ = served
    outer = FastAPI()

    @outer.get("/rates")
    def rates() -> dict[str, float]:
        return {"USD": 1.05}

    outer.mount("/ops/failures", failures_page(f"sqlite:///{shop.place.path}", app=shop.app))
    with _served(outer) as address:
        page = chromium.new_page()
        page.goto(f"{address}rates")
        assert '{"USD":1.05}' in page.content()
        page.goto(f"{address}ops/failures/")
        assert "rgb(247, 247, 249)" == page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        page.get_by_role("link", name="KeyError").click()
        page.get_by_role("button", name="Ignore").click()
        assert "/ops/failures/groups/" in page.url
        assert "is ignored" in page.get_by_role("status").inner_text()
        for name in ("Groups", "Runs", "Plugins", "Acts"):
            page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
            assert f"{address}ops/failures/" in page.url
            assert 1 == page.locator("h1").count()
        page.close()
