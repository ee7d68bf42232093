"""The FastAPI example: uvicorn with two processes, and Huey's own command, share one file."""

from __future__ import annotations

import sys

import pytest

from tests.engines.conftest import guard, worker  # noqa: F401  # fixtures
from tests.engines.processes import wait_until
from tests.engines.servers import free_port
from tests.examples.conftest import EXAMPLES

pytestmark = pytest.mark.engines
httpx = pytest.importorskip("httpx", reason="of the engines' group")


@pytest.fixture
def service(worker, tmp_path):  # noqa: F811  # fixtures
    """Start the service and who does its runs; give its URL and the two processes."""
    queue = {"SHOP_QUEUE": f"huey+sqlite:///{tmp_path / 'shop.db'}"}
    port = free_port()
    server = worker(
        *(sys.executable, "-m", "uvicorn", "fastapi_app:api"),
        *("--workers", "2", "--port", str(port)),
        cwd=EXAMPLES,
        env=queue,
    )
    consumer = worker(
        *(sys.executable, "-m", "huey.bin.huey_consumer", "fastapi_app.huey", "--delay", "0.05"),
        cwd=EXAMPLES,
        env=queue,
        ready="Huey consumer started",
    )
    server.wait_ready(lambda: server.log().count("Application startup complete") == 2, 60)
    return f"http://127.0.0.1:{port}", server, consumer


def ask_until_done(url):
    """Poll, each time on a connection of its own, until the run has ended."""
    answers = []

    def is_done():
        answers.append(httpx.get(url).raise_for_status().json())
        return answers[-1]["status"] == "done"

    assert wait_until(is_done, 30), answers
    return answers[-1]


def test_the_service_answers_and_ends_in_order(service):
    """In place, by the id of a run from either process, and nothing is left after a signal."""
    url, server, consumer = service
    headers = {"X-Request-Id": "r-7"}

    # A task runs in place, and its error is decided.
    assert {"price": 3.5} == httpx.get(f"{url}/prices/tea").json()
    assert {"price": 0.0} == httpx.get(f"{url}/prices/milk").json()
    assert "no price for milk, request none" in server.log()

    # The id finds the result in both processes, as often as it is asked for.
    good = httpx.post(f"{url}/orders/coffee").json()["id"]
    free = httpx.post(f"{url}/orders/milk", headers=headers).json()["id"]
    assert {"status": "done", "price": 4.25} == ask_until_done(f"{url}/orders/{good}")
    assert {"status": "done", "price": 0.0} == ask_until_done(f"{url}/orders/{free}")
    again = [httpx.get(f"{url}/orders/{good}").json() for _ in range(10)]
    assert [{"status": "done", "price": 4.25}] * 10 == again
    assert "no price for milk, request r-7" in consumer.log()

    # Plugins are stopped, too.
    assert 0 == server.terminate()
    assert 0 == consumer.terminate()
    assert 2 == server.log().count("Application shutdown complete")
    assert [] == [*server.members(), *consumer.members()]
