"""The existing Celery project over RabbitMQ, with the plugin and without it."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.engines.conftest import guard, rabbitmq_url, redis_url, worker  # noqa: F401  # fixtures
from tests.engines.processes import wait_until
from tests.examples.conftest import EXAMPLES

pytestmark = pytest.mark.engines

PROJECT = EXAMPLES / "celery_project"


class Books:
    """Takes totals over HTTP, after it was away for the first one."""

    def __init__(self):
        self.totals = []
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self):
        books = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                books.asked += 1
                if books.asked > 1:
                    books.totals.append(json.loads(body)["total"])
                self.send_response(200 if books.asked > 1 else 503)
                self.end_headers()

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def start(worker, rabbitmq_url, redis_url, tmp_path):  # noqa: F811  # fixtures
    """Start the project's worker, with beat, and give it."""

    def start(**environment):
        return worker(
            *(sys.executable, "-m", "celery", "-A", "proj", "worker", "-l", "info", "-c", "2"),
            *("--beat", "--schedule", tmp_path / "beat"),
            cwd=PROJECT,
            env={
                "INVOICES_BROKER": rabbitmq_url,
                "INVOICES_RESULTS": redis_url,
                "INVOICES_QUEUE": f"invoices-{tmp_path.name}",
                "INVOICES_EVERY": "1",
                **environment,
            },
            ready="ready",
        )

    return start


def test_the_month_closes_with_the_plugin(start, site, monkeypatch):
    """Beat, chord, chains and autoretry work; the Sunday's rate is the plugin's answer."""
    monkeypatch.setenv("PYTHONPATH", str(site))

    with Books() as books:
        started = start(INVOICES_BOOKS=books.url)
        assert wait_until(lambda: len(books.totals) > 1, 60), started.log()

    out = started.log()
    assert {371.08} == set(books.totals)
    assert "worker_asks_plugins" in out
    assert "plugin='last-rate'" in out
    assert "handler='use_last_rate'" in out
    assert "Retry in 1s" in out
    assert "for the accountants" not in out


def test_the_month_stays_open_without_the_plugin(start):
    """The Sunday has no rate: the task's own error is reported, and nothing is sent."""
    with Books() as books:
        started = start(INVOICES_BOOKS=books.url)
        reported = "for the accountants: proj.tasks.eur_100 failed (KeyError)"
        assert wait_until(lambda: reported in started.log(), 60), started.log()

    assert [] == books.totals
