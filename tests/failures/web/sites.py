"""A page, and who asks it; an app whose tasks fail until they are mended."""

from __future__ import annotations

import re
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any

from starlette.testclient import TestClient

from qtasks_pluggy import QueueTasks
from qtasks_pluggy.failures.records import Filters
from qtasks_pluggy.failures.web import failures_page
from tests.failures.places import Place

SAME_SITE = {"Sec-Fetch-Site": "same-origin"}
TOKEN = "QTASKS_PLUGGY_PLUGIN_FAILURES_TOKEN"  # noqa: S105  # the variable's name


def client(
    place: Place,
    host: str = "localhost",
    peer: tuple[str, int] | None = ("127.0.0.1", 50_000),
    **options: Any,
) -> TestClient:
    """Ask a page over a place's store; what it raises reaches the test."""
    page = failures_page(place.url.render_as_string(hide_password=False), **options)

    async def served(scope: Any, receive: Any, send: Any) -> None:
        await page({**scope, "client": peer}, receive, send)

    return TestClient(served, base_url=f"http://{host}", follow_redirects=False)


class Shop:
    """An app that records what fails, and its page."""

    def __init__(self, place: Place) -> None:
        self.place = place
        section = {"url": place.url.render_as_string(hide_password=False)}
        settings = {"enable": ["failures"], "plugin": {"failures": section}}
        self.app = QueueTasks("shop", discover=False, settings=settings)
        self.rates: dict[str, float] = {}
        self.asked: list[tuple[Any, ...]] = []

        @self.app.task
        def price(currency: str, amount: int = 100, password: str = "") -> float:
            self.asked.append((currency, amount))
            return self.rates[currency] * amount

        self.price = price

    def __enter__(self):
        self.app.__enter__()
        self.client = client(self.place, app=self.app)
        return self

    def __exit__(self, *error: object) -> None:
        self.app.__exit__(*error)

    def fail(self, *args: Any, **kwargs: Any) -> str:
        """Have a run fail; return its id once it is recorded."""
        before = self._recorded()
        with suppress(Exception):
            self.price(*args, **kwargs)
        # Written at once, as at a stop.
        recorder = self.app.plugins.get_plugin("failures")._recorder
        recorder.close()
        (uuid,) = self._recorded() - before
        return uuid

    def _recorded(self) -> set[str]:
        if not self.place.path.exists():
            return set()
        return {row.uuid for row in self.place.reader().runs(Filters(limit=None))}

    def get(self, path: str, **options: Any) -> str:
        """Return a page's text; it has to be there."""
        answer = self.client.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **form: Any) -> Any:
        """Send a form, as a browser does from this page: each line ends with CRLF."""
        sent = {name: re.sub("\r\n?|\n", "\r\n", value) for name, value in form.items()}
        return self.client.post(path, data=sent, headers=SAME_SITE)


class Forms(HTMLParser):
    """The forms of a page: where each goes, and what its hidden fields and text areas hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}
        self._fields: dict[str, str] = {}
        self._area: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down a form, or a field of the one before."""
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._fields = self.found[given["action"]] = {}
        elif tag == "input" and given.get("type") == "hidden":
            self._fields[given["name"]] = given["value"]
        elif tag == "textarea":
            self._area = given["name"]
            self._fields[self._area] = ""

    def handle_data(self, data: str) -> None:
        """Take down what stands in a text area."""
        if self._area is not None:
            self._fields[self._area] += data

    def handle_endtag(self, tag: str) -> None:
        """End a text area; a line end at its begin is not of its text."""
        if tag == "textarea" and self._area is not None:
            self._fields[self._area] = self._fields[self._area].removeprefix("\n")
            self._area = None
