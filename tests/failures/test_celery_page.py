"""The page for existing Celery apps: its files, its commands and what they print, over RabbitMQ."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import time
from importlib.metadata import metadata
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.engines.conftest import guard, project, rabbitmq_url, worker  # noqa: F401  # fixtures

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("patient")]

LONG = 60
SOON = 20
PAGE = Path(__file__).parents[2] / "docs/how-to/celery-failures.md"
BROKER = '"amqp://localhost"'
# What is another at each time: ids, times, seconds, and where the reader's folder is.
DIFFERS = r"\b[0-9a-f]{16}\b|\b[0-9a-f]{8}-\.\.\.|\d{4}-\d\d-\d\d[ T][\d:.]+\S*|\b\d\.\d{3}\b"


def _blocks(language: str) -> list[str]:
    text = PAGE.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands(block: str) -> list[tuple[str, str]]:
    """Find the commands of a block, each with what it prints."""
    found = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(one.partition("\n")[0], one.partition("\n")[2]) for one in found]


class Reader:
    """Somebody who has two terminals, and does what the page says.

    Args:
        folder: The folder with the Celery app.
        state: Where programs keep what this user has.
        broker: The URL of the broker.
        start: Starts a worker.
    """

    def __init__(self, folder, state, broker, start):
        self.folder, self._start = folder, start
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._env = {"PATH": path, "XDG_STATE_HOME": str(state)}
        # The broker is shared with other tests.
        self._queue = f"page-{uuid4().hex[:8]}"
        options = {"task_default_queue": self._queue, "control_exchange": self._queue}
        self._broker = f"{broker!r}, changes={options}"
        self._worker = None
        self._ids = {}

    def write(self, name, text):
        """Write a file; where the page has its own broker, ours is."""
        assert name != "shop.py" or text.count(BROKER) == 1
        (self.folder / name).write_text(text.replace(BROKER, self._broker), "utf-8")

    def change(self, old, new):
        """Change a line of the app."""
        path = self.folder / "shop.py"
        line = re.compile(rf"^ *{re.escape(old)}.*\n", re.MULTILINE)
        text, number = line.subn(lambda _: new, path.read_text("utf-8"))
        assert number == 1
        path.write_text(text, "utf-8")

    def enter(self, command, expected):
        """Enter a command, and read what it prints; a worker stays in the other terminal."""
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self._env[name] = value
        elif " worker " in command:
            self.close()
            words = command.split()
            self._worker = self._start(*words, cwd=self.folder, env=self._env, ready="ready.")
        else:
            self._run(command, expected)

    def close(self):
        """Stop the worker."""
        if self._worker is not None:
            self._worker.terminate()

    def _run(self, command, expected):
        for short, whole in self._ids.items():
            command = command.replace(short, whole)
        expected = expected.replace("queue:      celery", f"queue: {self._queue}")
        done = self._once(command)
        if command.startswith("qtasks-pluggy failures groups"):
            # A reader is slower than the worker; a test may not be.
            end = time.monotonic() + SOON
            while not _agree(expected, done.stdout) and time.monotonic() < end:
                done = self._once(command)
        assert done.returncode == 0, done.stderr
        if expected:
            assert _agree(expected, done.stdout), f"{command}\n{done.stdout}\n{done.stderr}"
        if short := re.fullmatch(r"[0-9a-f]{8}-\.\.\.", expected.strip()):
            self._ids[short[0]] = str(UUID(done.stdout.strip()))

    def _once(self, command):
        env = os.environ | self._env
        return subprocess.run(
            ["/bin/sh", "-c", command],
            check=False,
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=LONG,
        )


def _agree(expected, printed):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(re.sub(DIFFERS, "...", expected), printed, flags)


@pytest.fixture
def reader(project, worker, rabbitmq_url, tmp_path, monkeypatch):  # noqa: F811  # fixtures
    """Give somebody whose own settings are none."""
    for name in [one for one in os.environ if one.startswith("QTASKS_PLUGGY_")]:
        monkeypatch.delenv(name)
    return Reader(project({}), tmp_path / "state", rabbitmq_url, worker)


def test_each_command_of_the_page_does_what_it_says(reader):
    """From the install to no failure left: the commands, in order, print what the page has."""
    shop, policy, install, mended = _blocks("py")
    (pip,), *later = [_commands(block) for block in _blocks("console")]
    extras = re.search(r"qtasks-pluggy\[([\w,]+)\]", pip[0])[1].split(",")
    assert set(extras) <= set(metadata("qtasks-pluggy").get_all("Provides-Extra"))

    reader.write("shop.py", shop)
    for block in later:
        if "--dry-run" in block[0][0]:
            reader.write("shop_policy.py", policy)
            reader.change("install(app)", install)
        for command, expected in block:
            reader.enter(command, expected)
        if "--dry-run" in block[0][0]:
            reader.change("return amount * RATES", mended)
    reader.close()
