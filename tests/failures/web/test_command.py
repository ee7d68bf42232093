"""``failures web``: a process of its own, until Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from qtasks_pluggy.cli._command import command
from qtasks_pluggy.failures.store import Batch
from tests.failures.web.sites import TOKEN

APP = """
import time
from qtasks_pluggy import QueueTasks
app = QueueTasks("shop", settings={"enable": ["failures"],
    "plugin": {"failures": {"url": URL}}}, discover=False)
@app.task
def price(currency):
    print("begun", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def filled(place):
    """One failed run."""
    place.store().write(Batch([place.record(uuid="u", args=("EUR",))]))
    return place


@contextmanager
def _served(place, *words, cwd, **environment):
    """Serve the page; give the process and its address."""
    url = [] if "--app" in words else ["--url", f"sqlite:///{place.path}"]
    line = [sys.executable, "-m", "qtasks_pluggy.cli", "failures", "web", "--port", "0"]
    given = {key: value for key, value in os.environ.items() if not key.startswith("QTASKS_")}
    process = subprocess.Popen(
        [*line, *url, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**given, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    with process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def _open(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:  # noqa: S310  # our own
        return answer.read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_when_told(filled, tmp_path, number):
    """--port 0 takes a free port; Ctrl-C and SIGTERM end it with code 0, and without a word."""
    with _served(filled, cwd=tmp_path) as (process, line):
        address = re.fullmatch(r"(http:/{2}127[.]0[.]0[.]1:\d+/)\n", line)[1]
        assert "a-group" in _open(address)
        begin = time.monotonic()
        process.send_signal(number)
        _, told = process.communicate(timeout=30)

    assert 0 == process.returncode
    assert time.monotonic() - begin < 10
    assert "This page cannot replay runs: it was started without --app.\n" == told


def test_a_client_that_stays_and_a_replay_that_goes_on_do_not_keep_it(filled, tmp_path):
    """Ctrl-C ends it within ten seconds, though a task of a replay sleeps for minutes."""
    (tmp_path / "shop.py").write_text(APP.replace("URL", repr(f"sqlite:///{filled.path}")))
    with _served(filled, "--app", "shop", cwd=tmp_path) as (process, line):
        address = line.strip()
        form = b"seen="
        sending = urllib.request.Request(f"{address}runs/u/replay/send", data=form)  # noqa: S310  # our own
        with urllib.request.urlopen(sending) as answer:  # noqa: S310  # our own
            assert "The replay has begun" in answer.read().decode()
        assert "begun\n" == process.stdout.readline()
        host, port = re.search(r"//(.*):(\d+)/", address).groups()
        with socket.create_connection((host, int(port))) as waiting:
            waiting.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert 0 == process.returncode


def test_an_address_for_others_needs_a_token(filled, tmp_path):
    """Without one it does not begin; with one it asks for it."""
    url = f"sqlite:///{filled.path}"
    ended = CliRunner(env={TOKEN: None}).invoke(
        command,
        ["failures", "web", "--host", "0.0.0.0", "--port", "0", "--url", url],  # noqa: S104  # refused
    )
    assert (2, True) == (ended.exit_code, TOKEN in ended.output)

    named = {TOKEN: "12345"}  # digits, which settings read as a number
    with _served(filled, "--host", "0.0.0.0", cwd=tmp_path, **named) as (_, line):  # noqa: S104  # asked for
        address = line.strip().replace("0.0.0.0", "127.0.0.1")  # noqa: S104  # as above
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _open(address)
        assert "a-group" in _open(address, Authorization="Basic YWRhOjEyMzQ1")


def test_a_token_is_a_setting_that_apps_take(filled, tmp_path):
    """The variable does not keep an app with failures from starting, and no report shows it."""
    (tmp_path / "shop.py").write_text(APP.replace("URL", repr(f"sqlite:///{filled.path}")))
    told = {TOKEN: "hush-hush", "QTASKS_PLUGGY_ENABLE": "failures"}
    line = [sys.executable, "-m", "qtasks_pluggy.cli", "doctor", "shop"]
    ended = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, **told}, capture_output=True, text=True, check=False
    )

    assert 0 == ended.returncode, ended.stdout
    assert "hush-hush" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "--port"),
        (["--host", "no-such-host.invalid", "--port", "0"], "no-such-host.invalid"),
        (["--url", "sqlit:///x.db"], "did you mean 'sqlite'?"),
        (["--app", "nothing:app"], "there is no module 'nothing'"),
    ],
)
def test_what_is_wrong_is_named_with_code_2(words, told):
    """It does not begin, and says why in one sentence."""
    ended = CliRunner(env={TOKEN: "x"}).invoke(command, ["failures", "web", *words])

    assert (2, True) == (ended.exit_code, told in ended.output), ended.output
    assert "Traceback" not in ended.output


def test_a_port_that_is_taken_is_named(filled):
    """Another program has it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        url = f"sqlite:///{filled.path}"
        ended = CliRunner().invoke(command, ["failures", "web", "--port", port, "--url", url])
    assert (2, True) == (ended.exit_code, f"port {port}" in ended.output)
